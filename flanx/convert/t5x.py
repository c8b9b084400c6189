"""T5X's legacy checkpoint format (msgpack + zarr), both ways. (Its Orbax format is read by `orbax_item`.)

It is a file `checkpoint`, msgpack of {version, optimizer: {state: {step, param_states}, target}}, whose leaves are
small arrays or descriptions of zarr arrays next to it. The public T5 and Flan-T5 checkpoints use it.
Neither T5X nor TensorFlow is needed.
"""

import gzip
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import serialization

from flanx.convert import zarr
from flanx.convert.lazy_tensor import TARGET, LazyTensor, LazyTensors, expect_shape, in_memory, nest
from flanx.errors import UserError
from flanx.storage import Storage

MESSAGES = "checkpoint"  # the msgpack file
VERSION = 3  # of the format since June 2021: bfloat16 arrays are stored as bfloat16
_STEP = re.compile(r"checkpoint_(\d+)")


def step_folder(folder: Storage, says: bool = True) -> Storage:
    """`folder` itself, or its newest `checkpoint_<step>` if it is a folder of those.

    T5X writes the file that makes a step's folder a checkpoint last: a folder without it was not finished, and the one
    before it is used, with a printed note if `says`.
    """
    children = folder.children()
    if children & {MESSAGES, "state"}:
        return folder
    steps = sorted((int(match[1]) for child in children if (match := _STEP.fullmatch(child))), reverse=True)
    for step in steps:
        taken = folder / f"checkpoint_{step}"
        if taken.children() & {MESSAGES, "state"}:
            if says and step != steps[0]:
                print(f"note: {folder}/checkpoint_{steps[0]} holds no finished checkpoint; taking checkpoint_{step}")
            return taken
    return folder


def read_legacy(folder: Storage) -> dict[str, LazyTensor]:
    """All tensors of a legacy checkpoint, by T5X's flat names, lazily.

    Raises UserError if the msgpack file is absent, not T5X's or older than version 2, or if an array does not have the
    shape given in the msgpack file.
    """
    tree = unpack(folder)
    version = tree.get("version", 0) if isinstance(tree, dict) else 0
    if version not in (2, VERSION):
        raise UserError(f"{folder}/{MESSAGES} has version {version}; flanx reads T5X's versions 2 and 3")
    if "optimizer" not in tree:
        raise UserError(f"{folder}/{MESSAGES} has no 'optimizer', under which T5X keeps everything; copy it again")
    inline, arrays, shapes = {}, {}, {}
    for name, leaf in leaves_of(tree["optimizer"]):
        if isinstance(leaf, Mapping):
            path = leaf["kvstore"].get("path") or leaf.get("path")  # tensorstore before 0.1.14 had it one level up
            arrays[name] = str(path).strip("/")
            shapes[name] = tuple(leaf["metadata"]["shape"])
        elif leaf is not None:
            inline[name] = in_memory(np.asarray(leaf))
    tensors = inline | zarr.open_arrays(folder, arrays)
    for name, shape in shapes.items():
        expect_shape(tensors[name], shape, name, folder)
        if tensors[name].dtype == np.uint16:
            raise UserError(f"{folder}: '{name}' is bfloat16 written as uint16 (version 2); convert it with T5X first")
    return tensors


def unpack(folder: Storage) -> Any:
    """The msgpack file of a folder. Raises UserError if it is absent or in another format."""
    content = folder.read(MESSAGES)
    if content.startswith(b"model_checkpoint_path"):
        raise UserError(f"{folder} is a Mesh TensorFlow checkpoint; convert it with T5X's convert_tf_checkpoint first")
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    try:
        return serialization.msgpack_restore(content)
    except Exception as error:
        raise UserError(f"{folder}/{MESSAGES} is not a T5X checkpoint ({error}); copy it again") from error


def leaves_of(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(flat name, leaf), where a description of an array counts as a leaf."""
    leaves: list[tuple[str, Any]] = []
    for name, node in tree.items():
        if isinstance(node, Mapping) and not {"driver", "kvstore", "metadata"} <= node.keys():
            leaves += leaves_of(node, f"{prefix}{name}/")
        else:
            leaves.append((prefix + name, node))
    return leaves


def write_legacy(folder: Storage, tensors: LazyTensors, step: int) -> None:
    """Writes a checkpoint that T5X restores: parameters and full second moments as zarr, the rest, small, in msgpack.

    Args:
      folder: the `checkpoint_<step>` folder.
      tensors: `target/...`, and `state/param_states/.../{m,v,v_row,v_col}` if there is an optimizer state.
      step: steps done.
    """
    leaves: dict[str, Any] = {"state/step": np.asarray(step, np.int32)}
    for name in sorted(tensors.keys() - leaves.keys()):
        tensor = tensors[name]
        if not name.startswith(TARGET) and (
            (len(tensor.shape) < 2 and not name.endswith("/v")) or tensor.shape == (1,)
        ):
            leaves[name] = tensor.read()
            continue
        array = name.replace("/", ".")
        leaves[name] = {
            "driver": "zarr",
            "dtype": tensor.dtype.name,
            "kvstore": {"driver": "file", "path": f"{array}/"},
            "metadata": zarr.write_array(folder, array, tensor, zarr.GZIP),
        }
    content = serialization.msgpack_serialize({"version": VERSION, "optimizer": nest(leaves)})
    folder.write(MESSAGES, content)  # last: without it the folder is not a checkpoint
