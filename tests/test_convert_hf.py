import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import flanx.convert
from flanx import checkpoint
from flanx.cli import main
from flanx.convert import hf, safetensor
from flanx.convert.architecture import read_model
from flanx.convert.lazy_tensor import BFLOAT16, in_memory, parameters
from flanx.errors import UserError
from flanx.storage import open_storage
from tests.convert_case import ONE_LAYER, PLAIN_TIED, SMALL, assert_same, draw, values

SIZES = pytest.mark.parametrize("sizes", [SMALL, PLAIN_TIED], ids=["gated untied", "plain tied"])


def write(folder: pathlib.Path, sizes=SMALL, tensors=None, **config) -> pathlib.Path:
    """A Hugging Face folder of random parameters."""
    hf.write(open_storage(folder), draw(sizes) if tensors is None else tensors, sizes, config)
    return folder


def edit(folder: pathlib.Path, change) -> None:
    """Applies `change` to the dict of a folder's tensors, under Hugging Face's names."""
    path = folder / "model.safetensors"
    tensors = {name: in_memory(tensor.read().copy()) for name, tensor in safetensor.read(path).items()}
    change(tensors)
    safetensor.write(path, tensors)


def edit_config(folder: pathlib.Path, **change) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@SIZES
def test_the_table_is_one_to_one(sizes):
    names = list(sizes.shapes())
    there = [hf.translate(name, to_t5x=False) for name in names]
    assert len({name for name, _ in there}) == len(names)
    assert [hf.translate(name, to_t5x=True) for name, _ in there] == list(
        zip(names, [how for _, how in there], strict=True)
    )


def test_the_table_knows_the_names_that_transformers_uses():
    """Written out by hand, so that a slip in the table cannot hide in a round trip."""
    assert {
        hf_name: hf.translate(hf_name, to_t5x=True)
        for hf_name in (
            "encoder.block.3.layer.0.SelfAttention.k.weight",
            "encoder.block.11.layer.1.DenseReluDense.wi_1.weight",
            "decoder.block.2.layer.1.EncDecAttention.o.weight",
            "decoder.block.2.layer.2.layer_norm.weight",
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "encoder.final_layer_norm.weight",
            "lm_head.weight",
        )
    } == {
        "encoder.block.3.layer.0.SelfAttention.k.weight": ("encoder/layers_3/attention/key/kernel", hf.FLIPPED),
        "encoder.block.11.layer.1.DenseReluDense.wi_1.weight": ("encoder/layers_11/mlp/wi_1/kernel", hf.FLIPPED),
        "decoder.block.2.layer.1.EncDecAttention.o.weight": (
            "decoder/layers_2/encoder_decoder_attention/out/kernel",
            hf.FLIPPED,
        ),
        "decoder.block.2.layer.2.layer_norm.weight": ("decoder/layers_2/pre_mlp_layer_norm/scale", hf.SAME),
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
            "decoder/relpos_bias/rel_embedding",
            hf.FLIPPED,
        ),
        "encoder.final_layer_norm.weight": ("encoder/encoder_norm/scale", hf.SAME),
        "lm_head.weight": ("decoder/logits_dense/kernel", hf.FLIPPED),
    }
    assert hf.translate("decoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", to_t5x=True) is None
    assert hf.translate("encoder.block.x.layer.0.layer_norm.weight", to_t5x=True) is None


@SIZES
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BFLOAT16], ids=["float32", "bfloat16"])
def test_round_trip_is_bit_for_bit(tmp_path: pathlib.Path, sizes, dtype: np.dtype):
    tensors = {name: tensor.cast(dtype) for name, tensor in draw(sizes).items()}
    source = flanx.convert.open_checkpoint(write(tmp_path, sizes, tensors))
    assert source.kind == "hf" and source.sizes == sizes
    assert_same(source.tensors, tensors)
    assert source.config["dtype"] == dtype.name


