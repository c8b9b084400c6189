"""Adam's moments in fewer bytes: right in the mean, near float32 in a run, the same again for the same seed."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flanx import moments, optim
from flanx.checkpoint import Checkpoints
from flanx.models.palm import PaLM
from flanx.partition import Partitioner, rules
from flanx.train_step import Trainer

TARGET = jnp.asarray(np.random.default_rng(0).normal(0, 1, (32, 300)), jnp.float32)
BYTES = {"adamw": 8.0, "adamw_bfloat16": 4.0, "adamw_8bit": 2.1, "muon": 4.0}  # of both moments of a kernel's number


def test_stochastic_rounding_keeps_the_mean_and_what_is_not_finite():
    x = jnp.full((20_000,), 1.0 + 2**-10, jnp.float32)  # an eighth of the way to the next number
    rounded = moments.round_stochastically(x, jax.random.key(0)).astype(jnp.float32)
    assert set(np.unique(rounded)) == {1.0, 1.0 + 2**-7}
    assert float(jnp.mean(rounded)) == pytest.approx(1.0 + 2**-10, abs=1e-4)
    special = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0, -2.5], jnp.float32)
    rounded = moments.round_stochastically(special, jax.random.key(1)).astype(jnp.float32)
    np.testing.assert_array_equal(rounded, special)


@pytest.mark.parametrize("signed", [True, False])
def test_eight_bits_are_near_over_seven_decades(signed):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(0, 1, (3, 300)) * 10.0 ** rng.uniform(-4, 0, (3, 300)), jnp.float32)
    x = x if signed else jnp.abs(x)
    codes, scale = moments.quantize(x, signed)
    assert codes.shape == x.shape and codes.dtype == jnp.uint8 and scale.shape == (3, 2)
    assert len(set(moments.table(signed))) == 256
    back = moments.restore(codes, scale, signed)
    assert float(jnp.max(jnp.abs(back - x) / scale[:, :1].max())) < (0.02 if signed else 0.01)
    assert float(jnp.median(jnp.abs(back - x) / jnp.abs(x))) < (0.05 if signed else 0.03)
    np.testing.assert_array_equal(moments.quantize(jnp.zeros((2, 5)), signed)[1], jnp.zeros((2, 1)))


def distances(rule: optax.GradientTransformation) -> list[float]:
    """The root mean squares of the distance to a target while 60 steps of noisy gradients lead there."""

    @jax.jit
    def step(x: jax.Array, state: optax.OptState, key: jax.Array) -> tuple[jax.Array, optax.OptState]:
        grad = x - TARGET + 0.1 * jax.random.normal(key, x.shape)
        updates, state = rule.update({"w": grad}, state, {"w": x})
        return x + updates["w"], state

    x, found = jnp.zeros_like(TARGET), []
    state = rule.init({"w": x})
    for key in jax.random.split(jax.random.key(3), 60):
        x, state = step(x, state, key)
        found.append(float(jnp.sqrt(jnp.mean(jnp.square(x - TARGET)))))
    return found


def test_both_lead_where_adamw_does_and_draws_repeat():
    wanted = distances(optim.adamw(0.1))[-1]
    halves = distances(optim.adamw_bfloat16(0.1))
    assert halves == distances(optim.adamw_bfloat16(0.1)) != distances(optim.adamw_bfloat16(0.1, seed=1))
    for found in (halves[-1], distances(optim.adamw_8bit(0.1))[-1]):
        assert found == pytest.approx(wanted, rel=0.15)
    assert wanted < 0.2


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("scan", [False, True])
def test_every_state_has_its_size_and_is_placed_on_a_mesh(name, scan):
    sizes = {"vocab_size": 64, "emb_dim": 128, "num_heads": 4, "head_dim": 32, "mlp_dim": 256}
    model = PaLM(**sizes, num_layers=2, scan_layers=scan)
    made = Trainer(model, getattr(optim, name)(1e-3), trainable=["decoder/.*/kernel"])
    state = made.abstract_state(Partitioner(2, rules(1, 2), devices=jax.devices()[:4])).opt_state
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    kernels = model.num_params() - 64 * 128 - 3 * 128
    assert size / kernels == pytest.approx(BYTES[name], rel=0.02)
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    assert sum(leaf.size for leaf in split) >= 0.99 * kernels * (1 if name == "muon" else 2)


@pytest.mark.parametrize("name", [name for name in BYTES if name != "adamw"])
def test_every_state_is_saved_and_restored(name, tmp_path):
    sizes = {"vocab_size": 32, "emb_dim": 64, "num_heads": 2, "head_dim": 16, "mlp_dim": 64}
    made = Trainer(PaLM(**sizes, num_layers=1), getattr(optim, name)(1e-3))
    one = Partitioner(devices=jax.devices()[:1])
    state = jax.jit(made.init)()
    filled = jax.tree.map(lambda x: (jnp.arange(x.size) % 100).reshape(x.shape).astype(x.dtype), state.opt_state)
    state = jax.device_put(state.replace(opt_state=filled), one.everywhere())
    with contextlib.closing(Checkpoints(tmp_path)) as saved:
        saved.save(state)
        saved.wait()
        back = saved.restore(made.abstract_state(one))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for here, there in zip(jax.tree.leaves(state), jax.tree.leaves(back), strict=True):
        assert here.dtype == there.dtype
        np.testing.assert_array_equal(here, there)
