"""The largest numbers of a row: what jax gives, equal numbers, infinities included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.decoding import largest


def rows(size: int) -> jax.Array:
    """f32[6, 2, size] of few different numbers, so that most are equal to others; a row of infinities, one of zeros."""
    drawn = np.random.default_rng(3).integers(0, 40, (6, 2, size)).astype(np.float32)
    drawn[1], drawn[2, :, 5:] = -np.inf, -np.inf
    drawn[3], drawn[4, 0, [7, size - 1]] = 0.0, 99.0
    return jnp.asarray(drawn)


@pytest.mark.parametrize("size", [1024, 1000, 128])
def test_the_largest_is_the_first_of_equal_ones(size: int) -> None:
    x = rows(size)
    found = jax.jit(largest.argmax)(x)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, jnp.argmax(x, axis=-1))
    assert largest.argmax(x.at[:, :, 77].set(jnp.nan)).max() < size


@pytest.mark.parametrize(
    ("size", "k", "group"), [(4096, 5, 32), (32_128, 40, 32), (1000, 5, 8), (1001, 5, 1), (64, 40, 1)]
)
def test_the_k_largest_come_in_the_order_of_jax(size: int, k: int, group: int) -> None:
    x = rows(size)
    wanted, found = jax.lax.top_k(x, k), jax.jit(largest.top_k, static_argnums=1)(x, k)
    assert largest._group(size, k) == group
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
