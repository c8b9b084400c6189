import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flanx.convert
from flanx import checkpoint, optim, train, train_step
from flanx.checkpoint import RestoreCheckpointConfig
from flanx.cli import main
from flanx.convert import flanx_format, hf, logit_parity, orbax_item, t5x
from flanx.convert.lazy_tensor import BFLOAT16, LazyTensor, fingerprint, in_memory, nest, parameters
from flanx.convert.t5_shapes import T5Sizes
from flanx.errors import UserError
from flanx.storage import open_storage
from tests import bucket_case
from tests.convert_case import ONE_LAYER, SMALL, assert_same, draw


@pytest.fixture
def theirs(tmp_path: pathlib.Path) -> pathlib.Path:
    """A T5X checkpoint of step 7 with an optimizer state."""
    folder = tmp_path / "t5x" / "checkpoint_7"
    t5x.write_legacy(open_storage(folder), draw(optimizer=True), 7)
    return folder


def convert(*arguments: object) -> int:
    return main.main(["convert", *map(str, arguments)])


def test_t5x_to_flanx_and_back_keeps_every_bit_and_the_step(theirs: pathlib.Path, tmp_path: pathlib.Path, capsys):
    assert convert(theirs, tmp_path / "ours") == 0
    mark = fingerprint(draw())
    assert mark in capsys.readouterr().out
    note = json.loads((tmp_path / "ours" / "flanx_convert.json").read_text())
    assert note["fingerprint"] == mark and note["step"] == 7 and note["from"] == "t5x"
    assert convert(tmp_path / "ours", tmp_path / "back", "--to", "t5x") == 0
    assert_same(t5x.read_legacy(open_storage(tmp_path / "back" / "checkpoint_7")), draw(optimizer=True))
    assert not list(tmp_path.glob("*.partial"))


def test_flanx_to_hf_and_back_keeps_every_bit(theirs: pathlib.Path, tmp_path: pathlib.Path):
    assert convert(theirs, tmp_path / "ours", "--drop-optimizer") == 0
    assert convert(tmp_path / "ours", tmp_path / "hf", "--to", "hf") == 0
    assert convert(tmp_path / "hf", tmp_path / "back") == 0
    assert_same(flanx.convert.open_checkpoint(tmp_path / "back").tensors, draw())


