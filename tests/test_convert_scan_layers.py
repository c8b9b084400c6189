import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

import flanx.convert
from flanx import checkpoint, optim, train_step
from flanx.cli import main
from flanx.convert import flanx_format, logit_parity, scan_layers, t5x
from flanx.convert.lazy_tensor import LazyTensor, fingerprint, flatten, in_memory, nest, parameters
from flanx.convert.t5_shapes import T5Sizes
from flanx.errors import UserError
from flanx.storage import open_storage
from tests.convert_case import SMALL, assert_same, draw, values

GOLDEN = pathlib.Path(__file__).parent / "golden"


def of_t5x(golden: dict[str, np.ndarray], when: str) -> dict[str, LazyTensor]:
    """The tensors of a golden's checkpoint."""
    return {name.removeprefix(f"{when}/"): in_memory(array) for name, array in golden.items() if name.startswith(when)}


@pytest.fixture(scope="module")
def scanned() -> dict[str, LazyTensor]:
    with np.load(GOLDEN / "scalable_t5_factored.npz") as file:
        return of_t5x(dict(file), "before")


@pytest.mark.parametrize(
    ("factored", "scan_layers_here"),
    [(True, True), *(pytest.param(*kind, marks=pytest.mark.slow) for kind in [(True, False), (False, True)])],
)
def test_t5x_scanned_model_comes_in_goes_on_and_goes_out(
    tmp_path: pathlib.Path, factored: bool, scan_layers_here: bool
):
    """One step of T5X's scalable_t5 (its network, Adafactor with beta1 = 0.9 and its own axes), run once for this file:
    2 + 3 layers of 12, 2 heads x 3, MLP 10, after two steps; packed and padded rows. Without factoring T5X takes the
    scale of all layers together, which unrolled layers cannot."""
    with np.load(GOLDEN / f"scalable_t5_{'factored' if factored else 'unfactored'}.npz") as file:
        golden = dict(file)
    before = of_t5x(golden, "before")
    assert before["target/encoder/encoder/attention/query/kernel"].shape == (12, 2, 2, 3)
    t5x.write_legacy(open_storage(tmp_path / "theirs"), before, 2)
    flags = ["--stacked"] if scan_layers_here else []
    assert main.main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours"), *flags]) == 0
    sizes = flanx.convert.open_checkpoint(tmp_path / "ours").t5_sizes()
    assert sizes.layer_bias and (sizes.num_encoder_layers, sizes.num_decoder_layers) == (2, 3)
    model = dataclasses.replace(sizes.model(), scan_layers=scan_layers_here)
    optimizer = optim.adafactor(1e-2, momentum=0.9, factored=factored, min_layer_dim_size_to_factor=1)
    trainer = train_step.Trainer(model, optimizer, dropout=False)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), jax.eval_shape(trainer.init)
    )
    state = checkpoint.Checkpoints(tmp_path / "ours").restore(target)
    batch = {name.removeprefix("batch/"): array for name, array in golden.items() if name.startswith("batch/")}
    inside = batch["decoder_segment_ids"] > 0
    np.testing.assert_allclose(model.logits(state.params, batch)[inside], golden["logits"][inside], atol=1e-5)
    state, metrics = jax.jit(trainer.step)(state, batch)
    np.testing.assert_allclose(metrics["loss"], golden["loss"], rtol=1e-5)
    saved = checkpoint.Checkpoints(tmp_path / "run")
    saved.save(state)
    saved.close()
    assert main.main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "t5x", "--stacked"]) == 0
    after, out = of_t5x(golden, "after"), t5x.read_legacy(open_storage(tmp_path / "out" / "checkpoint_3"))
    assert {name: t.shape for name, t in out.items()} == {name: t.shape for name, t in after.items()}
    for name, tensor in after.items():
        wanted = tensor.read()
        np.testing.assert_allclose(out[name].read(), wanted, atol=2e-5 * np.abs(wanted).max() + 1e-30, err_msg=name)
    assert main.main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "t5x", "--stacked"]) == 0
    assert_same(t5x.read_legacy(open_storage(tmp_path / "back" / "checkpoint_2")), before)


