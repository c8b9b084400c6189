"""One Orbax item (a folder with `_METADATA` and arrays): read unread, written a tensor at a time.

T5X's Orbax checkpoints hold one, `state/`; a run of flanx holds one a step, `default/`. Orbax itself writes only trees
that are in memory; what is written here, Orbax restores.
"""

import json
from collections.abc import Sequence

import numpy as np

from flanx.convert import zarr
from flanx.convert.lazy_tensor import Tensor, held
from flanx.convert.storage import Folder
from flanx.convert.t5x import leaves_of, unpack
from flanx.errors import UserError

METADATA = "_METADATA"
_DICT, _SEQUENCE = 2, 1  # Orbax's kinds of tree keys
_PLACEHOLDER = "PLACEHOLDER://"  # how the aggregate file of Orbax before 2024 points at an array beside it
_NO_ARRAY = ("None", "Dict", "List", "Tuple", "NamedTuple")  # value types of empty nodes

Key = tuple[str, ...]


def is_item(folder: Folder) -> bool:
    """Whether an Orbax item lies in `folder`."""
    return METADATA in folder.children()


def read(folder: Folder) -> dict[str, Tensor]:
    """All arrays of an item by the '/'-joined keys of their tree, unread."""
    children = folder.children()
    ocdbt = "manifest.ocdbt" in children
    if METADATA not in children:
        return _read_aggregate(folder, ocdbt)
    metadata = folder.read_json(METADATA)
    arrays = {}
    for entry in metadata["tree_metadata"].values():
        keys = [str(key["key"]) for key in entry["key_metadata"]]
        if entry["value_metadata"]["value_type"] not in _NO_ARRAY:
            arrays["/".join(keys)] = ".".join(keys)
    return zarr.open_arrays(folder, arrays, ocdbt, bool(metadata.get("use_zarr3")))


def _read_aggregate(folder: Folder, ocdbt: bool) -> dict[str, Tensor]:
    """An item of Orbax before 2024: msgpack with small values inside and placeholders for arrays."""
    inline, arrays = {}, {}
    for name, leaf in leaves_of(unpack(folder)):
        if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
            arrays[name] = leaf.removeprefix(_PLACEHOLDER)
        elif leaf is not None:
            inline[name] = held(np.asarray(leaf))
    return inline | zarr.open_arrays(folder, arrays, ocdbt)


def write(folder: Folder, leaves: Sequence[tuple[Key, Tensor | None]]) -> None:
    """Writes an item that Orbax restores; appears whole or not at all on a local disk.

    Args:
      folder: must not hold an item yet; other files in it stay.
      leaves: (keys, tensor) for each leaf, in the tree's order; a key that is a number is an index of a sequence. A
        tensor of None is an empty node, which Orbax wants to find again.
    """
    if is_item(folder):
        raise UserError(f"{folder} holds a checkpoint already; give another folder or remove it")
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
    folder.write(METADATA, json.dumps(metadata))  # last: without it the folder is no item
