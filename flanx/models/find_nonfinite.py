"""Which layer of a model first produced a non-finite value, and how large layer outputs get."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def _walk(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, jax.Array]]:
    """(name, output) of every module in execution order: submodules before their module."""
    for key, value in tree.items():
        if key == "__call__":
            for array in jax.tree.leaves(value):
                yield "/".join(path) or "logits", array
        else:
            yield from _walk(value, (*path, key))


def largest_outputs(model: Any, params: Any, batch: Mapping[str, Any]) -> dict[str, float]:
    """The largest absolute value of every module's output, in execution order; NaN or inf if it contains one.

    Modules are named as their parameters are ("encoder/layers_3/mlp/wo"); the whole model is "logits".
    """
    names: list[str] = []

    @jax.jit
    def largest(params: Any, batch: Mapping[str, Any]) -> jax.Array:
        outputs = list(_walk(model.outputs(params, batch)))
        names.extend(name for name, _ in outputs)  # collected here, because jit returns dicts sorted by key
        return jnp.stack([jnp.max(jnp.abs(x.astype(jnp.float32))) for _, x in outputs])

    sizes: dict[str, float] = {}
    for name, size in zip(names, jax.device_get(largest(params, dict(batch))).tolist(), strict=True):
        sizes[name] = max(size, sizes.get(name, size), key=lambda s: (not math.isfinite(s), s))
    return sizes


def first_nonfinite(model: Any, params: Any, batch: Mapping[str, Any]) -> str | None:
    """The first non-finite parameter, else the first non-finite module output on `batch` (without dropout); or None."""
    finite = jax.device_get(jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(params))
    for path, good in jax.tree_util.tree_leaves_with_path(finite):
        if not good:
            return "parameter " + jax.tree_util.keystr(path, simple=True, separator="/")
    outputs = largest_outputs(model, params, batch)
    return next((f"output of {name}" for name, size in outputs.items() if not math.isfinite(size)), None)
