"""T5 against T5X's golden run, transformers, the paper's counts, and itself in its other forms."""

import dataclasses
import json
import pathlib
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from flax import serialization

from flanx import optim
from flanx.config import gin_folder
from flanx.convert.flanx_format import MOMENTS
from flanx.errors import UserError
from flanx.kernels import KERNELS
from flanx.models import first_nonfinite, layers
from flanx.models.find_nonfinite import largest_outputs
from flanx.models.t5 import T5
from flanx.train_step import correct_tokens, cross_entropy_with_z_loss
from tests import drawn

TINY = T5(vocab_size=96, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64, num_encoder_layers=2, num_decoder_layers=2)
GOLDEN = pathlib.Path(__file__).parent / "golden" / "t5_logits.json"


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn.params(TINY)


@pytest.fixture(scope="module")
def pairs() -> drawn.Pairs:
    return drawn.pairs(6, inputs=9, targets=7, vocab_size=96)


@pytest.fixture(scope="module")
def packed(pairs: drawn.Pairs) -> dict[str, jax.Array]:
    return drawn.encoder_decoder([pairs[:3], pairs[3:]], inputs=28, targets=22)


def summed_loss(model: T5, params: Any, batch: dict[str, jax.Array], rng: jax.Array | None = None) -> tuple[Any, Any]:
    logits = model.logits(params, batch, rng)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    loss, z = map(jnp.sum, cross_entropy_with_z_loss(logits, targets, weights, 1e-4))
    return loss, (z, jnp.sum(correct_tokens(logits, targets, weights)) / jnp.sum(weights))


def name_of(path: tuple[Any, ...], separator: str = "/") -> str:
    return jax.tree_util.keystr(path, simple=True, separator=separator)


# --- the golden run of T5X -----------------------------------------------------------------------------------------


