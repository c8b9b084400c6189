import dataclasses
import gzip
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import serialization

import flanx.convert
from flanx import optim, train_step
from flanx.convert import flanx_format, hf, logit_parity, orbax_item, t5x, zarr
from flanx.convert import scan_layers as scan_layers_form
from flanx.convert.lazy_tensor import BFLOAT16, in_memory, nest, parameters
from flanx.errors import UserError
from flanx.models import t5
from flanx.storage import open_storage
from tests.convert_case import SMALL, assert_same, draw, values


@pytest.fixture(scope="module")
def tiny(golden_dir: pathlib.Path) -> pathlib.Path:
    return golden_dir / "t5x_tiny"


@pytest.fixture
def legacy(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkpoint of T5X's form, written by us, to damage."""
    folder = tmp_path / "checkpoint_7"
    t5x.write_legacy(open_storage(folder), draw(optimizer=True), 7)
    return folder


@pytest.mark.parametrize("step", [0, 20])
def test_t5x_legacy_and_orbax_hold_the_same_parameters_and_optimizer_state(tiny: pathlib.Path, step: int):
    legacy = flanx.convert.open_checkpoint(tiny / "legacy" / f"checkpoint_{step}")
    orbax = flanx.convert.open_checkpoint(tiny / "orbax" / f"checkpoint_{step}")
    assert legacy.step == orbax.step == step
    assert len(legacy.tensors) == 52 * 5 + 1  # a parameter and its m, v, v_row, v_col; the step
    assert_same(legacy.tensors, orbax.tensors)


def test_t5x_step_20_holds_the_parameters_that_t5x_printed(tiny: pathlib.Path):
    params = parameters(flanx.convert.open_checkpoint(tiny / "legacy" / "checkpoint_20").tensors)
    with np.load(tiny / "params_final.npz") as final:
        assert {name.replace("/", ".") for name in params} == set(final.files)
        for name, tensor in params.items():
            np.testing.assert_array_equal(tensor.read(), final[name.replace("/", ".")])


def test_a_folder_of_checkpoints_opens_at_its_newest_step(tiny: pathlib.Path):
    assert flanx.convert.open_checkpoint(tiny / "legacy").step == 20
    assert flanx.convert.open_checkpoint(tiny / "orbax").step == 20


def test_folders_as_t5x_leaves_them(tiny: pathlib.Path, tmp_path: pathlib.Path, capsys):
    """Beside the good checkpoint: one that was being written, other folders, files of the run."""
    runs = {form: shutil.copytree(tiny / form, tmp_path / form) for form in ("legacy", "orbax")}
    for run in runs.values():
        run.chmod(0o755)
        for name in ("checkpoint_30.tmp-1699", "checkpoint_99.orbax-checkpoint-tmp-17", "train", "inference_eval"):
            (run / name).mkdir()
        (run / "config.gin").touch()
        assert flanx.convert.open_checkpoint(run).step == 20
        assert not capsys.readouterr().out
        (run / "checkpoint_40").mkdir()
        assert flanx.convert.open_checkpoint(run).step == 20
        assert capsys.readouterr().out.count("checkpoint_40 holds no finished checkpoint; taking checkpoint_20") == 1
    assert flanx.convert.open_checkpoint(runs["legacy"] / "checkpoint_0" / "checkpoint").step == 0
    half = runs["legacy"] / "checkpoint_40"
    shutil.copy(runs["legacy"] / "checkpoint_20" / "checkpoint", half)
    with pytest.raises(UserError, match=r"checkpoint_40: '\S+' cannot be opened .*the checkpoint is incomplete"):
        flanx.convert.open_checkpoint(runs["legacy"])


def state_of(source: flanx.convert.OpenCheckpoint) -> train_step.TrainState:
    """A training state of what a checkpoint holds."""
    arrays = values(source.tensors)
    moments = {
        ours: nest({name: arrays[f"state/param_states/{name}/{theirs}"] for name in parameters(arrays)})
        for theirs, ours in flanx_format.MOMENTS.items()
    }
    step = np.asarray(arrays["state/step"], np.int32)
    return train_step.TrainState(step, nest(parameters(arrays)), optim.AdafactorState(step, **moments))


def test_training_goes_on_from_t5x_as_t5x_did(tiny: pathlib.Path):
    """From T5X's step 0, 20 steps give T5X's step 20, moments included; step 21 from either is the same."""
    start = flanx.convert.open_checkpoint(tiny / "legacy" / "checkpoint_0")
    later = flanx.convert.open_checkpoint(tiny / "orbax" / "checkpoint_20")
    model = t5.T5(
        vocab_size=384, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, num_encoder_layers=2, num_decoder_layers=2
    )
    step = jax.jit(train_step.Trainer(model, optim.adafactor(1e-3), dropout=False).step)
    with np.load(tiny / "batches.npz") as file:
        batches = [
            {name.split("/")[1]: file[name] for name in file.files if name.startswith(f"{k:03d}/")} for k in range(20)
        ]
    state = jax.device_put(state_of(start))
    for batch in batches:
        state, _ = step(state, batch)
    there = jax.device_put(state_of(later))
    assert int(state.step) == int(there.step) == int(state.opt_state.count) == 20
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), state.params, there.params)
    # moments are means of squares, up to 1e3 here: relative to each tensor's largest
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3 * np.max(b)), state.opt_state, there.opt_state)
    (ours, mine), (theirs, yours) = step(state, batches[0]), step(there, batches[0])
    np.testing.assert_allclose(mine["loss"], yours["loss"], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), ours.params, theirs.params)


