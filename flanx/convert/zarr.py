"""Arrays in zarr format, in plain folders or inside Orbax's OCDBT store, local or on gs://, through tensorstore."""

from typing import Any

import numpy as np
import tensorstore as ts

from flanx.convert.lazy_tensor import Index, LazyTensor
from flanx.errors import UserError
from flanx.storage import Storage, brief

_CONTEXT = ts.Context({"file_io_concurrency": {"limit": 4}, "data_copy_concurrency": {"limit": 2}})
GZIP = {"id": "gzip", "level": 1}  # T5X's compressor for the legacy format
ZSTD = {"id": "zstd", "level": 1}  # Orbax's


def spec(folder: Storage, array: str, ocdbt: bool = False, zarr3: bool = False) -> dict[str, Any]:
    """tensorstore's description of one array of a folder."""
    store = folder.kvstore()
    if ocdbt:
        store = {"driver": "ocdbt", "base": store, "path": f"{array}/"}
    else:
        store["path"] += f"{array}/"
    return {"driver": "zarr3" if zarr3 else "zarr", "kvstore": store}


def open_arrays(
    folder: Storage, arrays: dict[str, str], ocdbt: bool = False, zarr3: bool = False
) -> dict[str, LazyTensor]:
    """Opens {name: array} concurrently, without reading values. Raises UserError naming the first missing array."""
    opening = {
        name: ts.open(spec(folder, array, ocdbt, zarr3), open=True, context=_CONTEXT) for name, array in arrays.items()
    }
    tensors, keys = {}, None if ocdbt or zarr3 else folder.keys()
    for name, future in opening.items():
        try:
            store = future.result()
        except ValueError as error:
            raise UserError(
                f"{folder}: '{name}' cannot be opened ({brief(error)}); the checkpoint is incomplete, copy it again"
            ) from error
        if keys is not None:
            _expect_chunks(store, arrays[name], keys, folder)
        tensors[name] = LazyTensor(tuple(store.shape), store.dtype.numpy_dtype, _reader(store, name, folder))
    return tensors


def _expect_chunks(store: ts.TensorStore, array: str, keys: set[str], folder: Storage) -> None:
    """Raises UserError naming the first missing chunk: it would be read as zeros.

    T5X and Orbax write every chunk, even of zeros, if the array has no fill value.
    """
    metadata = store.spec().to_json()["metadata"]
    if metadata.get("fill_value") is not None:
        return
    counts = [-(-n // size) for n, size in zip(metadata["shape"], metadata["chunks"], strict=True)]
    separator = metadata.get("dimension_separator", ".")
    for index in np.ndindex(*counts):
        key = f"{array}/{separator.join(map(str, index)) or '0'}"
        if key not in keys:
            raise UserError(f"{folder}/{key} is missing: the checkpoint is incomplete; copy it again")


def _reader(store: ts.TensorStore, name: str, folder: Storage):
    def fetch(index: Index) -> np.ndarray:
        try:
            return np.asarray(store[index].read().result())
        except ValueError as error:
            raise UserError(
                f"{folder}: '{name}' cannot be read ({brief(error)}); the checkpoint is damaged, copy it again"
            ) from error

    return fetch


def write_array(folder: Storage, array: str, tensor: LazyTensor, compressor: dict[str, Any]) -> dict[str, Any]:
    """Writes one array in blocks of rows; returns its zarr metadata (shape, chunks, compressor)."""
    chunks = [tensor.block_rows(), *tensor.shape[1:]] if tensor.shape else []
    metadata = {"shape": list(tensor.shape), "chunks": chunks, "compressor": compressor}
    description = spec(folder, array) | {"metadata": metadata, "dtype": tensor.dtype.name}
    store = ts.open(description, create=True, delete_existing=True, context=_CONTEXT).result()
    if not tensor.shape:
        store.write(tensor.read()).result()
        return metadata
    for start, block in tensor.row_blocks():
        # wait for each: one encoded chunk in memory, not a queue of them
        store[start : start + len(block)].write(block).result()
    return metadata