def test_hugging_face_s_form_lies_in_a_bucket(theirs: pathlib.Path, tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    with bucket_case.service() as service:
        assert convert(theirs, "gs://bucket/hf", "--to", "hf") == 0
        sent = [path for method, path in service.asked if method == "POST"]
        assert sent[-1].endswith("name=hf%2Fconfig.json") and len(sent) > 3
        assert convert("gs://bucket/hf", tmp_path / "back") == 0
    assert_same(flanx.convert.open_checkpoint(tmp_path / "back").tensors, draw())


def test_bfloat16_widens_back_to_the_same_values(theirs: pathlib.Path, tmp_path: pathlib.Path):
    assert convert(theirs, tmp_path / "half", "--to", "hf", "--dtype", "bfloat16") == 0
    assert convert(tmp_path / "half", tmp_path / "ours") == 0
    assert convert(tmp_path / "ours", tmp_path / "again", "--to", "hf", "--dtype", "bfloat16") == 0
    ours = flanx.convert.open_checkpoint(tmp_path / "ours").tensors
    assert {tensor.dtype for tensor in ours.values()} == {np.dtype(np.float32)}
    assert fingerprint(ours) == fingerprint({name: tensor.cast(BFLOAT16) for name, tensor in draw().items()})
    name = "model.safetensors"
    assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_checkpoint_without_optimizer_state_goes_to_t5x_with_a_fresh_one(tmp_path: pathlib.Path):
    hf.write(open_storage(tmp_path / "hf"), draw(), SMALL, {})
    assert convert(tmp_path / "hf", tmp_path / "out", "--to", "t5x") == 0
    source = flanx.convert.open_checkpoint(tmp_path / "out" / "checkpoint_0")
    like = draw(optimizer=True)
    assert {name: t.shape for name, t in source.tensors.items()} == {name: t.shape for name, t in like.items()}
    assert source.step == 0
    assert not any(t.read().any() for name, t in source.tensors.items() if name.startswith("state/"))


def test_another_model_goes_between_flanx_and_t5x(tmp_path: pathlib.Path, capsys):
    palm = {"target/decoder/layers_0/mlp/wi/kernel": in_memory(np.ones((4, 6), np.float32))}
    t5x.write_legacy(open_storage(tmp_path / "checkpoint_0"), palm, 0)
    assert convert(tmp_path / "checkpoint_0", tmp_path / "ours") == 0
    assert_same(flanx.convert.open_checkpoint(tmp_path / "ours").tensors, palm)
    assert convert(tmp_path / "ours", tmp_path / "hf", "--to", "hf") == 2
    assert "is not a T5" in capsys.readouterr().err


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def spread(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The first axis over `model` where it divides."""
    split = leaf.ndim > 0 and leaf.shape[0] % 4 == 0
    spec = PartitionSpec("model") if split else PartitionSpec()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh(), spec))


def test_a_converted_run_resumes_on_a_mesh_with_its_optimizer_state(tmp_path: pathlib.Path):
    want = draw(ONE_LAYER, optimizer=True)
    t5x.write_legacy(open_storage(tmp_path / "theirs"), want, 7)
    assert convert(tmp_path / "theirs", tmp_path / "run") == 0
    model, optimizer = logit_parity.model(ONE_LAYER, {}), optim.adafactor(1e-3)
    abstract = jax.eval_shape(train_step.Trainer(model, optimizer).init)
    target = jax.tree.map(spread, abstract)
    state = checkpoint.Checkpoints(tmp_path / "run").restore(target)
    assert int(state.step) == int(state.opt_state.count) == 7
    for name in ONE_LAYER.shapes():
        leaf, moments = state.params, [getattr(state.opt_state, ours) for ours in flanx_format.MOMENTS.values()]
        for part in name.split("/"):
            leaf, moments = leaf[part], [moment[part] for moment in moments]
        np.testing.assert_array_equal(leaf, want[f"target/{name}"].read())
        for moment, array in zip(flanx_format.MOMENTS, moments, strict=True):
            np.testing.assert_array_equal(array, want[f"state/param_states/{name}/{moment}"].read())
    assert fingerprint(checkpoint.load_params(tmp_path / "run", target.params)) == fingerprint(want)
    # and the way out of a run that Orbax saved, not we
    saved = checkpoint.Checkpoints(tmp_path / "saved")
    saved.save(state)
    saved.close()
    assert convert(tmp_path / "saved", tmp_path / "out", "--to", "t5x") == 0
    assert_same(t5x.read_legacy(open_storage(tmp_path / "out" / "checkpoint_7")), want)
    checkpoint.save_params(tmp_path / "bare", state.params)
    assert_same(flanx.convert.open_checkpoint(tmp_path / "bare").tensors, draw(ONE_LAYER))


def with_old_momentum(folder: pathlib.Path, want: dict[str, LazyTensor]) -> pathlib.Path:
    """A run as flanx wrote it until November 2026: the momentum under T5X's name with the other sign."""
    leaves: list = [(("step",), want["state/step"]), (("opt_state", "count"), want["state/step"])]
    for name, tensor in want.items():
        if name.startswith("target/"):
            leaves.append((("params", *name.split("/")[1:]), tensor))
        elif name != "state/step":
            *inside, moment = name.split("/")[2:]
            leaves.append((("opt_state", moment, *inside), tensor.negated() if moment == "m" else tensor))
    orbax_item.write(open_storage(folder / "checkpoints" / "checkpoint_7" / "default"), leaves)
    shutil.copy(KEPT / "checkpoints/checkpoint_1/_CHECKPOINT_METADATA", folder / "checkpoints/checkpoint_7")
    return folder


def test_the_momentum_of_an_old_run_is_turned(tmp_path: pathlib.Path):
    want = draw(ONE_LAYER, optimizer=True)
    for name, shape in ONE_LAYER.shapes().items():
        want[f"state/param_states/{name}/m"] = in_memory(np.full(shape, 0.5, np.float32))
    model, optimizer = logit_parity.model(ONE_LAYER, {}), optim.adafactor(1e-3, momentum=0.9)
    target = jax.tree.map(spread, jax.eval_shape(train_step.Trainer(model, optimizer).init))
    old = with_old_momentum(tmp_path / "old", want)
    assert_same(flanx.convert.open_checkpoint(old).tensors, want)
    state = checkpoint.Checkpoints(old).restore(target)
    assert {float(x.min()) for x in jax.tree.leaves(state.opt_state.momentum)} == {0.5}
    # what an old `flanx convert` made of a T5X checkpoint has T5X's sign
    (old / "flanx_convert.json").write_text(json.dumps({"from": "t5x", "step": 7}))
    momentum = checkpoint.Checkpoints(old).restore(target).opt_state.momentum
    assert {float(x.max()) for x in jax.tree.leaves(momentum)} == {-0.5}
    scale = flanx.convert.open_checkpoint(old).tensors["state/param_states/encoder/encoder_norm/scale/m"]
    assert scale.read()[0] == -0.5


KEPT = pathlib.Path(__file__).parent / "checkpoints" / "flanx_0_1_0"


@pytest.mark.parametrize("version", ["0_1_0"])
def test_a_run_of_every_version_is_read(version: str, tmp_path: pathlib.Path):
    """A run that this version saved after one step; a version that changes the form of runs adds its own here."""
    kept = pathlib.Path(__file__).parent / "checkpoints" / f"flanx_{version}"
    sizes = T5Sizes(8, 4, 2, 2, 6, 1, 1, gated=True, tied=False)
    source = flanx.convert.open_checkpoint(kept)
    assert source.sizes == sizes and source.step == 1
    assert fingerprint(source.tensors) == "3185a31e5d3d00590fc17e8438da0ad3f61d0038b5560234dd7954c4e7fd60e5"
    run = shutil.copytree(kept, tmp_path / "run")  # Orbax may tidy up where it reads
    model, optimizer = logit_parity.model(sizes, {}), optim.adafactor(1e-3)
    abstract = jax.eval_shape(train_step.Trainer(model, optimizer).init)
    state = checkpoint.Checkpoints(run).restore(jax.tree.map(spread, abstract))
    assert int(state.opt_state.count) == 1
    second_moments = sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(state.opt_state.v))
    assert second_moments == pytest.approx(5.621321, rel=1e-5)


def test_an_optimizer_that_t5x_does_not_have_is_named(tmp_path: pathlib.Path, capsys):
    optimizer = optim.adamw(1e-3)
    params = nest({name: tensor.read() for name, tensor in parameters(draw()).items()})
    state = train_step.TrainState(np.int32(0), params, optimizer.init(params))
    saved = checkpoint.Checkpoints(tmp_path / "run")
    saved.save(jax.device_put(state))
    saved.close()
    assert convert(tmp_path / "run", tmp_path / "out", "--to", "t5x") == 2
    message = capsys.readouterr().err
    assert "opt_state/0/" in message and "--drop-optimizer" in message
    assert not (tmp_path / "out").exists()
    assert convert(tmp_path / "run", tmp_path / "out", "--to", "t5x", "--drop-optimizer") == 0
    assert convert(tmp_path / "run", tmp_path / "hf", "--to", "hf") == 0


def test_an_optimizer_that_is_not_at_the_runs_step_is_refused(tmp_path: pathlib.Path, capsys):
    """T5X keeps one number for both; a run that starts from a parent's step has two."""
    moments = {("opt_state", "count"): np.int32(3), ("step",): np.int32(5), ("params", "decoder", "x"): np.ones(2)}
    orbax_item.write(
        open_storage(tmp_path / "run" / "default"), [(keys, in_memory(np.asarray(v))) for keys, v in moments.items()]
    )
    assert convert(tmp_path / "run", tmp_path / "out", "--to", "t5x") == 2
    assert "5 steps but 3 updates" in capsys.readouterr().err
    assert convert(tmp_path / "run", tmp_path / "out", "--to", "t5x", "--drop-optimizer") == 0


@pytest.mark.parametrize("form", ["t5x", "hf", "flanx"])
def test_every_format_is_placed_straight_on_a_mesh(tmp_path: pathlib.Path, form: str):
    if form == "hf":
        hf.write(open_storage(tmp_path), draw(), SMALL, {})
    elif form == "t5x":
        t5x.write_legacy(open_storage(tmp_path), draw(), 0)
    else:
        flanx_format.write(open_storage(tmp_path), draw())
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SMALL.shapes().items()}
    target = jax.tree.map(spread, nest(shapes))
    params = flanx.convert.restore(tmp_path, target)
    assert fingerprint(params) == fingerprint(draw())
    jax.tree.map(lambda leaf, want: None if leaf.sharding == want.sharding else pytest.fail(), params, target)


