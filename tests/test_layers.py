"""Layers and attention against plain formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx import partition
from flanx.errors import UserError
from flanx.models import layers

NORMAL = np.random.default_rng(0).standard_normal


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(NORMAL(shape), jnp.float32)


def test_float16_is_refused_with_the_reason_and_unknown_names_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"float16.*65,504.*bfloat16"):
        layers.Numerics("float16")
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        layers.Numerics("bfloat15")


def bucket(distance: int, bidirectional: bool) -> int:
    """T5's bucket of one distance, from its definition."""
    buckets, first = 32, 0
    back = -distance
    if bidirectional:
        buckets //= 2
        first = buckets if back < 0 else 0
        back = abs(back)
    back = max(back, 0)
    exact = buckets // 2
    if back < exact:
        return first + back
    far = exact + int(math.log(back / exact) / math.log(128 / exact) * (buckets - exact))
    return first + min(far, buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_buckets_follow_their_definition(bidirectional: bool) -> None:
    distance = np.array([d for d in range(-300, 301) if abs(d) not in (16, 32, 64)])  # there floats may round down
    got = layers.relative_buckets(distance, bidirectional)
    assert got.tolist() == [bucket(int(d), bidirectional) for d in distance]
    np.testing.assert_array_equal(layers.relative_buckets(jnp.asarray(distance), bidirectional), got)


def test_relative_bias_lays_one_number_per_distance_along_the_diagonals() -> None:
    bias = layers.RelativeBias(3, bidirectional=True)
    table = {"params": {"rel_embedding": drawn(3, 32)}}
    length = 150
    whole = bias.apply(table, length)
    assert whole.shape == (1, 3, length, length)
    position = np.arange(length)
    buckets = layers.relative_buckets(position[None, :] - position[:, None], True)
    np.testing.assert_allclose(whole[0], table["params"]["rel_embedding"][:, buckets], rtol=1e-6)
    query = jnp.array([140, 3])
    rows = bias.apply(table, position[None, :] - query[:, None], method="at")
    np.testing.assert_allclose(rows[:, :, 0], jnp.moveaxis(whole[0][:, query], 0, 1), rtol=1e-6)


def test_dropping_values_equals_dropping_weights_for_all_queries() -> None:
    query, key, value = drawn(2, 5, 4, 8), drawn(2, 7, 4, 8), drawn(2, 7, 4, 8)
    keep = jnp.asarray(NORMAL((2, 7, 4, 1)) > 0) / 0.5
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key), axis=-1) * jnp.transpose(keep, (0, 2, 3, 1))
    np.testing.assert_allclose(
        layers.attend(query, key, value * keep, None, None),
        jnp.einsum("bhqk,bkhd->bqhd", weights, value),
        atol=2e-6,
    )


def test_rotated_scores_depend_on_the_difference_of_positions() -> None:
    query, key = drawn(1, 1, 2, 8), drawn(1, 1, 2, 8)

    def score(q: int, k: int) -> jax.Array:
        at = [jnp.array([[p]]) for p in (q, k)]
        return jnp.sum(layers.rotate(query, at[0]) * layers.rotate(key, at[1]), axis=-1)

    np.testing.assert_allclose(score(9, 4), score(25, 20), rtol=1e-4)
    assert jnp.abs(score(9, 4) - score(9, 5)).max() > 1e-3
    turned = layers.rotate(jnp.ones((1, 1, 1, 2)), jnp.array([[1]]))[0, 0, 0]
    np.testing.assert_allclose(turned, [math.cos(1) - math.sin(1), math.cos(1) + math.sin(1)], rtol=1e-6)


def test_look_up_gathers_here_and_multiplies_one_hot_on_a_tpu() -> None:
    table, tokens, weight = drawn(11, 4), jnp.array([[3, 3, 0], [10, 1, 3]]), drawn(2, 3, 4)

    embed = layers.Embed(11, 4, layers.Numerics())

    def look_up(table: jax.Array) -> jax.Array:
        return embed.apply({"params": {"embedding": table}}, tokens)

    def total(table: jax.Array) -> jax.Array:
        return jnp.sum(look_up(table) * weight)

    np.testing.assert_array_equal(look_up(table), table[tokens])
    wanted = jnp.einsum("blv,blm->vm", jax.nn.one_hot(tokens, 11), weight)
    np.testing.assert_allclose(jax.grad(total)(table), wanted, rtol=1e-6, atol=1e-6)
    traced = jax.jit(jax.grad(total)).trace(table)
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
    assert {p: "dot_general" in text for p, text in texts.items()} == {"cpu": False, "cuda": False, "tpu": True}
    assert {p: "scatter" in text for p, text in texts.items()} == {"cpu": True, "cuda": True, "tpu": False}


def test_look_up_multiplies_the_whole_table_where_devices_hold_parts_of_it() -> None:
    embed = layers.Embed(16, 8, layers.Numerics())
    partitioner = partition.Partitioner(logical_axis_rules=partition.rules(preset="fsdp"))

    def total(table: jax.Array, tokens: jax.Array) -> jax.Array:
        return jnp.sum(embed.apply({"params": {"embedding": table}}, tokens) ** 2)

    with partitioner.scope():
        traced = jax.jit(jax.grad(total)).trace(drawn(16, 8), jnp.zeros((8, 3), int))
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    constrained = [line for line in text.splitlines() if "sharding_constraint" in line and "[{}, {}]" in line]
    assert len([line for line in constrained if "tensor<16x8xf32>" in line]) == 2  # the table, and its gradient


def test_dropout_shares_its_mask_along_the_length_and_keeps_the_mean() -> None:
    x = jnp.ones((4, 6, 512))
    dropout = layers.Dropout(0.25)
    dropped = dropout.apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(dropped, jnp.broadcast_to(dropped[:, :1], x.shape))
    assert abs(float(dropped.mean()) - 1.0) < 0.05
    np.testing.assert_array_equal(dropout.apply({}, x), x)
    alone = layers.Dropout(0.25, shared=()).apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert not np.array_equal(alone[:, 0], alone[:, 1])


def test_norm_divides_by_the_root_mean_square() -> None:
    x = drawn(2, 3, 8) * 5
    norm = layers.RMSNorm(layers.Numerics("bfloat16"))
    scale = {"params": {"scale": drawn(8)}}
    wanted = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 1e-6) * scale["params"]["scale"][None, None]
    got = norm.apply(scale, x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=1e-2)


def test_stack_undoes_unstack() -> None:
    tree = {"encoder": {"layers_0": {"a": drawn(2)}, "layers_1": {"a": drawn(2)}, "norm": drawn(3)}}
    stacked = layers.stack(tree)
    assert stacked["encoder"]["layers"]["a"].shape == (2, 2)
    jax.tree.map(np.testing.assert_array_equal, layers.unstack(stacked), tree)


def test_segments_do_not_see_each_other_nor_padding_nor_the_future() -> None:
    segments = jnp.array([[1, 1, 2, 0]])
    wanted = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(layers.segment_mask(segments, segments, causal=True)[0, 0], np.array(wanted, bool))