def test_round_trip_in_shards_is_bit_for_bit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flanx.convert.hf._SHARD_BYTES", 300_000)
    tensors = draw()
    write(tmp_path, tensors=tensors)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    copies = 2 * tensors["target/token_embedder/embedding"].read().nbytes  # one for each stack, as in the public files
    assert index["metadata"]["total_size"] == sum(t.read().nbytes for t in tensors.values()) + copies
    assert_same(flanx.convert.open_checkpoint(tmp_path).tensors, tensors)
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match=f"no file '{files[1]}'"):
        flanx.convert.open_checkpoint(tmp_path)


def test_the_safetensors_package_reads_what_is_written_and_the_other_way_round(tmp_path: pathlib.Path):
    package = pytest.importorskip("safetensors.numpy", reason="safetensors is in the extra hf")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asarray([7], np.int64)}
    safetensor.write(tmp_path / "ours", {name: in_memory(array) for name, array in arrays.items()})
    package.save_file(arrays, tmp_path / "theirs")
    theirs = package.load_file(tmp_path / "ours")
    ours = values(safetensor.read(tmp_path / "theirs"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"encoder.block.0.layer.0.SelfAttention.r.weight": in_memory(np.ones(3))}),
            "SelfAttention.r.w",
        ),
        (
            lambda t: t.pop("decoder.block.1.layer.2.DenseReluDense.wo.weight"),
            "no 'target/decoder/layers_1/mlp/wo/kernel'",
        ),
        (
            lambda t: t.update(
                {"encoder.block.1.layer.0.SelfAttention.q.weight": in_memory(np.ones((3, 128), np.float32))}
            ),
            r"'target/encoder/layers_1/attention/query/kernel' is \[128, 3\]",
        ),
        (
            lambda t: t.update({"encoder.embed_tokens.weight": in_memory(np.zeros((160, 128), np.float32))}),
            "'encoder.embed_tokens.weight' differs",
        ),
        (
            lambda t: t.update({"encoder.block.7.layer.0.layer_norm.weight": in_memory(np.ones((128,), np.float32))}),
            "'target/encoder/layers_7/pre_attention_layer_norm/scale', which a T5 of these sizes does not have",
        ),
    ],
    ids=["unknown", "missing", "mis-shaped", "unequal copy", "layer too many"],
)
def test_a_wrong_tensor_is_refused_by_name(tmp_path: pathlib.Path, change, message: str):
    write(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(UserError, match=message):
        flanx.convert.open_checkpoint(tmp_path)


def test_copies_and_the_unused_table_of_old_files_are_consumed(tmp_path: pathlib.Path):
    write(tmp_path, PLAIN_TIED)

    def old(tensors):
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors["shared.weight"]
        tensors[hf.UNUSED[0]] = in_memory(np.zeros((32, 4), np.float32))

    edit(tmp_path, old)
    assert_same(flanx.convert.open_checkpoint(tmp_path).tensors, draw(PLAIN_TIED))


@pytest.mark.parametrize(
    ("config", "head", "tied"),
    [
        ({"tie_word_embeddings": True, "scale_decoder_outputs": None}, "equal", True),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": None}, "own", False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, "own", False),  # transformers 5 writes this
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, "absent", False),
        ({"model_type": "mt5", "tie_word_embeddings": True, "scale_decoder_outputs": None}, "own", False),
    ],
)
def test_the_head_is_what_the_logits_say(tmp_path: pathlib.Path, config, head: str, tied: bool):
    write(tmp_path, PLAIN_TIED)
    own = np.full((160, 128), 2.0, np.float32)

    def change(tensors):
        if head != "absent":
            tensors["lm_head.weight"] = in_memory(own) if head == "own" else tensors["shared.weight"]

    edit(tmp_path, change)
    edit_config(tmp_path, **config)
    source = flanx.convert.open_checkpoint(tmp_path)
    params = parameters(source.tensors)
    assert source.sizes.tied is tied
    if not tied:
        embedding = params["token_embedder/embedding"].read()
        want = own if head == "own" else embedding
        np.testing.assert_array_equal(params["decoder/logits_dense/kernel"].read(), want.T)


