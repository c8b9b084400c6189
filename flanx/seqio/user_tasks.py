"""A user's own SeqIO tasks as sources of a store: found by name, read as tokens, hashed.

Their modules are imported (`imports = ["my_tasks"]`) and register tasks with `seqio.TaskRegistry`.
"""

import fnmatch
import hashlib
import importlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flanx.data.store import sha256
from flanx.data.vocabulary import Vocabulary
from flanx.errors import UserError
from flanx.seqio.packages import seqio, tf
from flanx.seqio.vocabularies import to_seqio

BATCH = 256  # examples that leave TensorFlow at a time
SIDES = ("inputs", "targets")


def matching(pattern: str, imports: Sequence[str]) -> list[str]:
    """The names of registered tasks that match a pattern, sorted."""
    _register(imports)
    return [name for name in sorted(seqio.TaskRegistry.names()) if fnmatch.fnmatchcase(name, pattern)]


def find(name: str, imports: Sequence[str]) -> seqio.Task:
    """The registered task of that name."""
    _register(imports)
    if name not in seqio.TaskRegistry.names():
        raise UserError(f"no SeqIO task '{name}' (imported: {', '.join(imports) or 'nothing'})")
    return seqio.TaskRegistry.get(name)


def _register(imports: Sequence[str]) -> None:
    for module in imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"cannot import '{module}': {error}") from error


def examples(
    name: str, imports: Sequence[str], vocabulary: Vocabulary, shard: int, shards: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs i32[n], targets i32[m]) of the training split, in the task's order, neither shuffled nor trimmed."""
    task = find(name, imports)
    for side in SIDES:
        feature = task.output_features.get(side)
        if feature is None:
            raise UserError(f"task {name} has no feature {side}")
        if feature.vocabulary != to_seqio(vocabulary):
            raise UserError(f"task {name}: feature {side} has not the vocabulary of the store ({vocabulary.spec})")
    part = seqio.ShardInfo(shard, shards) if shards > 1 else None
    data = task.get_dataset(None, "train", shuffle=False, shard_info=part, num_epochs=1)
    data = data.map(lambda example: {side: example[side] for side in SIDES})
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = 2
    for batch in data.ragged_batch(BATCH).with_options(options):
        yield from zip(*(_rows(batch[side]) for side in SIDES), strict=True)


def _rows(tensor: Any) -> list[np.ndarray]:
    """The rows of a ragged or dense batch as numpy arrays."""
    if not hasattr(tensor, "row_splits"):
        return list(tensor.numpy())
    flat, ends = tensor.flat_values.numpy(), tensor.row_splits.numpy().tolist()
    return [flat[a:b] for a, b in itertools.pairwise(ends)]


def hash_task(task: seqio.Task, fingerprint: str) -> str:
    """SHA-256 of a task as far as it can be inspected: name, source files, the byte code of its preprocessors.

    `fingerprint`: of the vocabulary.
    """
    files = []
    for split in task.source.splits or ():
        try:
            files += [f"{pathlib.Path(p).name} {sha256(pathlib.Path(p))}" for p in task.source.list_shards(split)]
        except (OSError, ValueError, NotImplementedError, AttributeError):
            files.append(f"{type(task.source).__name__} {split}")
    steps = [_code(step) for step in task.preprocessors]
    return hashlib.sha256(json.dumps([task.name, files, steps, fingerprint]).encode()).hexdigest()


def _code(step: Any) -> str:
    """A stable text for a preprocessor: its name, its bound arguments and its byte code."""
    function = getattr(step, "func", step)
    function = getattr(function, "__wrapped__", function)
    code = getattr(function, "__code__", None)
    bound = [getattr(step, "args", ()), sorted(getattr(step, "keywords", {}) or {})]
    name = getattr(function, "__qualname__", type(step).__name__)
    return f"{name} {bound} {hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest() if code else ''}"