def read_legacy(folder: pathlib.Path) -> Any:
    """T5X's checkpoint as nested dicts: msgpack, whose large arrays are zarr folders beside it."""

    def load(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if "driver" not in node:
            return {key: load(value) for key, value in node.items()}
        store = {"driver": "file", "path": str(folder / node["kvstore"]["path"])}
        return tensorstore.open({"driver": "zarr", "kvstore": store}).result().read().result()

    return load(serialization.msgpack_restore((folder / "checkpoint").read_bytes()))["optimizer"]


@pytest.mark.parametrize("kernels", ["plain", pytest.param("tuned", marks=pytest.mark.slow)])
def test_twenty_steps_are_those_of_t5x(golden_dir: pathlib.Path, kernels: str) -> None:
    """Its logits, cross-entropy, z-loss, accuracy, final parameters and final moments."""
    folder = golden_dir / "t5x_tiny"
    record = json.loads((folder / "metrics.json").read_text())
    names = ("vocab_size", "emb_dim", "num_heads", "num_encoder_layers", "num_decoder_layers", "head_dim", "mlp_dim")
    model = T5(**{name: record["config"][name] for name in names}, kernels=kernels)
    with np.load(folder / "batches.npz") as file:
        arrays = {key: jnp.asarray(file[key]) for key in file.files}
    batches = [
        {key[4:]: a for key, a in arrays.items() if key.startswith(f"{step:03d}/")} for step in range(record["steps"])
    ]
    params = jax.tree.map(jnp.asarray, read_legacy(folder / "legacy" / "checkpoint_0")["target"])
    logits = model.logits(params, batches[0])
    np.testing.assert_allclose(logits, np.load(folder / "logits_step0.npy"), atol=1e-5)

    optimizer = optim.adafactor(record["lr"])
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        (total, parts), grads = jax.value_and_grad(lambda p: summed_loss(model, p, batch), has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, (total, *parts)

    for batch, wanted in zip(batches, record["metrics"], strict=True):
        params, state, (total, z, accuracy) = step(params, state, batch)
        np.testing.assert_allclose(total - z, wanted["cross_ent_loss"], rtol=1e-4)
        np.testing.assert_allclose(z, wanted["z_loss"], rtol=1e-4)
        np.testing.assert_allclose(accuracy, wanted["accuracy"], rtol=1e-4, atol=1e-9)

    with np.load(folder / "params_final.npz") as final:
        found = {name_of(path, "."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        assert set(found) == set(final.files)
        for name, leaf in found.items():
            np.testing.assert_allclose(leaf, final[name], atol=1e-4, err_msg=name)
    moments = read_legacy(folder / "legacy" / "checkpoint_20")["state"]["param_states"]
    for field in ("v_row", "v_col", "v", "m"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(state, MOMENTS[field])):
            wanted = moments
            for key in path:
                wanted = wanted[key.key]
            np.testing.assert_allclose(leaf, wanted[field], rtol=1e-3, atol=1e-7, err_msg=f"{name_of(path)} {field}")


@pytest.mark.parametrize("kernels", KERNELS)
def test_logits_are_those_stored_with_the_tests(kernels: str, params: Any, packed: dict[str, jax.Array]) -> None:
    """A small golden of ours; `python -m tests.test_t5` rewrites it, where a change of numbers is intended."""
    np.testing.assert_allclose(golden_logits(params, packed, kernels), json.loads(GOLDEN.read_text()), atol=2e-5)


def golden_logits(params: Any, packed: dict[str, jax.Array], kernels: str = "plain") -> Any:
    return np.asarray(dataclasses.replace(TINY, kernels=kernels).logits(params, packed))[:, ::5, ::16]


# --- other forms of the same model ---------------------------------------------------------------------------------


def test_packed_rows_equal_rows_of_one_example(pairs: drawn.Pairs, params: Any, packed: dict[str, jax.Array]) -> None:
    alone = TINY.logits(params, drawn.encoder_decoder([[pair] for pair in pairs], inputs=12, targets=9))
    together = TINY.logits(params, packed)
    for index, (_, wanted) in enumerate(pairs):
        row, first = divmod(index, 3)
        at = sum(len(targets) for _, targets in pairs[3 * row : 3 * row + first])
        mine = together[row, at : at + len(wanted)]
        np.testing.assert_allclose(mine, alone[index, : len(wanted)], atol=2e-5)


@pytest.mark.parametrize(
    "form", [{}, {"scan_layers": True, "tied_head": True, "mlp_activations": ("relu",)}, {"relative_bias": "layer"}]
)
def test_cached_decoding_equals_teacher_forcing(form: dict[str, Any], pairs: drawn.Pairs) -> None:
    model = dataclasses.replace(TINY, **form)
    params = drawn.params(model)
    batch = drawn.encoder_decoder([[pair] for pair in pairs], inputs=9, targets=7)
    wanted = model.logits(params, batch)
    cache, token = jax.jit(model.prefill, static_argnums=2)(params, batch["encoder_input_tokens"], 7)
    assert all(leaf.shape[0] == len(pairs) for leaf in jax.tree.leaves(cache))
    assert not token.any()
    step = jax.jit(model.decode_step)
    for t in range(7):
        logits, cache = step(params, cache, batch["decoder_input_tokens"][:, t])
        inside = np.asarray(batch["decoder_segment_ids"][:, t] > 0)
        np.testing.assert_allclose(logits[inside], wanted[inside, t], atol=5e-5)


def test_decoding_and_teacher_forcing_start_with_the_token_of_the_config(params: Any, packed: dict[str, Any]) -> None:
    model = dataclasses.replace(TINY, decoder_start_token_id=5)
    begins = np.asarray(packed["decoder_positions"] == 0) & np.asarray(packed["decoder_segment_ids"] > 0)
    assert begins.sum() == 6 and not packed["decoder_input_tokens"][begins].any()  # batches have 0 there
    given = packed | {"decoder_input_tokens": jnp.where(begins, 5, packed["decoder_input_tokens"])}
    inside = packed["decoder_segment_ids"] > 0
    wanted = TINY.logits(params, given)
    np.testing.assert_allclose(model.logits(params, packed)[inside], wanted[inside], atol=1e-6)
    token = model.prefill(params, packed["encoder_input_tokens"], 3)[1]
    assert token.tolist() == [5, 5]
    assert "decoder_start_token_id=5" in repr(model) and "decoder_start" not in repr(TINY)
    with pytest.raises(UserError, match="mlp_activations is empty"):
        dataclasses.replace(TINY, mlp_activations=())
    with pytest.raises(UserError, match="decoder_start_token_id = 96 is not one of the 96 tokens"):
        dataclasses.replace(TINY, decoder_start_token_id=96)


def test_rows_decode_at_positions_of_their_own(params: Any, pairs: drawn.Pairs) -> None:
    """A row replaced in mid-flight continues as if it had been alone."""
    batch = drawn.encoder_decoder([[pair] for pair in pairs[:2]], inputs=9, targets=7)
    fresh, _ = TINY.prefill(params, batch["encoder_input_tokens"], 4)
    first, second, third = (jnp.array([t, t + 1]) for t in (3, 5, 7))
    _, later = TINY.decode_step(params, fresh, first)
    mixed = jax.tree.map(lambda old, new: old.at[1].set(new[1]), later, fresh)
    got, mixed = TINY.decode_step(params, mixed, jnp.array([second[0], first[1]]))
    got, _ = TINY.decode_step(params, mixed, jnp.array([third[0], second[1]]))
    wanted, again = TINY.decode_step(params, later, second)
    np.testing.assert_allclose(got[1], wanted[1], atol=1e-5)
    np.testing.assert_allclose(got[0], TINY.decode_step(params, again, third)[0][0], atol=1e-5)


@pytest.mark.parametrize(
    "remat",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("none", "minimal")))
        for name in layers.REMAT_POLICIES
    ],
)
def test_scanned_layers_and_every_remat_policy_give_the_same_gradients(params: Any, packed: Any, remat: str) -> None:
    def gradients(model: T5, params: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda p: summed_loss(model, p, packed)[0]))(params)

    wanted_loss, wanted = gradients(TINY, params)
    stacked = layers.stack(params)
    model = dataclasses.replace(TINY, remat=remat, scan_layers=True)
    got_loss, got = gradients(model, stacked)
    np.testing.assert_allclose(got_loss, wanted_loss, rtol=1e-5)
    got = layers.unstack(got)
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        mine = got
        for key in path:
            mine = mine[key.key]
        np.testing.assert_allclose(mine, leaf, rtol=1e-3, atol=1e-4, err_msg=f"{remat} {name_of(path)}")