def test_a_head_that_config_ties_and_the_file_does_not_is_refused(tmp_path: pathlib.Path):
    write(tmp_path, SMALL)
    edit_config(tmp_path, tie_word_embeddings=True, scale_decoder_outputs=True)
    with pytest.raises(UserError, match=r"'lm_head\.weight' differs from 'shared\.weight'"):
        flanx.convert.open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05, flanx's T5 has 1e-06"),
        ({"relative_attention_max_distance": 256}, "relative_attention_max_distance is 256"),
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64"),
        ({"pad_token_id": 3}, "pad_token_id is 3"),
        ({"eos_token_id": 2}, "eos_token_id is 2"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is False"),
        ({"forced_bos_token_id": 250004}, "forced_bos_token_id is 250004"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is"),
        ({"feed_forward_proj": "gated-swish"}, "feed_forward_proj is 'gated-swish'"),
        ({"feed_forward_proj": {}}, "feed_forward_proj is {}"),
        ({"dense_act_fn": "silu"}, "dense_act_fn is 'silu', but feed_forward_proj 'gated-gelu' is 'gelu_new'"),
        ({"is_gated_act": False}, "is_gated_act is False"),
        ({"decoder_start_token_id": 160}, "decoder_start_token_id is 160, not one of 160 tokens"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id is 5 in config.json and 0 in generation_config.json"),
        ({"layer_norm_epsilom": 1e-6}, "does not know 'layer_norm_epsilom'; did you mean 'layer_norm_epsilon'"),
    ],
)
def test_a_config_that_says_another_computation_is_refused_by_name(tmp_path: pathlib.Path, change, message: str):
    write(tmp_path)
    edit_config(tmp_path, **change)
    if "generation_config" not in message:
        (tmp_path / "generation_config.json").unlink()
    with pytest.raises(UserError, match=message):
        flanx.convert.open_checkpoint(tmp_path)


def test_configs_as_they_are_published_are_read(tmp_path: pathlib.Path):
    """Fields of t5-small, flan-t5, mt5, byt5 and madlad400 that change no logit."""
    write(tmp_path)
    edit_config(
        tmp_path, n_positions=512, output_past=True, task_specific_params={"summarization": {"num_beams": 4}},
        gradient_checkpointing=False, tokenizer_class="T5Tokenizer", transformers_version="4.23.1", use_cache=True,
        dense_act_fn="gelu_new", is_gated_act=True, classifier_dropout=0.0, initializer_factor=1.0, dropout_rate=0.0,
        relative_attention_max_distance=128, torch_dtype="float32", pruned_heads={}, num_beams=1,
    )  # fmt: skip
    assert_same(flanx.convert.open_checkpoint(tmp_path).tensors, draw())


OTHER_ACTIVATIONS = pytest.mark.parametrize("name", ["gated-silu", "gated-relu"])


@OTHER_ACTIVATIONS
def test_a_model_that_would_compute_another_function_is_refused_with_the_repair(tmp_path: pathlib.Path, name: str):
    write(tmp_path / "hf", decoder_start_token_id=5, feed_forward_proj=name)
    assert main.main(["convert", str(tmp_path / "hf"), str(tmp_path / "ours")]) == 0
    model = SMALL.model()
    for path in (tmp_path / "hf", tmp_path / "ours"):
        with pytest.raises(UserError, match=r"bind t5.T5.decoder_start_token_id = 5"):
            checkpoint.load_params(path, None, model)
        right = dataclasses.replace(model, decoder_start_token_id=5)
        with pytest.raises(UserError, match=rf"bind t5.T5.mlp_activations = \('{name[6:]}', 'linear'\)"):
            checkpoint.load_params(path, None, right)
    assert main.main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "hf"]) == 0
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["decoder_start_token_id"], config["feed_forward_proj"]) == (5, name)
    assert main.main(["convert", str(tmp_path / "ours"), str(tmp_path / "no"), "--to", "t5x"]) == 2  # it starts with 0


@OTHER_ACTIVATIONS
def test_verify_holds_with_another_activation_and_first_token(tmp_path: pathlib.Path, name: str, capsys):
    pytest.importorskip("transformers", reason="transformers is in the extra hf")
    write(tmp_path / "hf", ONE_LAYER, draw(ONE_LAYER), decoder_start_token_id=5, feed_forward_proj=name)
    assert main.main(["convert", str(tmp_path / "hf"), str(tmp_path / "ours"), "--verify"]) == 0
    assert "argmax agreement 100.00%: the same" in capsys.readouterr().out