@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.slow), True])
def test_momentum_goes_on_from_t5x_as_t5x_did(golden_dir: pathlib.Path, scan_layers: bool):
    """Eight steps with T5X's beta1 = 0.9, from its step 0 to its step 8, `m` and its sign included."""
    folder = golden_dir / "t5x_momentum"
    start = flanx.convert.open_checkpoint(folder / "legacy" / "checkpoint_0")
    later = flanx.convert.open_checkpoint(folder / "orbax" / "checkpoint_8")
    model = dataclasses.replace(logit_parity.model(start.t5_sizes(), {}), scan_layers=scan_layers)
    step = jax.jit(train_step.Trainer(model, optim.adafactor(1e-3, momentum=0.9), dropout=False).step)

    def opened(source: flanx.convert.OpenCheckpoint) -> train_step.TrainState:
        tensors = scan_layers_form.stack(source.tensors) if scan_layers else source.tensors
        return jax.device_put(state_of(dataclasses.replace(source, tensors=tensors)))

    state, there = opened(start), opened(later)
    with np.load(folder / "batches.npz") as file:
        for k in range(8):
            state, _ = step(
                state, {name.split("/")[1]: file[name] for name in file.files if name.startswith(f"{k:03d}/")}
            )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), state.params, there.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3 * np.max(np.abs(b))), state.opt_state, there.opt_state
    )


def test_legacy_round_trip_is_bit_for_bit(tmp_path: pathlib.Path):
    tensors = draw(optimizer=True, step=7)
    t5x.write_legacy(open_storage(tmp_path / "checkpoint_7"), tensors, 7)
    assert_same(t5x.read_legacy(open_storage(tmp_path / "checkpoint_7")), tensors)


def test_tensors_of_many_blocks_keep_their_bits(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flanx.convert.lazy_tensor.BLOCK_BYTES", 10_000)
    t5x.write_legacy(open_storage(tmp_path / "t5x"), draw(), 0)
    flanx_format.write(open_storage(tmp_path / "flanx"), draw())
    hf.write(open_storage(tmp_path / "hf"), draw(), SMALL, {})
    chunks = json.loads((tmp_path / "t5x" / "target.token_embedder.embedding" / ".zarray").read_text())["chunks"]
    assert chunks == [18, 128]  # 160 rows of 512 bytes in nine chunks, the last one short
    for form in ("t5x", "flanx", "hf"):
        tensors = flanx.convert.open_checkpoint(tmp_path / form).tensors
        assert_same({f"target/{name}": tensor for name, tensor in parameters(tensors).items()}, draw())


def test_legacy_export_of_t5x_is_laid_out_as_t5x_lays_it_out(tiny: pathlib.Path, tmp_path: pathlib.Path):
    theirs = tiny / "legacy" / "checkpoint_20"
    t5x.write_legacy(open_storage(tmp_path), t5x.read_legacy(open_storage(theirs)), 20)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in theirs.iterdir()}
    ours, golden = (serialization.msgpack_restore((place / "checkpoint").read_bytes()) for place in (tmp_path, theirs))
    for (name, leaf), (other, want) in zip(sorted(t5x.leaves_of(ours)), sorted(t5x.leaves_of(golden)), strict=True):
        assert name == other
        if isinstance(want, dict):
            assert leaf == want, name
        else:
            np.testing.assert_array_equal(leaf, want)
    array = "target.encoder.layers_0.mlp.wi_0.kernel/.zarray"
    assert json.loads((tmp_path / array).read_text()) == json.loads((theirs / array).read_text())


def test_bfloat16_parameters_keep_their_bits(tmp_path: pathlib.Path):
    tensors = {name: tensor.cast(BFLOAT16) for name, tensor in draw().items()}
    t5x.write_legacy(open_storage(tmp_path), tensors, 0)
    back = t5x.read_legacy(open_storage(tmp_path))
    del back["state/step"]
    assert_same(back, tensors)


def test_the_message_file_may_be_gzipped(legacy: pathlib.Path):
    plain = (legacy / "checkpoint").read_bytes()
    (legacy / "checkpoint").write_bytes(gzip.compress(plain))
    assert len(t5x.read_legacy(open_storage(legacy))) == 5 * len(SMALL.shapes()) + 1


