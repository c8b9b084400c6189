"""Small token stores for tests, written example by example; needs neither SeqIO nor TensorFlow."""

import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from flanx.data import store, vocabulary
from flanx.data.store import assemble

WORDS = vocabulary.load("byte")


def examples(task: str, n: int, lengths: tuple[int, int] = (30, 10), seed: int = 0) -> list[tuple]:
    """n examples of varied lengths; their first two tokens tell the task (a hash), the next two the row."""
    rng = np.random.default_rng([seed, *task.encode()])
    made = []
    for row in range(n):
        sizes = [max(6, int(rng.gamma(3, mean / 3))) for mean in lengths]
        inputs, targets = (rng.integers(3, 259, size) for size in sizes)
        inputs[:4] = mark(task, row)
        inputs[-1] = targets[-1] = 1
        made.append((inputs, targets))
    return made


def mark(task: str, row: int) -> tuple[int, int, int, int]:
    """The first four tokens of an example."""
    name = sum(task.encode()) * 7 + len(task)
    return 3 + name % 250, 3 + name // 250 % 250, 3 + row % 250, 3 + row // 250


def make(
    folder: pathlib.Path,
    sizes: Mapping[str, int],
    styles: Iterable[str] = ("zsopt",),
    renderings: int = 1,
    facts: Mapping[str, Mapping] | None = None,
    missing: Mapping[str, Mapping] | None = None,
    lengths: tuple[int, int] = (30, 10),
    empty: Iterable[str] = (),
) -> store.Store:
    """A store of tasks {`collection/name`: number of examples}; `facts` override each task's, `empty` names the
    `task_style` that have none."""
    tasks, made = {}, {}
    for path, n in sizes.items():
        collection, name = path.split("/")
        tasks[name] = {"collection": collection, "cap": None, "held_out": False, "cot": collection == "cot"}
        tasks[name] |= (facts or {}).get(name, {})
        for style in styles:
            count = 0 if f"{name}_{style}" in empty else n
            made[name, style] = [examples(f"{name} {style} {r}", count, lengths) for r in range(renderings)]
    assemble.write_store(folder, tasks, made, WORDS, {k: dict(v) for k, v in (missing or {}).items()})
    return store.open_store(folder)
