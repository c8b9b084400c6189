"""The largest of many numbers, as `jax.numpy.argmax` and `jax.lax.top_k` give them, in forms that a CPU is quick at.

XLA's CPU compiler compares one pair of (value, index) after the other for the first and sorts rows one by one for the
second; the maximum of a group alone it takes many numbers at a time. Letters: V numbers, k of them.
"""

import jax
import jax.numpy as jnp

LARGEST_GROUP = 128  # numbers; tables of embeddings have a multiple of it


def argmax(x: jax.Array) -> jax.Array:
    """[..., V] -> i32[...], where the largest is, the first of equal ones. Beside a NaN, any."""
    group = _group(x.shape[-1], 1)
    if group == 1:
        return jnp.argmax(x, axis=-1).astype(jnp.int32)
    groups = x.reshape(*x.shape[:-1], -1, group)
    best = jnp.argmax(groups.max(axis=-1), axis=-1).astype(jnp.int32)
    members = jnp.take_along_axis(groups, best[..., None, None], axis=-2)[..., 0, :]
    return best * group + jnp.argmax(members, axis=-1).astype(jnp.int32)


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """[..., V] -> the k largest and where they are, i32, the largest first, of equal ones the earlier first.

    They are in the k groups of the largest maxima, so that no others are searched.
    """
    group = _group(x.shape[-1], k)
    if group == 1:
        return jax.lax.top_k(x, k)
    groups = x.reshape(*x.shape[:-1], -1, group)
    chosen = jnp.sort(jax.lax.top_k(groups.max(axis=-1), k)[1], axis=-1)  # in their order, which equal numbers keep
    members = jnp.take_along_axis(groups, chosen[..., None], axis=-2).reshape(*x.shape[:-1], k * group)
    values, place = jax.lax.top_k(members, k)
    return values, jnp.take_along_axis(chosen, place // group, axis=-1) * group + place % group


def _group(size: int, k: int) -> int:
    """Numbers of a group, a power of two that divides V: about as many groups as members of k of them; 1: none."""
    group = LARGEST_GROUP
    while group > 1 and (group * group * k > 2 * size or size % group):
        group //= 2
    return group if k < size // group else 1
