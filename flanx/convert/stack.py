"""Layers of their own, or all layers of a stack in one tensor: the two forms, and the way between them, unread.

| form | name | axis of the layers |
|---|---|---|
| unrolled (T5X's public checkpoints, flanx) | encoder/layers_3/mlp/wo/kernel | none |
| flanx, scan_layers | encoder/layers/mlp/wo/kernel | 0 |
| T5X, scan_layers (scalable_t5) | encoder/encoder/mlp/wo/kernel | 1; the relative bias is in every layer |
"""

import re
from collections import defaultdict
from typing import Any

import numpy as np

from flanx.convert.tensor import STATE, Index, Tensor, Tensors
from flanx.errors import UserError

_FLANX = re.compile(r"(.*?(?:encoder|decoder)/|^)layers/(.*)")
_T5X = re.compile(r"(.*?)(encoder|decoder)/\2/(.*)")
_LAYER = re.compile(r"(.*?)layers_([0-9]+)/(.*)")


def is_stacked(names: Any) -> bool:
    """Whether any name is of flanx's stacked form."""
    return any("/layers/" in f"/{name}" for name in names)


def unroll(tensors: Tensors, place: Any) -> dict[str, Tensor]:
    """Every stacked tensor, of either form, as one tensor for each layer; others as they are.

    Raises UserError for the optimizer state of T5X's stacked form, and where its layers have biases of their own.
    """
    flat: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours, theirs = _FLANX.fullmatch(name), _T5X.fullmatch(name)
        if ours:
            names, axis = (f"{ours[1]}layers_{{}}/{ours[2]}", 0)
        elif theirs and len(tensor.shape) > 1:
            names, axis = (f"{theirs[1]}{theirs[2]}/layers_{{}}/{theirs[3]}", 1)
        else:
            flat[name] = tensor
            continue
        if theirs and name.startswith(STATE):
            raise UserError(f"{place}: '{name}' is the optimizer state of stacked layers; add --drop-optimizer")
        for i in range(tensor.shape[axis]):
            flat[names.format(i)] = _layer(tensor, axis, i)
    return _share_bias(flat, place)


def _layer(tensor: Tensor, axis: int, i: int) -> Tensor:
    def fetch(index: Index) -> np.ndarray:
        return tensor.fetch((*index[:axis], slice(i, i + 1), *index[axis:])).squeeze(axis)

    return Tensor(tensor.shape[:axis] + tensor.shape[axis + 1 :], tensor.dtype, fetch)


def _share_bias(tensors: dict[str, Tensor], place: Any) -> dict[str, Tensor]:
    """The relative bias of a stack, out of its layers, where all of them have the same."""
    for stack in ("target/encoder", "target/decoder"):
        own = sorted(name for name in tensors if re.fullmatch(rf"{stack}/layers_\d+/relpos_bias/rel_embedding", name))
        if not own:
            continue
        first = tensors[own[0]].read()
        for name in own[1:]:
            if not np.array_equal(first, tensors[name].read()):
                raise UserError(
                    f"{place}: '{name}' differs from layer 0's; flanx's T5 has one relative bias in a stack"
                )
        tensors[f"{stack}/relpos_bias/rel_embedding"] = tensors[own[0]]
        for name in own:
            del tensors[name]
    return tensors


def stack(tensors: Tensors) -> dict[str, Tensor]:
    """Unrolled layers as flanx's stacked form. The layers of a name must have one shape."""
    stacked: dict[str, Tensor] = {}
    layers: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match:
            layers[f"{match[1]}layers/{match[3]}"][int(match[2])] = tensor
        else:
            stacked[name] = tensor
    return stacked | {name: _stacked([each[i] for i in sorted(each)]) for name, each in layers.items()}


def _stacked(each: list[Tensor]) -> Tensor:
    def fetch(index: Index) -> np.ndarray:
        return np.stack([tensor.fetch(index[1:]) for tensor in each[index[0]]])

    return Tensor((len(each), *each[0].shape), each[0].dtype, fetch)
