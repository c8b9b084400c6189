"""One Orbax item (a folder with `_METADATA` and arrays): read lazily, written one tensor at a time.

T5X's Orbax checkpoints hold one, `state/`; a flanx run holds one per step, `default/`. Orbax itself only writes trees
that are in memory; it restores what is written here.
"""

import json
from collections.abc import Sequence

import numpy as np

from flanx.convert import zarr
from flanx.convert.lazy_tensor import LazyTensor, in_memory
from flanx.convert.t5x import leaves_of, unpack
from flanx.errors import UserError
from flanx.storage import Storage

METADATA = "_METADATA"
_DICT, _SEQUENCE = 2, 1  # Orbax's kinds of tree keys
_PLACEHOLDER = "PLACEHOLDER://"  # how Orbax's aggregate file before 2024 refers to an array next to it
_NO_ARRAY = ("None", "Dict", "List", "Tuple", "NamedTuple")  # value types of empty nodes

Key = tuple[str, ...]


def is_item(folder: Storage) -> bool:
    """Whether `folder` is an Orbax item."""
    return METADATA in folder.children()


def read(folder: Storage) -> dict[str, LazyTensor]:
    """All arrays of an item by their '/'-joined tree keys, lazily."""
    children = folder.children()
    ocdbt = "manifest.ocdbt" in children
    if METADATA not in children:
        return _read_aggregate(folder, ocdbt)
    metadata = folder.read_json(METADATA)
    arrays = {}
    try:
        for entry in metadata["tree_metadata"].values():
            keys = [str(key["key"]) for key in entry["key_metadata"]]
            if entry["value_metadata"]["value_type"] not in _NO_ARRAY:
                arrays["/".join(keys)] = ".".join(keys)
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"{folder}/{METADATA} is damaged: it does not list its arrays; copy the checkpoint again"
        ) from None
    return zarr.open_arrays(folder, arrays, ocdbt, bool(metadata.get("use_zarr3")))


def _read_aggregate(folder: Storage, ocdbt: bool) -> dict[str, LazyTensor]:
    """An item of Orbax before 2024: msgpack with small values inline and placeholders for arrays."""
    inline, arrays = {}, {}
    for name, leaf in leaves_of(unpack(folder)):
        if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
            arrays[name] = leaf.removeprefix(_PLACEHOLDER)
        elif leaf is not None:
            inline[name] = in_memory(np.asarray(leaf))
    return inline | zarr.open_arrays(folder, arrays, ocdbt)


def write(folder: Storage, leaves: Sequence[tuple[Key, LazyTensor | None]]) -> None:
    """Writes an item that Orbax restores; it appears atomically on a local disk.

    Args:
      folder: must not hold an item yet; other files in it are kept.
      leaves: (keys, tensor) for each leaf, in tree order; a numeric key is an index of a sequence. A tensor of None is
        an empty node, which Orbax expects when it restores.
    """
    if is_item(folder):
        raise UserError(f"{folder} already has a checkpoint; give another folder or remove it")
    tree = {}
    for keys, tensor in leaves:
        if tensor is not None:
            zarr.write_array(folder, ".".join(keys), tensor, zarr.ZSTD)
        kind = {"value_type": "jax.Array" if tensor is not None else "None", "skip_deserialize": tensor is None}
        kinds = [{"key": key, "key_type": _SEQUENCE if key.isdigit() else _DICT} for key in keys]
        tree[str(tuple(keys))] = {"key_metadata": kinds, "value_metadata": kind}
    metadata = {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    folder.write(METADATA, json.dumps(metadata))  # last: without it the folder is not an item
