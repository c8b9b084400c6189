"""The step: sharded equals unsharded, microbatches the whole batch, what the compiler made of the rules; the loss."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flanx import optim, partition
from flanx.errors import UserError
from flanx.models import palm, t5
from flanx.train_step import Trainer, TrainState, correct_tokens, cross_entropy_with_z_loss

# no two sizes are the same, so that a shape in a program tells what it is
ROWS, INPUTS, TARGETS, EMBED, MLP, VOCAB = 8, 16, 12, 24, 40, 56
SIZES = {"vocab_size": VOCAB, "emb_dim": EMBED, "num_heads": 4, "head_dim": 8, "mlp_dim": MLP}
SGD = optax.sgd(0.1)  # little to compile, and the update is the gradient
ADAFACTOR = optim.adafactor(1e-3, min_dim_size_to_factor=16)
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # half of the compilation
RULES: Mapping[str, partition.Rules] = {
    "(1, 1)": partition.rules(1, 1),
    "(2, 1)": partition.rules(2, 1),
    "(1, 2)": partition.rules(1, 2),
    "(2, 2)": partition.rules(2, 2),
    "fsdp": partition.rules(preset="fsdp"),
    "sequence": partition.rules(1, 2, extra=[("length", "model")]),
}
ONE = partition.Partitioner(1, devices=tuple(jax.devices()[:1]))


def over(preset: str, num_partitions: int = 2, **more: Any) -> partition.Partitioner:
    return partition.Partitioner(num_partitions, RULES[preset], **more)


def trainer(
    kind: str = "palm", scan: bool = False, optimizer: Any = SGD, num_microbatches: int = 1, **changes: Any
) -> Trainer:
    layers = 2 if scan else 1
    if kind == "palm":
        model: Any = palm.PaLM(**SIZES, num_layers=layers, scan_layers=scan, **changes)
    else:
        depth = {"num_encoder_layers": layers, "num_decoder_layers": layers}
        model = t5.T5(**SIZES, **depth, scan_layers=scan, **changes)
    options = {"dropout": False, "loss_normalizing_factor": "tokens", "num_microbatches": num_microbatches}
    return Trainer(model, optimizer, **options)


def batch(packing: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A packed batch, rows of two segments, drawn with numpy."""
    rng = np.random.default_rng(seed)

    def side(name: str, length: int) -> dict[str, np.ndarray]:
        at = np.broadcast_to(np.arange(length), (ROWS, length))
        return {
            f"{name}_input_tokens": rng.integers(3, VOCAB, (ROWS, length)).astype(np.int32),
            f"{name}_segment_ids": (1 + (at >= length // 2)).astype(np.int32) * (at < length - (name == "decoder")),
            f"{name}_positions": (at % (length // 2)).astype(np.int32),
        }

    made = side("decoder", TARGETS) | {
        "decoder_target_tokens": rng.integers(3, VOCAB, (ROWS, TARGETS)).astype(np.int32),
        "decoder_loss_weights": (rng.random((ROWS, TARGETS)) < 0.8).astype(np.int32),
    }
    if packing == "encoder_decoder":
        return made | side("encoder", INPUTS)
    return made | {"decoder_causal_attention": np.zeros((ROWS, TARGETS), np.int32)}


@functools.cache
def lowered(made: Trainer, partitioner: partition.Partitioner) -> tuple[TrainState, Any]:
    """The abstract state, and the step lowered for it and a batch."""
    with partitioner.scope():
        target = made.abstract_state(partitioner)
        place = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32, sharding=partitioner.batch_sharding())
        rows = {name: place(array.shape) for name, array in batch(made.model.packing).items()}
        return target, made.jit(target, compiler_options=FAST).lower(target, rows)


@functools.cache
def compiled(made: Trainer, partitioner: partition.Partitioner) -> Any:
    return lowered(made, partitioner)[1].compile()


@functools.cache
def drawn(made: Trainer) -> Any:
    """Parameters drawn with numpy."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0, 0.05, s.shape).astype(np.float32), jax.eval_shape(made.init).params)


def start(made: Trainer, partitioner: partition.Partitioner) -> TrainState:
    """The drawn parameters on the mesh, and an optimizer's zeros."""
    target = lowered(made, partitioner)[0]
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), target).replace(params=drawn(made))
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, target))


