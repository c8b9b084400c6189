"""A user's own SeqIO tasks as sources of a store: found by name, read as tokens, hashed.

The user's modules (`imports = ["my_tasks"]`) are imported and register tasks with `seqio.TaskRegistry`.
"""

import fnmatch
import functools
import hashlib
import importlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flanx.data.store import sha256
from flanx.data.vocabulary import Vocabulary
from flanx.errors import UserError
from flanx.seqio.packages import seqio, tf
from flanx.seqio.vocabularies import to_seqio

BATCH = 256  # examples fetched from TensorFlow at a time
SIDES = ("inputs", "targets")


def matching(pattern: str, imports: Sequence[str]) -> list[str]:
    """Sorted names of registered tasks that match a pattern or belong to a mixture of that name."""
    _register(imports)
    if pattern in seqio.MixtureRegistry.names():
        return sorted(rates(pattern, imports))
    return [name for name in sorted(seqio.TaskRegistry.names()) if fnmatch.fnmatchcase(name, pattern)]


def rates(name: str, imports: Sequence[str]) -> dict[str, float]:
    """{task: its rate, as a fraction of 1} of the registered mixture of that name, nested mixtures flattened; {} if
    there is none."""
    _register(imports)
    if name not in seqio.MixtureRegistry.names():
        return {}
    mixture = seqio.MixtureRegistry.get(name)
    found = {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
    return {task: rate / sum(found.values()) for task, rate in found.items()}


def find(name: str, imports: Sequence[str]) -> seqio.Task:
    """The registered task of that name."""
    _register(imports)
    if name not in seqio.TaskRegistry.names():
        raise UserError(f"no SeqIO task '{name}' (imported: {', '.join(imports) or 'nothing, see --import'})")
    return seqio.TaskRegistry.get(name)


def _register(imports: Sequence[str]) -> None:
    for module in imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"cannot import '{module}': {error}") from error


def examples(
    name: str, imports: Sequence[str], vocabulary: Vocabulary, shard: int, shards: int, split: str = "train"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs i32[n], targets i32[m]) of a split, in task order, neither shuffled nor trimmed."""
    task = find(name, imports)
    for side in SIDES:
        feature = task.output_features.get(side)
        if feature is None:
            raise UserError(f"task {name} has no feature {side}")
        if feature.vocabulary != to_seqio(vocabulary):
            raise UserError(f"task {name}: feature {side} has not the vocabulary of the store ({vocabulary.spec})")
    part = seqio.ShardInfo(shard, shards) if shards > 1 else None
    data = task.get_dataset(None, split, shuffle=False, shard_info=part, num_epochs=1)
    data = data.map(lambda example: {side: example[side] for side in SIDES})
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = 2
    for batch in data.ragged_batch(BATCH).with_options(options):
        yield from zip(*(_rows(batch[side]) for side in SIDES), strict=True)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def parts(name: str, imports: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{task: its splits} for a registered task or the tasks of a registered mixture; {} for any other name."""
    _register(imports)
    if name not in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
        return {}
    return {task.name: tuple(task.splits) for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))}


@functools.lru_cache(maxsize=32)
def _evaluated(name: str, imports: Sequence[str], split: str, limit: int) -> tuple[seqio.Task, list[dict[str, Any]]]:
    """A task and the first examples of a split (0: all), neither shuffled nor trimmed."""
    task = find(name, imports)
    data = task.get_dataset(None, split, shuffle=False, num_epochs=1)
    return task, list((data.take(limit) if limit else data).as_numpy_iterator())


def _text(task: seqio.Task, example: Mapping[str, Any], side: str) -> str:
    """A side of an example as text: the pretokenized text if the task keeps it."""
    text = example.get(f"{side}_pretokenized")
    if text is None:
        text = task.output_features[side].vocabulary.decode([int(token) for token in example[side]])
    return text.decode("utf-8") if isinstance(text, bytes) else str(text)


def texts(name: str, imports: Sequence[str], split: str, limit: int) -> tuple[list[tuple[str, str]], bool]:
    """((input, target) of each example, whether a metric function takes scores). Raises UserError for a task without
    metric functions, or with one that takes anything other than predictions or scores."""
    task, examples = _evaluated(name, tuple(imports), split, limit)
    known = len(task.predict_metric_fns) + len(task.score_metric_fns)
    if not known or known != len(task.metric_objs):
        what = "no metric functions" if not task.metric_objs else "a metric that takes other than predictions or scores"
        raise UserError(
            f"SeqIO task {name} has {what}: give it metric_fns of (targets, predictions) or (targets, scores)"
        )
    return [(_text(task, one, "inputs"), _text(task, one, "targets")) for one in examples], bool(task.score_metric_fns)


def compute_metrics(
    name: str, imports: Sequence[str], split: str, limit: int, predictions: Sequence[str], scores: Sequence[Any] | None
) -> dict[str, float]:
    """The values of the task's metric functions, as `seqio.Evaluator` computes them for these predictions and scores.

    Raises UserError if the number of examples in the split differs."""
    task, examples = _evaluated(name, tuple(imports), split, limit)
    if len(examples) != len(predictions):
        raise UserError(f"SeqIO task {name}: {len(predictions)} predictions of {len(examples)} examples of '{split}'")
    targets = [task.postprocess_fn(_text(task, one, "targets"), example=one, is_target=True) for one in examples]
    said = [
        task.postprocess_fn(text, example=one, is_target=False) for text, one in zip(predictions, examples, strict=True)
    ]
    found: dict[str, Any] = {}
    for function in task.predict_metric_fns:
        found |= function(targets, said)
    for function in task.score_metric_fns:
        found |= function(targets, np.asarray(scores, np.float32))
    plain = {key: getattr(value, "value", value) for key, value in found.items()}
    return {key: float(value) for key, value in plain.items() if np.ndim(value) == 0 and not isinstance(value, str)}


def _rows(tensor: Any) -> list[np.ndarray]:
    """The rows of a ragged or dense batch as numpy arrays."""
    if not hasattr(tensor, "row_splits"):
        return list(tensor.numpy())
    flat, ends = tensor.flat_values.numpy(), tensor.row_splits.numpy().tolist()
    return [flat[a:b] for a, b in itertools.pairwise(ends)]


def hash_task(task: seqio.Task, fingerprint: str) -> str:
    """SHA-256 of a task as far as it can be inspected: name, source files, bytecode of its preprocessors.

    `fingerprint`: the vocabulary's fingerprint.
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
    """A stable text for a preprocessor: its name, bound arguments and bytecode."""
    function = getattr(step, "func", step)
    function = getattr(function, "__wrapped__", function)
    code = getattr(function, "__code__", None)
    bound = [getattr(step, "args", ()), sorted(getattr(step, "keywords", {}) or {})]
    name = getattr(function, "__qualname__", type(step).__name__)
    return f"{name} {bound} {hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest() if code else ''}"