def test_a_device_reads_its_own_part_alone(tmp_path: pathlib.Path):
    t5x.write_legacy(open_storage(tmp_path), draw(), 0)
    source = flanx.convert.open_checkpoint(tmp_path)
    name = "token_embedder/embedding"
    inner, asked = source.tensors[f"target/{name}"], []
    watched = LazyTensor(inner.shape, inner.dtype, lambda index: (asked.append(index[0]), inner.fetch(index))[1])
    source.tensors[f"target/{name}"] = watched
    shapes = {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in SMALL.shapes().items()}
    flanx.convert.restore(source, jax.tree.map(spread, nest(shapes)))
    assert sorted(asked, key=str) == sorted([slice(i, i + 40) for i in range(0, 160, 40)], key=str)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(extra=s["token_embedder/embedding"]), "has no 'extra', which the model needs"),
        (lambda s: s.pop("encoder/encoder_norm/scale"), "holds 'encoder/encoder_norm/scale', which the model does not"),
        (lambda s: s.update({"encoder/encoder_norm/scale": (64,)}), r"'encoder/encoder_norm/scale' is \[128\]"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name(tmp_path: pathlib.Path, change, message: str):
    t5x.write_legacy(open_storage(tmp_path), draw(), 0)
    shapes = SMALL.shapes()
    change(shapes)
    with pytest.raises(UserError, match=message):
        flanx.convert.restore(tmp_path, nest({name: jax.ShapeDtypeStruct(s, np.float32) for name, s in shapes.items()}))


def test_a_recipe_that_names_its_parent_refuses_another(tmp_path: pathlib.Path):
    t5x.write_legacy(open_storage(tmp_path / "a"), draw(), 0)
    hf.write(open_storage(tmp_path / "b"), draw(), SMALL, {})
    mark = flanx.convert.expect_parent(tmp_path / "a", None)
    assert flanx.convert.expect_parent(tmp_path / "b", mark) == mark
    other = draw()
    other["target/encoder/encoder_norm/scale"] = in_memory(
        other["target/encoder/encoder_norm/scale"].read() + np.float32(1e-6)
    )
    t5x.write_legacy(open_storage(tmp_path / "c"), other, 0)
    with pytest.raises(UserError, match=f"the recipe's parent is {mark}"):
        flanx.convert.expect_parent(tmp_path / "c", mark)


def test_layers_are_stacked_for_a_model_that_scans_them(theirs: pathlib.Path, tmp_path: pathlib.Path, capsys):
    assert convert(theirs, tmp_path / "run", "--stacked") == 0
    assert fingerprint(draw()) in capsys.readouterr().out
    model, optimizer = dataclasses.replace(logit_parity.model(SMALL, {}), scan_layers=True), optim.adafactor(1e-3)
    abstract = jax.eval_shape(train_step.Trainer(model, optimizer).init)
    state = checkpoint.Checkpoints(tmp_path / "run").restore(jax.tree.map(spread, abstract))
    wo = [draw(optimizer=True)[f"target/decoder/layers_{i}/mlp/wo/kernel"].read() for i in range(3)]
    np.testing.assert_array_equal(state.params["decoder"]["layers"]["mlp"]["wo"]["kernel"], np.stack(wo))
    assert convert(tmp_path / "run", tmp_path / "back", "--to", "t5x") == 0
    assert_same(t5x.read_legacy(open_storage(tmp_path / "back" / "checkpoint_7")), draw(optimizer=True))


@pytest.mark.slow
def test_an_mt5_goes_out_as_an_mt5(tmp_path: pathlib.Path):
    pytest.importorskip("transformers", reason="transformers is in the extra hf")
    sizes = dataclasses.replace(ONE_LAYER, vocab_size=250_112, emb_dim=8, head_dim=2, mlp_dim=8)
    t5x.write_legacy(open_storage(tmp_path / "checkpoint_0"), draw(sizes), 0)
    assert convert(tmp_path / "checkpoint_0", tmp_path / "out", "--to", "hf", "--verify") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mt5"
    assert convert(tmp_path / "out", tmp_path / "back") == 0
    assert fingerprint(flanx.convert.open_checkpoint(tmp_path / "back").tensors) == fingerprint(draw(sizes))


@pytest.mark.parametrize("form", ["t5x", "hf"])
def test_a_run_starts_from_another_format_without_a_copy(tmp_path: pathlib.Path, form: str):
    if form == "hf":
        hf.write(open_storage(tmp_path), draw(), SMALL, {})
    else:
        t5x.write_legacy(open_storage(tmp_path), draw(), 0)
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SMALL.shapes().items()}
    params = checkpoint.load_params(tmp_path, jax.tree.map(spread, nest(shapes)))
    assert fingerprint(params) == fingerprint(draw())