@functools.cache
def run(made: Trainer, partitioner: partition.Partitioner = ONE) -> tuple[TrainState, list[float]]:
    """State and losses after two steps."""
    with partitioner.scope():
        state, step, losses = start(made, partitioner), compiled(made, partitioner), []
        for i in range(2):
            rows = batch(made.model.packing, i)
            placed = partitioner.global_batch(rows, ROWS)
            with jax.transfer_guard("disallow"):
                state, metrics = step(state, placed)
            losses.append(float(metrics["loss"]) / float(metrics["tokens"]))
            filled = [np.count_nonzero(array) for name, array in rows.items() if name.endswith("segment_ids")]
            assert float(metrics["filled"]) == float(metrics["positions"]) - ROWS == sum(filled)
        return state, losses


def assert_same(found: tuple[TrainState, list[float]], wanted: tuple[TrainState, list[float]]) -> None:
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, jax.device_get(found[0].params), jax.device_get(wanted[0].params))


# one of each kind in every run of the suite, every combination with the slow tests
QUICK = {("palm", False, "(2, 2)"), ("palm", True, "(1, 1)"), ("t5", False, "(1, 1)")}
EVERY = [
    pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow)
    for each in [(kind, scan, preset) for kind in ("palm", "t5") for scan in (False, True) for preset in RULES]
]


@pytest.mark.parametrize(("kind", "scan", "preset"), EVERY)
def test_sharded_equals_unsharded(kind: str, scan: bool, preset: str) -> None:
    made = trainer(kind, scan)
    assert_same(run(made, over(preset)), run(made))


@pytest.mark.parametrize(
    "partitioner", [over("(2, 2)", 4), over("(1, 2)", 2, num_replicas=2)], ids=["model=4", "replica=2"]
)
def test_other_meshes_equal_unsharded(partitioner: partition.Partitioner) -> None:
    assert_same(run(trainer(), partitioner), run(trainer()))


def test_adafactor_on_a_mesh_equals_unsharded_and_its_state_stays_split() -> None:
    made = trainer(optimizer=ADAFACTOR)
    state, losses = run(made, over("(2, 2)"))
    assert_same((state, losses), run(made))
    large = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.size >= VOCAB]
    assert large
    assert not [leaf.shape for leaf in large if leaf.sharding.is_fully_replicated]


def test_microbatches_equal_the_whole_batch() -> None:
    assert_same(run(trainer(num_microbatches=4)), run(trainer()))
    assert_same(run(trainer(num_microbatches=2), over("(1, 1)")), run(trainer()))


def test_remat_equals_none() -> None:
    assert_same(run(trainer(remat="full"), over("(1, 1)")), run(trainer()))


def test_microbatches_that_do_not_divide() -> None:
    with pytest.raises(UserError, match="a batch of 8 rows does not divide into 3 microbatches"):
        lowered(trainer(num_microbatches=3), ONE)


def test_a_normalizing_factor_that_is_no_number() -> None:
    with pytest.raises(UserError, match=r"is a number, None or one of tokens, NUM_\w+, NUM_\w+, \w+, not 'token'"):
        Trainer(trainer().model, SGD, loss_normalizing_factor="token")


class Table:
    """A model whose logits are its parameters."""

    def logits(self, params: Any, batch: Any, rng: Any) -> jax.Array:
        return params["logits"]


@pytest.mark.parametrize("name", ["NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE"])
def test_the_special_normalizing_factors_of_t5x(name: str) -> None:
    """Tokens of the batch, its positions, or one weight for every packed sequence with a token (T5X's definitions)."""
    rng, made = np.random.default_rng(0), batch("encoder_decoder")
    made["decoder_loss_weights"][0, : TARGETS // 2] = 0  # a sequence without a token
    segments, weights = made["decoder_segment_ids"], made["decoder_loss_weights"] * 1.0
    logits = rng.standard_normal((ROWS, TARGETS, VOCAB)).astype(np.float32)
    one_hot = np.eye(VOCAB)[made["decoder_target_tokens"]]
    per_token = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) - one_hot  # gradient of a token's cross-entropy
    if name == "AVERAGE_PER_SEQUENCE":
        sequences = [(segments == s) * (np.arange(ROWS) == r)[:, None] for r in range(ROWS) for s in (1, 2)]
        sequences = [mask * weights / (mask * weights).sum() for mask in sequences if (mask * weights).any()]
        wanted = sum(sequences) / len(sequences)
        assert len(sequences) == 2 * ROWS - 1
    else:
        wanted = weights / (weights.sum() if name == "NUM_REAL_TARGET_TOKENS" else weights.size)
    made_trainer = Trainer(Table(), optax.sgd(1.0), loss_normalizing_factor=name, z_loss=0.0)  # type: ignore[arg-type]
    state, metrics = made_trainer.step(made_trainer.init_from_params({"logits": jnp.asarray(logits)}), made)
    np.testing.assert_allclose(logits - state.params["logits"], wanted[..., None] * per_token, atol=1e-6)
    assert metrics["tokens"] == weights.sum()  # metrics are sums over tokens whatever the loss is divided by
    assert "sequences" not in metrics


