import dataclasses
import pathlib

import jax
import numpy as np
import pytest

import flanx.convert
from flanx.convert import logit_parity, scan_layers, t5x
from flanx.convert.lazy_tensor import flatten, in_memory, nest, parameters
from flanx.convert.storage import open_storage
from flanx.errors import UserError
from tests.convert_case import SMALL, assert_same, draw, values

BIAS = "target/{0}/relpos_bias/rel_embedding"


def of_scalable_t5(tensors, own_bias: bool = False):
    """T5X's stacked form, put together by hand: layers on axis 1, a relative bias in every layer."""
    arrays = values(tensors)
    stacked = {}
    for name in ("encoder", "decoder"):
        layers = SMALL.num_encoder_layers if name == "encoder" else SMALL.num_decoder_layers
        bias = arrays.pop(BIAS.format(name))
        each = np.stack([bias + (0.5 * i if own_bias else 0.0) for i in range(layers)], axis=1)
        stacked[f"target/{name}/{name}/relpos_bias/rel_embedding"] = each
        for key in [key for key in arrays if key.startswith(f"target/{name}/layers_0/")]:
            parts = [arrays.pop(key.replace("layers_0", f"layers_{i}")) for i in range(layers)]
            stacked[key.replace(f"{name}/layers_0", f"{name}/{name}")] = np.stack(parts, axis=1)
    return {name: in_memory(array) for name, array in (stacked | arrays).items()}


def test_t5x_scanned_checkpoint_is_unrolled(tmp_path: pathlib.Path):
    tensors = draw()
    scanned = of_scalable_t5(tensors)
    assert scanned["target/decoder/decoder/mlp/wo/kernel"].shape == (144, 3, 128)
    assert scanned["target/encoder/encoder/pre_mlp_layer_norm/scale"].shape == (128, 2)
    t5x.write_legacy(open_storage(tmp_path), scanned, 3)
    source = flanx.convert.open_checkpoint(tmp_path)
    assert source.sizes == SMALL and source.step == 3
    assert_same({name: t for name, t in source.tensors.items() if name.startswith("target/")}, tensors)


def test_layers_with_biases_of_their_own_are_refused():
    with pytest.raises(UserError, match="'target/encoder/layers_1/relpos_bias/rel_embedding' differs"):
        scan_layers.unroll(of_scalable_t5(draw(), own_bias=True), "here")


def state_of_scalable_t5(tensors):
    """Moments as T5X keeps them for stacked layers, put together by hand: rows are the axis of the embedding."""
    found = {}
    for name in SMALL.shapes():
        stack_name, _, inside = name.partition("/layers_0/")
        if not inside:
            continue
        layers = SMALL.num_encoder_layers if stack_name == "encoder" else SMALL.num_decoder_layers
        place = f"state/param_states/{stack_name}/{stack_name}/{inside}"
        ours = [f"state/param_states/{stack_name}/layers_{i}/{inside}" for i in range(layers)]
        each = {m: [tensors[f"{o}/{m}"].read() for o in ours] for m in ("v", "v_row", "v_col", "m")}
        if each["v"][0].shape != (1,):
            found[f"{place}/v"] = np.stack(each["v"], axis=1)
            found |= {f"{place}/{m}": each[m][0] for m in ("v_row", "v_col", "m")}
            continue
        rows, columns = SMALL.shapes()[name]
        of_axis = {0: each["v_row"], 1: each["v_col"]} if rows <= columns else {0: each["v_col"], 1: each["v_row"]}
        embed = 1 if inside.split("/")[-2] in ("out", "wo") else 0
        layer_axis = {0: 1, 1: 0}  # what is left of [a, layers, b] without b, without a
        found[f"{place}/v_row"] = np.stack(of_axis[embed], axis=layer_axis[embed])
        found[f"{place}/v_col"] = np.stack(of_axis[1 - embed], axis=layer_axis[1 - embed])
        found |= {f"{place}/{m}": each[m][0] for m in ("v", "m")}
    return {name: in_memory(array) for name, array in found.items()}


