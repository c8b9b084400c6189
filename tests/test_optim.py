"""Adafactor against optax's, its own stacked form, and T5X's rules; schedules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flanx import optim

SHAPES = {"wide": (130, 260), "tall": (300, 128), "narrow": (127, 400), "vector": (200,), "square": (128, 128)}


def trees(steps: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[dict[str, jax.Array]]:
    """Parameters, then gradients of every step."""
    draws = np.random.default_rng(0)
    return [
        {name: jnp.asarray(draws.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
        for _ in range(steps + 1)
    ]


def run(optimizer: optax.GradientTransformation, params, gradients) -> tuple:
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({}, {}),
        ({"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.9, "weight_decay_rate": 0.01}),
        ({"factored": False, "decay_rate": 0.7}, {"factored": False, "decay_rate": 0.7}),
        ({"multiply_by_parameter_scale": False, "clipping_threshold": None},) * 2,
    ],
)
def test_adafactor_equals_optax(mine: dict, theirs: dict) -> None:
    params, *gradients = trees(4)
    rate = optim.linear(0.5, 10)
    wanted, _ = run(optax.adafactor(rate, **theirs), params, gradients)
    got, _ = run(optim.adafactor(rate, **mine), params, gradients)
    for name in SHAPES:
        np.testing.assert_allclose(got[name], wanted[name], rtol=2e-5, atol=1e-6)


def test_state_has_t5x_shapes() -> None:
    """T5X factors a matrix from 128 up on its smaller side, and keeps zeros of shape (1,) for what it does not use."""
    state = optim.adafactor(1.0).init(trees(0)[0])
    shapes = {name: tuple(moment[name].shape for moment in state[1:]) for name in SHAPES}
    assert shapes == {
        "wide": ((130,), (260,), (1,), (1,)),
        "tall": ((128,), (300,), (1,), (1,)),
        "narrow": ((1,), (1,), (127, 400), (1,)),
        "vector": ((1,), (1,), (200,), (1,)),
        "square": ((128,), (128,), (1,), (1,)),
    }


def test_stacked_layers_keep_statistics_of_their_own() -> None:
    shapes = {"layers_0": (130, 260), "layers_1": (130, 260)}
    apart = [{"layers_0": t["layers_0"], "layers_1": 7.0 * t["layers_1"]} for t in trees(3, shapes)]
    stacked = [{"layers": {"kernel": jnp.stack([t["layers_0"], t["layers_1"]])}} for t in apart]
    optimizer = optim.adafactor(0.5, momentum=0.9)
    wanted, _ = run(optimizer, apart[0], apart[1:])
    got, state = run(optimizer, stacked[0], stacked[1:])
    assert state.v_row["layers"]["kernel"].shape == (2, 130)
    for i in range(2):
        np.testing.assert_allclose(got["layers"]["kernel"][i], wanted[f"layers_{i}"], rtol=1e-5, atol=1e-6)


def test_weight_decay_grows_with_the_rate_and_the_global_norm_is_clipped() -> None:
    params, gradient = trees(1)
    plain, _ = run(optim.adafactor(0.5), params, [gradient])
    decayed, _ = run(optim.adafactor(0.5, weight_decay_lr_exponent=2.0), params, [gradient])
    for name in SHAPES:
        np.testing.assert_allclose(decayed[name], plain[name] - 0.25 * params[name], rtol=1e-4, atol=1e-5)
    rule = functools.partial(optim.adafactor, 0.5, factored=False)
    _, state = run(rule(global_norm=1.0), params, [gradient])
    norm = optax.tree.norm(gradient)
    np.testing.assert_allclose(state.v["vector"], jnp.square(gradient["vector"] / norm), rtol=1e-4)
    _, small = run(rule(global_norm=1e6), params, [gradient])
    np.testing.assert_allclose(small.v["vector"], jnp.square(gradient["vector"]), rtol=1e-5)


def test_adamw_decays_and_clips() -> None:
    params, gradient = trees(1)
    got, _ = run(optim.adamw(1e-2, weight_decay=0.1, eps=1e-30), params, [gradient])
    for name in SHAPES:
        wanted = params[name] - 1e-2 * (jnp.sign(gradient[name]) + 0.1 * params[name])
        np.testing.assert_allclose(got[name], wanted, rtol=1e-4, atol=1e-6)
    _, state = run(optim.adamw(1e-2, global_norm=1.0), params, [gradient])
    moments = jax.tree.leaves(optax.tree.get(state, "mu"))
    np.testing.assert_allclose(optax.tree.norm(moments), 0.1, rtol=1e-4)


def test_nan_updates_are_skipped_number_by_number_and_the_scale_has_a_largest_value() -> None:
    params = {"vector": jnp.full((200,), 3.0)}
    gradient = {"vector": jnp.ones((200,)).at[7].set(jnp.nan)}
    plain = optim.adafactor(0.5, momentum=0.9, clipping_threshold=None, max_parameter_scale=2.0)
    updates, _ = plain.update(gradient, plain.init(params), params)
    np.testing.assert_allclose(updates["vector"][0], -0.1 * 0.5 * 2.0, rtol=1e-5)
    assert jnp.isnan(updates["vector"][7])
    skips = optim.adafactor(0.5, momentum=0.9, clipping_threshold=None, skip_nan_updates=True, weight_decay=0.1)
    updates, state = skips.update(gradient, skips.init(params), params)
    assert updates["vector"][7] == state.v["vector"][7] == state.momentum["vector"][7] == 0.0
    np.testing.assert_allclose(updates["vector"][8], -0.1 * 0.5 * 3.0 - 0.3, rtol=1e-5)


def test_schedules() -> None:
    def at(schedule: optim.Schedule, *steps: int) -> list[float]:
        return [round(float(schedule(jnp.asarray(step))), 6) for step in steps]

    assert at(optim.constant(0.3), 0, 9) == [0.3, 0.3]
    assert at(optim.rsqrt_with_warmup(1.0, 100), 0, 100, 400) == [0.1, 0.1, 0.05]
    assert at(optim.linear(1.0, 12, warmup_steps=2, final=0.5), 0, 1, 2, 7, 12, 99) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.5]
    assert at(optim.cosine(1.0, 12, warmup_steps=2), 0, 1, 7, 12, 99) == [0.5, 1.0, 0.5, 0.0, 0.0]


def test_second_moments_restart_at_the_step_offset() -> None:
    params, *gradients = trees(2)
    optimizer = optim.adafactor(0.5, factored=False, step_offset=5)
    old = jax.tree.map(lambda p: jnp.full_like(p, 9.0), params)  # of the run that is finetuned
    state = optimizer.init(params)._replace(count=jnp.asarray(5, jnp.int32), v=old)
    first, second = (jnp.square(gradient["vector"]) for gradient in gradients)
    _, state = optimizer.update(gradients[0], state, params)
    np.testing.assert_allclose(state.v["vector"], first, rtol=1e-5)
    _, state = optimizer.update(gradients[1], state, params)
    kept = 1 - 2**-0.8
    np.testing.assert_allclose(state.v["vector"], kept * first + (1 - kept) * second, rtol=1e-5)


def test_updates_are_relative_to_the_parameter_and_never_to_less_than_the_least_scale() -> None:
    params = {name: jnp.full((200,), value) for name, value in (("zero", 0.0), ("tiny", 1e-5), ("large", 3.0))}
    gradient = jax.tree.map(jnp.ones_like, params)
    optimizer = optim.adafactor(0.5, min_parameter_scale=1e-3)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    for name, wanted in (("zero", -0.5e-3), ("tiny", -0.5e-3), ("large", -1.5)):
        np.testing.assert_allclose(updates[name], wanted, rtol=1e-5)


@pytest.mark.parametrize(("before", "wanted"), [(100.0, 0.1), (0.01, 1.0)])
def test_clipping_shrinks_large_updates_and_leaves_small_ones(before: float, wanted: float) -> None:
    """A gradient of 1 over second moments that were `before` for a long time."""
    params = {"vector": jnp.ones((200,))}
    optimizer = optim.adafactor(1.0)
    state = optimizer.init(params)._replace(count=jnp.asarray(10**6, jnp.int32), v={"vector": jnp.full((200,), before)})
    updates, _ = optimizer.update({"vector": jnp.ones((200,))}, state, params)
    np.testing.assert_allclose(updates["vector"], -wanted, rtol=1e-3)


def test_a_schedule_without_warm_up_begins_with_a_finite_rate():
    for warmup, step, rate in ((0, 0, 1.0), (0, 4, 0.5), (16, 0, 0.25)):
        assert float(optim.rsqrt_with_warmup(1.0, warmup)(step)) == rate