def gathered(made: Trainer, partitioner: partition.Partitioner) -> set[tuple[int, ...]]:
    """Shapes of what the all-gathers of a step make, without dimensions of one."""
    text = compiled(made, partitioner).as_text()
    shapes = re.findall(r"= \(?[a-z0-9]+\[([0-9,]*)\][^=]*? all-gather(?:-start)?\(", text)
    return {tuple(int(n) for n in shape.split(",") if n not in ("", "1")) for shape in shapes}


@pytest.mark.parametrize("kind", ["palm", "t5"])
def test_tensor_parallel_step_reduces_and_never_gathers_the_vocabulary_head(kind: str) -> None:
    made, partitioner = trainer(kind), over("(1, 1)")
    assert "all-reduce" in compiled(made, partitioner).as_text()
    assert not [shape for shape in gathered(made, partitioner) if VOCAB in shape]


def test_fsdp_step_gathers_parameters_and_no_activations() -> None:
    shapes = gathered(trainer(), over("fsdp"))
    assert {(EMBED, MLP), (MLP, EMBED)} & shapes  # a parameter is whole only while it is used
    assert not [shape for shape in shapes if shape[:1] == (ROWS,) and shape[-1] in (EMBED, MLP, VOCAB)]


def test_microbatches_keep_rows_where_they_are() -> None:
    shapes = gathered(trainer(num_microbatches=2), over("(1, 1)"))
    assert not [shape for shape in shapes if shape[-1:] in ((EMBED,), (MLP,), (VOCAB,))]


def test_constraints_stand_in_the_program() -> None:
    text = lowered(trainer(), over("(1, 1)"))[1].as_text()
    assert text.count("sharding_constraint") >= 2 * 3  # forward and backward


def test_state_is_donated_and_a_host_array_is_refused() -> None:
    partitioner = over("(1, 1)")
    with partitioner.scope():
        step, state = compiled(trainer(), partitioner), start(trainer(), partitioner)
        step(state, partitioner.global_batch(batch("decoder_only"), ROWS))
        assert jax.tree.leaves(state.params)[0].is_deleted()
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"), jax.transfer_guard("disallow"):
            step(start(trainer(), partitioner), batch("decoder_only"))


# --- randomness and the divisor of a step, on a model of one number --------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Noise:
    """A model whose logits are a parameter times the noise of its rng."""

    def logits(self, params: Any, batch: Mapping[str, Any], rng: jax.Array) -> jax.Array:
        return params["scale"] * jax.random.normal(rng, (*batch["decoder_target_tokens"].shape, 5))


def noise_step(state_step: int = 0, **options: Any) -> dict[str, float]:
    """The metrics of a step on four equal rows of six positions, four of them tokens, three of these targets."""
    rows = {"target_tokens": [3, 1, 4, 1, 0, 0], "loss_weights": [0, 1, 1, 1, 0, 0], "segment_ids": [1, 1, 1, 1, 0, 0]}
    made = {f"decoder_{name}": jnp.array([row] * 4) for name, row in rows.items()}
    trainer = Trainer(Noise(), SGD, **{"loss_normalizing_factor": None} | options)
    state = trainer.init_from_params({"scale": jnp.ones(())}).replace(step=jnp.asarray(state_step))
    return {name: float(value) for name, value in trainer.step(state, made)[1].items()}


def test_dropout_is_a_function_of_seed_and_step() -> None:
    first = noise_step()["loss"]
    assert noise_step()["loss"] == first
    assert noise_step(1)["loss"] != first
    assert noise_step(seed=1)["loss"] != first


