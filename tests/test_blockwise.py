"""Attention in blocks of queries: the numbers of exact attention, in memory linear in the length."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.models import blockwise, layers
from flanx.models.palm import PaLM
from flanx.models.t5 import T5
from tests import drawn

SIZES = {"vocab_size": 61, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24}
DEPTH = {"num_encoder_layers": 2, "num_decoder_layers": 2}
MODELS = {
    "t5": T5(**SIZES, **DEPTH),
    "bias in each layer, tuned": T5(**SIZES, **DEPTH, relative_bias="layer", kernels="tuned"),
    "scanned, remat": T5(**SIZES, **DEPTH, scan_layers=True, remat="full"),
    "causal": PaLM(**SIZES, num_layers=2),
    "prefix": PaLM(**SIZES, num_layers=2, prefix_lm=True),
}
QUICK = ("bias in each layer, tuned", "prefix")
PAIRS = [drawn.pairs(count, 9, 6, 61, seed) for seed, count in enumerate((2, 1, 2))]


def batch(model: Any) -> dict[str, jax.Array]:
    if model.packing == "decoder_only":
        return drawn.decoder_only(PAIRS, 37)
    return drawn.encoder_decoder(PAIRS, 21, 14)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in MODELS])
def test_logits_and_gradients_are_those_of_exact_attention(name, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 8)  # 21 and 14 queries, or 37: the last block is never full
    model = MODELS[name]
    rows, params = batch(model), drawn.params(model)

    def loss(params: Any, kind: str) -> tuple[jax.Array, jax.Array]:
        logits = dataclasses.replace(model, attention=kind).logits(params, rows)
        weights = rows["decoder_loss_weights"][..., None]
        return jnp.sum(weights * jnp.sin(logits)), logits * weights

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, wanted), exact = run(params, "exact")
    (_, logits), gradient = run(params, "blockwise")
    np.testing.assert_allclose(logits, wanted, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * (1 + np.abs(b).max())), gradient, exact)


def test_the_bias_of_a_block_is_the_part_of_the_whole():
    values = jnp.arange(2 * 12.0).reshape(2, 12)  # 5 queries, 7 keys
    whole = np.asarray(layers.diagonals(values, 5, 7))
    wanted = [[[values[h, k - q + 4] for k in range(7)] for q in range(5)] for h in range(2)]
    np.testing.assert_array_equal(whole, np.array(wanted))


def test_long_rows_are_attended_to_in_blocks_by_themselves():
    segments = jnp.ones((1, blockwise.LONGEST_EXACT + 1), jnp.int32)
    assert isinstance(layers.segment_mask(segments, segments, kind="auto"), blockwise.SegmentMask)
    assert not isinstance(layers.segment_mask(segments[:, 1:], segments[:, 1:], kind="auto"), blockwise.SegmentMask)
    assert not isinstance(layers.segment_mask(segments, segments, kind="exact"), blockwise.SegmentMask)


@pytest.mark.slow
def test_memory_grows_with_the_length_and_not_with_its_square():
    model = T5(**SIZES, num_encoder_layers=1, num_decoder_layers=1)

    def temporary(length: int, kind: str) -> int:
        rows = {
            name: jax.ShapeDtypeStruct((1, length if "encoder" in name else 8), np.int32) for name in model.features
        }
        chosen = dataclasses.replace(model, attention=kind)

        def loss(params: Any, rows: Any) -> jax.Array:
            return jnp.sum(jnp.sin(chosen.logits(params, rows)))

        compiled = jax.jit(jax.grad(loss)).lower(drawn.params(model), rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary(2048, "auto"), temporary(8192, "auto")
    assert long < 4.5 * temporary(2048, "blockwise")
    assert long < temporary(2048, "exact") * 2 and short == temporary(2048, "exact")
