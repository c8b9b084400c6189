"""Layer layouts of checkpoints, and lazy conversion between them; every conversion goes through the first.

| form | name | axis of the layers | attention's kernels |
|---|---|---|---|
| flanx; T5X's examples/t5 and the public checkpoints | encoder/layers_3/mlp/wo/kernel | none | [m, h * d] |
| flanx, scan_layers | encoder/layers/mlp/wo/kernel | 0 | [m, h * d] |
| T5X's examples/scalable_t5 and umT5, scan_layers | encoder/encoder/mlp/wo/kernel | 1 | [m, layers, h, d] |
| the same without scan_layers | encoder/layers_3/mlp/wo/kernel | none | [m, h, d] |

scalable_t5 has a relative bias in every layer (`T5.relative_bias = "layer"`). Moments are stacked like their
parameters. T5X factors a kernel of three or four axes by their names, whatever their sizes: the mean over the others
leaves `v_row` with the embedding axis. Here `v_row` has the smaller axis; the two means are the same.
"""

import re
from collections import defaultdict
from typing import Any

import numpy as np

from flanx.convert.lazy_tensor import STATE, TARGET, Index, LazyTensor, LazyTensors
from flanx.errors import UserError
from flanx.optim import factored_axes

LEAST_FACTORED = 128  # Adafactor's min_dim_size_to_factor
BIAS = "relpos_bias/rel_embedding"
_FLANX = re.compile(r"(.*?(?:encoder|decoder)/|^)layers/(.*)")
_T5X = re.compile(r"(.*?)(encoder|decoder)/\2/(.*)")
_MOMENTS = f"{STATE}param_states/"
_LAYER = re.compile(r"(.*?)layers_([0-9]+)/(.*)")
_STACK_BIAS = re.compile(rf"(.*?)(encoder|decoder)/{BIAS}(/\w+)?")


def is_stacked(names: Any) -> bool:
    """Whether any name is in flanx's stacked form."""
    return any("/layers/" in f"/{name}" for name in names)


def unroll(tensors: LazyTensors, path: Any) -> dict[str, LazyTensor]:
    """Converts any form to the first one in the table above.

    Raises UserError for a moment in T5X's stacked form without its parameter.
    """
    flat: dict[str, LazyTensor] = {}
    by_name: set[str] = set()  # parameters whose moments T5X factors by the names of their axes
    for name, tensor in tensors.items():
        axis: int | None
        ours, theirs = _FLANX.fullmatch(name), _T5X.fullmatch(name)
        if ours:
            names, axis, count = f"{ours[1]}layers_{{}}/{ours[2]}", 0, tensor.shape[0]
        elif theirs:
            names = f"{theirs[1]}{theirs[2]}/layers_{{}}/{theirs[3]}"
            axis, count = _layers_of_t5x(theirs, tensor, tensors, path)
            by_name |= {names.format(i).removeprefix(TARGET) for i in range(count)}
        else:
            flat[name] = tensor
            continue
        for i in range(count):
            flat[names.format(i)] = tensor if axis is None else _layer(tensor, axis, i)
    return _join_heads(flat, by_name)


def _layers_of_t5x(name: re.Match[str], tensor: LazyTensor, tensors: LazyTensors, path: Any) -> tuple[int | None, int]:
    """For a tensor in T5X's stacked form: the layer axis (None: shared by all layers), and the number of layers."""
    prefix, stack, inside = name.groups()
    if prefix == TARGET:
        return 1, tensor.shape[1]
    inside, _, moment = inside.rpartition("/")
    param = tensors.get(f"{TARGET}{stack}/{stack}/{inside}")
    if prefix != _MOMENTS or param is None:
        raise UserError(f"{path}: '{name[0]}' is a state without its parameter; add --drop-optimizer")
    return (None if tensor.shape == (1,) else _layer_axis(inside, moment)), param.shape[1]


def _layer_axis(inside: str, moment: str) -> int:
    """T5X's layer axis in a stacked moment: after the first axis, if the moment has that."""
    embed_is_first = not _is_output(inside)
    return {"v_row": int(embed_is_first), "v_col": int(not embed_is_first)}.get(moment, 1)


