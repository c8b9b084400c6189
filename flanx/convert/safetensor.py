"""The safetensors file format, read and written one tensor at a time; the safetensors package only writes whole dicts.

A file holds the length of a header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, byte span), then
the tensors' bytes in C order.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import numpy as np

from flanx.convert.lazy_tensor import BFLOAT16, Index, LazyTensor
from flanx.errors import UserError

_NAMES = {
    np.dtype("float64"): "F64",
    np.dtype("float32"): "F32",
    np.dtype("float16"): "F16",
    BFLOAT16: "BF16",
    np.dtype("int64"): "I64",
    np.dtype("int32"): "I32",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


_MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors package


def read(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file, lazily.

    Raises UserError if it is not a regular file, is truncated, has an unknown dtype, or has a header whose spans do not
    fill the file consecutively, each with its tensor's size.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; download it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise UserError(f"{path} is a truncated safetensors file; download it again")
        if length > _MOST_HEADER_BYTES:
            raise UserError(f"{path}: a safetensors header cannot have {length} bytes; download it again")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a safetensors file ({error}); download it again") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: the header is not a dict of tensors; download it again")
    header.pop("__metadata__", None)
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    tensors, before = {}, 0
    for name, (shape, dtype, start, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if 8 + length + end > size:
            raise UserError(f"{path}: '{name}' {list(shape)} is truncated; download the file again")
        if start != before:
            raise UserError(
                f"{path}: '{name}' starts at byte {start}, not {before}, where the last one ends; download it again"
            )
        before = end
        tensors[name] = LazyTensor(shape, dtype, _Reader(path, 8 + length + start, shape, dtype))
    return {name: tensors[name] for name in spans}


def _span(path: Path, name: str, entry: object) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """(shape, dtype, start, end) of one header entry. Raises UserError if it lacks them or they are inconsistent."""
    entry = entry if isinstance(entry, dict) else {}
    shape, span, kind = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if not (_are_sizes(shape) and _are_sizes(span) and len(span) == 2 and isinstance(kind, str)):
        raise UserError(f"{path}: the header does not say dtype, shape and two offsets of '{name}'; download it again")
    if kind not in _DTYPES:
        raise UserError(f"{path}: '{name}' has dtype {kind}; flanx reads {', '.join(_DTYPES)}")
    if span[1] - span[0] != math.prod(shape) * _DTYPES[kind].itemsize:
        raise UserError(
            f"{path}: '{name}' {kind} {shape} does not fill bytes {span[0]} to {span[1]}: truncated; download it again"
        )
    return tuple(shape), _DTYPES[kind], span[0], span[1]


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


class _Reader:
    """Maps one tensor's bytes only while its values are in use, so that pages already read do not pile up."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._span = (path, offset, shape, dtype)

    def __call__(self, index: Index) -> np.ndarray:
        path, offset, shape, dtype = self._span
        if 0 in shape:
            return np.zeros(shape, dtype)
        bytes_ = np.memmap(path, np.uint8, "r", offset, math.prod(shape) * dtype.itemsize)
        return bytes_.view(np.ndarray).view(dtype).reshape(shape)[index]


def write(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Writes one file; holds one tensor at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers rejects a file without it
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)  # so that the tensors start at a multiple of 8
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for tensor in tensors.values():
            for _, block in tensor.row_blocks():
                file.write(np.ascontiguousarray(block).view(np.uint8).data)
