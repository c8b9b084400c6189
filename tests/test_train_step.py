"""The step: sharded equals unsharded, microbatches equal the whole batch, and what the compiler made of the rules."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flanx import optim, partition
from flanx.errors import UserError
from flanx.models import Model, t5
from flanx.train_step import TrainState, abstract_state, init_state, jit_train_step, make_train_step

ROWS, INPUTS, TARGETS, VOCAB = 8, 16, 8, 384
SGD = optax.sgd(0.1)  # little to compile, and the update is the gradient
ADAFACTOR = optim.adafactor(1e-3)
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
PRESETS = [*partition.PRESETS, "sequence"]


@functools.cache
def model(scan: bool = False, **changes: Any) -> Model:
    layers = 2 if scan else 1
    sizes = {"vocab_size": VOCAB, "emb_dim": 128, "num_heads": 4, "head_dim": 32, "mlp_dim": 256}
    return t5.T5(**sizes, num_encoder_layers=layers, num_decoder_layers=layers, scan_layers=scan, **changes)


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    """A packed batch, rows of two segments, drawn with numpy."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> np.ndarray:
        return rng.integers(3, VOCAB, (ROWS, length)).astype(np.int32)

    def segments(length: int) -> np.ndarray:
        return np.broadcast_to(1 + (np.arange(length) >= length // 2), (ROWS, length)).astype(np.int32)

    def positions(length: int) -> np.ndarray:
        return np.broadcast_to(np.arange(length) % (length // 2), (ROWS, length)).astype(np.int32)

    return {
        "encoder_input_tokens": tokens(INPUTS),
        "decoder_target_tokens": tokens(TARGETS),
        "decoder_input_tokens": tokens(TARGETS),
        "decoder_loss_weights": (rng.random((ROWS, TARGETS)) < 0.8).astype(np.int32),
        "encoder_segment_ids": segments(INPUTS),
        "encoder_positions": positions(INPUTS),
        "decoder_segment_ids": segments(TARGETS),
        "decoder_positions": positions(TARGETS),
    }


def rules_of(preset: Any) -> partition.Rules:
    if preset == "sequence":
        return partition.rules(1, 2, extra=[("length", "model")])
    return partition.rules(preset=preset) if preset == "fsdp" else partition.rules(*preset)


def prepare(
    partitioner: partition.Partitioner, made: Model, optimizer: optax.GradientTransformation = SGD, **options: Any
) -> tuple[TrainState, Any]:
    """Abstract state and the jitted step, compiled without optimisation, which takes half the time."""
    target = abstract_state(made, optimizer, partitioner)
    step = make_train_step(made, optimizer, dropout=False, loss_normalizing_factor="tokens", **options)
    return target, jit_train_step(step, target, compiler_options=FAST)


@functools.cache
def drawn_params(made: Model) -> Any:
    shapes = jax.eval_shape(lambda: init_state(made, SGD, jax.random.key(0))).params
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0, 0.05, s.shape).astype(np.float32), shapes)


def run(
    partitioner: partition.Partitioner, made: Model, optimizer: optax.GradientTransformation = SGD, **options: Any
) -> tuple[Any, list[float]]:
    """Parameters and losses after two steps from weights drawn with numpy."""
    with partitioner.scope():
        target, step = prepare(partitioner, made, optimizer, **options)
        start = functools.partial(jax.jit, out_shardings=jax.tree.map(lambda s: s.sharding, target))
        state = start(lambda params: TrainState(jnp.int32(0), params, optimizer.init(params)))(drawn_params(made))
        losses = []
        for i in range(2):
            placed = partitioner.global_batch(batch(i), ROWS)
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, placed)
            losses.append(float(metrics["loss"]) / float(metrics["tokens"]))
        return jax.device_get(state.params), losses


@functools.cache
def reference(made: Model, optimizer: optax.GradientTransformation = SGD) -> tuple[Any, list[float]]:
    return run(partition.Partitioner(1, devices=tuple(jax.devices()[:1])), made, optimizer)


def assert_same(found: tuple[Any, list[float]], wanted: tuple[Any, list[float]]) -> None:
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found[0], wanted[0])


@pytest.mark.parametrize("preset", PRESETS, ids=str)
def test_sharded_equals_unsharded(preset: Any) -> None:
    assert_same(run(partition.Partitioner(2, rules_of(preset)), model()), reference(model()))


