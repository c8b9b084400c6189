"""Packed batches of a store train as the same examples do one to a row: loss and gradient, both models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.data.pipeline import features
from flanx.data.pipeline.batches import Batches, Plan
from flanx.data.pipeline.mixture import Mixture
from flanx.models.palm import PaLM
from flanx.models.t5 import T5
from flanx.train_step import cross_entropy_with_z_loss
from tests import drawn, store_maker

LENGTHS = {"inputs": 40, "targets": 16}
MODELS = {
    "encoder_decoder": T5(
        vocab_size=259, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=2
    ),
    "decoder_only": PaLM(vocab_size=259, emb_dim=16, num_heads=2, head_dim=8, num_layers=2),
}


@pytest.mark.parametrize("packing", sorted(MODELS))
def test_loss_and_gradient_of_packed_rows_are_those_of_single_examples(tmp_path, packing):
    opened = store_maker.make(tmp_path, {"cot/cot_a": 60, "cot/cot_b": 20}, lengths=(14, 5))
    batches = Batches(opened, Mixture("cot"), LENGTHS, 8, packing=packing)
    fill = getattr(features, packing)
    plan = batches.plan(0, 8)
    single = Plan(plan.volume, plan.offset, plan.length, plan.cut, plan.source, np.arange(len(plan.source) + 1))
    assert len(plan.source) > 12
    model = MODELS[packing]
    params = drawn.params(model)

    @jax.jit
    def loss(params, batch):
        logits = model.logits(params, batch)
        return cross_entropy_with_z_loss(
            logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"], 1e-4
        )[0]  # fmt: skip

    (one, of_one), (other, of_other) = (
        jax.value_and_grad(loss)(
            params,
            {
                name: jnp.asarray(array)
                for name, array in fill(p, batches.limits, lambda volume: opened.volume(volume).tokens).items()
            },
        )
        for p in (plan, single)
    )
    assert abs(one - other) < 1e-5 * abs(other)
    for a, b in zip(jax.tree.leaves(of_one), jax.tree.leaves(of_other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7)
