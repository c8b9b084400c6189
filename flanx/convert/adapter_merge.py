"""A base with an adapter merged: W + s A B in place of each kernel W that has a pair, still lazy.

An adapter's run holds only the pairs; its run.json names the base, with its fingerprint. A base that was kept in fewer
bits is merged as the run computed with it: the kernels are first rounded as they were during training.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flanx import run_record
from flanx.convert.flanx_format import FOLDER
from flanx.convert.lazy_tensor import BFLOAT16, TARGET, Index, LazyTensor, LazyTensors
from flanx.errors import UserError
from flanx.models.adapter import MARK, Adapter, quantize, restored
from flanx.storage import Storage

_PAIR = re.compile(rf"{TARGET}(.+)/{MARK}(a|b|magnitude)")
_KEPT = re.compile(rf"{TARGET}(.+)/(kernel|embedding)")  # what is rounded in a base of fewer bits


@dataclasses.dataclass(frozen=True)
class Pairs:
    """An adapter that was read.

    Attributes:
      adapter: its settings.
      of_layers: {"encoder/layers_0/attention/query": {"a": [i, r], "b": [r, o], "magnitude": [o] with DoRA}}.
      base: the name or path of the base; fingerprint: the base's, if recorded.
      where: the folder, for messages.
    """

    adapter: Adapter
    of_layers: Mapping[str, Mapping[str, LazyTensor]]
    base: str
    fingerprint: str | None
    where: Any


def has_pairs(names: Any) -> bool:
    """Whether tensors with these names are an adapter's."""
    return any(_PAIR.fullmatch(name) for name in names)


def of_run(folder: Storage, tensors: LazyTensors) -> Pairs:
    """The adapter of a run or of one of its steps, from its (unrolled) tensors and run.json."""
    run = folder.parent.parent if folder.parent.name == FOLDER else folder
    record = run_record.read_stored_run(run)
    settings, base = record.get("adapter"), record.get("initial_checkpoint_path")
    if not isinstance(settings, dict) or not isinstance(base, str):
        raise UserError(f"{folder} is an adapter, and {run}/run.json does not say of which base; copy the whole run")
    try:
        adapter = Adapter(**settings)
    except TypeError as error:
        raise UserError(f"{run}/run.json: adapter: {error}; was it written by a later flanx?") from error
    layers: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        if match := _PAIR.fullmatch(name):
            layers.setdefault(match[1], {})[match[2]] = tensor
    return Pairs(adapter, layers, base, record.get("initial_checkpoint_fingerprint"), folder)


def merge(tensors: LazyTensors, pairs: Pairs) -> dict[str, LazyTensor]:
    """The base's (unrolled) tensors with the adapter merged, float32 wherever it is.

    Raises UserError if the base lacks a layer of the adapter, or has it in another shape.
    """
    merged = {name: _rounded(name, tensor, pairs.adapter.base) for name, tensor in tensors.items()}
    for layer, parts in pairs.of_layers.items():
        kernel = merged.get(f"{TARGET}{layer}/kernel")
        if kernel is None:
            raise UserError(f"{pairs.where} is an adapter of another base than {pairs.base}, which has no '{layer}'")
        _expect_whole(layer, parts, pairs)
        shape = (parts["a"].shape[0], parts["b"].shape[1])
        if shape != kernel.shape:
            raise UserError(
                f"{pairs.where} is an adapter of another base than {pairs.base}: '{layer}' is {list(shape)} there and "
                f"{list(kernel.shape)} in the base"
            )
        merged[f"{TARGET}{layer}/kernel"] = _with_pair(kernel, parts, pairs.adapter.scale)
    return merged


def _expect_whole(layer: str, parts: Mapping[str, LazyTensor], pairs: Pairs) -> None:
    """Raises UserError for a layer whose arrays do not match the adapter's settings."""
    damaged = f"{pairs.where} is damaged: '{layer}'"
    if not {"a", "b"} <= set(parts):
        raise UserError(f"{damaged} has only one matrix of its pair; copy it again")
    a, b = parts["a"].shape, parts["b"].shape
    if len(a) != 2 or len(b) != 2 or not a[1] == b[0] == pairs.adapter.rank:
        raise UserError(f"{damaged} has matrices {list(a)} and {list(b)} at rank {pairs.adapter.rank}; copy it again")
    if ("magnitude" in parts) != pairs.adapter.dora:
        has = "no magnitude, which DoRA has" if pairs.adapter.dora else "a magnitude, which only DoRA has"
        raise UserError(f"{damaged} has {has}; copy it again")
    if "magnitude" in parts and parts["magnitude"].shape != (b[1],):
        raise UserError(f"{damaged} has a magnitude {list(parts['magnitude'].shape)} for {b[1]} outputs; copy it again")


def _with_pair(kernel: LazyTensor, parts: Mapping[str, LazyTensor], scale: float) -> LazyTensor:
    def fetch(index: Index) -> np.ndarray:
        rows, columns = index
        whole = (slice(0, kernel.shape[0]), columns)  # a column's norm needs all of its rows
        a, b = (parts[name].read().astype(np.float32) for name in ("a", "b"))
        values = kernel.fetch(whole).astype(np.float32) + np.float32(scale) * (a @ b[:, columns])
        if "magnitude" in parts:
            norm = np.sqrt(np.sum(np.square(values), axis=0))
            values *= parts["magnitude"].read()[columns] / np.maximum(norm, np.finfo(np.float32).tiny)
        return values[rows]

    return LazyTensor(kernel.shape, np.dtype(np.float32), fetch)


def _rounded(name: str, tensor: LazyTensor, base: str) -> LazyTensor:
    """A parameter as in the run that trained the adapter: rounded, and float32 again."""
    if base == "float32" or not _KEPT.fullmatch(name):
        return tensor
    if base == "bfloat16" or "/layers_" not in name:
        return tensor.cast(BFLOAT16).cast(np.dtype(np.float32))

    def fetch(index: Index) -> np.ndarray:
        codes, scale = map(jnp.asarray, quantize(base, tensor.read()))
        return np.asarray(restored(base, codes, scale))[index]

    return LazyTensor(tensor.shape, np.dtype(np.float32), fetch)


def stored(tensors: LazyTensors, base: str) -> dict[str, LazyTensor]:
    """A base's (unrolled) tensors under the parameter names of a model whose adapter keeps them as `base`."""
    if base in ("float32", "bfloat16"):
        return dict(tensors)
    kept: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(TARGET) or "/layers_" not in name or not name.endswith("/kernel"):
            kept[name] = tensor
            continue
        sample = quantize(base, np.zeros(tensor.shape, np.float32))
        for part, (suffix, like) in enumerate(zip((base, "scale"), sample, strict=True)):
            kept[f"{name}_{suffix}"] = LazyTensor(like.shape, like.dtype, _quantized(tensor, base, part))
    return kept


def _quantized(tensor: LazyTensor, base: str, part: int) -> Any:
    return lambda index: quantize(base, tensor.read())[part][index]
