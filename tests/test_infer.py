"""`flanx infer`: prompts from a file, answers beside them, in order, and only the missing ones on a second start."""

import json
import pathlib

import flax.linen as nn
import jax
import pytest

from flanx import checkpoint, files
from flanx import infer as infer_module
from flanx.cli import main
from flanx.decoding import decode
from flanx.errors import UserError
from flanx.models.t5 import T5
from flanx.predictor import Prediction

MODEL = T5(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1)
PROMPTS = [{"inputs": "a\u2028c", "id": 7}, {"inputs": "d" * 40}, {"inputs": "xyz"}]


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A checkpoint of random parameters."""
    path = tmp_path_factory.mktemp("infer") / "checkpoint"
    checkpoint.save_params(path, nn.unbox(jax.jit(MODEL.init)(jax.random.key(0))))
    return path


def infer(parameters: pathlib.Path, prompts: pathlib.Path, out: pathlib.Path, *more: str) -> int:
    """The command's exit status."""
    sizes = ("emb_dim=16", "num_heads=2", "head_dim=8", "mlp_dim=16", "num_encoder_layers=1", "num_decoder_layers=1")
    bound = {"CHECKPOINT_PATH": f"'{parameters}'", "PROMPTS": f"'{prompts}'", "INFER_OUTPUT_DIR": f"'{out}'"}
    bound |= {"VOCABULARY": "'byte'", "TASK_FEATURE_LENGTHS": "{'inputs': 48, 'targets': 4}", "BATCH_SIZE": "8"}
    files = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/infer.gin"]
    gin = [f"--gin.{name}={value}" for name, value in bound.items()] + [f"--gin.t5.T5.{size}" for size in sizes]
    return main.main(["infer", *files, *gin, *more])


def read(out: pathlib.Path) -> list[dict]:
    """The answers."""
    return files.read_jsonl(out / "predictions.jsonl")


@pytest.fixture
def prompts(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PROMPTS))
    return path


def test_answers_stand_beside_their_prompts_and_a_second_start_does_the_rest(
    parameters, prompts, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    assert infer(parameters, prompts, out) == 0
    whole = read(out)
    assert [row["inputs"] for row in whole] == [row["inputs"] for row in PROMPTS]
    assert whole[0]["id"] == 7 and all(isinstance(row["prediction"], str) for row in whole)

    part = out / "predictions.part"
    part.write_text("\n".join([*part.read_text().split("\n")[:2], '{"index": 2, "inp']))  # killed in a line
    asked = []
    stream = decode.stream
    monkeypatch.setattr(decode, "stream", lambda *a, **k: asked.extend(a[2]) or stream(*a, **k))
    assert infer(parameters, prompts, out) == 0
    assert len(asked) == 2 and read(out) == whole
    assert infer(parameters, prompts, out) == 0 and len(asked) == 2

    edited = (out / "predictions.jsonl").read_text() + '{"note": "mine"}\n'
    (out / "predictions.jsonl").write_text(edited)
    assert infer(parameters, prompts, out) == 2 and "has been changed since it was written" in capsys.readouterr().err
    assert (out / "predictions.jsonl").read_text() == edited


@pytest.mark.parametrize("form", ["t5x", "hf"])
def test_a_checkpoint_of_t5x_or_hugging_face_answers_as_ours_does(form, parameters, prompts, tmp_path):
    folder = tmp_path / form
    assert main.main(["convert", "--to", form, str(parameters), str(folder)]) == 0
    assert infer(parameters, prompts, tmp_path / "ours") == infer(folder, prompts, tmp_path / "theirs") == 0
    assert read(tmp_path / "theirs") == read(tmp_path / "ours")


def test_samples_are_lists_and_depend_on_the_seed_alone(parameters, prompts, tmp_path):
    drawn = ("--gin.SAMPLES=3", "--gin.TEMPERATURE=1.0")
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert infer(parameters, prompts, tmp_path / name, *drawn, f"--gin.SEED={seed}") == 0
        found.append([row["predictions"] for row in read(tmp_path / name)])
    assert found[0] == found[1] != found[2]
    assert len(found[0][0]) == 3


def test_mistakes_are_one_line_each(parameters, prompts, tmp_path, capsys):
    def told(*more: str, file: pathlib.Path = prompts, out: str = "out") -> str:
        assert infer(parameters, file, tmp_path / out, *more) == 2
        return capsys.readouterr().err

    assert "no file of prompts" in told(file=tmp_path / "none.txt")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"inputs": "a"}\n{"input": "b"}\n')
    assert "wrong.jsonl:2" in told(file=wrong)
    assert "prompts.jsonl:2: 41 tokens" in told("--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 4}")
    assert "vocabulary" in told("--gin.VOCAB_SIZE=128")  # a byte needs 259
    assert told("--gin.CHECKPOINT_PATH='no/where'") and not (tmp_path / "out").exists()
    assert infer(parameters, prompts, tmp_path / "out") == 0
    assert "to other prompts, of another checkpoint or of other arguments" in told("--gin.SEED=3")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    assert "empty.txt: no prompt in it" in told(file=empty, out="other")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "predictions.jsonl").write_text("of my own\n")
    assert "own/predictions.jsonl is not of this command" in told(out="own")
    assert (tmp_path / "own" / "predictions.jsonl").read_text() == "of my own\n"
    with (tmp_path / "out" / "predictions.part").open("a") as part:
        part.write('{"index": 99, "prediction": "x", "ended": true}\n')
    assert "predictions.part:5: not an answer to one of the prompts" in told()