def test_a_run_records_its_parent_and_refuses_another(tmp_path: pathlib.Path):
    parent, run = tmp_path / "parent", tmp_path / "run"
    t5x.write_legacy(open_storage(parent), draw(ONE_LAYER), 0)
    mark = fingerprint(draw(ONE_LAYER))
    recorded = {"initial_checkpoint_path": str(parent), "restore_optimizer": False}
    recorded |= {"initial_checkpoint_fingerprint": mark, "initial_checkpoint_step": 0}
    assert train.parent_metadata(run, RestoreCheckpointConfig(str(parent))) == recorded
    assert train.parent_metadata(run, RestoreCheckpointConfig(str(parent), mark)) == recorded
    with pytest.raises(UserError, match="the recipe's parent is 00ff"):
        train.parent_metadata(run, RestoreCheckpointConfig(str(parent), "00ff"))
    run.mkdir()
    (run / "run.json").write_text(json.dumps(recorded))
    (run / "checkpoints" / "checkpoint_1").mkdir(parents=True)
    shutil.rmtree(parent)  # a run that resumes needs its parent no more
    assert train.parent_metadata(run, RestoreCheckpointConfig(str(parent), mark)) == recorded
    assert train.parent_metadata(run, RestoreCheckpointConfig()) == dict.fromkeys(recorded)


