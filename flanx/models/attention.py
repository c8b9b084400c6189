"""Attention: scores and masks, T5's relative position bias, rotary positions, the cache's write.

Letters of shapes and einsum strings: see `flanx.models.layers`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flanx import kernels as tuned
from flanx.kernels import MASKED, operand
from flanx.models.layers import NORMAL, Array, Dense, Dropout, Numerics, constrain, parameter


def relative_buckets(distance: Any, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128) -> Any:
    """T5's bucket of each distance (key position - query position), int32, any shape; numpy in, numpy out.

    Half of the buckets are single small distances, half grow with the logarithm up to `max_distance`. With
    `bidirectional` the upper half of the table is for keys behind the query; without, such keys share bucket 0.
    """
    xp = np if isinstance(distance, np.ndarray) else jnp
    behind = 0
    back = -distance
    if bidirectional:
        num_buckets //= 2
        behind = (back < 0).astype(np.int32) * num_buckets
        back = abs(back)
    else:
        back = xp.maximum(back, 0)
    exact = num_buckets // 2
    ratio = back.astype(np.float32) / exact + np.finfo(np.float32).eps
    far = exact + (xp.log(ratio) / np.log(max_distance / exact) * (num_buckets - exact)).astype(np.int32)
    return behind + xp.where(back < exact, back, xp.minimum(far, num_buckets - 1)).astype(np.int32)


class RelativeBias(nn.Module):
    """T5's relative position bias: one learned number per head and bucket of distance."""

    num_heads: int
    bidirectional: bool
    num_buckets: int = 32
    max_distance: int = 128

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        axes, shape = ("heads", "relpos_buckets"), (self.num_heads, self.num_buckets)
        self.rel_embedding = parameter(self, "rel_embedding", init, axes, shape)

    def __call__(self, length: int) -> Array:
        """float32 [1, h, q, k] for a row of `length` positions: one number per distance, constant along the diagonals.

        Two reshapes lay them: a row of 2 * length numbers, repeated, read in rows of one less moves on by one each.
        """
        distance = np.arange(-length + 1, length + 1, dtype=np.int32)
        values = self.of(distance)  # [h, 2 * length]
        shape = (self.num_heads, length, 2 * length)
        flat = jnp.broadcast_to(values[:, None, :], shape).reshape(self.num_heads, -1)
        rows = flat[:, : length * (2 * length - 1)].reshape(self.num_heads, length, 2 * length - 1)
        return rows[None, :, :, length - 1 :]

    def at(self, distance: Array) -> Array:
        """distance int32 [b, k] from each row's one query to the keys -> float32 [b, h, 1, k]."""
        return jnp.moveaxis(self.of(distance), 0, 1)[:, :, None, :]

    def of(self, distance: Any) -> Array:
        """distance int32 [...] (key - query) -> float32 [h, ...]; a product with one-hot buckets."""
        buckets = relative_buckets(distance, self.bidirectional, self.num_buckets, self.max_distance)
        one_hot = jax.nn.one_hot(buckets, self.num_buckets, dtype=jnp.float32)
        return jnp.tensordot(self.rel_embedding, one_hot, (1, -1))


def rotate(x: Array, position: Array, base: float = 10_000.0) -> Array:
    """Rotary positions: x [b, l, h, d] with each pair (i, i + d/2) turned by position [b, l] * base^(-2i/d)."""
    half = x.shape[-1] // 2
    speed = (base ** (-np.arange(half, dtype=np.float32) / half))[None, None, None, :]
    angle = position[:, :, None, None].astype(jnp.float32) * speed
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Array | None,
    kind: str = "auto",
    kernels: str = "plain",
) -> Array:
    """Softmax attention without scaling (T5 folds it into the query's initial values; others scale the query).

    Args:
      query: [b, q, h, d]; key and value: [b, k, g, d] with g = h or 1.
      bias: float32 [1 or b, h, q, k] added to the scores, or None.
      mask: bool [b, 1, q, k], True where the query may see the key, or None.
      kind: "exact", or "fused" for the backend's kernel (cuDNN), or "auto": fused on a GPU in bfloat16, else exact.
      kernels: of exact attention, "plain" or "tuned"; see `flanx.kernels`.

    Returns:
      [b, q, h, d] in the type of `value`.
    """
    if kind == "auto":
        kind = "fused" if jax.default_backend() == "gpu" and query.dtype == jnp.bfloat16 else "exact"
    if kind == "fused":
        bias = None if bias is None else bias.astype(query.dtype)
        return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=1.0)
    exact = tuned.attend if kernels == "tuned" else attend_plainly
    return exact(query, key, value, bias, mask)


