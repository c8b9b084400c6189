"""The held-out tasks of the embedded suite: rendered by their own templates, scored character by character.

A spec's variant is one kind of them (a collection of the tables), or "held_out" for all. The kinds with the steps
written out ask for them in their own templates; "<kind>_trigger" asks the other kinds for them, by the words that the
templates use. Both ways a plain answer counts, and one behind a rationale, so that the same tasks compare.
"""

import functools
import pathlib

from flanx.evals.registry import KINDS_OF_HELD_OUT
from flanx.evals.spec import Item, Spec

# A table's metric -> how its answers are read: what stands after the rationale, which must be announced, or the whole
# text. A rationale that nobody asked for is no fault of the answer: models of chain-of-thought data alone write one.
KIND = {"exact_match": "last", "final_answer": "final"}
TRIGGER = "\nstep by step"  # as in the blocks suite_steps of the templates


@functools.cache
def _table() -> dict:
    from flanx.data.task.spec import load_tables

    return {name: task for name, task in load_tables().items() if task.collection in KINDS_OF_HELD_OUT}


def tasks(spec: Spec) -> tuple[str, ...]:
    """All tasks of the kind."""
    kind = spec.variant.removesuffix("_trigger")
    return tuple(name for name, task in sorted(_table().items()) if kind in ("held_out", task.collection))


def groups(spec: Spec) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Means beside that over all: of "held_out" the kinds; of one kind its categories, and "words", those on words and
    lists."""
    found: dict[str, list[str]] = {}
    for name in tasks(spec):
        row = _table()[name]
        if spec.variant == "held_out":
            found.setdefault(row.collection, []).append(name)
            continue
        found.setdefault(row.category, []).append(name)
        if row.source.startswith(("suite:word.", "suite:list.")):
            found.setdefault("words", []).append(name)
    order = KINDS_OF_HELD_OUT if spec.variant == "held_out" else sorted(found)
    return tuple((group, tuple(found[group])) for group in order)


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Always: the tasks are made here, not read."""
    return True


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The task's rows of the spec's split, in its first prompt style."""
    from flanx.data.task import sources
    from flanx.data.task.render import make_renderer

    row = _table()[task]
    renderer = make_renderer(row, row.styles[0], spec.split)
    asks = spec.variant.endswith("_trigger")
    found = []
    for key, place, record in sources.rows(row, spec.split, folder):
        found.append(
            Item(
                task=task,
                id=f"{task}-{key}",
                query=renderer.render(key, record).inputs + (TRIGGER if asks else ""),
                targets=(record["answer"],),
                kind=KIND[row.metrics[0]],
                place=place,
            )
        )
        if spec.limit and len(found) == spec.limit:
            break
    return found
