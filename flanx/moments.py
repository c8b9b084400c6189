"""Adam's moments in two bytes or one: bfloat16 by stochastic rounding, or eight bits in blocks.

A new second moment differs from the old one by a thousandth, less than bfloat16 can resolve: rounded to nearest, it
would never change. Rounded up with a probability equal to the distance from below, it is unbiased. The random draws are
a function of only (seed, update, number of the tensor), so that a resumed run repeats them.

In eight bits, a number is one of 256 codes on a scale of powers of ten, times the largest magnitude in its block of 256
numbers on the last axis (Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2).
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array

BLOCK = 256  # numbers along the last axis that share a scale
LEAST = 4096  # numbers in a tensor; moments of smaller ones stay float32, as in the paper
DECADES = 7


class State(NamedTuple):
    """Trees like the parameters: both moments, and the scales of 8-bit ones (zeros [1] elsewhere)."""

    count: Array  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]  int32 [], updates
    m: Any
    v: Any
    m_scale: Any
    v_scale: Any


def round_stochastically(x: Array, key: Array) -> Array:
    """float32 [...] -> bfloat16 [...], up or down so that the mean is preserved; non-finite values are kept."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), kept, x).astype(jnp.bfloat16)


@functools.cache
def table(signed: bool) -> np.ndarray:
    """The 256 numbers that codes stand for, in order: each decade has twice as many as the one below it."""
    numbers = [0.0, 1.0]
    for decade in range(DECADES):
        edges = np.linspace(0.1, 1.0, 2 ** (decade + (not signed)) + 1)
        middles = 10.0 ** (decade + 1 - DECADES) * (edges[1:] + edges[:-1]) / 2
        numbers += [*middles, *(-middles if signed else ())]
    return np.sort(np.array(numbers, np.float32))


def quantize(x: Array, signed: bool) -> tuple[Array, Array]:
    """float32 [..., n] -> codes uint8 [..., n], scales float32 [..., blocks]."""
    numbers = table(signed)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % BLOCK)])
    blocks = padded.reshape(*x.shape[:-1], -1, BLOCK)
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    relative = blocks / jnp.where(scale > 0, scale, 1.0)[..., None]
    codes = jnp.searchsorted((numbers[1:] + numbers[:-1]) / 2, relative.reshape(padded.shape)[..., : x.shape[-1]])
    return codes.astype(jnp.uint8), scale


def restore(codes: Array, scale: Array, signed: bool) -> Array:
    """The inverse of `quantize`, to float32."""
    values = jnp.take(jnp.asarray(table(signed)), codes.astype(jnp.int32), axis=0)
    return values * jnp.repeat(scale, BLOCK, axis=-1)[..., : codes.shape[-1]]


class _Kept(NamedTuple):
    """One tensor's update and moments."""

    update: Any
    m: Any
    v: Any
    m_scale: Any
    v_scale: Any


def scale_by_adam(kind: str, b1: float, b2: float, eps: float, seed: int) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with its moments stored as `kind`: "bfloat16" or "8bit"."""

    def is_packed(size: int) -> bool:
        return kind == "8bit" and size >= LEAST

    def keep(number: Array, m: Array, v: Array, update: Any) -> _Kept:
        """Moments as they are stored; `number` of the update and of the tensor, for the random draws."""
        unused = jnp.zeros((1,), jnp.float32)
        if is_packed(m.size) and m.ndim:
            (m_codes, m_scale), (v_codes, v_scale) = quantize(m, signed=True), quantize(v, signed=False)
            return _Kept(update, m_codes, v_codes, m_scale, v_scale)
        if kind == "bfloat16":
            keys = jax.random.split(number)
            m, v = round_stochastically(m, keys[0]), round_stochastically(v, keys[1])
        return _Kept(update, m, v, unused, unused)

    def init(params: Any) -> State:
        def one(param: Array) -> _Kept:
            zeros = jnp.zeros(param.shape, jnp.float32)
            return keep(jax.random.key(seed), zeros, zeros, None)

        return State(jnp.zeros((), jnp.int32), *columns(jax.tree.map(one, params))[1:])

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, State]:
        count = state.count + 1
        key = jax.random.fold_in(jax.random.key(seed), count)
        numbers = itertools.count()

        def one(grad: Array, m: Array, v: Array, m_scale: Array, v_scale: Array) -> _Kept:
            if is_packed(grad.size) and grad.ndim:
                m, v = restore(m, m_scale, signed=True), restore(v, v_scale, signed=False)
            m = b1 * m.astype(jnp.float32) + (1 - b1) * grad
            v = b2 * v.astype(jnp.float32) + (1 - b2) * jnp.square(grad)
            step = (m / (1 - b1**count)) / (jnp.sqrt(v / (1 - b2**count)) + eps)
            return keep(jax.random.fold_in(key, next(numbers)), m, v, step)

        found = columns(jax.tree.map(one, updates, state.m, state.v, state.m_scale, state.v_scale))
        return found[0], State(count, *found[1:])

    return optax.GradientTransformation(init, update)


def columns(tree: Any) -> list[Any]:
    """A tree of `_Kept` as one tree per field."""
    return [
        jax.tree.map(lambda kept, i=i: kept[i], tree, is_leaf=lambda node: isinstance(node, _Kept))
        for i in range(len(_Kept._fields))
    ]
