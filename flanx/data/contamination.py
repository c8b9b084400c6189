"""Overlap of training tasks with held-out ones: `flanx tasks audit`.

Two measures for every held-out suite: items with a text that occurs verbatim in a training text ("whole", by hash), and
items that share 13 consecutive words with one ("shared"). Words are lowercased, without punctuation; single letters are
dropped, since option markers are written in many ways. The search covers the rows' fields before any template, or the
examples of a built store as the model sees them (`--store`).
"""

import argparse
import collections
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flanx.data import store, vocabulary
from flanx.data.task import select, sources
from flanx.data.task.row import Record, text_of
from flanx.data.task.spec import TaskSpec
from flanx.errors import UserError

NGRAM = 13  # words
WHOLE = 8  # words; a shorter text is too common to be evidence by itself
CONSTANT = ("definition", "worked_input", "worked_output", "worked_why")  # the same in every row of a task
_WORD = re.compile(r"\w+")


def words(text: str) -> tuple[str, ...]:
    """The normalized words of a text, for comparison."""
    return tuple(w for w in _WORD.findall(text.lower()) if len(w) > 1 or not w.isascii() or w.isdigit())


def texts(record: Record) -> list[str]:
    """The texts of a row to compare: its fields, and question and options joined as one."""
    values = [text_of(v, k) for k, v in record.items() if k not in (*CONSTANT, "options", "answer")]
    options = record.get("options")
    if options:
        values += [" ".join([value, *map(str, options)]) for value in values]
    return values


Hit = tuple[int, int]  # (number of the held-out task, number of its item)


@dataclass
class Index:
    """N-grams and whole texts of the held-out items."""

    tasks: list[TaskSpec] = field(default_factory=list)
    items: list[int] = field(default_factory=list)  # number of items of each task
    grams: dict[int, Hit] = field(default_factory=dict)  # hash of an n-gram
    wholes: dict[int, list[tuple[int, int, Hit]]] = field(default_factory=dict)  # hash of WHOLE words: length, hash

    def add(self, task: TaskSpec, records: Iterable[list[str]]) -> None:
        """Adds a task; `records` gives the texts of each item."""
        number, count = len(self.tasks), 0
        for count, values in enumerate(records, 1):
            for value in values:
                run = words(value)
                if len(run) >= WHOLE:
                    same = self.wholes.setdefault(hash(run[:WHOLE]), [])
                    if not any(known[:2] == (len(run), hash(run)) for known in same):
                        same.append((len(run), hash(run), (number, count)))
                for i in range(len(run) - NGRAM + 1):
                    self.grams.setdefault(hash(run[i : i + NGRAM]), (number, count))
        self.tasks.append(task)
        self.items.append(count)

    def find(self, values: list[str]) -> tuple[set[Hit], set[Hit]]:
        """(items with a whole text contained in these, items that share an n-gram with them)."""
        whole, shared = set(), set()
        for value in values:
            run = words(value)
            for i in range(len(run) - WHOLE + 1):
                if same := self.wholes.get(hash(run[i : i + WHOLE])):
                    whole |= {hit for length, key, hit in same if hash(run[i : i + length]) == key}
                if hit := self.grams.get(hash(run[i : i + NGRAM])):  # near the end it is shorter, and never indexed
                    shared.add(hit)
        return whole, shared


def _rows(task: TaskSpec, data_dir: str | None, limit: int) -> Iterator[list[str]]:
    """The texts of the rows of the training split, or of all available splits for a held-out task."""
    splits = [s for s in task.splits if s == "train"] or list(task.splits)
    for split in splits:
        if sources.missing(task, data_dir, split):
            continue
        found = sources.rows(task, split, data_dir)
        for _, _, record in itertools.islice(found, limit or None):
            yield texts(record)


def _absent(task: TaskSpec, data_dir: str | None) -> str | None:
    """Why none of a task's splits can be read, or None."""
    reasons = [
        sources.missing(task, data_dir, split)
        for split in task.splits
        if split == "train" or "train" not in task.splits
    ]
    return reasons[0] if all(reasons) else None


def _stored(path: str, wanted: set[str] | None, limit: int) -> Iterator[tuple[str, str, Iterator[list[str]]]]:
    """(task, style, its examples as texts) of a store; `wanted`: restrict to these tasks."""
    opened = store.open_store(path)
    tokenizer = vocabulary.load(opened.vocabulary)
    for name in sorted(opened.tasks if wanted is None else wanted & opened.tasks.keys()):
        for style, parts in opened.tasks[name].parts.items():
            part = parts[0]  # the first of several renderings: all show the same rows
            count = min(part.examples, limit or part.examples)
            yield name, style, ([tokenizer.decode(ids) for ids in opened.example(part, i)] for i in range(count))