def renamed(folder: pathlib.Path, **names: str) -> None:
    """Gives tensors of a folder other names; none for a name drops the tensor."""

    def change(tensors):
        for old, new in names.items():
            tensor = tensors.pop(old.replace("_weight", ".weight"))
            for name in new.split():
                tensors[name] = tensor

    edit(folder, change)


COPY = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"


@pytest.mark.parametrize("names", [*COPY, " ".join(COPY), f"shared.weight {COPY[0]}"])
@pytest.mark.parametrize("sizes", [SMALL, PLAIN_TIED], ids=["own head", "tied head"])
def test_a_table_under_any_of_its_names_is_read(tmp_path: pathlib.Path, sizes, names: str):
    """MADLAD-400 has it as decoder.embed_tokens; safetensors' save_model keeps whichever comes first."""
    write(tmp_path, sizes)
    renamed(tmp_path, shared_weight=names)
    assert_same(flanx.convert.open_checkpoint(tmp_path).tensors, draw(sizes))


def test_a_tied_table_may_have_the_name_of_the_head_alone(tmp_path: pathlib.Path):
    write(tmp_path, PLAIN_TIED)
    renamed(tmp_path, shared_weight="lm_head.weight")
    assert_same(flanx.convert.open_checkpoint(tmp_path).tensors, draw(PLAIN_TIED))


