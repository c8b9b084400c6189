"""Tuned kernels against plain formulas and plain models; what plain models offer that tuned ones do not."""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx import kernels, optim
from flanx.errors import UserError
from flanx.models import layers
from flanx.models.palm import PaLM
from flanx.models.t5 import T5
from flanx.train_step import Trainer
from tests import drawn

NORMAL = np.random.default_rng(0).standard_normal
SIZES = {"vocab_size": 96, "emb_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 64}
MODELS: dict[str, Any] = {
    "t5": T5(**SIZES, num_encoder_layers=2, num_decoder_layers=2),
    "t5_1_0": T5(**SIZES, num_encoder_layers=1, num_decoder_layers=1, tied_head=True, mlp_activations=("relu",)),
    "palm": PaLM(**SIZES, num_layers=2),
}
POLICIES = ("everything_saveable", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(NORMAL(shape), jnp.float32)


def loss_of(model: Any) -> Any:
    """The training loss per token, as a function of the parameters; rows are packed."""
    pairs = drawn.pairs(4, inputs=9, targets=7, vocab_size=96)
    rows = [pairs[:2], pairs[2:]]
    encoder_decoder = model.packing == "encoder_decoder"
    batch = drawn.encoder_decoder(rows, inputs=20, targets=16) if encoder_decoder else drawn.decoder_only(rows, 36)
    trainer = Trainer(model, optim.adafactor())

    def loss(params: Any) -> jax.Array:
        total, metrics = trainer.loss(params, batch, None)
        return total / metrics["tokens"]

    return loss


def expect_near(got: Any, wanted: Any, tolerance: float) -> None:
    """Every number within `tolerance`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        mine = got
        for key in path:
            mine = mine[key.key]
        np.testing.assert_allclose(mine, leaf, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


# --- plain models under the transformations of jax -------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "palm")) for n in MODELS])
def test_forward_mode_gives_the_derivative_along_a_direction(name: str) -> None:
    loss, params, direction = loss_of(MODELS[name]), drawn.params(MODELS[name]), drawn.params(MODELS[name], seed=1)
    value, slope = jax.jit(lambda p, d: jax.jvp(loss, (p,), (d,)))(params, direction)
    gradient = jax.jit(jax.grad(loss))(params)
    wanted = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose(slope, wanted, rtol=1e-4)
    np.testing.assert_allclose(value, loss(params), rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_hessian_is_that_of_differences_of_the_gradient(name: str) -> None:
    loss, params = loss_of(MODELS[name]), drawn.params(MODELS[name])

    def of_scale(scale: jax.Array) -> jax.Array:
        decoder = params["decoder"] | {"decoder_norm": {"scale": scale}}
        return loss(params | {"decoder": decoder})

    scale = params["decoder"]["decoder_norm"]["scale"]
    hessian = jax.jit(jax.hessian(of_scale))(scale)
    assert hessian.shape == (32, 32)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-4 * float(jnp.abs(hessian).max()))
    gradient, direction = jax.jit(jax.grad(of_scale)), normal(32)
    step = 1e-2 * direction
    difference = (gradient(scale + step) - gradient(scale - step)) / 2e-2
    np.testing.assert_allclose(hessian @ direction, difference, atol=1e-2 * float(jnp.abs(difference).max()))


@pytest.mark.parametrize(
    "policy",
    ["everything_saveable", "nothing_saveable"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("dots_saveable", "dots_with_no_batch_dims_saveable")],
)
@pytest.mark.parametrize("name", ["t5", "palm"])
def test_checkpoint_policies_by_name_apply_to_the_loss(name: str, policy: str) -> None:
    loss, params = loss_of(MODELS[name]), drawn.params(MODELS[name])
    recomputed = jax.checkpoint(loss, policy=getattr(jax.checkpoint_policies, policy))
    expect_near(jax.jit(jax.grad(recomputed))(params), jax.jit(jax.grad(loss))(params), 1e-5)

    def kept(function: Any) -> int:
        """Bytes between the forward and the backward pass."""
        _, back = jax.eval_shape(lambda p: jax.vjp(function, p), params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))

    if policy != "everything_saveable":
        assert kept(recomputed) < kept(loss)


# --- tuned against plain --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "t5_1_0")) for n in MODELS])
def test_tuned_models_have_the_plain_loss_and_gradients(name: str) -> None:
    model = MODELS[name]
    tuned, params = dataclasses.replace(model, kernels="tuned"), nn.unbox(jax.jit(model.init)(jax.random.key(0)))
    (wanted, of_wanted), (got, of_got) = (jax.jit(jax.value_and_grad(loss_of(each)))(params) for each in (model, tuned))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    expect_near(of_got, of_wanted, 1e-6)
    assert (
        jax.make_jaxpr(loss_of(tuned))(params).pretty_print() != jax.make_jaxpr(loss_of(model))(params).pretty_print()
    )


def test_kernels_are_no_part_of_what_a_run_is_and_unknown_ones_are_refused() -> None:
    model = MODELS["t5"]
    tuned = dataclasses.replace(model, kernels="tuned")
    assert repr(tuned) == repr(model) and tuned != model
    with pytest.raises(UserError, match="kernels = 'tune': known are plain, tuned; did you mean 'tuned'"):
        dataclasses.replace(model, kernels="tune")


# --- kernels one by one -----------------------------------------------------------------------------------------------


def plain_attention(query, key, value, bias, mask):
    """Softmax attention, the textbook's way."""
    key, value = (jnp.broadcast_to(x, (*x.shape[:2], query.shape[2], x.shape[3])) for x in (key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) + jnp.broadcast_to(bias, (query.shape[0], *bias.shape[1:]))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e10), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


@pytest.mark.parametrize("attend", [layers.attend_plainly, kernels.attend], ids=kernels.KERNELS)
@pytest.mark.parametrize("key_heads", [4, 1])
@pytest.mark.parametrize("bias_rows", [1, 3])
def test_attention_and_its_gradient_equal_the_plain_formula(attend: Any, key_heads: int, bias_rows: int) -> None:
    query, key, value = normal(3, 5, 4, 8), normal(3, 7, key_heads, 8), normal(3, 7, key_heads, 8)
    bias, weight = normal(bias_rows, 4, 5, 7), normal(3, 5, 4, 8)
    mask = jnp.asarray(NORMAL((3, 1, 5, 7)) > -0.5).at[0, :, 2].set(False)
    weight = weight.at[0, 2].set(0.0)  # a query that sees nothing is padding: it counts for nothing

    def total(function, *inputs):
        return jnp.sum(function(*inputs, mask) * weight)

    inputs = (query, key, value, bias)
    got, wanted = attend(*inputs, mask), plain_attention(*inputs, mask)
    np.testing.assert_allclose(got, wanted, atol=2e-6)
    gradients = [jax.grad(total, argnums=(1, 2, 3, 4))(f, *inputs) for f in (attend, plain_attention)]
    for mine, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_products_have_the_gradients_of_a_product() -> None:
    x, kernel, weight = normal(2, 3, 5), normal(5, 4), normal(2, 3, 4)

    def mine(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(kernels.product(x, kernel, jnp.dtype("float32"))) * weight)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x @ kernel) * weight)

    for got, wanted in zip(*(jax.grad(f, argnums=(0, 1))(x, kernel) for f in (mine, plain)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-5)


def test_what_is_computed_again_has_the_same_gradients_and_is_computed_in_each_pass() -> None:
    """A chain of products with bfloat16 kernels, whose float32 copies XLA's CPU compiler keeps for `jax.checkpoint`
    with jax 0.10, and no longer with 0.12."""
    x, width, depth = normal(4, 128), 128, 8
    stored = [normal(width, width).astype(jnp.bfloat16) / 8 for _ in range(depth)]

    def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.tanh(x @ kernel.astype(jnp.float32))

    def compiled(each: Any) -> Any:
        def total(x: jax.Array, stored: list[jax.Array]) -> jax.Array:
            for kernel in stored:
                x = each(x, kernel)
            return jnp.sum(x)

        return jax.jit(jax.grad(total)).lower(x, stored).compile()

    ways = {name: compiled(way(multiply)) for name, way in (("ours", kernels.recomputed), ("jax", jax.checkpoint))}
    np.testing.assert_allclose(ways["ours"](x, stored), ways["jax"](x, stored), rtol=1e-4, atol=1e-5)
    copies = {name: len(re.findall(r"= f32\[128,128\]\S* convert\(", way.as_text())) for name, way in ways.items()}
    assert copies["ours"] >= 2 * depth - 1  # made in each pass
    assert copies["jax"] == depth or jax.__version_info__ >= (0, 11)

    codes = jnp.arange(12, dtype=jnp.uint8).reshape(3, 4)
    of_codes = kernels.recomputed(lambda x, codes: x @ codes.astype(jnp.float32))
    found = jax.grad(lambda x: jnp.sum(jnp.square(of_codes(x, codes))))(normal(2, 3))
    assert found.shape == (2, 3) and bool(jnp.all(jnp.isfinite(found)))


def test_a_bfloat16_product_has_a_float32_kernel_gradient_and_float32_logits() -> None:
    x, kernel = normal(2, 3, 5).astype(jnp.bfloat16), normal(5, 4)
    logits, back = jax.vjp(lambda x, k: kernels.product(x, k, jnp.dtype("float32")), x, kernel)
    assert logits.dtype == jnp.float32
    of_x, of_kernel = back(logits)
    assert (of_x.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.float32)