def test_state_without_its_parameter_is_refused_with_the_repair(scanned: dict[str, LazyTensor]):
    name = "state/param_states/encoder/encoder/mlp/w/kernel/v"
    with pytest.raises(UserError, match="is a state without its parameter; add --drop-optimizer"):
        scan_layers.unroll(scanned | {name: in_memory(np.ones((2, 2)))}, "here")


LAYER_BIAS = dataclasses.replace(SMALL, layer_bias=True)


def test_unrolled_layers_of_scalable_t5_have_kernels_of_three_axes():
    tensors = draw(LAYER_BIAS, optimizer=True)
    theirs = scan_layers.to_scalable_t5(tensors, stacked=False)
    state = "state/param_states/encoder/layers_0/attention/out/kernel"
    shapes = [theirs[f"{state}/{moment}"].shape for moment in ("v_row", "v_col")]
    assert theirs["target/encoder/layers_0/attention/out/kernel"].shape == (4, 32, 128)
    assert theirs["target/encoder/layers_0/attention/query/kernel"].shape == (128, 4, 32)
    assert shapes == [(128,), (4, 32)]
    assert_same(scan_layers.unroll(theirs, "here"), tensors)


def test_a_fresh_state_is_factored_as_t5x_factors_it(scanned: dict[str, LazyTensor], tmp_path: pathlib.Path):
    """By the names of axes where a kernel has three or more, whatever their sizes."""
    params = {name: tensor for name, tensor in scanned.items() if name.startswith("target/")}
    t5x.write_legacy(open_storage(tmp_path / "theirs"), params, 0)
    again = ["convert", str(tmp_path / "theirs"), str(tmp_path / "out"), "--to", "t5x", "--stacked"]
    assert main.main(again) == 0
    fresh = t5x.read_legacy(open_storage(tmp_path / "out" / "checkpoint_0"))
    wanted = {name: (1,) if name.endswith("/m") else tensor.shape for name, tensor in scanned.items()}
    assert {name: tensor.shape for name, tensor in fresh.items()} == wanted


def test_the_bias_of_a_stack_goes_to_t5x_scanned_layers_as_a_copy_in_each(tmp_path: pathlib.Path, capsys):
    t5x.write_legacy(open_storage(tmp_path / "a"), draw(optimizer=True), 7)
    arguments = ["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "t5x", "--stacked"]
    assert main.main(arguments) == 2
    assert "rel_embedding/m' is the moment of a stack's relative bias" in capsys.readouterr().err
    verify = ["--verify"] if importlib.util.find_spec("transformers") else []
    assert main.main([*arguments, "--drop-optimizer", *verify]) == 0
    assert "copied into every one of its layers" in capsys.readouterr().out
    there = flanx.convert.open_checkpoint(tmp_path / "b")
    assert there.sizes == LAYER_BIAS
    bias = draw()["target/decoder/relpos_bias/rel_embedding"].read()
    np.testing.assert_array_equal(there.tensors["target/decoder/layers_2/relpos_bias/rel_embedding"].read(), bias)
    assert fingerprint(flanx.convert.restore(there, target_of(SMALL))) == fingerprint(
        draw()
    )  # equal ones are one again


def target_of(sizes: T5Sizes):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return nest(
        {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=here) for name, shape in sizes.shapes().items()}
    )


def test_a_model_with_the_other_relative_bias_is_refused_with_the_repair(tmp_path: pathlib.Path):
    for sizes, other, form in ((SMALL, LAYER_BIAS, "stack"), (LAYER_BIAS, SMALL, "layer")):
        flanx_format.write(open_storage(tmp_path / form), draw(sizes))
        with pytest.raises(UserError, match=f"bind t5.T5.relative_bias = '{form}'"):
            flanx.convert.restore(tmp_path / form, target_of(other))
        with pytest.raises(UserError, match=f"bind t5.T5.relative_bias = '{form}'"):
            checkpoint.load_params(tmp_path / form, target_of(other))


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