def test_other_models_and_damaged_files_are_refused(tmp_path: pathlib.Path):
    write(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for content, message in (
        (whole[:-5], "is truncated"),
        (b"\xff" * 64, "is a truncated safetensors"),
        (b"\x04" + bytes(7) + b"nope", "not a safetensors file"),
    ):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=message):
            flanx.convert.open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights in"):
        flanx.convert.open_checkpoint(tmp_path)
    write(tmp_path)
    edit_config(tmp_path, d_kv=None)
    with pytest.raises(UserError, match="has no 'd_kv'"):
        flanx.convert.open_checkpoint(tmp_path)
    edit_config(tmp_path, model_type="bart")
    with pytest.raises(UserError, match="model_type 'bart'"):
        flanx.convert.open_checkpoint(tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch >= 1.6", "torch < 1.6"])
def test_torch_files_are_read_without_running_what_they_hold(tmp_path: pathlib.Path, zipped: bool):
    torch = pytest.importorskip("torch", reason="torch is in the extra hf")
    tensors = draw()
    write(tmp_path, tensors=tensors)
    state = {n: torch.from_numpy(t.read().copy()) for n, t in safetensor.read(tmp_path / "model.safetensors").items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_same(flanx.convert.open_checkpoint(tmp_path).tensors, tensors)
    torch.save({"a": pathlib.PurePosixPath("x")}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        flanx.convert.open_checkpoint(tmp_path)


def test_no_torch_transformers_tensorflow_or_t5x_is_imported(tmp_path: pathlib.Path):
    write(tmp_path / "hf")
    code = (
        "import sys; from flanx.cli import main; from pathlib import Path\n"
        f"base = {str(tmp_path)!r}\n"
        "assert main.main(['convert', base + '/hf', base + '/t5x', '--to', 't5x']) == 0\n"
        "assert main.main(['convert', base + '/t5x', base + '/flanx']) == 0\n"
        "assert main.main(['convert', base + '/flanx', base + '/hf2', '--to', 'hf']) == 0\n"
        "print(sorted({'torch', 'transformers', 'tensorflow', 't5x', 'safetensors', 'seqio'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    name = "model.safetensors"
    assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "hf2" / name).read_bytes()


def test_transformers_loads_the_folder_its_generation_config_and_its_tokenizer(tmp_path: pathlib.Path, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra hf")
    from flanx.data import vocabulary

    write(tmp_path / "hf", dataclasses.replace(ONE_LAYER, vocab_size=270))
    assert main.main(["convert", str(tmp_path / "hf"), str(tmp_path / "flanx")]) == 0
    assert main.main(["convert", str(tmp_path / "flanx"), str(tmp_path / "out"), "--to", "hf"]) == 0
    assert "add --vocabulary SPEC" in capsys.readouterr().out
    again = ["convert", str(tmp_path / "flanx"), str(tmp_path / "byte"), "--to", "hf", "--vocabulary", "byte"]
    assert main.main(again) == 0
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "byte")
    assert model.generation_config.decoder_start_token_id == 0
    assert model.generation_config.eos_token_id == 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "byte")
    assert tokenizer("hi").input_ids == [ord("h") + 3, ord("i") + 3, 1]
    spec = importlib.util.find_spec("seqio")  # found, not imported: a real SentencePiece model lies in it
    pieces = pathlib.Path(spec.origin).parent / "test_data" / "sentencepiece" / "sentencepiece.model"
    again = ["convert", str(tmp_path / "flanx"), str(tmp_path / "pieces"), "--to", "hf", "--vocabulary", str(pieces)]
    assert main.main(again) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "pieces")
    ours = vocabulary.load(str(pieces))
    assert len(tokenizer) == ours.size
    assert tokenizer("this is a test").input_ids == [*ours.encode("this is a test"), ours.eos_id]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == ours.size - 1


def lie(folder: pathlib.Path, change) -> None:
    """Applies `change` to the header of a folder's safetensors file; `change` returns what replaces it."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def entry(**change):
    """Changes the entry of the table in a header."""
    return lambda header: header | {"shared.weight": header["shared.weight"] | change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: [], "not a dict of tensors"),
        (lambda header: header | {"shared.weight": []}, "does not say dtype, shape and two offsets of 'shared.weight'"),
        (entry(shape=3), "does not say"),
        (entry(shape=[-1, -4096]), "does not say"),
        (entry(data_offsets=[-8, 0]), "does not say"),
        (entry(data_offsets=[0]), "does not say"),
        (entry(dtype=["F32"]), "does not say"),
        (entry(dtype="BF16"), "does not fill"),
        (entry(shape=[10**12, 10**12]), "does not fill"),
        (lambda header: header | {"twice": header["shared.weight"]}, "where the last one ends"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: pathlib.Path, change, message: str):
    folder = write(tmp_path / "hf")
    lie(folder, change)
    with pytest.raises(UserError, match=message):
        hf.read(open_storage(folder))


def test_files_outside_the_folder_pipes_and_absurd_sizes_are_refused(tmp_path: pathlib.Path):
    folder = write(tmp_path / "hf")
    for layers, message in ((10**9, "tensors in all"), (-1, "not a size"), ("2", "not a size")):
        edit_config(folder, num_layers=layers)
        with pytest.raises(UserError, match=message):
            hf.read(open_storage(folder))
    edit_config(folder, num_layers=2)
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    for weight_map in ({"shared.weight": "../outside.safetensors"}, {"shared.weight": "/etc/passwd"}, {"a": 3}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="not a file of the folder"):
            hf.read(open_storage(folder))
    for text, said in (("[]", r"index\.json is not a JSON object"), ("{}", "no 'weight_map'")):
        index.write_text(text)
        with pytest.raises(UserError, match=said):
            hf.read(open_storage(folder))
    os.mkfifo(weights)
    with pytest.raises(UserError, match="not a regular file"):
        hf.read(open_storage(folder))


def test_the_model_of_a_checkpoint_is_given_again_only_in_its_sizes(tmp_path):
    """A gin file of a model that is named next to MODEL."""
    folder = str(write(tmp_path))
    found = read_model(folder)
    again = dataclasses.replace(found, dropout_rate=0.25, remat="full")
    assert read_model(folder, again) is again
    wider = dataclasses.replace(found, mlp_dim=found.mlp_dim + 8)
    with pytest.raises(UserError, match=rf"is a T5 with mlp_dim {found.mlp_dim} \(gin: {wider.mlp_dim}\): leave out"):
        read_model(folder, wider)
