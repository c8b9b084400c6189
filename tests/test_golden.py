"""Golden data: the first ten packed batches, to the byte, and how often each task is drawn.

A change of a template, a generator, a draw, the order or the packing changes them. Where that is meant,
`FLANX_UPDATE_GOLDEN=1 pytest tests/test_golden.py` writes the new ones, and the commit says why.
"""

import collections
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from flanx.data import store, vocabulary
from flanx.data.pipeline.batches import Batches
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store import assemble
from flanx.data.task import render
from flanx.data.task import tables as task_tables
from flanx.data.task.spec import TaskSpec

FILE = pathlib.Path(__file__).parent / "golden" / "batches.json"
WORDS = vocabulary.load("byte")
DRAWS = 10_000
COT = ("aqua", "creak", "ecqa", "gsm8k", "qasc", "sensemaking", "strategyqa")  # those that came with the released code


def write(folder: pathlib.Path, tasks: Sequence[TaskSpec], data_dir: str | None, rows: int) -> store.Store:
    """A store of the first `rows` rendered examples of every style of the tasks; no TensorFlow."""
    facts, texts = {}, collections.defaultdict(list)
    for task in tasks:
        facts[task.name] = {"collection": task.collection, "cap": task.cap, "held_out": False, "cot": task.cot}
        for style in task.versions:
            rendered = render.render_rows(task, style, "train", data_dir, count=lambda text: len(WORDS.encode(text)))
            for made in itertools.islice(rendered, rows):
                texts[task.name, style].append((tokens(made.inputs), tokens(made.targets)))
    assemble.write_store(folder, facts, {part: [examples] for part, examples in texts.items()}, WORDS)
    return store.open_store(folder)


def tokens(text: str) -> np.ndarray:
    """int32 [n], the end of the sequence last."""
    return np.array([*WORDS.encode(text), 1], np.int32)


def describe(batches: Batches) -> dict[str, Any]:
    """What is golden of a mixture's batches."""
    digest = hashlib.sha256()
    for step in range(10):
        batch = batches.batch(step)
        del batch["decoder_task_ids"]  # tells tasks apart and is not part of what is trained on
        for name, array in sorted(batch.items()):
            digest.update(name.encode() + np.ascontiguousarray(array, "<i4").tobytes())
    drawn = np.concatenate([batches.order.chunk(n).source for n in range(batches.order.chunk_of(DRAWS) + 1)])[:DRAWS]
    sources = [batches.resolved.sources[i].task for i in drawn]
    tasks = dict(sorted(collections.Counter(task.name for task in sources).items()))
    return {
        "batches": digest.hexdigest(),
        "tasks": len(batches.resolved.tasks),
        "draws by collection": dict(sorted(collections.Counter(task.collection for task in sources).items())),
        "draws by task": tasks if len(tasks) < 20 else hashlib.sha256(json.dumps(tasks).encode()).hexdigest(),
    }


def check(name: str, found: dict[str, Any]) -> None:
    """Compares with the golden file, or writes it."""
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("FLANX_UPDATE_GOLDEN"):
        FILE.write_text(json.dumps(dict(sorted((golden | {name: found}).items())), indent=1) + "\n")
        pytest.skip(f"wrote {name} to {FILE}")
    assert found == golden[name]


def test_the_embedded_mixture(tmp_path):
    wanted = ("suite_text", "suite_number", "suite_world")
    tasks = [task for task in task_tables.load_tables().values() if task.collection in wanted]
    batches = Batches(write(tmp_path, tasks, None, 6), Mixture("suite"), {"inputs": 128, "targets": 32}, 8)
    check("suite", describe(batches))


def test_the_real_chain_of_thought_sets(tmp_path, data_dir):
    tables = task_tables.load_tables()
    tasks = [tables[f"cot_{name}"] for name in COT]
    batches = Batches(write(tmp_path, tasks, str(data_dir), 200), Mixture("cot"), {"inputs": 1024, "targets": 256}, 8)
    check("cot", describe(batches))