def test_remat_policies_keep_less_and_less(params: Any, packed: dict[str, Any]) -> None:
    def kept(remat: str) -> int:
        """Bytes of activations between the forward and the backward pass."""
        model = dataclasses.replace(TINY, remat=remat)
        _, back = jax.eval_shape(lambda p: jax.vjp(lambda q: model.logits(q, packed), p), params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))

    none, dots, minimal, full = (kept(name) for name in ("none", "dots", "minimal", "full"))
    assert none > dots > minimal > full


def test_a_relative_bias_in_each_layer_is_one_of_the_stack_where_all_are_equal(params: Any, packed: Any) -> None:
    model = dataclasses.replace(TINY, relative_bias="layer")
    apart: Any = {side: dict(params[side]) for side in ("encoder", "decoder")}
    for layers_of in apart.values():
        bias = layers_of.pop("relpos_bias")
        layers_of |= {f"layers_{i}": layers_of[f"layers_{i}"] | {"relpos_bias": bias} for i in range(2)}
    apart = params | apart
    assert sum(leaf.size for leaf in jax.tree.leaves(apart)) == model.num_params()
    wanted = TINY.logits(params, packed)
    np.testing.assert_allclose(model.logits(apart, packed), wanted, atol=2e-5)
    scanned = dataclasses.replace(model, scan_layers=True)
    np.testing.assert_allclose(scanned.logits(layers.stack(apart), packed), wanted, atol=2e-5)
    assert "relative_bias" in repr(model) and "relative_bias" not in repr(TINY)  # the identity of older runs


