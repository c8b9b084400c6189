"""Unrolled layers, or all layers of a stack in one tensor: the two forms, and lazy conversion between them.

| form | name | axis of the layers |
|---|---|---|
| unrolled (T5X's public checkpoints, flanx) | encoder/layers_3/mlp/wo/kernel | none |
| flanx, scan_layers | encoder/layers/mlp/wo/kernel | 0 |
| T5X, scan_layers (scalable_t5) | encoder/encoder/mlp/wo/kernel | 1; the relative bias is in every layer |

Moments of the optimizer are stacked as their parameters are. T5X factors a stacked parameter by the names of its axes,
an unrolled one by their sizes; `unroll` gives the moments the names that they have unrolled.
"""

import re
from collections import defaultdict
from typing import Any

import numpy as np

from flanx.convert.lazy_tensor import STATE, TARGET, Index, LazyTensor, LazyTensors
from flanx.errors import UserError
from flanx.optim import factored_axes

LEAST_FACTORED = 128  # Adafactor's min_dim_size_to_factor
_FLANX = re.compile(r"(.*?(?:encoder|decoder)/|^)layers/(.*)")
_T5X = re.compile(r"(.*?)(encoder|decoder)/\2/(.*)")
_MOMENTS = f"{STATE}param_states/"
_LAYER = re.compile(r"(.*?)layers_([0-9]+)/(.*)")


def is_stacked(names: Any) -> bool:
    """Whether any name is of flanx's stacked form."""
    return any("/layers/" in f"/{name}" for name in names)


def unroll(tensors: LazyTensors, path: Any) -> dict[str, LazyTensor]:
    """Every stacked tensor, of either form, as one tensor for each layer; others unchanged.

    Raises UserError where T5X's layers have biases of their own, or moments that Adafactor here does not keep.
    """
    flat: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        axis: int | None
        ours, theirs = _FLANX.fullmatch(name), _T5X.fullmatch(name)
        if ours:
            names, axis, count = f"{ours[1]}layers_{{}}/{ours[2]}", 0, tensor.shape[0]
        elif theirs:
            kept, axis, count = _of_t5x(theirs, tensor, tensors, path)
            names = f"{theirs[1]}{theirs[2]}/layers_{{}}/{kept}"
        else:
            flat[name] = tensor
            continue
        for i in range(count):
            flat[names.format(i)] = tensor if axis is None else _layer(tensor, axis, i)
    for prefix in ("target/encoder", "target/decoder", f"{_MOMENTS}encoder", f"{_MOMENTS}decoder"):
        _share_bias(flat, prefix, path)
    return flat


def _of_t5x(name: re.Match[str], tensor: LazyTensor, tensors: LazyTensors, path: Any) -> tuple[str, int | None, int]:
    """A tensor of T5X's stacked form: its name inside a layer here, the axis of the layers (None: the same tensor for
    all of them), and their number."""
    _, stack, inside = name.groups()
    if name[1] == TARGET:
        return inside, 1, tensor.shape[1]
    inside, _, moment = inside.rpartition("/")
    param = tensors.get(f"{TARGET}{stack}/{stack}/{inside}")
    if name[1] != _MOMENTS or param is None:
        raise UserError(f"{path}: '{name[0]}' is a state without its parameter; add --drop-optimizer")
    count = param.shape[1]
    if tensor.shape == (1,):  # a moment that the parameter does not use
        return f"{inside}/{moment}", None, count
    if moment not in ("v_row", "v_col"):
        return f"{inside}/{moment}", 1, count
    # T5X calls the axis of the embedding the row, Adafactor of unrolled layers the smaller one: the same two means.
    row = 1 if inside.endswith(("/out/kernel", "/wo/kernel")) else 0  # of the unrolled parameter
    mine = row if moment == "v_row" else 1 - row
    axes = factored_axes((param.shape[0], param.shape[2]), LEAST_FACTORED)
    if axes is None:
        raise UserError(
            f"{path}: '{name[0]}' is a factored moment of a parameter with an axis below {LEAST_FACTORED}, "
            "which flanx does not factor; add --drop-optimizer"
        )
    return f"{inside}/{'v_row' if axes[0] == mine else 'v_col'}", 1 - mine, count


def _layer(tensor: LazyTensor, axis: int, i: int) -> LazyTensor:
    def fetch(index: Index) -> np.ndarray:
        return tensor.fetch((*index[:axis], slice(i, i + 1), *index[axis:])).squeeze(axis)

    return LazyTensor(tensor.shape[:axis] + tensor.shape[axis + 1 :], tensor.dtype, fetch)


def _share_bias(tensors: dict[str, LazyTensor], prefix: str, path: Any) -> None:
    """Takes the relative bias of a stack, or a moment of it, out of its layers, where all of them have the same."""
    biases: dict[str, list[str]] = defaultdict(list)
    for name in sorted(tensors):
        if match := re.fullmatch(rf"{prefix}/layers_\d+/(relpos_bias/rel_embedding(?:/\w+)?)", name):
            biases[match[1]].append(name)
    for inside, own in biases.items():
        first = tensors[own[0]].read()
        for name in own[1:]:
            if not np.array_equal(first, tensors[name].read()):
                repair = "; add --drop-optimizer" if prefix.startswith(STATE) else ""
                raise UserError(
                    f"{path}: '{name}' differs from layer 0's; flanx's T5 has one relative bias in a stack{repair}"
                )
        tensors[f"{prefix}/{inside}"] = tensors[own[0]]
        for name in own:
            del tensors[name]


def stack(tensors: LazyTensors) -> dict[str, LazyTensor]:
    """Unrolled layers as flanx's stacked form. The layers of a name must have one shape."""
    stacked: dict[str, LazyTensor] = {}
    layers: dict[str, dict[int, LazyTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match:
            layers[f"{match[1]}layers/{match[3]}"][int(match[2])] = tensor
        else:
            stacked[name] = tensor
    return stacked | {name: _stacked([each[i] for i in sorted(each)]) for name, each in layers.items()}


def _stacked(each: list[LazyTensor]) -> LazyTensor:
    def fetch(index: Index) -> np.ndarray:
        return np.stack([tensor.fetch(index[1:]) for tensor in each[index[0]]])

    return LazyTensor((len(each), *each[0].shape), each[0].dtype, fetch)
