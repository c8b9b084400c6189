"""The safetensors file format, read and written a tensor at a time; the package of that name writes only whole dicts.

A file is the length of a header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, span of bytes), then
the tensors' bytes in C order.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

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


def read(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file, lazily. Raises UserError where the file is truncated or has a dtype unknown here."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise UserError(f"{path} is a truncated safetensors file; download it again")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise UserError(f"{path} is not a safetensors file ({error}); download it again") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{path}: '{name}' has dtype {entry['dtype']}; flanx reads {', '.join(_DTYPES)}")
        dtype = _DTYPES[entry["dtype"]]
        if end - start != math.prod(shape) * dtype.itemsize or 8 + length + end > size:
            raise UserError(f"{path}: '{name}' {list(shape)} is truncated; download the file again")
        tensors[name] = LazyTensor(shape, dtype, _Reader(path, 8 + length + start, shape, dtype))
    return tensors


class _Reader:
    """Maps one tensor's bytes for as long as its values are in use, so that read pages do not pile up."""

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
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that does not say so
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