def attend_plainly(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
    """`attend` in plain operations, softmax in float32."""
    (k, keys), (v, values) = operand(key), operand(value)
    scores = jnp.einsum(f"bqhd,{k}->bhqk", query, keys, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum(f"bhqk,{v}->bqhd", weights, values)


class Attention(nn.Module):
    """T5's multi-head attention: `query`, `key`, `value`, `out`, no biases, no scaling of the scores.

    T5X drops attention weights with one mask for all queries of a row; weights [b, h, 1, k] times values equal values
    [b, k, h, 1] times weights, so the mask is applied to the values and every kernel of attention can take it.
    """

    num_heads: int
    head_dim: int
    emb_dim: int
    dropout_rate: float
    numerics: Numerics
    kind: str = "auto"

    def setup(self) -> None:
        def init_query(*args: Any) -> Array:
            return NORMAL(*args) / np.sqrt(self.head_dim).astype(np.float32)

        joined = self.num_heads * self.head_dim
        self.query = Dense(joined, ("embed", "joined_kv"), self.numerics, init_query)
        self.key = Dense(joined, ("embed", "joined_kv"), self.numerics, NORMAL)
        self.value = Dense(joined, ("embed", "joined_kv"), self.numerics, NORMAL)
        self.out = Dense(self.emb_dim, ("joined_kv", "embed"), self.numerics, NORMAL)
        self.dropout = Dropout(self.dropout_rate, shared=(-1,))

    def split(self, x: Array) -> Array:
        """[b, l, h * d] -> [b, l, h, d], heads over the mesh."""
        x = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        return constrain(x, ("batch", "length", "heads", "kv"))

    def keys_and_values(self, memory: Array) -> tuple[Array, Array]:
        """memory [b, k, m] -> keys and values [b, k, h, d]."""
        return self.split(self.key(memory)), self.split(self.value(memory))

    def __call__(self, x: Array, memory: Array, bias: Array | None, mask: Array | None) -> Array:
        """x [b, q, m] looks at memory [b, k, m] -> [b, q, m]; bias and mask as in `attend`."""
        key, value = self.keys_and_values(memory)
        return self.from_cache(x, key, self.dropout(value), bias, mask)

    def from_cache(self, x: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
        """x [b, q, m] looks at given keys and values [b, k, h, d] -> [b, q, m]."""
        seen = attend(self.split(self.query(x)), key, value, bias, mask, self.kind, self.numerics.kernels)
        return self.out(seen.reshape(*x.shape[:-1], self.num_heads * self.head_dim))

    def recall(self, x: Array, key: Array, value: Array, bias: Array | None, mask: Array) -> Array:
        """x [b, 1, m] looks at a cache's keys and values [b, h, k, d] -> [b, 1, m]."""
        seen = recall(self.split(self.query(x)), key, value, bias, mask)
        return self.out(seen.reshape(*x.shape[:-1], self.num_heads * self.head_dim))


def segment_mask(query_segments: Array, key_segments: Array, causal: bool = False) -> Array:
    """Who may see whom in packed rows: bool [b, 1, q, k] from segment numbers [b, q] and [b, k], 0 for padding."""
    query, key = query_segments[:, :, None], key_segments[:, None, :]
    mask = (query == key) & (query > 0)
    if causal:
        position = np.arange(query_segments.shape[1])
        mask &= (position[:, None] >= position[None, :])[None]
    return mask[:, None]


def write(cache: Array, new: Array, position: Array) -> Array:
    """Writes new [b, 1, g, d] into cache [b, k, g, d] at position int32 [b], one per row."""
    return cache.at[np.arange(cache.shape[0]), position].set(new[:, 0])


def heads_first(x: Array) -> Array:
    """[b, k, h, d] -> [b, h, k, d] (or back), the layout of a cache: one query's product with it is one per head.

    In the other layout XLA's CPU compiler transposes the whole cache at every step, at seven times the cost.
    """
    return jnp.swapaxes(x, 1, 2)


def write_heads(cache: Array, new: Array, position: Array) -> Array:
    """Writes new [b, 1, h, d] into cache [b, h, k, d] at position int32 [b], one per row."""
    return cache.at[np.arange(cache.shape[0]), :, position].set(new[:, 0])


def recall(query: Array, key: Array, value: Array, bias: Array | None, mask: Array) -> Array:
    """`attend` of one query [b, 1, h, d] on a cache [b, h, k, d], softmax in float32 -> [b, 1, h, d]."""
    scores = jnp.einsum("bqhd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bhkd->bqhd", weights, value)
