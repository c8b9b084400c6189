"""Attention over long rows, one block of queries at a time: memory linear in the length, on every backend.

Exact attention materializes values for all pairs of positions: scores [b, h, q, k], the bias [1, h, q, k], the mask
[b, 1, q, k]. Here they exist for one block of queries at a time, computed from arrays linear in the length (one bias
value per distance, segment numbers), and the backward pass recomputes them. The result equals exact attention.
Shape letters: see `flanx.models.layers`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

Array = jax.Array

BLOCK = 512  # queries; with 8,192 keys the scores are 16 MiB per row and head
LONGEST_EXACT = 2048  # most keys for which "auto" is not blockwise: the longest inputs of the shipped recipes


@struct.dataclass
class SegmentMask:
    """An attention mask kept as the arguments of a function of segment numbers (`layers.segment_mask`).

    Attributes:
      segments: (query int32 [b, q], key int32 [b, k]) per part; the mask is the union of its parts.
      causal: per part, whether keys after the query are hidden.
      see: (query segments, key segments, causal, first position of the queries) -> bool [b, 1, q, k].
    """

    segments: tuple[tuple[Array, Array], ...]
    causal: tuple[bool, ...] = struct.field(pytree_node=False)
    see: Callable[..., Array] = struct.field(pytree_node=False)

    def __or__(self, other: "SegmentMask") -> "SegmentMask":
        """The union of both masks."""
        return SegmentMask(self.segments + other.segments, self.causal + other.causal, self.see)

    def rows(self, first: Array, count: int, missing: int) -> Array:
        """Mask of `count` queries from `first`: bool [b, 1, count, k]; `missing` queries past the end see nothing."""
        parts = []
        for (query, key), causal in zip(self.segments, self.causal, strict=True):
            block = lax.dynamic_slice_in_dim(jnp.pad(query, ((0, 0), (0, missing))), first, count, axis=1)
            parts.append(self.see(block, key, causal, first))
        return jnp.any(jnp.stack(parts), axis=0)


Mask = Array | SegmentMask


def attend_in_blocks(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: SegmentMask,
    attend: Callable[[Array, Array, Array, Array | None, Array], Array],
    lay: Callable[[Array, int, int], Array],
) -> Array:
    """`layers.attend`, calling `attend` (on whole arrays) for one block of queries at a time.

    Args:
      query: [b, q, h, d]; key and value: [b, k, g, d] with g = h or 1.
      bias: float32 [h, q + k], for distances -(q - 1) to k, or None.
      mask: which keys each query may see.
      attend: (query, key, value, bias [1, h, q, k] or None, mask [b, 1, q, k]) -> [b, q, h, d].
      lay: `layers.diagonals`.

    Returns:
      [b, q, h, d] in the dtype of `value`.
    """
    length, keys = query.shape[1], key.shape[1]
    block = min(BLOCK, length)
    missing = -length % block
    query = jnp.pad(query, ((0, 0), (0, missing), (0, 0), (0, 0)))
    bias = None if bias is None else jnp.pad(bias, ((0, 0), (missing, 0)))

    @jax.checkpoint
    def rows(first: Array) -> Array:
        near = None
        if bias is not None:
            start = length + missing - block - first
            near = lay(lax.dynamic_slice_in_dim(bias, start, block + keys, axis=1), block, keys)[None]
        part = lax.dynamic_slice_in_dim(query, first, block, axis=1)
        return attend(part, key, value, near, mask.rows(first, block, missing))

    seen = lax.map(rows, np.arange(0, length + missing, block, dtype=np.int32))  # [n, b, block, h, d]
    return jnp.moveaxis(seen, 0, 1).reshape(query.shape)[:, :length]
