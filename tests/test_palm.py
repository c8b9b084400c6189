"""PaLM against a plain numpy one, the paper's counts, and itself in its other forms."""

import dataclasses
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.config import gin_folder
from flanx.models import layers
from flanx.models.palm import PaLM
from flanx.train_step import cross_entropy_with_z_loss
from tests import drawn

TINY = PaLM(vocab_size=96, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_layers=2)
PREFIX = dataclasses.replace(TINY, prefix_lm=True)


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn.params(TINY)


@pytest.fixture(scope="module")
def pairs() -> drawn.Pairs:
    return drawn.pairs(4, inputs=6, targets=5, vocab_size=96)


def plain_logits(params: Any, tokens: np.ndarray, prefix: int) -> np.ndarray:
    """Logits [t, v] of one row of tokens, whose first `prefix` see each other, in numpy, head by head."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table, length = tree["token_embedder"]["embedding"], len(tokens)

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    def rotate(x: np.ndarray) -> np.ndarray:
        pairs = x[:, :4] + 1j * x[:, 4:]
        turned = pairs * np.exp(1j * np.outer(np.arange(length), 10_000.0 ** -(np.arange(4) / 4)))
        return np.concatenate([turned.real, turned.imag], axis=1)

    seen = np.tril(np.ones((length, length), bool))
    seen[:prefix, :prefix] = True
    x = table[tokens]
    for i in range(2):
        layer = tree["decoder"][f"layers_{i}"]
        y = norm(x, layer["layer_norm"]["scale"])
        kernels = {name: part["kernel"] for name, part in (layer["attention"] | layer["mlp"]).items()}
        key, value, heads = rotate(y @ kernels["key"]), y @ kernels["value"], []
        for query in np.split(y @ kernels["query"], 4, axis=1):
            weights = np.where(seen, np.exp(rotate(query) @ key.T / np.sqrt(8)), 0.0)
            heads.append(weights / weights.sum(1, keepdims=True) @ value)
        gate = y @ kernels["wi_0"]
        hidden = gate / (1 + np.exp(-gate)) * (y @ kernels["wi_1"])
        x = x + np.concatenate(heads, axis=1) @ kernels["out"] + hidden @ kernels["wo"]
    return norm(x, tree["decoder"]["decoder_norm"]["scale"]) @ table.T / np.sqrt(32)


@pytest.mark.parametrize("model", [TINY, PREFIX], ids=["causal", "prefix"])
def test_packed_logits_equal_plain_numpy_of_every_example(model: PaLM, params: Any, pairs: drawn.Pairs) -> None:
    batch = drawn.decoder_only([pairs[:2], pairs[2:]], length=24)
    logits = model.logits(params, batch)
    for index, (given, wanted) in enumerate(pairs):
        row, second = divmod(index, 2)
        at = sum(map(len, pairs[2 * row])) if second else 0
        tokens = np.array([0, *given, *wanted[:-1]])
        plain = plain_logits(params, tokens, len(given) + 1 if model.prefix_lm else 0)
        np.testing.assert_allclose(logits[row, at : at + len(tokens)], plain, atol=2e-5)


@pytest.mark.parametrize("model", [TINY, PREFIX], ids=["causal", "prefix"])
def test_cached_decoding_equals_teacher_forcing(model: PaLM, params: Any, pairs: drawn.Pairs) -> None:
    wanted = model.logits(params, drawn.decoder_only([[pair] for pair in pairs], length=12))
    inputs = np.zeros((4, 6), np.int32)
    for row, (given, _) in enumerate(pairs):
        inputs[row, : len(given)] = given
    cache, token = model.prefill(params, jnp.asarray(inputs), 5)
    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(cache))
    assert token.tolist() == [given[-1] for given, _ in pairs]
    step = jax.jit(model.decode_step)
    for t in range(5):
        logits, cache = step(params, cache, token)
        for row, (given, targets) in enumerate(pairs):
            if t < len(targets):
                np.testing.assert_allclose(logits[row], wanted[row, len(given) + t], atol=5e-5)
        token = jnp.array([targets[t] if t < len(targets) else 1 for _, targets in pairs])


def test_scanned_layers_give_the_same_gradients(params: Any, pairs: drawn.Pairs) -> None:
    batch = drawn.decoder_only([pairs[:2], pairs[2:]], length=24)

    def gradients(model: PaLM, params: Any) -> Any:
        def total(params: Any) -> jax.Array:
            logits = model.logits(params, batch)
            targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
            return jnp.sum(cross_entropy_with_z_loss(logits, targets, weights)[0])

        return jax.jit(jax.grad(total))(params)

    wanted = gradients(TINY, params)
    scanned = gradients(dataclasses.replace(TINY, scan_layers=True, remat="full"), layers.stack(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), layers.unstack(scanned), wanted)


@pytest.mark.parametrize(
    ("size", "billions", "steps", "flops"),
    [("8b", 8.63, 40e3, 1.6e20), ("62b", 62.50, 40e3, 1.2e21), ("540b", 540.35, 21e3, 5.6e21)],
)
def test_configured_sizes_have_the_published_parameters_and_compute(
    size: str, billions: float, steps: float, flops: float
) -> None:
    gin.clear_config()
    gin.add_config_file_search_path(str(gin_folder()))
    gin.parse_config_file(f"models/palm/{size}.gin")
    model = gin.get_configurable(PaLM)()
    gin.clear_config()
    np.testing.assert_allclose(model.num_params() / 1e9, billions, rtol=3e-4)
    shapes = jax.eval_shape(dataclasses.replace(model, scan_layers=True).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == model.num_params()
    # The paper's finetuning compute (paper.md 2.1, 2.2) counts 6 per parameter and token; attention scores come on top.
    assert 1.0 < steps * 32 * 2560 * model.flops_per_token(2048, 512) / flops < 1.16