def _is_output(inside: str) -> bool:
    """Whether the embedding axis of a kernel is its last, not its first."""
    return inside.endswith(("/out/kernel", "/wo/kernel"))


def _is_attention(inside: str) -> bool:
    return bool(re.search(r"/(query|key|value|out)/kernel$", f"/{inside}"))


def _join_heads(flat: dict[str, LazyTensor], by_name: set[str]) -> dict[str, LazyTensor]:
    """Attention kernels [m, h, d] as [m, h * d], with their moments; v_row and v_col as defined here."""
    for name in [name for name in flat if name.startswith(TARGET) and name.endswith("/kernel")]:
        inside, shape = name.removeprefix(TARGET), flat[name].shape
        if len(shape) == 3 and _is_attention(inside):
            by_name.add(inside)
            first, middle, last = shape
            joined = (first * middle, last) if _is_output(inside) else (first, middle * last)
            _reshape(flat, name, joined, (joined[1 - int(_is_output(inside))],))
        if inside in by_name:
            _name_rows(flat, inside, flat[name].shape)
    return flat


def _reshape(tensors: dict[str, LazyTensor], name: str, shape: tuple[int, ...], columns: tuple[int, ...]) -> None:
    """Reshapes a parameter and its moments of the same shape, and its v_col to `columns`."""
    state, old = _MOMENTS + name.removeprefix(TARGET), tensors[name].shape
    for each in (name, f"{state}/m", f"{state}/v"):
        if each in tensors and tensors[each].shape == old:
            tensors[each] = _reshaped(tensors[each], shape)
    if f"{state}/v_col" in tensors and tensors[f"{state}/v_col"].shape != (1,):
        tensors[f"{state}/v_col"] = _reshaped(tensors[f"{state}/v_col"], columns)


def _name_rows(tensors: dict[str, LazyTensor], inside: str, shape: tuple[int, ...]) -> None:
    """Swaps v_row and v_col of a kernel if the embedding axis, T5X's row, is the larger one."""
    row, column = (f"{_MOMENTS}{inside}/{moment}" for moment in ("v_row", "v_col"))
    axes = factored_axes(shape, 1)
    if row in tensors and axes is not None and axes[0] != int(_is_output(inside)):
        tensors[row], tensors[column] = tensors[column], tensors[row]


def _layer(tensor: LazyTensor, axis: int, i: int) -> LazyTensor:
    def fetch(index: Index) -> np.ndarray:
        return tensor.fetch((*index[:axis], slice(i, i + 1), *index[axis:])).squeeze(axis)

    return LazyTensor(tensor.shape[:axis] + tensor.shape[axis + 1 :], tensor.dtype, fetch)


def _reshaped(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, tensor.dtype, lambda index: tensor.read().reshape(shape)[index])


def stack(tensors: LazyTensors) -> dict[str, LazyTensor]:
    """Unrolled layers in flanx's stacked form. All layers of a name must have the same shape."""
    stacked, layers = _by_layer(tensors)
    return stacked | {f"{before}layers/{inside}": _stacked(each, 0) for (before, inside), each in layers.items()}


