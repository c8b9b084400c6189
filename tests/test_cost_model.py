"""The cost model compared with XLA's own figures on the CPU."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import pytest

from flanx import partition
from flanx.plan import cost_model, hardware, mesh_layout, planned_run
from flanx.train_step import TrainState
from tests.plan_case import RUN, SMALL


@pytest.fixture(scope="module")
def traced() -> cost_model.Trace:
    return cost_model.trace(RUN.scanned(), tpu=False)


def test_flops_of_the_walk_are_those_of_the_model(traced: cost_model.Trace) -> None:
    for made in mesh_layout.mesh_layouts(RUN, hardware.parse("v5e:2x4")):
        cost = cost_model.cost(traced, made)
        ratio = cost.flops * 8 / RUN.flops_per_step
        assert 0.95 < ratio < 1.3, (made.name, ratio)  # above 1: what a layout computes more than once


# Activations: the estimate over XLA's own figure on the CPU. What lies from step to step and the gradients are exact.
# The walk fuses nothing and frees at once; XLA on a CPU fuses, but keeps scheduling freedom and small copies.
RATIO_TO_XLA = {(8, 1, "(1, 1)"): 0.81, (4, 2, "(1, 2)"): 0.89, (2, 4, "(2, 2)"): 0.93}
QUICK = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize(
    "shape",
    [pytest.param(shape, marks=() if shape == (4, 2, "(1, 2)") else pytest.mark.slow) for shape in RATIO_TO_XLA],
)
def test_estimate_compared_with_xla_on_the_cpu(traced: cost_model.Trace, shape: tuple[int, int, str]) -> None:
    made = mesh_layout.MeshLayout(1, *shape)
    cost, found = cost_model.cost(traced, made), xla_parts(RUN.scanned(), made.partitioner(jax.devices()))
    ratios = {part: getattr(cost, part) / found[part] for part in found}
    exact = dict.fromkeys(("params", "optimizer", "batch", "gradients"), 1.0)
    assert {part: ratios[part] for part in exact} == pytest.approx(exact, rel=0.001)
    assert ratios["activations"] == pytest.approx(RATIO_TO_XLA[shape], rel=0.12)


def xla_parts(planned: planned_run.PlannedRun, partitioner: partition.Partitioner) -> dict[str, float]:
    """Bytes per device of the parts of a step, from XLA's memory analysis of its gradient."""
    state, batch = planned.trainer.abstract_state(partitioner), planned.batch(partitioner)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)

    def gradient(state: TrainState, batch: dict[str, jax.Array]) -> object:
        return jax.grad(lambda params: planned.trainer.loss(params, batch, None)[0])(state.params)

    def given(*which: object) -> float:
        """Bytes of arguments, read or not."""
        nothing = jax.jit(lambda *_: 0, keep_unused=True).lower(*which).compile()
        return nothing.memory_analysis().argument_size_in_bytes

    with partitioner.scope():
        lowered = jax.jit(gradient, out_shardings=shardings, compiler_options=QUICK).lower(state, batch)
        memory = lowered.compile().memory_analysis()
        parts = {"params": given(state.params), "optimizer": given(state.opt_state), "batch": given(batch)}
    return parts | {"gradients": memory.output_size_in_bytes, "activations": memory.temp_size_in_bytes}


def test_estimate_of_a_whole_step_compared_with_xla(traced: cost_model.Trace) -> None:
    """All that a step holds, donated state and optimizer's arithmetic included."""
    made = mesh_layout.MeshLayout(1, 4, 2, "(1, 2)")
    partitioner, scanned = made.partitioner(jax.devices()), RUN.scanned()
    state, batch = scanned.trainer.abstract_state(partitioner), scanned.batch(partitioner)
    with partitioner.scope():
        memory = scanned.trainer.jit(state, compiler_options=QUICK).lower(state, batch).compile().memory_analysis()
    cost, whole = cost_model.cost(traced, made), memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert memory.alias_size_in_bytes >= cost.params + cost.optimizer  # the new state takes the place of the old
    assert cost.hbm / whole == pytest.approx(0.90, rel=0.12)


