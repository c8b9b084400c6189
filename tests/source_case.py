"""Records for every task of the tables, from the nearest thing to its real source that needs no download.

A TFDS source: its real builder's feature specification, filled by `tfds.testing.mock_data`; all 72 builders have one
offline. A file that is here: the file. P3 and the sets that a user supplies: records of the documented columns.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import warnings

import pytest

from flanx.data.task import sources
from flanx.data.task.row import BadRow, Record
from flanx.data.task.spec import TaskSpec

DATA = pathlib.Path(os.environ.get("FLANX_DATA_DIR", pathlib.Path(__file__).parents[2] / "shared" / "data"))
MOCKED = 12  # records of a TFDS source
FIRST = 12  # records of a file, from its beginning

# The specification of each of these is used too; a few values are put in, because random ones cannot be rows of it.
UNMOCKABLE: dict[str, tuple[str, Record]] = {
    "coqa": ("two lists of one length", {"questions": ["Who?", "Why?"], "answers": {"input_text": ["She.", "So."]}}),
    "hellaswag": ("a label that is a plain integer", {"label": 1, "endings": ["[header] a", "b [step] c", "d", "e"]}),
    "para_crawl/enda": ("capitals and punctuation", {"en": "The cat, it sat."}),
    "sentiment140": ("a label that is a plain integer", {"polarity": 4}),
    "story_cloze/2016": ("a label that is a plain integer", {"label": 2, "endings": ["one", "two"]}),
    "tydi_qa/goldp": ("the language, inside the id", {"id": "{language}-1"}),
    "unified_qa/ai2_science_middle": ("options, inside the question",
                                      {"input": r"What is it? \n (A) a (B) b (C) c (D) d", "output": "b"}),
}  # fmt: skip
P3 = {"inputs_pretokenized": " Which is it? ", "targets_pretokenized": "\none ", "answer_choices": ["one", "two"]}
SUPPLIED = {
    "muffin_task_master": {"text": ["Hello.", "Good day.", "A table, please.", "For when?"]},
    "muffin_dmcc_python": {"problem": "Add two numbers.", "solution": "print(int(input()) + int(input()))"},
    **{
        f"muffin_dr_repair_{setting}": {"broken": 'printf("a\\n")', "fixed": 'printf("a\\n");'}
        for setting in ("error_comments", "line_numbers", "no_errors", "plain_code")
    },
}
INSTRUCTIONS = {"Definition": ["Do it."], "Instances": [{"id": "1", "input": "this", "output": ["that"]}],
                "Positive Examples": [{"input": "here", "output": "there", "explanation": "So."}]}  # fmt: skip
# fields that tell a second, third, ... fabricated record from the first
VARIED = (
    "inputs_pretokenized", "question", "broken", "problem", "input", "text", "context", "premise", "sentence", "en",
)  # fmt: skip


@functools.cache
def mocked(task: TaskSpec) -> list[Record]:
    """The records that TFDS makes of the builder's features, through our own reader and the row's own split."""
    tfds = pytest.importorskip("tensorflow_datasets")

    with tfds.testing.mock_data(num_examples=MOCKED), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [record for _, record in sources.raw_rows(task, next(iter(task.splits)))]


def records(task: TaskSpec) -> tuple[str, list[Record | BadRow]]:
    """(how they were come by, the records of the task): enough of them for a few-shot prompt."""
    kind, place = task.source.split(":", 1)
    if kind == "tfds":
        _, patch = UNMOCKABLE.get(place, ("", {}))
        language = task.name.removeprefix("tydiqa_")
        patch = {k: v.format(language=language) if k == "id" else v for k, v in patch.items()}
        patches = itertools.cycle(vary(patch))
        return ("tfds, some values put in" if patch else "tfds"), [one | next(patches) for one in mocked(task)]
    present = [s for s in task.splits if kind != "p3" and sources.missing(task, DATA, s) is None]
    split, here = [*present, *task.splits][0], bool(present)
    if kind == "niv2":
        (path,) = sources.files(task, split, DATA)
        return ("niv2 file" if here else "niv2 made up"), list(instances(path if here else None))
    if here:
        return f"{kind} file", [one for _, one in itertools.islice(sources.raw_rows(task, split, DATA), FIRST)]
    if kind == "p3":
        made = P3
    elif kind in ("tsv", "csv"):
        made = {name: f"{name} text" for name in task.columns} | {"letter": "B"}
    else:
        made = SUPPLIED.get(task.name, {"input": "Is it?", "target": "yes", "question": "Is it?", "answer": "#### yes"})
    return f"{kind} made up", vary(made)


def instances(path: pathlib.Path | None) -> list[Record | BadRow]:
    """The real instance of a task's file and, in the file's own form, two more, for which its real positive example is
    another one and can be shown as worked out."""
    task = json.loads(path.read_text(encoding="utf-8")) if path else INSTRUCTIONS
    first = task["Instances"][0]
    more = [{k: v for k, v in first.items() if k != "id"} | {"input": f"{text} {first['input']}"} for text in "xy"]
    return [one for _, one in sources.instances({**task, "Instances": [*task["Instances"], *more]}, str(path))]


def vary(record: Record) -> list[Record]:
    """The record and three like it that read otherwise."""
    named = [key for key in record if key in VARIED]
    return [record, *({**record, **{key: _other(record[key], n) for key in named}} for n in ("One", "Two", "Three"))]


def _other(value: object, word: str) -> object:
    return [word, *value] if isinstance(value, list) else f"{word} {value}"


@contextlib.contextmanager
def no_network(monkeypatch):
    """Any connection is an error."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was asked for")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield
