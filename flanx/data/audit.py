"""Overlap of training tasks with held-out ones: `flanx tasks audit`.

Two texts overlap where they share 13 words in a row, or where a whole field says the same. Words are lower case,
without punctuation; single letters go, since option marks are written in many ways. What is compared are the fields of
the rows before any template, or the examples of a built store (`--store`).
"""

import argparse
import collections
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flanx.data import source
from flanx.data.spec import TaskSpec
from flanx.data.task_door import match_tasks
from flanx.data.value import Record, text_of
from flanx.errors import UserError

NGRAM = 13  # words
WHOLE = 8  # a field of fewer words is too common to mean anything by itself
CONSTANT = ("definition", "worked_input", "worked_output", "worked_why")  # the same in every row of a task
_WORD = re.compile(r"\w+")


def words(text: str) -> tuple[str, ...]:
    """The words of a text as they are compared."""
    return tuple(w for w in _WORD.findall(text.lower()) if len(w) > 1 or not w.isascii() or w.isdigit())


def texts(record: Record) -> list[str]:
    """The texts of a row that are compared: its fields, and question and options together as one."""
    values = [text_of(v, k) for k, v in record.items() if k not in (*CONSTANT, "options", "answer")]
    options = record.get("options")
    if options:
        values += [" ".join([value, *map(str, options)]) for value in values]
    return values


@dataclass
class Index:
    """Runs of words, and whole texts, of the held-out items."""

    tasks: list[str] = field(default_factory=list)
    items: list[int] = field(default_factory=list)  # number of items of each task
    grams: dict[int, tuple[int, int]] = field(default_factory=dict)  # hash of a run -> (task, item)
    wholes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, task: str, records: Iterable[list[str]]) -> None:
        """Adds a task; `records` gives the texts of each item."""
        number, count = len(self.tasks), 0
        for count, values in enumerate(records, 1):
            for value in values:
                said = words(value)
                if len(said) >= WHOLE:
                    self.wholes.setdefault(hash(said), (number, count))
                for i in range(len(said) - NGRAM + 1):
                    self.grams.setdefault(hash(said[i : i + NGRAM]), (number, count))
        self.tasks.append(task)
        self.items.append(count)

    def find(self, values: list[str]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """(items that a text equals, items that share a run of words) for the texts of one row."""
        same, shared = set(), set()
        for value in values:
            said = words(value)
            if hit := self.wholes.get(hash(said)) if len(said) >= WHOLE else None:
                same.add(hit)
            for i in range(len(said) - NGRAM + 1):
                if hit := self.grams.get(hash(said[i : i + NGRAM])):
                    shared.add(hit)
        return same, shared


def _rows(task: TaskSpec, data_dir: str | None, limit: int) -> Iterator[list[str]]:
    """The texts of the rows of the training split; of a held-out task, of all its splits that are there."""
    splits = [s for s in task.splits if s == "train"] or list(task.splits)
    for split in splits:
        if source.missing(task, data_dir, split):
            continue
        found = source.rows(task, split, data_dir)
        for _, _, record in itertools.islice(found, limit or None):
            yield texts(record)


def _absent(task: TaskSpec, data_dir: str | None) -> str | None:
    """Why none of a task's splits can be read, or None."""
    reasons = [
        source.missing(task, data_dir, split) for split in task.splits if split == "train" or "train" not in task.splits
    ]
    return reasons[0] if all(reasons) else None


def _stored(path: str, names: set[str], limit: int) -> Iterator[tuple[str, Iterator[list[str]]]]:
    """The examples of a store as texts, task by task and style by style."""
    from flanx.data import store, vocabulary

    held = store.open_store(path)
    said = vocabulary.load(held.vocabulary)
    for name in sorted(names & held.tasks.keys()):
        for parts in held.tasks[name].parts.values():
            part = parts[0]  # of several renderings the first: they show the same rows
            count = min(part.examples, limit or part.examples)
            yield name, ([said.decode(ids) for ids in held.example(part, i)] for i in range(count))


def audit(args: argparse.Namespace) -> int:
    """Compares, prints every pair of tasks that overlaps, and what could not be compared."""
    asked = match_tasks(args.mixture) if args.mixture != "*" else [t for t in match_tasks("*") if not t.held_out]
    held_out = [t for t in match_tasks(args.held_out) if t.held_out and t not in asked]
    if not held_out:
        raise UserError(f"no held-out task matches '{args.held_out}'")
    absent: dict[str, str] = {}
    index = Index()
    for task in held_out:
        if reason := _absent(task, args.data_dir):
            absent[task.name] = reason
        else:
            index.add(task.name, _rows(task, args.data_dir, 0))
    pairs: dict[tuple[str, str], dict[str, set]] = collections.defaultdict(lambda: {"same": set(), "shared": set()})
    rows: dict[str, int] = collections.Counter()

    def compare(name: str, records: Iterable[list[str]]) -> None:
        for number, values in enumerate(records):
            rows[name] += 1
            for kind, hits in zip(("same", "shared"), index.find(values), strict=True):
                for held, item in hits:
                    pairs[name, index.tasks[held]][kind].add((number, item))

    if args.store:
        for name, records in _stored(args.store, {t.name for t in asked}, args.limit):
            compare(name, records)
    else:
        for task in asked:
            if reason := _absent(task, args.data_dir):
                absent[task.name] = reason
            else:
                compare(task.name, _rows(task, args.data_dir, args.limit))
    return _report(args, index, pairs, rows, absent)


def _report(args: argparse.Namespace, index: Index, pairs: dict, rows: dict[str, int], absent: dict[str, str]) -> int:
    sizes = dict(zip(index.tasks, index.items, strict=True))
    found = [
        {
            "task": task,
            "held_out": held,
            "rows": len({row for row, _ in hits["same"] | hits["shared"]}),
            "of_rows": rows[task],
            "items": len({item for _, item in hits["same"] | hits["shared"]}),
            "of_items": sizes[held],
            "same": len(hits["same"]),
        }
        for (task, held), hits in sorted(pairs.items())
    ]
    found.sort(key=lambda pair: -pair["items"] / max(1, pair["of_items"]))
    if args.json:
        print(
            json.dumps(
                {"pairs": found, "compared": dict(rows), "held_out": sizes, "absent": absent}, ensure_ascii=False
            )
        )
        return 0
    for pair in found:
        print(
            f"{pair['task']} holds {pair['items']} of {pair['of_items']} items of {pair['held_out']} "
            f"({pair['rows']} of its {pair['of_rows']} rows; {pair['same']} whole texts the same)"
        )
    print(
        f"{len(found)} overlapping pairs; {len(rows)} tasks ({sum(rows.values()):,} rows) against "
        f"{len(sizes)} held-out tasks ({sum(sizes.values()):,} items); {len(absent)} tasks without data"
    )
    return 0
