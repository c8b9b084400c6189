"""Answers that are compared: read from runs and from files."""

import json

import pytest

from flanx.compare import candidate
from flanx.errors import UserError
from flanx.evals.generations import Generation, Writer
from flanx.evals.spec import Item, Spec, Suite
from tests.compare_case import write_answers

RUN = {"model": "m", "checkpoint": "c", "step": 1, "parameters": "f", "versions": {}}


def write_run(folder, outputs, name="open", scoring="generate", **more):
    """An evaluation whose items "i0", "i1", ... have these samples; `more`: fields of the spec."""
    spec = Spec(name, "test", scoring=scoring, **more)
    items = tuple(Item("task", f"i{n}", f"Say {n}. ", ("a",), "text") for n in range(len(outputs)))
    writer = Writer(folder, Suite(spec, items), RUN)
    for item, texts in zip(items, outputs, strict=True):
        row = Generation(item.id, "task", item.query, ["a"], "text", "en", 0, False, 3, 0, 1, 0, outputs=texts)
        if scoring != "generate":
            row.outputs, row.options, row.option_scores = [], ["a", "b"], [-1.0, -2.0]
        writer.add(row)
    writer.close()
    return str(folder)


def test_a_run_gives_the_answers_of_its_suites_that_generate_up_to_their_stop_texts(tmp_path):
    path = write_run(tmp_path / "run", [["one\nQ: next"], ["", ""], []], stop=("Q:",))
    write_run(tmp_path / "run", [["-"]], name="ranked", scoring="rank")
    write_run(tmp_path / "run", [["other"]], name="second")
    found = candidate.read("run", tmp_path / "run")
    assert [a.text for a in found.answers.values()] == ["one", "", "", "other"] and found.empty == 2
    # the same prompt in two suites is two prompts
    assert [key for key in found.answers if key[0] == "Say 0."] == [("Say 0.", 0), ("Say 0.", 1)]
    assert len(candidate.read("run", tmp_path / "run", ["second"]).answers) == 1
    with pytest.raises(UserError, match=r"no generations of suite 'secon'; did you mean 'second'"):
        candidate.read("run", tmp_path / "run", ["secon"])
    with pytest.raises(UserError, match="its suites rank options"):
        candidate.read("run", tmp_path / "run", ["ranked"])
    assert path.endswith("run")


def test_a_folder_of_several_evaluations_or_none_is_refused(tmp_path):
    write_run(tmp_path / "run" / "step_1", [["a"]])
    assert len(candidate.read("run", tmp_path / "run").answers) == 1
    write_run(tmp_path / "run" / "step_2", [["a"]])
    with pytest.raises(UserError, match=r"holds 2 evaluations: give one of them .*step_1"):
        candidate.read("run", tmp_path / "run")
    with pytest.raises(UserError, match="holds no generations"):
        candidate.read("run", tmp_path / "run" / "step_1" / "generations")


@pytest.mark.parametrize(
    "record, text",
    [
        ({"inputs": "p", "prediction": " a "}, "a"),
        ({"prompt": "p", "answer": "a"}, "a"),
        ({"inputs": "p", "predictions": ["a", "b"]}, "a"),
        ({"inputs": "p", "output": None}, ""),
        ({"inputs": "p", "output": 3}, "3"),
        ({"inputs": "p", "output": "half \ud800 a pair"}, "half ? a pair"),
    ],
)
def test_a_file_gives_the_answer_of_each_line(tmp_path, record, text):
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    (answer,) = candidate.read("a", tmp_path / "a.jsonl").answers.values()
    assert (answer.prompt, answer.text) == ("p", text)


@pytest.mark.parametrize(
    "record, task", [({"task": "qa"}, "qa"), ({"category": 3}, "3"), ({}, ""), ({"task": None}, "")]
)
def test_the_kind_of_a_prompt_is_the_text_of_its_field(tmp_path, record, task):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "p", "answer": "a"} | record) + "\n")
    (answer,) = candidate.read("a", tmp_path / "a.jsonl").answers.values()
    assert answer.task == task


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"inputs": "p", "prediction": "a"}\n{"inputs": "p"}\n', r"a.jsonl:2: none of the fields prediction, answer"),
        ('{"inputs": "p", "prediction": {}}\n', "a.jsonl:1: 'prediction' is dict, not text"),
        ("{", r"a.jsonl:1: "),
        ("", "holds no answers to compare: it is empty"),
        ('{"inputs": null, "prediction": "a"}\n', "a.jsonl:1: the prompt is empty"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        candidate.read("a", tmp_path / "a.jsonl")


def test_names_come_from_paths_or_are_given_and_differ(tmp_path):
    one, other = write_answers(tmp_path / "one.jsonl", ["a"]), write_answers(tmp_path / "other.jsonl", ["b"])
    assert [each.name for each in candidate.read_all([one, f"mine={other}"])] == ["one", "mine"]
    with pytest.raises(UserError, match=r"two candidates are named 'one': write NAME=.*one.jsonl"):
        candidate.read_all([one, one])
    with pytest.raises(UserError, match="1 candidate given"):
        candidate.read_all([one])
    with pytest.raises(UserError, match="no folder or file"):
        candidate.read_all([one, str(tmp_path / "nowhere")])


def test_a_name_that_is_no_text_is_one_and_suites_of_files_are_refused(tmp_path):
    one, other = write_answers(tmp_path / "\udcff.jsonl", ["a"]), write_answers(tmp_path / "other.jsonl", ["b"])
    found = candidate.read_all([one, other])[0]
    assert found.name == "?" and (found.name + found.source).encode()
    with pytest.raises(UserError, match="suite 'open_ended': files of answers have no suites"):
        candidate.read_all([one, other], ["open_ended"])
