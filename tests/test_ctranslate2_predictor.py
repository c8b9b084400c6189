"""Greedy answers by CTranslate2: flanx's own tokens in float32, nearly those in int8; what it lacks is refused."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from flanx import checkpoint
from flanx.cli import main
from flanx.convert import ctranslate2_model
from flanx.ctranslate2_predictor import CTranslate2Predictor
from flanx.data import vocabulary
from flanx.decoding import beam_search, decode
from flanx.errors import UserError
from flanx.models.t5 import T5
from flanx.partition import Partitioner
from flanx.predictor import Prediction

SIZES = {"vocab_size": 384, "emb_dim": 16, "num_heads": 3, "head_dim": 8, "mlp_dim": 24}
SIZES |= {"num_encoder_layers": 2, "num_decoder_layers": 2}
MODELS = {
    "T5.1.1": T5(**SIZES),
    "T5.1.0": T5(**SIZES, mlp_activations=("relu",), tied_head=True),
    "umT5": T5(**SIZES, mlp_activations=("silu", "linear"), relative_bias="layer", decoder_start_token_id=3),
    "scanned": T5(**SIZES, scan_layers=True),
}


class Ids(vocabulary.Bytes):
    """Bytes whose texts are the ids, none of which is lost in a text."""

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))


BYTES = Ids()
TEXTS = ["a", "bcd", "what is it?", "e" * 70, "f g h", "\u2028 \u00e9"]
PROMPTS = [[*BYTES.encode(text), BYTES.eos_id] for text in TEXTS]
LENGTHS = {"inputs": 80, "targets": 12}
has_package = pytest.mark.skipif(
    not ctranslate2_model.is_installed(), reason="ctranslate2 (extra ctranslate2) is not installed"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ctranslate2"


def drawn(model: T5) -> Any:
    draws = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: nn.unbox(model.init(key)), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.numpy.asarray(draws.standard_normal(leaf.shape, np.float32) / 2), shapes)


def ours(model: T5, params: Any) -> list[decode.Output]:
    return decode.generate(model, params, PROMPTS, max_new=LENGTHS["targets"])


def predictions(outputs: list[decode.Output]) -> list[Prediction]:
    return [Prediction([BYTES.decode(each.tokens[0])], each.ended[:1], False) for each in outputs]


def theirs(model: T5, folder: pathlib.Path, compute_type: Any = "float32", batch_size: int = 4) -> list[Prediction]:
    empty = CTranslate2Predictor(model, None, BYTES, LENGTHS, batch_size, compute_type=compute_type)
    with empty.restored(str(folder), Partitioner()) as predictor:
        found = dict(predictor.generate(PROMPTS))
        assert len(predictor.fingerprint() or "") == 16
    return [found[number] for number in range(len(PROMPTS))]


@has_package
@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_in_float32_are_flanx_s_own(name: str, tmp_path: pathlib.Path) -> None:
    model, params = MODELS[name], drawn(MODELS[name])
    checkpoint.save_params(tmp_path / "saved", params)
    wanted = predictions(ours(model, params))
    assert len({tuple(each.texts) for each in wanted}) > len(PROMPTS) // 2
    assert theirs(model, tmp_path / "saved") == wanted
    assert theirs(model, tmp_path / "saved", batch_size=64) == wanted


@has_package
@pytest.mark.parametrize("place", [0, 3])
def test_an_answer_ends_where_flanx_s_own_does_and_may_be_empty(place: int, tmp_path: pathlib.Path) -> None:
    model, params = MODELS["T5.1.1"], drawn(MODELS["T5.1.1"])
    token = ours(model, params)[0].tokens[0][place]  # it takes the place of the end of sequence
    kernel = np.array(params["decoder"]["logits_dense"]["kernel"])
    kernel[:, [BYTES.eos_id, token]] = kernel[:, [token, BYTES.eos_id]]
    params["decoder"]["logits_dense"]["kernel"] = jax.numpy.asarray(kernel)
    checkpoint.save_params(tmp_path / "saved", params)
    wanted = predictions(ours(model, params))
    assert len(wanted[0].texts[0].split()) == place and wanted[0].ended == [True]
    assert theirs(model, tmp_path / "saved") == wanted


@has_package
def test_int8_is_close(tmp_path: pathlib.Path) -> None:
    wide = {"emb_dim": 128, "mlp_dim": 256, "num_heads": 4, "head_dim": 16}
    model = T5(**SIZES | wide | {"num_encoder_layers": 1, "num_decoder_layers": 1})
    params = drawn(model)
    checkpoint.save_params(tmp_path / "saved", params)
    wanted = [output.tokens[0][0] for output in ours(model, params)]
    found = [int(answer.texts[0].split()[0]) for answer in theirs(model, tmp_path / "saved", "int8")]
    assert len(set(wanted)) > 3
    agreed = sum(a == b for a, b in zip(found, wanted, strict=True))  # of 384 tokens none by chance
    assert agreed > len(wanted) // 2, (wanted, found)


def test_what_it_does_not_do_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctranslate2_model, "is_installed", lambda: True)
    predictor = CTranslate2Predictor(MODELS["T5.1.1"], None, BYTES, LENGTHS)
    for method, samples, message in (
        (decode.Sample(0.7), 1, "not with Sample"),
        (decode.GREEDY, 3, "not with 3 samples"),
        (beam_search.Beam(4), 1, "not with Beam"),
    ):
        with pytest.raises(UserError, match=message):
            next(predictor.generate(PROMPTS, method, samples))
    with pytest.raises(UserError, match="not with scores"):
        next(predictor.generate(PROMPTS, scored=True))
    with pytest.raises(UserError, match="has no stop texts"):
        next(predictor.generate(PROMPTS, stop=bool))
    for refused in (predictor.score, predictor.score_tokens):
        with pytest.raises(UserError, match="gives no log-probabilities"):
            refused(PROMPTS, [])
    with pytest.raises(UserError, match="on one CPU in one process"), predictor.restored("x", Partitioner(2)):
        pass
    with pytest.raises(UserError, match="no checkpoint"), predictor.restored(None, Partitioner()):
        pass
    with pytest.raises(UserError, match="no bfloat16 on a CPU"):
        dataclasses.replace(predictor, model=dataclasses.replace(predictor.model, dtype="bfloat16"))


@has_package
def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    model = MODELS["T5.1.1"]
    checkpoint.save_params(tmp_path / "saved", drawn(model))
    with pytest.raises(UserError, match=r"is \[16, 24\], the model has \[16, 32\]"):
        theirs(dataclasses.replace(model, mlp_dim=32), tmp_path / "saved")
    with pytest.raises(UserError, match="which the model does not have"):
        theirs(dataclasses.replace(model, num_decoder_layers=1), tmp_path / "saved")
    assert not cache.exists()


# --- the command -----------------------------------------------------------------------------------------------------


def infer(tmp_path: pathlib.Path, out: str, *more: str) -> int:
    bound = {"CHECKPOINT_PATH": f"'{tmp_path}/saved'", "PROMPTS": f"'{tmp_path}/p.txt'", "VOCABULARY": "'byte'"}
    bound |= {"INFER_OUTPUT_DIR": f"'{tmp_path / out}'", "TASK_FEATURE_LENGTHS": repr(LENGTHS)}
    bound |= {f"t5.T5.{name}": str(value) for name, value in SIZES.items()}
    files = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/infer.gin"]
    return main.main(["infer", *files, *(f"--gin.{name}={value}" for name, value in bound.items()), *more])


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "p.txt").write_text("a\nbcd\nwhat is it?\n")
    return tmp_path


ENGINE = "--gin.ENGINE='ctranslate2'"


@has_package
def test_the_command_writes_the_same_answers_and_resumes(folder: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint.save_params(folder / "saved", drawn(MODELS["T5.1.1"]))
    assert infer(folder, "ours") == infer(folder, "theirs", ENGINE) == 0
    answers = folder / "theirs" / "predictions.jsonl"
    assert answers.read_text() == (folder / "ours" / "predictions.jsonl").read_text()
    kept = folder / "theirs" / "predictions.part"
    whole = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(whole[:2]))
    answers.unlink()
    assert infer(folder, "theirs", ENGINE) == 0
    assert "2 prompts in" in capsys.readouterr().out
    assert answers.read_text() == (folder / "ours" / "predictions.jsonl").read_text()
    for other in ((), (ENGINE, "--gin.COMPUTE_TYPE='int8'")):
        assert infer(folder, "theirs", *other) == 2
        assert "of other arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((ENGINE, "--gin.TEMPERATURE=0.7"), "only decodes greedily"),
        ((ENGINE, "--gin.SAMPLES=2"), "not with 2 samples"),
        ((ENGINE, "--gin.NUM_PARTITIONS=2"), "on one CPU in one process"),
        ((ENGINE, "--gin.t5.T5.dtype='bfloat16'"), "no bfloat16 on a CPU"),
        ((ENGINE, "--gin.COMPUTE_TYPE='bfloat16'"), "it takes 'float32' or 'int8'"),
        (("--gin.COMPUTE_TYPE='int8'",), "ENGINE = 'ctranslate2' alone has"),
        (("--gin.ENGINE='vllm'",), "it takes 'flanx' or 'ctranslate2'"),
    ],
)
def test_what_the_command_refuses_leaves_nothing(
    flags: tuple[str, ...], message: str, folder: pathlib.Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctranslate2_model, "is_installed", lambda: True)
    assert infer(folder, "out", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) < 6
    assert not (folder / "out").exists()
