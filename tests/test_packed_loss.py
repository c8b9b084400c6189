"""Packed batches of a store train as the same examples do one to a row: loss, gradient, sums by task; both models."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flanx.data.pipeline import features
from flanx.data.pipeline.batches import Batches, Plan
from flanx.data.pipeline.mixture import Mixture
from flanx.models.palm import PaLM
from flanx.models.t5 import T5
from flanx.partition import Partitioner
from flanx.train_step import Trainer, cross_entropy_with_z_loss
from tests import drawn, store_maker

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # half of the compilation
LENGTHS = {"inputs": 40, "targets": 16}
MODELS = {
    "encoder_decoder": T5(
        vocab_size=259, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=2
    ),
    "decoder_only": PaLM(vocab_size=259, emb_dim=16, num_heads=2, head_dim=8, num_layers=2),
}


@pytest.mark.parametrize("packing", ["encoder_decoder", pytest.param("decoder_only", marks=pytest.mark.slow)])
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
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        return jnp.sum(cross_entropy_with_z_loss(logits, targets, weights, 1e-4)[0])

    (one, of_one), (other, of_other) = (
        jax.value_and_grad(loss)(
            params,
            {
                name: jnp.asarray(array)
                for name, array in fill(p, batches.limits, lambda v: opened.volume(v).tokens, p.source).items()
            },
        )
        for p in (plan, single)
    )
    assert abs(one - other) < 1e-5 * abs(other)
    for a, b in zip(jax.tree.leaves(of_one), jax.tree.leaves(of_other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-7)


@pytest.mark.parametrize(
    ("devices", "num_microbatches", "packing"),
    [
        pytest.param(1, 1, "encoder_decoder", marks=pytest.mark.slow),
        (4, 2, "encoder_decoder"),
        pytest.param(1, 1, "decoder_only", marks=pytest.mark.slow),
        pytest.param(4, 2, "decoder_only", marks=pytest.mark.slow),
    ],
)
def test_sums_by_task_are_those_of_a_step_on_unpacked_examples_of_that_task(
    tmp_path, packing, devices, num_microbatches
):
    """A step on packed rows of three tasks in two styles, and a step of one task alone for each."""
    sizes = {"cot/cot_a": 60, "cot/cot_b": 20, "cot/cot_c": 20}
    opened = store_maker.make(tmp_path, sizes, ("zsopt", "fsopt"), lengths=(14, 5))
    batches = Batches(opened, Mixture("cot"), LENGTHS, 8, packing=packing)
    plan, model = batches.plan(0, 8), MODELS[packing]
    trainer = Trainer(model, optax.sgd(0.1), dropout=False, num_tasks=3, num_microbatches=num_microbatches)
    partitioner = Partitioner(devices=jax.devices()[:devices])
    params = jax.tree.map(np.asarray, drawn.params(model))  # a step deletes those of a device
    with partitioner.scope():
        target = trainer.abstract_state(partitioner)
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), target).replace(params=params)
        state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, target))
        metrics = trainer.jit(target, compiler_options=FAST)(state, partitioner.global_batch(batches.batch(0), 8))[1]
        assert metrics["tasks"].sharding.is_fully_replicated  # every host reads it
        metrics = jax.device_get(metrics)
    alone = jax.jit(dataclasses.replace(trainer, num_tasks=0, num_microbatches=1).step, compiler_options=FAST)
    assert list(batches.tasks.items()) == [("cot_a", "cot"), ("cot_b", "cot"), ("cot_c", "cot")]
    for number, task in enumerate(batches.tasks):
        own = [i for i, source in enumerate(plan.source) if batches.resolved.sources[source].task.name == task]
        columns = (column[own] for column in plan[:-1])
        fill = getattr(features, packing)
        starts = np.minimum(np.arange(61), len(own))  # as many rows for every task: one program
        rows = fill(Plan(*columns, starts), batches.limits, lambda v: opened.volume(v).tokens, np.zeros(len(own)))
        wanted = jax.device_get(
            alone(trainer.init_from_params(params), {name: jnp.asarray(array) for name, array in rows.items()})[1]
        )
        loss, *counts = metrics["tasks"][:, number]
        assert len(own) > 1 and counts == [wanted["tokens"], len(own), wanted["correct"]]
        assert loss == pytest.approx(wanted["cross_ent_loss"], rel=2e-5)
    assert math.fsum(metrics["tasks"][0]) == pytest.approx(metrics["cross_ent_loss"], rel=1e-6)
    assert math.fsum(metrics["tasks"][1]) == metrics["tokens"]
    assert metrics["z_loss"] > 2e-4 * metrics["loss"]  # which the sums by task do not hold