FORMS = {"gated_untied": ONE_LAYER, "plain_tied": dataclasses.replace(ONE_LAYER, gated=False, tied=True)}


@pytest.mark.parametrize("sizes", FORMS.values(), ids=FORMS.keys())
def test_verify_holds_against_transformers(tmp_path: pathlib.Path, sizes: T5Sizes, capsys):
    pytest.importorskip("transformers", reason="transformers is in the extra hf")
    t5x.write_legacy(open_storage(tmp_path / "checkpoint_0"), draw(sizes), 0)
    assert convert(tmp_path / "checkpoint_0", tmp_path / "out", "--verify") == 0
    printed = capsys.readouterr().out
    assert "argmax agreement 100.00%: the same" in printed and "read back: the same" in printed
    assert (tmp_path / "out" / logit_parity.GOLDEN).exists()


@pytest.mark.parametrize("kind", ["flanx", "hf", "t5x"])
@pytest.mark.parametrize("start", ["t5x", "hf"])
def test_verify_of_bfloat16_compares_rounded_with_rounded(tmp_path: pathlib.Path, start: str, kind: str, capsys):
    pytest.importorskip("transformers", reason="transformers is in the extra hf")
    if start == "hf":
        hf.write(open_storage(tmp_path / "in"), draw(ONE_LAYER), ONE_LAYER, {})
    else:
        t5x.write_legacy(open_storage(tmp_path / "in"), draw(ONE_LAYER), 0)
    assert convert(tmp_path / "in", tmp_path / "out", "--to", kind, "--dtype", "bfloat16", "--verify") == 0
    assert "argmax agreement 100.00%: the same" in capsys.readouterr().out