class Overlap:
    """Search results by measure: {(task, number of the held-out task): {(row, item)}}."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.rows: dict[str, int] = collections.Counter()
        self.found: dict[tuple[str, int], dict[str, set]] = {}

    def search(self, task: str, style: str, records: Iterable[list[str]]) -> None:
        """Compares the texts of a task with the index; `style` distinguishes its rows from those of another search."""
        for number, values in enumerate(records):
            self.rows[task] += 1
            for kind, hits in zip(("whole", "shared"), self.index.find(values), strict=True):
                for held, item in hits:
                    pair = self.found.setdefault((task, held), {"whole": set(), "shared": set()})
                    pair[kind].add(((style, number), item))

    def pairs(self) -> list[dict[str, Any]]:
        """Every training task that overlaps with a held-out one, worst first."""
        found = [
            {
                "task": task,
                "held_out": self.index.tasks[held].name,
                "rows": len({row for row, _ in hits["whole"] | hits["shared"]}),
                "of_rows": self.rows[task],
                "items": len({item for _, item in hits["whole"] | hits["shared"]}),
                "of_items": self.index.items[held],
                "whole": len({item for _, item in hits["whole"]}),
            }
            for (task, held), hits in sorted(self.found.items())
        ]
        return sorted(found, key=lambda pair: -pair["items"] / max(1, pair["of_items"]))

    def suites(self) -> dict[str, dict[str, int]]:
        """Per held-out suite: its items, how many are found by each measure, and in how many tasks."""
        suites: dict[str, dict[str, Any]] = {}
        for spec, count in zip(self.index.tasks, self.index.items, strict=True):
            suite = suites.setdefault(spec.collection, {"items": 0, "whole": set(), "shared": set(), "tasks": set()})
            suite["items"] += count
        for (task, held), hits in self.found.items():
            suite = suites[self.index.tasks[held].collection]
            suite["tasks"].add(task)
            for kind, pairs in hits.items():
                suite[kind] |= {(held, item) for _, item in pairs}
        return {
            name: {key: value if key == "items" else len(value) for key, value in suite.items()}
            for name, suite in suites.items()
        }


def audit(args: argparse.Namespace) -> int:
    """Runs the audit; prints every overlapping pair of tasks, each suite, and what could not be compared."""
    asked = [t for t in select.find_specs(args.mixture) if args.mixture != "*" or not t.held_out]
    held_out = [t for t in select.find_specs(args.held_out) if t.held_out and t not in asked]
    if not held_out:
        raise UserError(f"no held-out task matches '{args.held_out}'")
    absent: dict[str, str] = {}
    index = Index()
    for task in held_out:
        if reason := _absent(task, args.data_dir):
            absent[task.name] = reason
        else:
            index.add(task, _rows(task, args.data_dir, 0))
    overlap = Overlap(index)
    if args.store:
        wanted = None if args.mixture == "*" else {t.name for t in asked}
        for name, style, records in _stored(args.store, wanted, args.limit):
            overlap.search(name, style, records)
        if not overlap.rows:
            raise UserError(f"the store {args.store} holds no task of '{args.mixture}'")
    else:
        for task in asked:
            if reason := _absent(task, args.data_dir):
                absent[task.name] = reason
            else:
                overlap.search(task.name, "", _rows(task, args.data_dir, args.limit))
        if not overlap.rows:
            raise UserError(f"nothing to audit: {next((absent[t.name] for t in asked if t.name in absent), 'no row')}")
    return _report(args, overlap, absent)


def _report(args: argparse.Namespace, overlap: Overlap, absent: dict[str, str]) -> int:
    pairs, suites, rows = overlap.pairs(), overlap.suites(), overlap.rows
    if args.json:
        sizes = {task.name: n for task, n in zip(overlap.index.tasks, overlap.index.items, strict=True)}
        report = {"pairs": pairs, "suites": suites, "compared": dict(rows), "held_out": sizes, "absent": absent}
        print(json.dumps(report, ensure_ascii=False))
        return 0
    for pair in pairs:
        print(
            f"{pair['task']} holds {pair['items']} of {pair['of_items']} items of {pair['held_out']}, {pair['whole']} "
            f"of them whole ({pair['rows']} of its {pair['of_rows']} rows)"
        )
    print(f"{'held-out suite':20} {'items':>8} {'whole':>8} {'shared':>8} {'tasks':>8}")
    for name, suite in suites.items():
        print(f"{name:20} " + " ".join(f"{suite[key]:8,}" for key in ("items", "whole", "shared", "tasks")))
    lost = absent.keys() & {task.name for task in select.find_specs(args.held_out) if task.held_out}
    print(
        f"{len(pairs)} overlapping pairs; {len(rows)} tasks ({sum(rows.values()):,} rows) against "
        f"{len(overlap.index.tasks)} held-out tasks ({sum(overlap.index.items):,} items); without data: "
        f"{len(absent) - len(lost)} tasks, {len(lost)} held-out ones"
    )
    return 0