def test_parameters_are_born_with_names_and_scan_stacks_them() -> None:
    boxed = jax.eval_shape(TINY.init, jax.random.key(0))
    stacked = jax.eval_shape(dataclasses.replace(TINY, scan_layers=True).init, jax.random.key(0))
    assert boxed["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"].names == ("embed", "mlp")
    assert boxed["decoder"]["relpos_bias"]["rel_embedding"].names == ("heads", "relpos_buckets")
    kernel = stacked["decoder"]["layers"]["encoder_decoder_attention"]["out"]["kernel"]
    assert kernel.names == ("layers", "joined_kv", "embed")
    assert kernel.value.shape == (2, 32, 32)


# --- precision, dropout, the gate ----------------------------------------------------------------------------------


@pytest.mark.slow  # 7 s; the float32 steps of T5X are in every run
def test_twenty_bfloat16_steps_stay_within_two_percent_of_float32(params: Any, packed: dict[str, Any]) -> None:
    def losses(dtype: str) -> list[float]:
        model, optimizer = dataclasses.replace(TINY, dtype=dtype), optim.adafactor(1e-3)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            total, grads = jax.value_and_grad(lambda p: summed_loss(model, p, packed)[0])(params)
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, total

        state, found, now = optimizer.init(params), [], params
        for _ in range(20):
            now, state, total = step(now, state)
            found.append(float(total))
        return found

    exact, rough = losses("float32"), losses("bfloat16")
    assert exact[-1] < 0.9 * exact[0]
    np.testing.assert_allclose(rough, exact, rtol=0.02)
    assert rough != exact


def test_bfloat16_keeps_scores_norms_and_logits_in_float32(params: Any, packed: dict[str, Any]) -> None:
    model = dataclasses.replace(TINY, dtype="bfloat16")
    jaxpr = str(jax.make_jaxpr(model.logits)(params, packed))
    for operation in ("exp ", "rsqrt ", "reduce_max"):
        lines = [line for line in jaxpr.splitlines() if f"= {operation}" in line or f"= {operation.strip()}[" in line]
        assert lines
        assert all(":f32[" in line for line in lines)
    assert model.logits(params, packed).dtype == jnp.float32
    with pytest.raises(UserError, match="float16"):
        dataclasses.replace(TINY, dtype="float16")


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_not_rounded_where_activations_are(tied: bool) -> None:
    """T5X computes logits from the float32 kernel; rounded to bfloat16, a logit moves by about 2^-9 of its size."""
    model = layers.Head(96, layers.Numerics("bfloat16"))
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((32, 96)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 4, 32)), jnp.bfloat16)
    wanted = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    if tied:
        embed = layers.Embed(96, 32, layers.Numerics("bfloat16"))
        found = embed.apply({"params": {"embedding": kernel.T}}, x, method="attend")
        wanted /= np.sqrt(32)
    else:
        found = model.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_dropout_is_on_with_a_rng_only_and_is_a_function_of_it(params: Any, packed: dict[str, Any]) -> None:
    model = dataclasses.replace(TINY, dropout_rate=0.1)
    run = jax.jit(lambda rng: model.logits(params, packed, rng))
    np.testing.assert_array_equal(model.logits(params, packed), TINY.logits(params, packed))
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 0.1