def test_an_export_survives_tie_weights_as_its_note_says(tmp_path: pathlib.Path, capsys):
    """lm_eval calls `tie_weights()` on what it has loaded; transformers 5 then ties every head of a T5."""
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra hf")
    t5x.write_legacy(open_storage(tmp_path / "in"), draw(ONE_LAYER), 0)
    assert convert(tmp_path / "in", tmp_path / "out", "--to", "hf") == 0
    assert "tie_word_embeddings=False" in capsys.readouterr().out
    inputs, targets = logit_parity.prompts(ONE_LAYER.vocab_size)
    torch = pytest.importorskip("torch", reason="torch is in the extra hf")
    tokens, teacher = torch.tensor(inputs).long(), torch.tensor(targets).long()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out", tie_word_embeddings=False).eval()
    plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    right = plain(input_ids=tokens, decoder_input_ids=teacher).logits.detach().numpy()
    np.testing.assert_array_equal(model(input_ids=tokens, decoder_input_ids=teacher).logits.detach().numpy(), right)
    model.tie_weights()
    np.testing.assert_array_equal(model(input_ids=tokens, decoder_input_ids=teacher).logits.detach().numpy(), right)
    t5x.write_legacy(open_storage(tmp_path / "tied"), draw(FORMS["plain_tied"]), 0)
    assert convert(tmp_path / "tied", tmp_path / "tied_out", "--to", "hf") == 0
    assert "tie_word_embeddings" not in capsys.readouterr().out


def test_an_export_of_a_run_has_the_tokenizer_of_its_vocabulary(tmp_path: pathlib.Path, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra hf")
    sizes = dataclasses.replace(ONE_LAYER, vocab_size=270)
    flanx_format.write(open_storage(tmp_path / "run"), draw(sizes, optimizer=True))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"data": {"store": {"vocabulary": "byte"}}}))
    assert convert(tmp_path / "run", tmp_path / "out", "--to", "hf") == 0
    assert "no tokenizer" not in capsys.readouterr().out
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("hi").input_ids == [ord("h") + 3, ord("i") + 3, 1]
    assert [tokenizer.decode([i]) for i in (100, 259, 269)] == ["a", "<extra_id_0>", "<extra_id_10>"]
    assert convert(tmp_path / "run" / "checkpoints" / "checkpoint_7", tmp_path / "again", "--to", "hf") == 0
    assert (tmp_path / "again" / "tokenizer_config.json").exists()
    t5x.write_legacy(open_storage(tmp_path / "small"), draw(ONE_LAYER), 0)
    assert convert(tmp_path / "small", tmp_path / "no", "--to", "hf", "--vocabulary", "byte") == 2
    assert "has 259 ids, the model's table 160 rows" in capsys.readouterr().err


def golden_of(folder: pathlib.Path) -> pathlib.Path:
    """A golden as a machine with transformers would leave it, with flanx's logits for transformers'."""
    source = flanx.convert.open_checkpoint(folder)
    inputs, targets = logit_parity.prompts(source.sizes.vocab_size)
    logits = logit_parity.flanx_logits(source, {}, inputs, targets)
    np.savez(folder / "golden.npz", inputs=inputs, targets=targets, logits=logits)
    return folder / "golden.npz"


