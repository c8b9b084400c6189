"""The audit finds held-out texts in training tasks: made up, in a store's texts, and MMLU inside NIV2 for real."""

import itertools
import json

import numpy as np
import pytest

from flanx.cli.main import main
from flanx.data import contamination, vocabulary
from flanx.data.store import assemble
from flanx.data.task import render, tables

TEXT = "the quick brown fox jumps over the lazy dog and then runs far away into deep woods"


def test_words_are_compared_without_case_marks_and_option_letters():
    assert contamination.words("What size? (A)18 gauge. (B) 20 gauge") == contamination.words(
        "what SIZE 18 gauge, 20 gauge"
    )
    assert contamination.words("问 题 a") == ("问", "题")


HELD = tables.load_tables()["mmlu_anatomy"]


def test_shared_runs_and_whole_texts_are_told_apart():
    index = contamination.Index()
    index.add(HELD, [[TEXT], ["one two three four five six seven eight nine"], ["too short to mean much"]])
    assert index.items == [3]
    assert index.find([f"Before it: {TEXT.upper()}!"]) == ({(0, 1)}, {(0, 1)})
    assert index.find([f"Before it: {TEXT.removesuffix(' woods')}!"]) == (set(), {(0, 1)})
    assert index.find(["Say: One two, three four five six seven eight nine. So?"]) == ({(0, 2)}, set())
    assert index.find(["One two, three four five six seven eight"]) == (set(), set())
    assert index.find(["too short to mean much"]) == (set(), set())
    assert index.find([TEXT.replace("lazy", "old").replace("quick", "slow")]) == (set(), set())


def test_suites_count_an_item_once_however_often_it_is_found():
    index = contamination.Index()
    index.add(HELD, [[TEXT], ["one two three four five six seven eight nine"]])
    overlap = contamination.Overlap(index)
    overlap.search("a", "zsopt", [[TEXT], ["nothing of the kind"], [f"again {TEXT}"]])
    overlap.search("a", "fsopt", [[TEXT]])
    overlap.search("b", "zsopt", [[TEXT.removesuffix(" woods")]])
    assert overlap.suites() == {"mmlu": {"items": 2, "whole": 1, "shared": 1, "tasks": 2}}
    (worst, other) = overlap.pairs()
    assert (worst["task"], worst["rows"], worst["of_rows"], worst["items"], worst["whole"]) == ("a", 3, 4, 1, 1)
    assert (other["task"], other["rows"], other["whole"]) == ("b", 1, 0)


def put_back(folder, letter):
    """Tables that put the MMLU tasks of NIV2 whose subjects begin so back among the training tasks."""
    names = [n.removeprefix("niv2_mmlu_") for n, t in tables.load_tables().items() if t.collection == "niv2_mmlu"]
    names = [name for name in names if f"_answer_generation_{letter}" in name]
    for place, text in {
        "tables/collections.toml": '[back]\nrole = "extra"\n[back.defaults]\nsource = "niv2:{name}"\n'
        'splits = {train = "train"}\nfields = "call(\'niv2\')"\ntemplates = "niv2"\nstyles = ["zsopt"]\n',
        "tables/back.csv": "name\n" + "".join(f"{name}\n" for name in names),
    }.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text)


@pytest.mark.parametrize(
    ("letter", "items", "tasks", "whole"),
    [("c", 1319, 9, 9), pytest.param("", 14042, 56, 57, marks=pytest.mark.slow)],  # one of the 57 is of MMLU's dev
)
def test_the_mmlu_tasks_are_found_in_a_store_that_holds_them(
    letter, items, tasks, whole, data_dir, tmp_path, monkeypatch, capsys
):
    """Real chain-of-thought rows, real NIV2 tasks, and the MMLU ones; as the model gets them."""
    put_back(tmp_path / "tables_of_mine", letter)
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path / "tables_of_mine"))
    said = vocabulary.load("byte")
    facts, examples = {}, {}
    for task in tables.load_tables().values():
        if task.collection == "back" or task.name in ("cot_qasc", "cot_creak") or task.name.startswith("niv2_task00"):
            facts[task.name] = {"collection": task.collection, "held_out": False, "cap": None, "cot": task.cot}
            rows = itertools.islice(render.render_rows(task, "zsopt", "train", data_dir), 200)
            sides = [[[*said.encode(text), 1] for text in (row.inputs, row.targets)] for row in rows]
            examples[task.name, "zsopt"] = [[tuple(np.array(side, np.int32) for side in pair) for pair in sides]]
    assemble.write_store(tmp_path / "store", facts, examples, said)
    command = ["tasks", "audit", "--store", str(tmp_path / "store"), "--data_dir", str(data_dir), "--held_out"]
    assert main([*command, f"mmlu_{letter}*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len({pair["task"] for pair in found["pairs"]}) == found["suites"]["mmlu"]["tasks"] == tasks
    assert {pair["task"].split("_")[0] for pair in found["pairs"]} == {"back"}
    assert found["suites"]["mmlu"]["items"] == items and found["suites"]["mmlu"]["whole"] == whole
    assert len(found["compared"]) == len(facts) > tasks
    assert main([*command, "mmlu_anatomy", "cot_qasc"]) == 0
    assert "0 overlapping pairs; 1 tasks (200 rows)" in capsys.readouterr().out
    assert main([*command, "mmlu_anatomy", "cot_gsm8k"]) == 2
    assert "holds no task of 'cot_gsm8k'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("held_out", "items", "tasks"),
    [("mmlu_c*", 1319, 9), pytest.param("mmlu*", 14042, 56, marks=pytest.mark.slow)],
)
def test_the_mmlu_tasks_of_niv2_are_found_when_they_are_put_back(held_out, items, tasks, data_dir, capsys):
    command = ["tasks", "audit", "--json", "--held_out", held_out, "--data_dir", str(data_dir)]
    assert main([*command, "niv2_mmlu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["held_out"].values()) == items
    # the files here hold one instance a task; a few of them come from MMLU's dev or val questions, which are not here
    assert len({pair["task"] for pair in found["pairs"]}) >= tasks
    assert main([*command, "niv2_task00*"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == []


def test_bad_patterns_are_named(capsys):
    assert main(["tasks", "audit", "cot_gsm8", "--data_dir", "/nowhere"]) == 2
    assert "no mixture, collection or task 'cot_gsm8'; did you mean 'cot_gsm8k'" in capsys.readouterr().err
    assert main(["tasks", "audit", "cot", "--held_out", "muffin*", "--data_dir", "/nowhere"]) == 2
    assert "no held-out task matches 'muffin*'" in capsys.readouterr().err


def test_an_audit_of_nothing_is_no_audit(data_dir, capsys):
    assert main(["tasks", "audit", "muffin_xsum", "--held_out", "gsm8k", "--data_dir", str(data_dir)]) == 2
    assert "nothing to audit: " in capsys.readouterr().err