def _by_layer(tensors: LazyTensors) -> tuple[dict[str, LazyTensor], dict[tuple[str, str], list[LazyTensor]]]:
    """Tensors outside of layers by name; the others by the parts before and after `layers_<i>/`, in layer order."""
    rest: dict[str, LazyTensor] = {}
    layers: dict[tuple[str, str], dict[int, LazyTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match:
            layers[match[1], match[3]][int(match[2])] = tensor
        else:
            rest[name] = tensor
    return rest, {names: [each[i] for i in sorted(each)] for names, each in layers.items()}


def _stacked(each: list[LazyTensor], axis: int) -> LazyTensor:
    def fetch(index: Index) -> np.ndarray:
        others = index[:axis] + index[axis + 1 :]
        return np.stack([tensor.fetch(others) for tensor in each[index[axis]]], axis=axis)

    shape = each[0].shape
    return LazyTensor((*shape[:axis], len(each), *shape[axis:]), each[0].dtype, fetch)


def to_scalable_t5(tensors: LazyTensors, stacked: bool) -> dict[str, LazyTensor]:
    """Unrolled layers, each with a relative bias, in the form of T5X's scalable_t5, stacked or not; undoes `unroll`."""
    split = dict(tensors)
    heads = next(t.shape[0] for name, t in tensors.items() if name.endswith(f"/layers_0/{BIAS}"))
    for name in [name for name in tensors if name.startswith(TARGET) and name.endswith("/kernel")]:
        inside, shape = name.removeprefix(TARGET), tensors[name].shape
        if not _LAYER.fullmatch(inside) or not (stacked or _is_attention(inside)):
            continue
        _name_rows(split, inside, shape)
        if _is_attention(inside):
            first, last = shape
            head = (heads, (first if _is_output(inside) else last) // heads)
            _reshape(split, name, (*head, last) if _is_output(inside) else (first, *head), head)
    if not stacked:
        return split
    rest, layers = _by_layer(split)
    for (before, inside), each in layers.items():
        name, _, moment = inside.rpartition("/")
        unused = each[0].shape == (1,)
        stack_name = f"{before}{before.split('/')[-2]}/{inside}"  # target/encoder/encoder/...
        rest[stack_name] = each[0] if unused else _stacked(each, _layer_axis(name, moment))
    return rest


def factored_shapes(name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes of v_row and v_col of a parameter in T5X's form, without `target/`; None if it is not factored."""
    if len(shape) < 3:
        axes = factored_axes(shape, LEAST_FACTORED)
        return axes and ((shape[axes[0]],), (shape[axes[1]],))
    if not name.endswith("/kernel"):
        return None
    layers = shape[1:2] if _T5X.fullmatch(name) else ()
    if _is_output(name):
        return (*layers, shape[-1]), shape[:-1]
    return (shape[0], *layers), shape[1:]


def has_layer_bias(names: Any) -> bool:
    """Whether every layer has its own relative bias."""
    return any(re.search(rf"/layers(_0)?/{BIAS}", f"/{name}") for name in names)


def bias_hint(name: str, there: Any) -> str:
    """What to bind when `name`, a relative bias, is on one side only; `there`: the names in the checkpoint."""
    if BIAS not in name:
        return ""
    form = "layer" if has_layer_bias(there) else "stack"
    return f"; its relative biases are one in each {form}: bind t5.T5.relative_bias = '{form}'"


def spread_bias(tensors: LazyTensors) -> dict[str, LazyTensor]:
    """Unrolled parameters with each stack's relative bias copied into each of its layers.

    Raises UserError if there is an optimizer state: it does not determine the moments of a layer's bias.
    """
    spread = {name: tensor for name, tensor in tensors.items() if not _STACK_BIAS.fullmatch(name)}
    for match in filter(None, map(_STACK_BIAS.fullmatch, tensors)):
        before = f"{match[1]}{match[2]}/"
        if match[1] != TARGET:
            raise UserError(
                f"'{match[0]}' is the moment of a stack's relative bias; T5X's scanned layers have one each, whose "
                "moments it does not tell; add --drop-optimizer"
            )
        count = len({each[2] for each in map(_LAYER.fullmatch, tensors) if each and each[1] == before})
        spread |= {f"{before}layers_{i}/{BIAS}": tensors[match[0]] for i in range(count)}
    return spread


def share_bias(tensors: LazyTensors) -> dict[str, LazyTensor]:
    """Unrolled parameters with one relative bias per stack, if those of all its layers are equal; else unchanged."""
    shared = dict(tensors)
    _, layers = _by_layer(tensors)
    for (before, inside), each in layers.items():
        first = each[0].read() if inside == BIAS else None
        if first is not None and all(np.array_equal(first, tensor.read()) for tensor in each[1:]):
            for i in range(len(each)):
                del shared[f"{before}layers_{i}/{inside}"]
            shared[before + inside] = each[0]
    return shared
