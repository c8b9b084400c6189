"""The intermediate form of every conversion: T5X's flat names, each with a lazy tensor.

Names are T5X's (`target/encoder/layers_0/attention/query/kernel`, `state/param_states/.../v_row`, `state/step`), so
the reader and writer of one format need to know nothing about any other.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes  # comes with jax; gives numpy a bfloat16
import numpy as np

from flanx.errors import UserError

Index = tuple[slice, ...]
TARGET, STATE = "target/", "state/"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BLOCK_BYTES = 64 * 2**20  # what a writer holds of one tensor in addition to the tensor itself; T5X's own chunk size


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still on disk.

    Attributes:
      shape, dtype: known without reading the values.
      fetch: index (one slice per axis) -> that part as an array; only that part is read if the format allows it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[Index], np.ndarray]

    def read(self, index: Index | None = None) -> np.ndarray:
        """The values, or the part selected by `index` (slices of step 1)."""
        return self.fetch(tuple(slice(0, n) for n in self.shape) if index is None else index)

    def transposed(self) -> "LazyTensor":
        """The same tensor with its axes in reverse order; nothing is read or copied."""
        return LazyTensor(self.shape[::-1], self.dtype, lambda index: self.fetch(index[::-1]).T)

    def negated(self) -> "LazyTensor":
        """The same tensor, negated."""
        return LazyTensor(self.shape, self.dtype, lambda index: 0 - self.fetch(index))

    def cast(self, dtype: np.dtype) -> "LazyTensor":
        """The same tensor in another dtype if it is floating; integers stay as they are."""
        if self.dtype == dtype or not is_floating(self.dtype):
            return self
        return LazyTensor(self.shape, dtype, lambda index: self.fetch(index).astype(dtype))

    def block_rows(self) -> int:
        """Rows of the first axis per block: as even as possible, at most BLOCK_BYTES unless a single row has more."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        most = max(1, BLOCK_BYTES // max(1, row_bytes))
        parts = max(1, math.ceil(self.shape[0] / most))
        return max(1, math.ceil(self.shape[0] / parts))

    def row_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) over the first axis, `block_rows` at a time, from one read of the whole tensor.

        One read, because a column-wise source would otherwise be decoded once per block.
        """
        values = self.read()
        for start in range(0, self.shape[0], self.block_rows()):
            yield start, values[start : start + self.block_rows()]


LazyTensors = Mapping[str, LazyTensor]


def is_floating(dtype: np.dtype) -> bool:
    """Whether `dtype` is floating; numpy itself does not count bfloat16."""
    return dtype == BFLOAT16 or np.issubdtype(dtype, np.floating)


def in_memory(values: np.ndarray) -> LazyTensor:
    """A LazyTensor over an array that is already in memory."""
    return LazyTensor(values.shape, values.dtype, lambda index: values[index])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {'a/b/c': leaf}. A flat mapping stays as it is."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def parameters(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Only the parameters, without the prefix `target/`."""
    return {name.removeprefix(TARGET): tensor for name, tensor in tensors.items() if name.startswith(TARGET)}


def expect_shape(tensor: LazyTensor, shape: tuple[int, ...], name: str, path: Any) -> None:
    """Raises UserError naming the tensor, unless it has `shape`."""
    if tuple(tensor.shape) != tuple(shape):
        raise UserError(f"{path}: '{name}' is {list(tensor.shape)}, expected {list(shape)}; the checkpoint is damaged")


def digest(values: np.ndarray) -> str:
    """sha256 of the values as little-endian float32 (integers: as they are), C order, in blocks.

    bfloat16 and float16 widen without loss, so a checkpoint has one digest in every storage dtype that can hold it.
    """
    sha = hashlib.sha256()
    for _, block in in_memory(np.atleast_1d(values)).row_blocks():
        wide = block.astype("<f4") if is_floating(block.dtype) else block
        sha.update(np.ascontiguousarray(wide).data)
    return sha.hexdigest()


def fingerprint(params: Mapping[str, Any], finite: bool = False) -> str:
    """sha256 hex of a parameter tree, over its sorted names, shapes and values; the same in every format.

    Raises UserError if the values must be `finite` and one is a NaN or an infinity.

    Args:
      params: nested or flat, of arrays or LazyTensors, with T5X's names; if any name starts with `target/`, that
        prefix is ignored, and so is everything under `state/`.
    """
    flat = flatten(params)
    flat = parameters(flat) or flat
    sha = hashlib.sha256()
    for name in sorted(flat):
        leaf = flat[name]
        values = leaf.read() if isinstance(leaf, LazyTensor) else np.asarray(leaf)
        if finite and not np.isfinite(values).all():
            raise UserError(
                f"'{name}' holds a NaN or an infinity: the checkpoint is damaged; --no_verify converts it as it is"
            )
        sha.update(f"{name} {list(values.shape)} {digest(values)}\n".encode())
    return sha.hexdigest()
