"""Attention, matmuls and sums tuned for XLA's CPU compiler, for models with kernels "tuned" and for Adafactor.

They compute the same as the plain ones in `flanx.models`, with custom gradients (`jax.custom_vjp`): reverse mode works,
`jax.jvp` and `jax.hessian` do not. On any backend, attention keeps fewer arrays for the backward pass, and kernel
gradients stay float32 under bfloat16 activations. Shape letters: see `flanx.models.layers`.

Only what saves 5% or more of a training step's processor time is kept (`benchmarks/train_step.py`, with each replaced
by its plain form, measured alternately): `product` 19%, `attend` 9%, 8% of it from the sum over rows; in a step of few
rows (`--quick`) `sum_rows` a third, from Adafactor's means over the rows of the embeddings (AVX2, 2026-11-30).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

KERNELS = ("plain", "tuned")
MASKED = -1e10  # T5X's logit for a masked pair; finite, so that a row without any key stays finite


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, kernel: Array, out_dtype: jnp.dtype) -> Array:
    """`layers.product`, with a kernel gradient that transposes x.

    XLA's CPU compiler would transpose the output's gradient instead, and fuse the arithmetic that produces it into that
    copy, element by element, which costs as much as the product itself.
    """
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=out_dtype)


def _product_forward(x: Array, kernel: Array, out_dtype: jnp.dtype) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, out_dtype), (x, kernel)


def _product_backward(out_dtype: jnp.dtype, residual: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residual
    gradient = gradient.astype(x.dtype)
    tokens = tuple(range(x.ndim - 1))
    of_x = lax.dot_general(gradient, kernel.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())))
    return of_x, lax.dot_general(x, gradient, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32)


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def attend(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
    """`layers.attend_plainly`, but divides by the softmax's sum after the product with the values.

    So neither pass materializes the normalized weights, and the gradient needs no sum over the keys.
    """
    return _attend_forward(query, key, value, bias, mask)[0]


def operand(keys: Array) -> tuple[str, Array]:
    """Keys or values as an einsum operand: a single head [b, k, 1, d] has no letter and broadcasts over query heads."""
    return ("bkhd", keys) if keys.shape[2] > 1 else ("bkd", keys[:, :, 0])


def _attend_forward(
    query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    (k, keys), (v, values) = operand(key), operand(value)
    scores = jnp.einsum(f"bqhd,{k}->bhqk", query, keys, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += jnp.broadcast_to(bias, scores.shape)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.swapaxes(jnp.sum(weights, axis=-1), 1, 2)[..., None]  # [b, q, h, 1]
    weights = weights.astype(value.dtype)
    attended = jnp.einsum(f"bhqk,{v}->bqhd", weights, values, preferred_element_type=jnp.float32) / total
    return attended.astype(value.dtype), (query, key, value, bias, weights, total, attended)


def _attend_backward(residual: tuple[Any, ...], gradient: Array) -> tuple[Array | None, ...]:
    query, key, value, bias, weights, total, attended = residual
    (k, keys), (v, values) = operand(key), operand(value)
    gradient = gradient / total  # float32
    inner = jnp.swapaxes(jnp.sum(gradient * attended, axis=-1), 1, 2)[..., None]  # [b, h, q, 1]
    gradient = gradient.astype(value.dtype)
    of_value = jnp.einsum(f"bhqk,bqhd->{v}", weights, gradient).astype(value.dtype).reshape(value.shape)
    of_scores = jnp.einsum(f"bqhd,{v}->bhqk", gradient, values, preferred_element_type=jnp.float32)
    of_scores = weights * (of_scores - inner)
    of_bias = None if bias is None else sum_rows(of_scores) if bias.shape[0] == 1 else of_scores
    of_scores = of_scores.astype(query.dtype)
    of_query = jnp.einsum(f"bhqk,{k}->bqhd", of_scores, keys)
    of_key = jnp.einsum(f"bhqk,bqhd->{k}", of_scores, query).reshape(key.shape)
    return of_query, of_key, of_value, of_bias, None


attend.defvjp(_attend_forward, _attend_backward)


def sum_rows(x: Array) -> Array:
    """x [r, ...] summed to [1, ...]; on a CPU as a matmul, as XLA is forty times slower at such a sum there."""

    def by_product(x: Array) -> Array:
        return jnp.tensordot(jnp.ones((1, x.shape[0]), x.dtype), x, (1, 0), precision=lax.Precision.HIGHEST)

    return lax.platform_dependent(x, cpu=by_product, default=lambda x: jnp.sum(x, axis=0, keepdims=True))


def recomputed(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of arrays, rematerialized in the backward pass from its arguments, as with `jax.checkpoint`; reverse
    mode only.

    With jax 0.10, XLA's CPU compiler drops the barriers of `jax.checkpoint` and merges the recomputation with the first
    computation, whose results then stay live between the passes. (With jax 0.12 it keeps them.)
    """

    @jax.custom_vjp
    def call(*arguments: Array) -> Array:
        return function(*arguments)

    def forward(*arguments: Array) -> tuple[Array, tuple[Array, ...]]:
        return function(*arguments), arguments

    def backward(arguments: tuple[Array, ...], gradient: Array) -> Any:
        return jax.vjp(function, *_behind(gradient, *arguments))[1](gradient)

    call.defvjp(forward, backward)
    return call


def _behind(gradient: Array, *arrays: Array) -> tuple[Array, ...]:
    """The arrays, made dependent on the gradient: on a CPU they are XORed with a bit of the gradient, which is zero but
    which the compiler cannot know to be."""

    def by_bits(gradient: Array, *arrays: Array) -> tuple[Array, ...]:
        bits = lax.bitcast_convert_type(jnp.ravel(gradient)[0].astype(jnp.float32), jnp.uint32)
        zero = lax.shift_right_logical(lax.shift_right_logical(bits, np.uint32(31)), np.uint32(1))

        def with_zero(array: Array) -> Array:
            kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
            return lax.bitcast_convert_type(lax.bitcast_convert_type(array, kind) ^ zero.astype(kind), array.dtype)

        return tuple(map(with_zero, arrays))

    def by_barrier(gradient: Array, *arrays: Array) -> tuple[Array, ...]:
        return tuple(lax.optimization_barrier((gradient, *arrays))[1:])

    return lax.platform_dependent(gradient, *arrays, cpu=by_bits, default=by_barrier)
