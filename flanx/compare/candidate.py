"""Candidates: the answers to compare, from runs that saved their generations and from files of answers.

A run (or the folder of one evaluation) provides the generations of its suites that generate; a file (JSONL, JSON, CSV,
TSV, Parquet) has prompts in "inputs" or "prompt" and answers in "prediction", "answer" or "output", as `flanx infer`
writes them. Answers of two candidates are matched if their prompts are the same text, ignoring whitespace.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from flanx.data.task import text
from flanx.data.task.row import BadRow, text_of
from flanx.errors import UserError, nearest
from flanx.evals import generations, rescore, sample_choice, stops
from flanx.evals.spec import Spec

Key = tuple[str, int]  # a prompt's words, and its index among the candidate's prompts with the same words
PROMPTS, ANSWERS = ("inputs", "prompt"), ("prediction", "answer", "output", "predictions")
TASKS = ("task", "category")


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to a prompt; `task`: the kind of prompt, "" if the file does not say."""

    prompt: str
    text: str
    task: str = ""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """`answers`: in source order; `empty`: how many have no text."""

    name: str
    source: str
    answers: Mapping[Key, Answer]

    @property
    def empty(self) -> int:
        return sum(not answer.text.strip() for answer in self.answers.values())


def read_all(named: Sequence[str], suites: Collection[str] = ()) -> list[Candidate]:
    """Two or more candidates, each from "PATH" or "NAME=PATH"; `suites`: from runs, read only these.

    Raises UserError for duplicate names, paths without answers, or an invalid line.
    """
    if len(named) < 2:
        raise UserError(f"{len(named)} candidate given: two or more runs or files of answers are compared")
    split = [_split(each) for each in named]
    if suites and not any(path.is_dir() for _, path in split):
        raise UserError(f"suite '{next(iter(suites))}': files of answers have no suites; leave --suite out")
    for name, count in Counter(name for name, _ in split).items():
        if count > 1:
            raise UserError(f"two candidates are named '{name}': write NAME={dict(split)[name]} for one of them")
    return [read(name, path, suites) for name, path in split]


def _split(given: str) -> tuple[str, pathlib.Path]:
    name, equals, path = given.partition("=")
    if not equals or pathlib.Path(given).exists():
        path = given
        name = pathlib.Path(given).stem if pathlib.Path(given).is_file() else pathlib.Path(given).absolute().name
    if not name.strip() or not path:
        raise UserError(f"'{given}': write PATH or NAME=PATH")
    return name.strip(), pathlib.Path(path)


def read(name: str, path: pathlib.Path, suites: Collection[str] = ()) -> Candidate:
    """The candidate from one path. Raises UserError if it has no answers."""
    found = list(_of_run(path, suites) if path.is_dir() else _of_file(path))
    if not found:
        why = "its suites rank options, and nothing was generated" if path.is_dir() else "it is empty"
        raise UserError(f"{path} holds no answers to compare: {why}")
    seen: Counter[str] = Counter()
    answers: dict[Key, Answer] = {}
    for answer in found:
        words = " ".join(answer.prompt.split())
        answers[words, seen[words]] = Answer(_whole(answer.prompt), _whole(answer.text), _whole(answer.task))
        seen[words] += 1
    return Candidate(_whole(name), _whole(str(path)), answers)


def _whole(said: str) -> str:
    """The text made encodable as UTF-8: a lone surrogate becomes "?"."""
    return said.encode("utf-8", "replace").decode("utf-8")


def _of_run(folder: pathlib.Path, suites: Collection[str]) -> Iterator[Answer]:
    """The answers in an evaluation's folder."""
    folders = rescore.evaluations(folder)
    if len(folders) > 1:
        shown = ", ".join(str(each) for each in folders[:3])
        raise UserError(f"{folder} holds {len(folders)} evaluations: give one of them ({shown}, ...)")
    known: dict[str, None] = {}
    for path in generations.paths(folders[0]):
        header, rows = generations.read(path)
        spec = generations.spec_of(header, path)
        known[spec.name] = None
        if spec.scoring == "generate" and (not suites or spec.name in suites):
            yield from (Answer(row.prompt, answer_of(spec, row), row.task) for row in rows)
    for suite in suites:
        if suite not in known:
            has = nearest(suite, known) or f" (there is: {', '.join(known)})"
            raise UserError(f"{folders[0]} has no generations of suite '{suite}'{has}")


def answer_of(spec: Spec, row: generations.Generation) -> str:
    """The answer to an item: of several samples, the one that the suite keeps, else the first."""
    if row.broken or not row.outputs:
        return ""
    kept = sample_choice.kept(row) if spec.metric == "open_ended" else 0
    return stops.until_stop(row.outputs[kept], spec.stop).strip()


def _of_file(path: pathlib.Path) -> Iterator[Answer]:
    """The answers in a file."""
    if not path.is_file():
        raise UserError(f"no folder or file '{path}': give a run, or a file of answers")
    for location, record in text.records(path):
        if isinstance(record, BadRow):
            raise UserError(f"{location}: {record}")
        prompt, answer = _field(record, PROMPTS, location), _field(record, ANSWERS, location)
        if not prompt.strip():
            raise UserError(f"{location}: the prompt is empty: answers belong together by their prompts")
        task = _field(record, TASKS, location) if any(name in record for name in TASKS) else ""
        yield Answer(prompt, answer.strip(), task)


def _field(record: Mapping[str, Any], names: Sequence[str], location: str) -> str:
    """The text in the first of these fields that a record has; for a list of samples, the first one."""
    name = next((each for each in names if each in record), None)
    if name is None:
        raise UserError(
            f"{location}: none of the fields {', '.join(names)} (there is: {', '.join(record) or 'nothing'})"
        )
    value = record[name]
    if isinstance(value, list) and value:
        value = value[0]
    try:
        return "" if value is None else text_of(value, name)
    except BadRow as error:
        raise UserError(f"{location}: {error}") from None