@pytest.mark.parametrize(
    "partitioner",
    [
        partition.Partitioner(4, rules_of((2, 2))),
        partition.Partitioner(2, rules_of((1, 2)), num_replicas=2),
    ],
    ids=["model=4", "replica=2"],
)
def test_other_meshes_equal_unsharded(partitioner: partition.Partitioner) -> None:
    assert_same(run(partitioner, model()), reference(model()))


def test_adafactor_on_a_mesh_equals_unsharded() -> None:
    partitioner = partition.Partitioner(2, rules_of((2, 2)))
    assert_same(run(partitioner, model(), ADAFACTOR), reference(model(), ADAFACTOR))


@pytest.mark.parametrize("preset", [(2, 2)], ids=str)
def test_scanned_sharded_equals_unsharded(preset: Any) -> None:
    made = model(scan=True)
    assert_same(run(partition.Partitioner(2, rules_of(preset)), made), reference(made))


@pytest.mark.slow
@pytest.mark.parametrize("preset", [p for p in PRESETS if p != (2, 2)], ids=str)
def test_scanned_sharded_equals_unsharded_in_the_other_presets(preset: Any) -> None:
    made = model(scan=True)
    assert_same(run(partition.Partitioner(2, rules_of(preset)), made), reference(made))


def test_microbatches_equal_the_whole_batch() -> None:
    one = partition.Partitioner(1, devices=tuple(jax.devices()[:1]))
    assert_same(run(one, model(), num_microbatches=4), reference(model()))


def test_sharded_microbatches_equal_the_whole_batch() -> None:
    sharded = partition.Partitioner(2, rules_of((1, 2)))
    assert_same(run(sharded, model(), num_microbatches=2), reference(model()))


def test_remat_equals_none() -> None:
    assert_same(run(partition.Partitioner(2), model(remat="full")), reference(model()))


def test_microbatches_that_do_not_divide() -> None:
    with pytest.raises(UserError, match="a batch of 8 rows does not divide into 3 microbatches"):
        run(partition.Partitioner(1, devices=tuple(jax.devices()[:1])), model(), num_microbatches=3)


def compiled_text(preset: Any, **options: Any) -> str:
    partitioner = partition.Partitioner(2, rules_of(preset))
    with partitioner.scope():
        target, step = prepare(partitioner, model(), **options)
        return step.lower(target, abstract_rows(partitioner)).compile().as_text()


def abstract_rows(partitioner: partition.Partitioner) -> dict[str, jax.ShapeDtypeStruct]:
    place = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32, sharding=partitioner.batch_sharding())
    return {name: place(array.shape) for name, array in batch().items()}


def gathered(text: str) -> list[tuple[int, ...]]:
    """Shapes of what the all-gathers of a program make."""
    shapes = re.findall(r"= \(?[a-z0-9]+\[([0-9,]*)\][^=]*? all-gather(?:-start)?\(", text)
    return [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]


def test_tensor_parallel_step_reduces_and_never_gathers_the_vocabulary_head() -> None:
    text = compiled_text((1, 1))
    assert "all-reduce" in text
    heads = [s for s in gathered(text) if s in {(128, VOCAB), (VOCAB, 128), (ROWS // 4, TARGETS, VOCAB)}]
    assert heads == []


def test_fsdp_step_gathers_parameters_and_no_activations() -> None:
    shapes = gathered(compiled_text("fsdp"))
    assert [s for s in shapes if s == (128, 256)]  # a parameter is whole only while it is used
    assert not [s for s in shapes if s[:1] == (ROWS,) and s[-1] >= 128]


def test_constraints_stand_in_the_jaxpr() -> None:
    partitioner = partition.Partitioner(2, rules_of((1, 1)))
    with partitioner.scope():
        target, step = prepare(partitioner, model())
        jaxpr = str(step.trace(target, abstract_rows(partitioner)).jaxpr)
    assert jaxpr.count("sharding_constraint") >= 2 * 5  # two layers, forward and backward


def test_microbatches_keep_rows_where_they_are() -> None:
    assert not [s for s in gathered(compiled_text((1, 1), num_microbatches=2)) if s[-1] >= 128]


def zeros(target: TrainState) -> TrainState:
    return jax.tree.map(lambda s: jax.device_put(np.zeros(s.shape, s.dtype), s.sharding), target)


def test_state_is_donated_and_a_host_array_is_refused() -> None:
    partitioner = partition.Partitioner(2, rules_of((2, 2)))
    with partitioner.scope():
        target, step = prepare(partitioner, model())
        state = zeros(target)
        step(state, partitioner.global_batch(batch(), ROWS))
        assert jax.tree.leaves(state.params)[0].is_deleted()
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"), jax.transfer_guard("disallow"):
            step(zeros(target), batch())
