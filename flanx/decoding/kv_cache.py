"""The cache of a prompt, shared by its samples, beams or answer options.

Letters: B prompts, n samples of each, V vocabulary. Cache leaves that a decoding step returns unchanged (an encoder's
keys and values) are stored once per prompt; the others get the sample axis n before B, the layout `jax.vmap` prefers:
with n after B, XLA's CPU compiler transposes all of them in every step, a third of its time with 40 samples.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from flanx.models import Model, Params


@functools.cache
def _shared(model: Model, max_new: int, structure: Any) -> tuple[bool, ...]:
    """Which leaves of the cache a decoding step returns unchanged, read off its jaxpr."""
    params = jax.tree.unflatten(*structure)

    def step(params: Params, inputs: jax.Array) -> Any:
        cache, tokens = model.prefill(params, inputs, max_new)
        jaxpr = jax.make_jaxpr(model.decode_step)(params, cache, tokens).jaxpr
        count = len(jax.tree.leaves(cache))
        given = jaxpr.invars[-count - 1 : -1]  # after the parameters, before the tokens
        same.extend(a is b for a, b in zip(given, jaxpr.outvars[1:], strict=True))
        return cache

    same: list[bool] = []
    jax.eval_shape(step, params, jax.ShapeDtypeStruct((1, 8), jnp.int32))
    return tuple(same)


def shared_leaves(model: Model, params: Params, max_new: int) -> tuple[bool, ...]:
    """For each leaf of the cache: whether it stays the same during decoding (so that samples can share it)."""
    leaves, tree = jax.tree.flatten(params)
    return _shared(model, max_new, (tree, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)))


def widen(cache: Any, n: int, shared: tuple[bool, ...]) -> Any:
    """The cache of B prompts for n samples each: changing leaves [B, ...] -> [n, B, ...]. Unchanged if n is 1."""
    if n == 1:
        return cache
    leaves, tree = jax.tree.flatten(cache)
    wide = [x if same else jnp.broadcast_to(x, (n, *x.shape)) for x, same in zip(leaves, shared, strict=True)]
    return jax.tree.unflatten(tree, wide)


def reorder(cache: Any, index: jax.Array, shared: tuple[bool, ...]) -> Any:
    """The widened cache with sample k of prompt b taken from sample index[b, k]: i32[B, n]."""
    leaves, tree = jax.tree.flatten(cache)
    prompt = jnp.arange(index.shape[0])[None]
    return jax.tree.unflatten(tree, [x if same else x[index.T, prompt] for x, same in zip(leaves, shared, strict=True)])


def replace(cache: Any, new: Any, rows: jax.Array, shared: tuple[bool, ...]) -> Any:
    """The cache with the prompts of `new` at `rows` (i32[R]; out-of-range rows are dropped); `shared`: as passed to
    `widen`, empty if the cache was not widened."""
    leaves, tree = jax.tree.flatten(cache)
    is_wide = [bool(shared) and not same for same in shared or [True] * len(leaves)]
    places = [(slice(None), rows) if wide else (rows,) for wide in is_wide]
    replaced = [
        old.at[place].set(x, mode="drop") for old, x, place in zip(leaves, jax.tree.leaves(new), places, strict=True)
    ]
    return jax.tree.unflatten(tree, replaced)


def changing(cache: Any, shared: tuple[bool, ...]) -> list[jax.Array]:
    """The leaves of an unwidened cache that a decoding step changes."""
    return [x for x, same in zip(jax.tree.leaves(cache), shared, strict=True) if not same]


def restart(cache: Any, fresh: list[jax.Array], begins: jax.Array, shared: tuple[bool, ...]) -> Any:
    """The widened cache with its `changing` leaves reset to `fresh` where `begins` (bool[B, n]) is set."""
    leaves, tree = jax.tree.flatten(cache)
    first = iter(fresh)
    marked = begins.T
    restarted = [
        x if same else jnp.where(marked.reshape(marked.shape + (1,) * (x.ndim - 2)), next(first)[None], x)
        for x, same in zip(leaves, shared, strict=True)
    ]
    return jax.tree.unflatten(tree, restarted)


def step(
    model: Model, params: Params, cache: Any, tokens: jax.Array, shared: tuple[bool, ...]
) -> tuple[jax.Array, Any]:
    """One cached step for every sample: (widened cache, i32[B, n]) -> (f32[B, n, V], cache)."""
    if tokens.shape[1] == 1:
        logits, cache = model.decode_step(params, cache, tokens[:, 0])
        return logits[:, None], cache
    axes = jax.tree.unflatten(jax.tree.structure(cache), [None if same else 0 for same in shared])
    one = functools.partial(model.decode_step, params)
    return jax.vmap(one, in_axes=(axes, 1), out_axes=(1, axes))(cache, tokens)
