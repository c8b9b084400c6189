"""One Orbax item (a folder with `_METADATA` and arrays): read unread, written a tensor at a time.

T5X's Orbax checkpoints hold one, `state/`; a run of flanx holds one a step, `default/`. Orbax itself writes only trees
that are in memory; what is written here, Orbax restores.
"""

import json
from collections.abc import Sequence

import numpy as np
from etils import epath

from flanx.convert import zarr
from flanx.convert.t5x import MESSAGES, leaves_of, unpack
from flanx.convert.tensor import Tensor, held
from flanx.errors import UserError

METADATA = "_METADATA"
_DICT, _SEQUENCE = 2, 1  # Orbax's kinds of tree keys
_PLACEHOLDER = "PLACEHOLDER://"  # how the aggregate file of Orbax before 2024 points at an array beside it
_NO_ARRAY = ("None", "Dict", "List", "Tuple", "NamedTuple")  # value types of empty nodes

Key = tuple[str, ...]


def is_item(folder: epath.Path) -> bool:
    """Whether an Orbax item of any age lies in `folder`."""
    return (folder / METADATA).exists()


def read(folder: epath.Path) -> dict[str, Tensor]:
    """All arrays of an item by the '/'-joined keys of their tree, unread."""
    ocdbt = (folder / "manifest.ocdbt").exists()
    if not (folder / METADATA).exists():
        return _read_aggregate(folder, ocdbt)
    metadata = zarr.read_json(folder / METADATA)
    arrays = {}
    for entry in metadata["tree_metadata"].values():
        keys = [str(key["key"]) for key in entry["key_metadata"]]
        if entry["value_metadata"]["value_type"] not in _NO_ARRAY:
            arrays["/".join(keys)] = ".".join(keys)
    return zarr.open_arrays(folder, arrays, ocdbt, bool(metadata.get("use_zarr3")))


def _read_aggregate(folder: epath.Path, ocdbt: bool) -> dict[str, Tensor]:
    """An item of Orbax before 2024: msgpack with small values inside and placeholders for arrays."""
    inline, arrays = {}, {}
    for name, leaf in leaves_of(unpack(folder / MESSAGES)):
        if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
            arrays[name] = leaf.removeprefix(_PLACEHOLDER)
        elif leaf is not None:
            inline[name] = held(np.asarray(leaf))
    return inline | zarr.open_arrays(folder, arrays, ocdbt)


def write(folder: epath.Path, leaves: Sequence[tuple[Key, Tensor | None]]) -> None:
    """Writes an item that Orbax restores; appears whole or not at all on a local disk.

    Args:
      folder: must not hold an item yet; other files in it stay.
      leaves: (keys, tensor) for each leaf, in the tree's order; a key that is a number is an index of a sequence. A
        tensor of None is an empty node, which Orbax wants to find again.
    """
    if is_item(folder):
        raise UserError(f"{folder} holds a checkpoint already; give another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
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
    (folder / METADATA).write_text(json.dumps(metadata))  # last: without it the folder is no item