def test_parts_of_a_sharded_state_are_exact(traced: cost_model.Trace) -> None:
    whole = cost_model.cost(traced, mesh_layout.MeshLayout(1, 8, 1, "(1, 1)"))
    split = cost_model.cost(traced, mesh_layout.MeshLayout(1, 8, 1, "fsdp"))
    assert whole.params == pytest.approx(4 * SMALL.num_params(), rel=1e-6)
    assert split.params < whole.params / 7  # the small relative bias stays whole
    assert split.collectives["all-gather", ("data",)] > 0
    assert not [key for key in whole.collectives if key[0] == "all-gather"]


def test_microbatches_add_the_sum_of_gradients_and_nothing_else() -> None:
    """Four microbatches of 8 rows cost the activations of a batch of 8, a second copy of gradients, FLOPs of 32."""
    trainer = dataclasses.replace(RUN.trainer, num_microbatches=4)
    parts = dataclasses.replace(RUN, trainer=trainer).scanned()
    one = dataclasses.replace(RUN, batch_size=RUN.batch_size // 4).scanned()
    layout = mesh_layout.MeshLayout(1, 4, 2, "(1, 2)")
    of_parts, of_one = (cost_model.cost(cost_model.trace(run, tpu=False), layout) for run in (parts, one))
    assert of_parts.activations == pytest.approx(of_one.activations + of_one.params)
    assert of_parts.gradients == of_one.gradients == of_one.params
    assert of_parts.flops == pytest.approx(4 * of_one.flops)
    assert of_parts.batch == pytest.approx(4 * of_one.batch)


@pytest.mark.parametrize(("tpu", "taken"), [(True, 2.0), (False, 3.0)])
def test_a_conditional_costs_the_branch_of_its_platform(traced: cost_model.Trace, tpu: bool, taken: float) -> None:
    """x [batch, embed] @ w [embed, embed] once, twice or three times."""
    shapes = (cost_model.ROWS, 1021), (1021, 1021)

    def times(n: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda x, w: functools.reduce(jax.numpy.matmul, [x] + n * [w])

    chosen = functools.partial(jax.lax.platform_dependent, cpu=times(1), tpu=times(2), default=times(3))
    jaxpr = jax.make_jaxpr(chosen)(*(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes))
    partitioner = mesh_layout.MeshLayout(1, 8, 1, "(1, 1)").partitioner()
    walk = cost_model._Walk(dataclasses.replace(traced, tpu=tpu), partitioner)
    walk.run(jaxpr.jaxpr)
    assert walk.flops == pytest.approx(taken * 2 * RUN.batch_size * SMALL.emb_dim**2 / 8)


def test_a_sum_for_a_cpu_sends_nothing_on_a_tpu() -> None:
    """Gradients are summed over `data` and nothing else of any size is: attention's bias on a CPU is a product."""
    layout, run = mesh_layout.MeshLayout(1, 8, 1, "(1, 1)"), RUN.with_model(kernels="tuned").scanned()
    cost = cost_model.cost(cost_model.trace(run), layout)
    assert sum(cost.collectives.values()) == pytest.approx(2 * cost.gradients * 7 / 8, rel=0.1)


def test_a_ring_sends_a_sum_around_twice(traced: cost_model.Trace) -> None:
    """x [batch, mlp] @ w [mlp, embed], mlp split over `model`: partial sums of the [batch, embed] result."""
    shapes = (cost_model.ROWS, 1039), (1039, 1021)  # the stand-ins of batch, mlp and embed
    product = jax.make_jaxpr(lambda x, w: x @ w)(*(jax.ShapeDtypeStruct(shape, "float32") for shape in shapes))
    for data, model in ((4, 2), (2, 4)):
        walk = cost_model._Walk(traced, mesh_layout.MeshLayout(1, data, model, "(1, 1)").partitioner())
        walk.run(product.jaxpr)
        result = 4 * RUN.batch_size / data * SMALL.emb_dim  # bytes on one chip
        assert walk.collectives == {("all-reduce", ("model",)): pytest.approx(2 * result * (model - 1) / model)}
        assert walk.flops == pytest.approx(2 * RUN.batch_size * SMALL.mlp_dim * SMALL.emb_dim / 8)