@pytest.mark.parametrize("scan", [False, True])
def test_the_gate_names_the_first_bad_layer(params: Any, packed: dict[str, Any], scan: bool) -> None:
    model = dataclasses.replace(TINY, scan_layers=scan)

    def spoiled(value: float) -> Any:
        tree = jax.tree.map(lambda x: x, params)
        kernel = tree["decoder"]["layers_1"]["mlp"]["wo"]["kernel"]
        tree["decoder"]["layers_1"]["mlp"]["wo"]["kernel"] = kernel.at[0, 0].set(value)
        return layers.stack(tree) if scan else tree

    assert first_nonfinite(model, spoiled(0.0), packed) is None
    huge = spoiled(0.0)  # every number is finite, their products are not
    wo = (huge["decoder"]["layers"] if scan else huge["decoder"]["layers_1"])["mlp"]["wo"]
    wo["kernel"] = wo["kernel"].at[-1 if scan else slice(None)].set(3e38)
    assert first_nonfinite(model, huge, packed) == "output of decoder/layers_1/mlp/wo"
    bad = "parameter decoder/layers/mlp/wo/kernel" if scan else "parameter decoder/layers_1/mlp/wo/kernel"
    assert first_nonfinite(model, spoiled(np.nan), packed) == bad
    sizes = largest_outputs(model, spoiled(0.0), packed)
    assert list(sizes)[:3] == ["token_embedder", "encoder/relpos_bias", "encoder/layers_0/pre_attention_layer_norm"]
    assert list(sizes)[-1] == "logits"


# --- sizes ---------------------------------------------------------------------------------------------------------

PUBLISHED = {  # (file, millions of parameters): paper.md 5.1; T5.1.0's from its paper; mT5's from its paper
    "t5_1_1/small": 76.96,
    "t5_1_1/base": 247.6,
    "t5_1_1/large": 783.2,
    "t5_1_1/xl": 2849.8,
    "t5_1_1/xxl": 11135.3,
    "t5_1_0/small": 60.5,
    "t5_1_0/base": 222.9,
    "t5_1_0/large": 737.7,
    "t5_1_0/3b": 2851.6,
    "t5_1_0/11b": 11307.3,
    "mt5/small": 300.2,
    "mt5/base": 582.4,
    "mt5/large": 1229.6,
    "mt5/xl": 3742.6,
    "mt5/xxl": 12921.1,
}


def configured(file: str) -> T5:
    gin.clear_config()
    gin.add_config_file_search_path(str(gin_folder()))
    gin.parse_config_file(f"models/{file}.gin")
    try:
        return gin.get_configurable(T5)()
    finally:
        gin.clear_config()


@pytest.mark.parametrize("file", PUBLISHED)
def test_configured_sizes_have_the_published_number_of_parameters(file: str) -> None:
    model = configured(file)
    np.testing.assert_allclose(model.num_params() / 1e6, PUBLISHED[file], rtol=1e-3)


@pytest.mark.parametrize("family", ["t5_1_1", "t5_1_0", "mt5"])
def test_the_formula_counts_the_parameters_that_are_made(family: str) -> None:
    """One size of each family: sizes of a family differ in numbers alone."""
    model = configured(f"{family}/small")
    shapes = jax.eval_shape(dataclasses.replace(model, scan_layers=True).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == model.num_params()


def test_flops_per_token_are_those_of_the_compiled_forward_pass_and_the_paper(params: Any) -> None:
    lengths = {"inputs": 64, "targets": 32}
    batch = drawn.encoder_decoder([[([5] * 64, [7] * 32)]], **lengths)
    counted = jax.jit(TINY.logits).lower(params, batch).cost_analysis()["flops"]
    np.testing.assert_allclose(TINY.flops_per_token(**lengths) * 96 / 3, counted, rtol=0.1)


@pytest.mark.parametrize(("size", "steps", "flops"), [("xl", 38e3, 5.6e19), ("xxl", 14e3, 7.6e19)])
def test_finetuning_takes_the_published_compute(size: str, steps: float, flops: float) -> None:
    """The paper counts 3 per parameter and token (paper.md 2.1, 2.2); attention scores come on top."""
    assert 1.0 < steps * 64 * 2560 * configured(f"t5_1_1/{size}").flops_per_token(2048, 512) / flops < 1.1


if __name__ == "__main__":
    examples = drawn.pairs(6, inputs=9, targets=7, vocab_size=96)
    rows = drawn.encoder_decoder([examples[:3], examples[3:]], inputs=28, targets=22)
    GOLDEN.write_text(json.dumps(golden_logits(drawn.params(TINY), rows).round(5).tolist()) + "\n")
