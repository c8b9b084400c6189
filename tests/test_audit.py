"""The audit finds held-out texts in training tasks: made up, in a store's texts, and MMLU inside NIV2 for real."""

import json

import pytest

from flanx.cli import main
from flanx.data import audit

TEXT = "the quick brown fox jumps over the lazy dog and then runs far away into deep woods"


def test_words_are_compared_without_case_marks_and_option_letters():
    assert audit.words("What size? (A)18 gauge. (B) 20 gauge") == audit.words("what SIZE 18 gauge, 20 gauge")
    assert audit.words("问 题 a") == ("问", "题")


def test_shared_runs_and_whole_texts_are_told_apart():
    index = audit.Index()
    index.add("held", [[TEXT], ["one two three four five six seven eight nine"], ["too short to mean much"]])
    assert index.items == [3]
    assert index.find([f"Before it: {TEXT.upper()}!"]) == (set(), {(0, 1)})
    assert index.find(["One two, three four five six seven eight nine."]) == ({(0, 2)}, set())
    assert index.find(["too short to mean much"]) == (set(), set())
    assert index.find([TEXT.replace("lazy", "old")]) == (set(), set())


@pytest.mark.parametrize(
    ("held_out", "items", "tasks"),
    [("mmlu_c*", 1319, 9), pytest.param("mmlu*", 14042, 50, marks=pytest.mark.slow)],
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