def test_verify_without_transformers_takes_a_golden_and_its_exit_status_is_the_parity(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    theirs = tmp_path / "checkpoint_0"
    t5x.write_legacy(open_storage(theirs), draw(ONE_LAYER), 0)
    monkeypatch.setattr(logit_parity, "has_transformers", lambda: False)
    good = golden_of(theirs)
    assert convert(theirs, tmp_path / "good", "--verify", "--golden", good) == 0
    assert f"logits against {good}: max |difference| " in capsys.readouterr().out
    with np.load(good) as golden:
        arrays = dict(golden)
    arrays["logits"][0, 0, 5] += 0.01
    bad = tmp_path / "bad.npz"
    np.savez(bad, **arrays)
    assert convert(theirs, tmp_path / "wrong", "--verify", "--golden", bad) == 1
    assert "NOT the same" in capsys.readouterr().out
    assert convert(theirs, tmp_path / "none", "--verify") == 2
    assert f"no file {theirs}/parity.npz" in capsys.readouterr().err
    bad.write_text("not a golden")
    assert convert(theirs, tmp_path / "none", "--verify", "--golden", bad) == 2
    assert "is not a golden of --verify" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["gated_untied", "plain_tied"])
def test_a_golden_of_transformers_that_lies_with_the_tests_holds(
    tmp_path: pathlib.Path, monkeypatch, name: str, capsys
):
    """What `--verify` left beside these drawn checkpoints where transformers 5.23 was installed."""
    theirs = tmp_path / "checkpoint_0"
    t5x.write_legacy(open_storage(theirs), draw(FORMS[name]), 0)
    golden = pathlib.Path(__file__).parent / "golden" / f"parity_{name}.npz"
    monkeypatch.setattr(logit_parity, "has_transformers", lambda: False)
    assert convert(theirs, tmp_path / "out", "--verify", "--golden", golden) == 0
    assert f"logits against {golden}" in capsys.readouterr().out


def test_parity_fails_on_what_is_not_finite_and_on_one_other_argmax():
    targets = np.ones((1, 2), np.int32)
    logits = np.asarray([[[1.0, 2.0], [3.0, 2.99999]]], np.float32)
    assert logit_parity.compare(logits, logits, targets, "").holds
    assert not logit_parity.compare(np.full_like(logits, np.nan), logits, targets, "").holds
    assert not logit_parity.compare(
        logits + np.asarray([0.0, 2e-5]), logits, targets, ""
    ).holds  # within tolerance, another argmax
    assert logit_parity.compare(logits + 5.0, logits, np.asarray([[0, 1]]), "").difference == pytest.approx(5.0)


@pytest.mark.parametrize("form", ["t5x", "flanx", "run"])
def test_a_chunk_that_is_absent_is_named(tmp_path: pathlib.Path, form: str, capsys):
    """It would be read as zeros; so looks a copy that was interrupted."""
    folder = tmp_path / "in"
    if form == "t5x":
        t5x.write_legacy(open_storage(folder), draw(ONE_LAYER), 0)
        chunk = folder / "target.decoder.layers_0.mlp.wo.kernel" / "0.0"
    else:
        flanx_format.write(open_storage(folder), draw(ONE_LAYER, optimizer=form == "run"))
        item = folder / "checkpoints" / "checkpoint_7" / "default" if form == "run" else folder
        prefix = "params." if form == "run" else ""
        chunk = item / f"{prefix}decoder.layers_0.mlp.wo.kernel" / "0.0"
        for record in folder.rglob("flanx_checksums.json"):
            record.unlink()  # as an older flanx left it
    chunk.unlink()
    for arguments in ((folder, tmp_path / "out"), (folder, tmp_path / "out", "--to", "hf")):
        assert convert(*arguments, *(["--to", "t5x"] if form != "t5x" and len(arguments) == 2 else [])) == 2
        assert f"{chunk} is missing" in capsys.readouterr().err
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in ONE_LAYER.shapes().items()}
    with pytest.raises(UserError, match="is missing"):
        checkpoint.load_params(folder, jax.tree.map(spread, nest(shapes)))
    assert not (tmp_path / "out").exists()


