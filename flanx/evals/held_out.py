"""The held-out tasks of the tables (the embedded suite's): rendered by their own templates, scored by exact match."""

import functools
import pathlib

from flanx.evals.suite import Item, Spec

KIND = {"exact_match": "exact", "final_answer": "exact"}  # a table's metric -> how its answers are read


@functools.cache
def _table() -> dict:
    from flanx.data.spec import load_tables

    return {name: task for name, task in load_tables().items() if task.held_out}


def tasks() -> tuple[str, ...]:
    """All held-out tasks of the tables."""
    return tuple(sorted(_table()))


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the task's data are there."""
    from flanx.data import source

    return source.missing(_table()[task], folder) is None


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The task's test rows (its last split where it has no test), in the prompt style that the variant names."""
    from flanx.data import source
    from flanx.data.prompt import Renderer
    from flanx.data.spec import load

    row, tables = _table()[task], load()
    blocks = [tables.blocks[name] for name in row.templates]
    renderer = Renderer(row.name, row.dataset, blocks, (), tables.style, spec.variant, keep_unshot=True)
    split = spec.split if spec.split in row.splits else list(row.splits)[-1]
    found = []
    for key, place, record in source.rows(row, split, folder):
        made = renderer.render(key, record)
        found.append(
            Item(
                task=task,
                id=f"{task}-{key}",
                query=made.inputs,
                targets=(made.targets,),
                kind=KIND.get(row.metrics[0], "exact"),
                place=place,
            )
        )
    return found