def test_specs_of_gcs_checkpoints_name_bucket_and_path():
    folder = open_storage("gs://bucket/some/checkpoint_5")
    assert zarr.spec(folder, "target.a")["kvstore"] == {
        "driver": "gcs",
        "bucket": "bucket",
        "path": "some/checkpoint_5/target.a/",
    }
    assert zarr.spec(folder, "target.a", ocdbt=True)["kvstore"]["base"]["driver"] == "gcs"


def rewrite(folder: pathlib.Path, change: dict[str, object]) -> None:
    """Writes the message file again with some leaves changed."""
    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    leaves = dict(t5x.leaves_of(tree["optimizer"])) | change
    content = {"version": 3, "optimizer": nest(leaves)}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))


def spec_of(folder: pathlib.Path, name: str) -> dict:
    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    return dict(t5x.leaves_of(tree["optimizer"]))[name]


def test_specs_written_for_gcs_or_by_old_tensorstore_read_alike(legacy: pathlib.Path):
    name = "target/encoder/encoder_norm/scale"
    spec = spec_of(legacy, name)
    want = t5x.read_legacy(open_storage(legacy))[name].read()
    array = spec["kvstore"]["path"].strip("/")
    for kvstore, more in (
        ({"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": array}, {}),
        ({"driver": "gfile"}, {"path": array}),
    ):
        rewrite(legacy, {name: spec | {"kvstore": kvstore} | more})
        np.testing.assert_array_equal(t5x.read_legacy(open_storage(legacy))[name].read(), want)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "checkpoint").unlink(), "no checkpoint in"),
        (lambda f: (f / "checkpoint").write_bytes(b"\x00garbage"), "not a T5X checkpoint"),
        (
            lambda f: (f / "checkpoint").write_bytes(serialization.msgpack_serialize({"version": 3})),
            "has no 'optimizer'",
        ),
        (
            lambda f: (f / "checkpoint").write_bytes(serialization.msgpack_serialize({"version": 1, "optimizer": {}})),
            "has version 1",
        ),
        (lambda f: (f / "checkpoint").write_bytes(b"model_checkpoint_path: 'x'"), "Mesh TensorFlow"),
        (lambda f: (f / "target.encoder.encoder_norm.scale" / ".zarray").unlink(), "target/encoder/encoder_norm/scale"),
        (
            lambda f: rewrite(f, {"target/encoder/extra/kernel": spec_of(f, "target/encoder/encoder_norm/scale")}),
            "'target/encoder/extra/kernel', which a T5 of these sizes does not have",
        ),
        (
            lambda f: rewrite(f, {"target/decoder/decoder_norm/scale": np.zeros((5,), np.float32)}),
            r"'target/decoder/decoder_norm/scale' is \[5\]",
        ),
        (
            lambda f: rewrite(
                f,
                {
                    "target/encoder/encoder_norm/scale": {
                        **spec_of(f, "target/encoder/encoder_norm/scale"),
                        "metadata": {"shape": [64], "chunks": [64]},
                    }
                },
            ),
            r"'target/encoder/encoder_norm/scale' is \[128\], expected \[64\]",
        ),
    ],
    ids=[
        "no messages",
        "garbage",
        "empty",
        "old",
        "mesh tensorflow",
        "no array",
        "unknown",
        "mis-shaped",
        "two shapes",
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(legacy: pathlib.Path, damage, message: str):
    damage(legacy)
    with pytest.raises(UserError, match=message):
        flanx.convert.open_checkpoint(legacy)


def test_a_missing_parameter_is_named(tmp_path: pathlib.Path):
    tensors = draw()
    del tensors["target/decoder/layers_1/mlp/wo/kernel"]
    t5x.write_legacy(open_storage(tmp_path), tensors, 0)
    with pytest.raises(UserError, match="has no 'target/decoder/layers_1/mlp/wo/kernel'"):
        flanx.convert.open_checkpoint(tmp_path)


def test_a_truncated_array_is_refused_when_read(legacy: pathlib.Path):
    part = legacy / "target.token_embedder.embedding" / "0.0"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match="'target/token_embedder/embedding' cannot be read"):
        flanx.convert.fingerprint(flanx.convert.open_checkpoint(legacy).tensors)


def test_orbax_of_2023_with_its_aggregate_file_is_read(tmp_path: pathlib.Path):
    array = in_memory(np.arange(6, dtype=np.float32).reshape(2, 3))
    zarr.write_array(open_storage(tmp_path), "target.a", array, zarr.GZIP)
    tree = {"target": {"a": "PLACEHOLDER://target.a"}, "state": {"step": np.int32(3)}}
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    found = values(orbax_item.read(open_storage(tmp_path)))
    np.testing.assert_array_equal(found["target/a"], array.read())
    assert found["state/step"] == 3