def test_what_convert_wrote_is_compared_with_its_record(theirs: pathlib.Path, tmp_path: pathlib.Path, capsys):
    assert convert(theirs, tmp_path / "hf", "--to", "hf") == 0
    note = json.loads((tmp_path / "hf" / "flanx_convert.json").read_text())
    assert note["source"] == "checkpoint_7"  # no path of this machine
    weights = tmp_path / "hf" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    _, end = json.loads(content[8:length])["lm_head.weight"]["data_offsets"]
    content[length + end - 1] ^= 1
    weights.write_bytes(content)
    assert convert(tmp_path / "hf", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "its flanx_convert.json says" in error and note["fingerprint"] in error
    with pytest.raises(UserError, match="it is damaged or was changed"):
        flanx.convert.expect_parent(tmp_path / "hf", None)
    assert convert(theirs, tmp_path / "run") == 0
    chunk = tmp_path / "run/checkpoints/checkpoint_7/default/params.decoder.decoder_norm.scale/0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    assert convert(tmp_path / "run", tmp_path / "out", "--to", "hf") == 2
    assert f"{chunk} has changed" in capsys.readouterr().err


def test_parameters_that_are_not_finite_are_named(tmp_path: pathlib.Path, capsys):
    tensors = draw(ONE_LAYER)
    name = "target/decoder/decoder_norm/scale"
    tensors[name] = in_memory(np.full(tensors[name].shape, np.nan, np.float32))
    hf.write(open_storage(tmp_path / "hf"), tensors, ONE_LAYER, {})
    assert convert(tmp_path / "hf", tmp_path / "out") == 2
    assert "'decoder/decoder_norm/scale' holds a NaN or an infinity" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_damaged_leaves_nothing_behind(theirs: pathlib.Path, tmp_path: pathlib.Path, capsys):
    damaged = theirs / "target.decoder.layers_0.mlp.wo.kernel" / "0.0"
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert convert(theirs, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "'target/decoder/layers_0/mlp/wo/kernel' cannot be read" in error and error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["t5x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "out"), "no folder"),
        (("empty", "out"), "nothing in it"),
        (("full", "out"), "no checkpoint in"),
        (("t5x", "full"), "is not empty"),
        (("t5x", "out", "--dtype", "float16"), "activations overflow float16"),
        (("t5x", "out", "--dtype", "int8"), "no dtype 'int8'"),
        (("t5x", "out", "--from", "hf"), "config.json"),
        (("ours", "out"), "add --to t5x or --to hf"),
        (("t5x", "out", "--to", "hf", "--stacked"), "leave it out for --to hf"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    theirs: pathlib.Path, tmp_path: pathlib.Path, arguments, message: str, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    flanx_format.write(open_storage(tmp_path / "ours"), draw())
    source, dest, *flags = arguments
    assert convert(tmp_path / source, tmp_path / dest, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# not ru_maxrss: before its exec the process shares the memory of this one, whose size would count
MEASURE = """
import pathlib, re, sys
from flanx.cli import main
status = main.main(sys.argv[1:])
print(status, int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flanx", "t5x", "hf"])
def test_peak_memory_is_under_twice_the_largest_tensor_and_a_gigabyte(tmp_path: pathlib.Path, kind: str):
    sizes = T5Sizes(32_128, 1024, 16, 64, 2816, 12, 12, gated=True, tied=False)
    largest, total = 32_128 * 1024 * 4, sum(4 * int(np.prod(shape)) for shape in sizes.shapes().values())

    def zeros(shape: tuple[int, ...]) -> LazyTensor:  # drawn when asked for: the test holds no checkpoint either
        return LazyTensor(shape, np.dtype(np.float32), lambda index: np.zeros(shape, np.float32)[index])

    tensors = {f"target/{name}": zeros(shape) for name, shape in sizes.shapes().items()}
    if kind == "flanx":
        hf.write(open_storage(tmp_path / "in"), tensors, sizes, {})
    else:
        flanx_format.write(open_storage(tmp_path / "in"), tensors)
    command = [sys.executable, "-c", MEASURE, "convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", kind]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    status, peak = map(int, printed.splitlines()[-1].split())
    assert total > 2 * largest + 10**9  # or the limit would prove nothing
    assert status == 0 and peak < 2 * largest + 10**9


def test_a_base_of_what_is_no_adapter_is_refused(theirs: pathlib.Path, tmp_path: pathlib.Path, capsys):
    assert convert(theirs, tmp_path / "o", "--base", tmp_path) == 2
    assert "--base is for an adapter" in capsys.readouterr().err and not (tmp_path / "o").exists()