def test_answers_of_one_checkpoint_are_not_taken_for_those_of_another(prompts, tmp_path):
    """A run's folder stays the same path while it trains."""
    path, out = tmp_path / "checkpoint", tmp_path / "out"
    for key in range(2):
        checkpoint.save_params(path, nn.unbox(jax.jit(MODEL.init)(jax.random.key(key))))
        assert infer(path, prompts, out) == (2 if key else 0)
    path.rename(tmp_path / "moved")
    assert infer(tmp_path / "moved", prompts, tmp_path / "moved_out") == 0


def test_a_prompt_may_be_as_long_as_the_limit_and_not_one_token_longer(parameters, tmp_path, capsys):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"inputs": "d" * 15}) + "\n")  # 16 tokens, the end of sequence among them
    bound = "--gin.TASK_FEATURE_LENGTHS={'inputs': %d, 'targets': 4}"
    assert infer(parameters, path, tmp_path / "short", bound % 15) == 2
    assert "one.jsonl:1: 16 tokens, the longest prompt has 15" in capsys.readouterr().err
    assert infer(parameters, path, tmp_path / "long", bound % 16) == 0


def test_an_index_of_the_prompts_own_does_not_count_as_ours(tmp_path):
    rows = [{"index": 2, "inputs": "a"}, {"index": 0, "inputs": "b"}, {"index": "x", "inputs": "c"}, {"inputs": "d"}]

    def run(numbers):
        answers = infer_module.Answers(tmp_path / "out", rows, ["s"])
        for number in numbers:
            if number not in answers.done:
                answers.add(number, Prediction([f"to {rows[number]['inputs']}"], [True], False))
        answers.close()
        return answers

    run([0, 1])
    run(range(4)).finish()
    found = read(tmp_path / "out")
    assert [row["prediction"] for row in found] == ["to a", "to b", "to c", "to d"]
    assert [row.get("index") for row in found] == [2, 0, "x", None]
    with pytest.raises(UserError, match='prompt 0: its field "ended" is one that answers have'):
        infer_module.Answers(tmp_path / "other", [{"inputs": "a", "ended": "yes"}], ["s"])


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("p.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\n"),
        ("p.txt", "one\ntwo\n".encode("utf-16")),
        ("p.JSONL", b'\xef\xbb\xbf{"inputs": "one"}\r\n\r\n{"inputs": "two"}\r\n'),
        ("p.json", b'[{"inputs": "one"},\n {"inputs": "two"}]'),
        ("p.csv", b"inputs\none\ntwo\n"),
    ],
)
def test_prompts_are_read_in_every_form(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    assert infer_module.read_prompts(tmp_path / name) == [{"inputs": "one"}, {"inputs": "two"}]


def test_prompts_that_cannot_be_read_are_named(tmp_path):
    for raw, message in ((b"caf\xe9\n", "p.txt:1: not UTF-8"), (b"a\n\nb\n", "p.txt:2: an empty prompt")):
        (tmp_path / "p.txt").write_bytes(raw)
        with pytest.raises(UserError, match=message):
            infer_module.read_prompts(tmp_path / "p.txt")


def test_what_a_damaged_checkpoint_answered_is_not_kept(parameters, prompts, tmp_path, monkeypatch, capsys):
    def answer(self, tokens, *_):
        for number, bad in enumerate((False, True)):
            yield number, Prediction(["x"], [True], bad)

    monkeypatch.setattr(infer_module.Predictor, "generate", answer)
    assert infer(parameters, prompts, tmp_path / "out") == 2
    assert "prompt 1: the logits hold a NaN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