def scanned_with_state():
    tensors = draw(optimizer=True)
    state = {name: t for name, t in tensors.items() if name.startswith("state/") and "/layers_" not in name}
    params = {name: t for name, t in tensors.items() if name.startswith("target/")}
    return tensors, of_scalable_t5(params) | state | state_of_scalable_t5(tensors)


def test_optimizer_state_of_t5x_scanned_layers_is_unrolled(tmp_path: pathlib.Path):
    tensors, scanned = scanned_with_state()
    assert scanned["state/param_states/encoder/encoder/mlp/wo/kernel/v_row"].shape == (2, 128)  # of [144, 2, 128]
    assert scanned["state/param_states/encoder/encoder/mlp/wi_0/kernel/v_row"].shape == (128, 2)  # of [128, 2, 144]
    t5x.write_legacy(open_storage(tmp_path), scanned, 7)
    assert_same(flanx.convert.open_checkpoint(tmp_path).tensors, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"state/param_states/encoder/encoder/relpos_bias/rel_embedding/v": np.eye(4, 2)[:, :, None] * np.ones(32)},
            "'state/param_states/encoder/layers_1/relpos_bias/rel_embedding/v' differs",
        ),
        ({"state/param_states/encoder/encoder/mlp/w/kernel/v": np.ones((2, 2))}, "is a state without its parameter"),
        (
            {
                "target/encoder/encoder/mlp/wi_0/kernel": np.ones((128, 2, 64)),
                "state/param_states/encoder/encoder/mlp/wi_0/kernel/v_row": np.ones((128, 2)),
            },
            "an axis below 128",
        ),
    ],
)
def test_state_that_has_no_unrolled_form_is_refused_with_the_repair(change, message: str):
    _, scanned = scanned_with_state()
    with pytest.raises(UserError, match=message) as caught:
        scan_layers.unroll(scanned | {name: in_memory(array) for name, array in change.items()}, "here")
    assert "add --drop-optimizer" in str(caught.value)


def test_stack_and_unroll_are_opposites_with_the_optimizer_state():
    tensors = draw(optimizer=True)
    stacked = scan_layers.stack(tensors)
    assert stacked["target/decoder/layers/mlp/wo/kernel"].shape == (3, 144, 128)
    assert stacked["state/param_states/decoder/layers/mlp/wo/kernel/v_row"].shape == (3, 128)
    np.testing.assert_array_equal(
        stacked["target/decoder/layers/mlp/wo/kernel"].read((slice(1, 3), slice(2, 5), slice(0, 128))),
        np.stack([tensors[f"target/decoder/layers_{i}/mlp/wo/kernel"].read()[2:5] for i in (1, 2)]),
    )
    assert_same(scan_layers.unroll(stacked, "here"), tensors)


def test_a_scanned_model_takes_an_unrolled_checkpoint_and_computes_the_same(tmp_path: pathlib.Path):
    t5x.write_legacy(open_storage(tmp_path), draw(), 0)
    source = flanx.convert.open_checkpoint(tmp_path)
    plain = logit_parity.model(source.sizes, {})
    scanned = dataclasses.replace(plain, scan_layers=True)
    inputs, targets = logit_parity.prompts(SMALL.vocab_size)
    batch = {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": np.int32(inputs > 0),
        "decoder_input_tokens": logit_parity.shifted(targets),
        "decoder_segment_ids": np.int32(targets > 0),
    }
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    boxed = jax.eval_shape(scanned.init, jax.random.key(0))
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda box: hasattr(box, "value")),
    )
    params = flanx.convert.restore(source, shapes)
    assert scan_layers.is_stacked(flatten(params))
    unrolled = nest(values(parameters(source.tensors)))
    want = jax.jit(plain.logits)(unrolled, batch)
    np.testing.assert_allclose(jax.jit(scanned.logits)(params, batch), want, atol=2e-5)
