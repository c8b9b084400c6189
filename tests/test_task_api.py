"""`flanx.tasks` in Python: the rows of the tables, examples, and tasks of one's own."""

import json
import os

import pytest

import flanx
from flanx.data.task import tables


@pytest.fixture(autouse=True)
def own_tables(monkeypatch):
    monkeypatch.setenv("FLANX_TABLES", "")


def test_rows_and_examples_of_tasks():
    assert [task.name for task in flanx.tasks.list("cot")] == sorted(task.name for task in flanx.tasks.list("cot_*"))
    (example,) = flanx.tasks.show("suite_text_word_reverse", n=1)
    assert example.inputs and example.targets and example.style == "zsopt"
    assert flanx.tasks.show("suite_text_word_reverse_zsopt", n=1)[0].style == "zsopt"
    for call in (lambda: flanx.tasks.list("cott"), lambda: flanx.tasks.show("suite_tex")):
        with pytest.raises(flanx.UserError):
            call()


def test_a_task_of_ones_own_is_there_at_once(tmp_path):
    rows = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(40)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = flanx.tasks.add(tmp_path / "sums.jsonl", inputs="question", targets="answer", output=tmp_path / "mine")
    assert name == "own_sums" and os.environ["FLANX_TABLES"] == str(tmp_path / "mine")
    assert flanx.tasks.show(name, n=1)[0].inputs == "What is 0 plus 1?"
    assert tables.find_task(name)[0].num_examples == 40
    other = flanx.tasks.add(
        tmp_path / "sums.jsonl", inputs="question", targets="answer", output=tmp_path / "mine", name="more"
    )
    assert other == "own_more" and os.environ["FLANX_TABLES"] == str(tmp_path / "mine")
    with pytest.raises(flanx.UserError, match="already has a task"):
        flanx.tasks.add(tmp_path / "sums.jsonl", inputs="question", targets="answer", output=tmp_path / "mine")


def test_shares_and_files_of_splits_are_checked(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "a", "a": "b"}\n')
    options = {"inputs": "q", "targets": "a", "output": tmp_path / "mine"}
    with pytest.raises(flanx.UserError, match=r"validation_share is 1\.5"):
        flanx.tasks.add(tmp_path / "a.jsonl", **options, validation_share=1.5)
    with pytest.raises(flanx.UserError, match="exclude each other"):
        flanx.tasks.add(tmp_path / "a.jsonl", **options, test_share=0.5, test=tmp_path / "a.jsonl")
    assert not (tmp_path / "mine").exists()
