"""`argmax` and `top_k` with the results of `jax.numpy.argmax` and `jax.lax.top_k`, in forms that are fast on a CPU.

XLA's CPU compiler compares (value, index) pairs one at a time for the former and sorts row by row for the latter; a
plain maximum over a group it vectorizes. Letters: V numbers, k of them.
"""

import jax
import jax.numpy as jnp

LARGEST_GROUP = 128  # numbers; embedding tables have a multiple of it


def argmax(x: jax.Array) -> jax.Array:
    """[..., V] -> i32[...], the index of the largest, the first among ties. Arbitrary if there is a NaN."""
    group = _group(x.shape[-1], 1)
    if group == 1:
        return jnp.argmax(x, axis=-1).astype(jnp.int32)
    groups = x.reshape(*x.shape[:-1], -1, group)
    best = jnp.argmax(groups.max(axis=-1), axis=-1).astype(jnp.int32)
    members = jnp.take_along_axis(groups, best[..., None, None], axis=-2)[..., 0, :]
    return best * group + jnp.argmax(members, axis=-1).astype(jnp.int32)


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """[..., V] -> the k largest and their indices, i32, in descending order, the earlier first among ties.

    They lie in the k groups with the largest maxima, so only those are searched.
    """
    group = _group(x.shape[-1], k)
    if group == 1:
        return jax.lax.top_k(x, k)
    groups = x.reshape(*x.shape[:-1], -1, group)
    chosen = jnp.sort(jax.lax.top_k(groups.max(axis=-1), k)[1], axis=-1)  # in index order, which preserves ties
    members = jnp.take_along_axis(groups, chosen[..., None], axis=-2).reshape(*x.shape[:-1], k * group)
    values, place = jax.lax.top_k(members, k)
    return values, jnp.take_along_axis(chosen, place // group, axis=-1) * group + place % group


def _group(size: int, k: int) -> int:
    """Group size, a power of two that divides V: about as many groups as numbers in k of them; 1: no grouping."""
    group = LARGEST_GROUP
    while group > 1 and (group * group * k > 2 * size or size % group):
        group //= 2
    return group if k < size // group else 1