def test_each_microbatch_has_its_own_dropout_and_the_sum_holds_all_of_them() -> None:
    rng = jax.random.fold_in(jax.random.key(0), 7)
    rows = {"target_tokens": [3, 1, 4, 1, 0, 0], "loss_weights": [0, 1, 1, 1, 0, 0], "segment_ids": [1, 1, 1, 1, 0, 0]}
    one = {f"decoder_{name}": jnp.array([row] * 2) for name, row in rows.items()}
    losses = [
        float(Trainer(Noise(), SGD).loss({"scale": jnp.ones(())}, one, jax.random.fold_in(rng, part))[0])
        for part in range(2)
    ]
    found = noise_step(7, num_microbatches=2)
    assert losses[0] != losses[1]
    assert found["loss"] == pytest.approx(sum(losses), rel=1e-6) and found["tokens"] == 12


def test_the_gradient_is_divided_by_target_tokens_or_by_a_number() -> None:
    whole = noise_step()
    assert (whole["tokens"], whole["filled"], whole["positions"]) == (12, 16, 24)
    by_tokens, by_seven = (noise_step(loss_normalizing_factor=factor) for factor in ("tokens", 7.0))
    assert by_tokens["grad_norm"] == pytest.approx(whole["grad_norm"] / 12, rel=1e-6)
    assert by_seven["grad_norm"] == pytest.approx(whole["grad_norm"] / 7, rel=1e-6)
    assert by_tokens["loss"] == whole["loss"]  # metrics are sums


@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.0), (0.0, 0.1), (1e-2, 0.1)])
def test_loss_and_gradient_follow_the_definition(z_loss: float, smoothing: float) -> None:
    draws = np.random.default_rng(0)
    logits = jnp.asarray(3 * draws.standard_normal((2, 5, 7)), jnp.float32)
    targets = jnp.asarray(draws.integers(0, 7, (2, 5)))
    weights = jnp.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]])
    smooth = jax.nn.one_hot(targets, 7) * (1 - smoothing) + (1 - jax.nn.one_hot(targets, 7)) * smoothing / 6

    def plain(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_z = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
        divergence = jnp.sum(smooth * (jnp.log(smooth + 1e-20) - logits), axis=-1) + log_z
        z = z_loss * log_z**2
        return jnp.sum((divergence + z) * weights), jnp.sum(z * weights)

    def mine(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, z = cross_entropy_with_z_loss(logits, targets, weights, z_loss, smoothing)
        return jnp.sum(loss), jnp.sum(z)

    for part in range(2):
        np.testing.assert_allclose(mine(logits)[part], plain(logits)[part], rtol=1e-5, atol=1e-6)
    for mix in ((1.0, 0.0), (0.3, 0.7)):
        gradients = [
            jax.grad(lambda x, f=f, mix=mix: sum(m * v for m, v in zip(mix, f(x), strict=True)))(logits)
            for f in (mine, plain)
        ]
        np.testing.assert_allclose(*gradients, atol=1e-5)


def hits(*arguments: jax.Array) -> jax.Array:
    return jnp.sum(correct_tokens(*arguments))


def test_correct_tokens_counts_weighted_hits() -> None:
    logits = jnp.array([[[0.0, 2.0, 1.0], [5.0, 2.0, 1.0], [0.0, 0.0, 9.0]]])
    targets = jnp.array([[1, 1, 2]])
    assert hits(logits, targets, jnp.array([[1, 1, 1]])) == 2
    assert hits(logits, targets, jnp.array([[1, 1, 0]])) == 1


def test_a_tie_is_correct_for_the_first_of_the_largest_as_argmax_has_it() -> None:
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4, 50, 5)), jnp.float32)
    targets, ones = jnp.asarray(np.random.default_rng(1).integers(0, 5, (4, 50))), jnp.ones((4, 50))
    assert hits(logits, targets, ones) == jnp.sum(jnp.argmax(logits, axis=-1) == targets)
    assert hits(jnp.zeros((1, 2, 3)), jnp.array([[0, 1]]), jnp.ones((1, 2))) == 1
    assert hits(jnp.full((1, 1, 3), jnp.nan), jnp.zeros((1, 1), int), jnp.ones((1, 1))) == 0
