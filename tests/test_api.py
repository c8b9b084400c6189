"""flanx in Python: what is loaded answers as the commands do, from every kind of checkpoint, and says what is wrong."""

import ast
import inspect
import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import flanx
from flanx import api, evaluate, files
from flanx.cli import main
from flanx.convert import hf
from flanx.convert.t5_shapes import T5Sizes
from flanx.models.t5 import T5
from flanx.storage import open_storage
from tests import run_case
from tests.convert_case import draw

SIZES = {"emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32, "num_encoder_layers": 1, "num_decoder_layers": 1}
T5_SIZES = T5Sizes(vocab_size=384, gated=True, tied=False, **SIZES)
LENGTHS = {"inputs": 32, "targets": 16}
PROMPTS = ["say a", "wxyz", "", "a longer one, with words"]
PERIODS = {"train.log_period": 1, "train.task_loss_period": 3}  # as run_case.command has them
TRAINED: dict[str, Any] = {
    "vocabulary": "byte", "task_feature_lengths": LENGTHS, "train_steps": 2, "batch_size": 8, "learning_rate": 0.02,
    "dropout_rate": 0.1, "bindings": PERIODS | {f"t5.T5.{name}": size for name, size in SIZES.items()},
}  # fmt: skip
ASKED = TRAINED | {"model": "t5_1_1/tiny", "mixture": "suite", "store_dir": "none", "model_dir": "none"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of two steps, and one drawn model in Hugging Face's, flanx's (also stacked) and T5X's form."""
    folder = tmp_path_factory.mktemp("api")
    flanx.train(model="t5_1_1/tiny", mixture="own", store_dir=run_case.store_dir(), model_dir=folder / "run", **TRAINED)
    hf.write(open_storage(folder / "hf"), draw(T5_SIZES), T5_SIZES, {})
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    for name, how in (("flanx", []), ("stacked", ["--stacked"]), ("t5x", ["--to", "t5x"])):
        assert main.main(["convert", str(folder / "hf"), str(folder / name), *how]) == 0
    shutil.copytree(folder / "t5x", folder / "bare")
    (folder / "bare" / "tokenizer_config.json").unlink()
    return folder


def infer(home: pathlib.Path, kind: str, out: pathlib.Path, **more: object) -> list[Any]:
    """What `flanx infer` answers to PROMPTS."""
    prompts = out.with_suffix(".jsonl")
    prompts.write_text("".join(json.dumps({"inputs": prompt}) + "\n" for prompt in PROMPTS))
    bound: dict[str, object] = {
        "CHECKPOINT_PATH": str(home / kind), "PROMPTS": str(prompts), "INFER_OUTPUT_DIR": str(out),
        "VOCABULARY": "byte", "TASK_FEATURE_LENGTHS": LENGTHS,
    }  # fmt: skip
    bound |= {f"t5.T5.{name}": size for name, size in SIZES.items()} | more
    if kind == "stacked":
        bound["t5.T5.scan_layers"] = True
    gin = [f"--gin.{name}={value!r}" for name, value in bound.items()]
    assert main.main(["infer", "--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/infer.gin", *gin]) == 0
    rows = files.read_jsonl(out / "predictions.jsonl")
    return [row.get("prediction", row.get("predictions")) for row in rows]


SLOW_KINDS = ("run/checkpoints/checkpoint_2", "flanx", "stacked")
KINDS = ("run", "hf", "t5x", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW_KINDS))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_checkpoint_answers_as_infer_does(home, tmp_path, kind):
    model = flanx.load(home / kind, lengths=LENGTHS)
    assert isinstance(model.predictor.model, T5)
    assert model.generate(PROMPTS) == infer(home, kind, tmp_path / "greedy")
    drawn = {"SAMPLES": 2, "TEMPERATURE": 0.9, "TOP_K": 20, "TOP_P": 0.9, "SEED": 3}
    got = model.generate(PROMPTS, samples=2, temperature=0.9, top_k=20, top_p=0.9, seed=3)
    assert got == infer(home, kind, tmp_path / "drawn", **drawn)
    assert len({tuple(texts) for texts in got}) > 1


def test_a_call_trains_what_the_command_trains(home, tmp_path):
    bound = TRAINED["bindings"] | {"TRAIN_STEPS": 2, "CHECKPOINT_PERIOD": 1000}
    assert main.main(run_case.command(tmp_path / "run", **bound)[3:]) == 0
    ours, theirs = home / "run", tmp_path / "run"
    for name in ("run.json", "done.json"):
        assert (ours / name).read_text() == (theirs / name).read_text()
    texts = [(folder / "config.gin").read_text().replace(str(folder), "") for folder in (ours, theirs)]
    both = [text.replace("\\\n", "").split() for text in texts]  # a long path breaks its line
    assert both[0] == both[1]
    losses = [[row["loss"] for row in files.read_jsonl(folder / "metrics.jsonl") if "loss" in row] for folder in
              (ours, theirs)]  # fmt: skip
    assert losses[0] == losses[1] and len(losses[0]) == 2
    a, b = (flanx.load(folder).predictor.params for folder in (ours, theirs))
    for one, other in zip(*map(flatten, (a, b)), strict=True):
        np.testing.assert_array_equal(one, other)


def flatten(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in flatten(value)]
    return [np.asarray(tree)]


def test_a_mixture_object_means_its_fields(tmp_path):
    mixture = flanx.Mixture("own", num_tasks=1, caps={"own": 10})
    with pytest.raises(flanx.UserError, match=r"no gin macro 'BATCH_SISE'.*did you mean 'BATCH_SIZE'"):
        flanx.train(
            model="t5_1_1/tiny", mixture=mixture, store_dir=run_case.store_dir(), model_dir=tmp_path / "run",
            **TRAINED, batch_sise=8,
        )  # fmt: skip
    run = flanx.train(
        model="t5_1_1/tiny", mixture=mixture, store_dir=run_case.store_dir(), model_dir=tmp_path / "run",
        **TRAINED | {"train_steps": 0},
    )  # fmt: skip
    assert "mixture.Mixture.caps = {'own': 10}" in (run / "config.gin").read_text()
    assert "NUM_TASKS = 1" in (run / "config.gin").read_text()


def test_scores_are_log_probabilities_and_do_not_depend_on_their_company(home):
    model = flanx.load(home / "hf", lengths=LENGTHS)
    (both,) = model.score([("Is it so?", ["yes", "no"])])
    assert both == pytest.approx([model.score([("Is it so?", [each])])[0][0] for each in ("yes", "no")], abs=1e-4)
    assert all(score < 0 for score in both) and model.score([]) == []


def test_stop_texts_and_lengths_end_an_answer(home):
    model = flanx.load(home / "hf", lengths=LENGTHS)
    prompts = ["abc", "say it", "what", "xyz", "0 1 2 3"]
    texts = model.generate(prompts, samples=4, temperature=1.0, max_new_tokens=12)
    whole = max((text for each in texts for text in each), key=len)
    drawn = {"samples": 4, "temperature": 1.0, "max_new_tokens": 12}
    for stop in (whole[0], whole[1:3], whole[-1]):
        cut = model.generate(prompts, stop=[stop, "never there"], **drawn)
        assert cut == [[text.partition(stop)[0] for text in each] for each in texts]
    assert len(whole) > 2
    short = model.generate(prompts, max_new_tokens=2)
    assert all(len(model.predictor.vocabulary.encode(text)) <= 2 for text in short)
    assert all(isinstance(text, str) for text in model.generate(prompts, beams=2, max_new_tokens=4))


def test_evaluate_is_the_command(home, tmp_path):
    suites = ["suite_rule[:1]"]
    model = flanx.load(str(home / "run"), lengths=LENGTHS)
    scores = flanx.evaluate(model, suites, out_dir=tmp_path / "ours")
    bound = {f"t5.T5.{name}": size for name, size in SIZES.items()} | {
        "CHECKPOINT_PATH": str(home / "run"), "OUTPUT_DIR": str(tmp_path / "theirs"), "VOCABULARY": "byte",
        "SUITES": suites, "TASK_FEATURE_LENGTHS": LENGTHS, "DROPOUT_RATE": 0.1,
    }  # fmt: skip
    gin = [f"--gin.{name}={value!r}" for name, value in bound.items()]
    names = ("models/t5_1_1/tiny.gin", "runs/evaluate.gin", "evals/base.gin")
    assert main.main(["evaluate", *(f"--gin_file={name}" for name in names), *gin]) == 0
    files_of = {p.relative_to(tmp_path / "ours") for p in (tmp_path / "ours").rglob("*.json*")}
    assert len(files_of) > 1
    for name in files_of:
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()
    assert flanx.evaluate(home / "run", suites)["suites"].keys() == scores["suites"].keys()


def test_evaluate_takes_every_setting_of_the_command():
    ours, theirs = (inspect.signature(each).parameters.keys() for each in (api.evaluate, evaluate.evaluate))
    of_the_model = {"vocabulary", "lengths", "params", "checkpoint", "partitioner", "provenance"}
    assert theirs - ours == {*of_the_model, "step", "checks_only"} and not ours - theirs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, h: m.generate("text"), "prompts is 'text'; it takes a list of texts"),
        (lambda m, h: m.generate(["a", 3]), r"prompts is \['a', 3\]; it takes a list of texts"),
        (lambda m, h: m.generate(["a\ud800"]), "prompt 0: .*ud800' is half a character"),
        (lambda m, h: m.score([("a", ["\ud800"])]), "prompt 0: .*ud800' is half a character"),
        (
            lambda m, h: flanx.evaluate(m, ["suite_rule[:1]"], out_dir=__file__),
            "out_dir is '.*', a file; give a folder",
        ),
        (lambda m, h: flanx.train(**ASKED | {"model": 3}), "train: model is 3; it takes a text"),
        (lambda m, h: flanx.train(**ASKED, gin_files="a.gin"), "gin_files is 'a.gin'; it takes a list of texts"),
        (lambda m, h: flanx.build_store(h / "no", ["suite", 3]), "tasks is .*; it takes a text or a list of texts"),
        (lambda m, h: flanx.build_store(h / "no", "suite", styles="zsopt"), "styles is 'zsopt'; it takes a list"),
        (lambda m, h: m.generate(["a"], stop="x"), "stop is 'x'; it takes a list of texts"),
        (lambda m, h: m.generate(["a"], stop=[""]), "an empty text"),
        (lambda m, h: m.generate(["a"], temperature=-1), "temperature is -1; it takes a number, 0 or more"),
        (
            lambda m, h: m.generate(["a"], max_new_tokens=0),
            "max_new_tokens is 0; it takes a whole number or None, 1 or",
        ),
        (lambda m, h: m.generate(["a"], samples=2), "2 samples at temperature 0"),
        (lambda m, h: m.generate(["a"], beams=2, samples=2), "beams give one answer"),
        (lambda m, h: m.generate(["a", "b" * 40]), "prompt 1: 41 tokens, the longest has 32"),
        (lambda m, h: m.score("text"), "pairs is 'text'"),
        (lambda m, h: m.score([("a", "yes")]), "continuations of prompt 0 are 'yes'; give a list"),
        (lambda m, h: m.score(["ab"]), "pair 0 is 'ab'"),
        (lambda m, h: m.score([("a", [])]), "has no options"),
        (lambda m, h: flanx.evaluate(m, "suite_rule"), "suites is 'suite_rule'; it takes a list of texts"),
        (lambda m, h: flanx.evaluate(m, ["suite_rul"]), "did you mean 'suite_rule'"),
        (lambda m, h: flanx.load(3), "checkpoint is 3; it takes a text or a path$"),
        (lambda m, h: flanx.load(h / "none"), "no folder"),
        (lambda m, h: flanx.load(h / "bare"), "does not say its vocabulary"),
        (lambda m, h: flanx.load(h / "hf", partitions=0), "partitions is 0"),
        (lambda m, h: flanx.load(h / "hf", dtype="float16"), "use 'bfloat16'"),
        (lambda m, h: flanx.load(h / "hf", lengths={"inputs": 0, "targets": 4}), "lengths is"),
        (lambda m, h: flanx.load(h / "hf", lengths={"inputs": 8}), "give 'inputs' and 'targets'"),
    ],
)
def test_a_mistake_is_one_line(home, call, message):
    model = flanx.load(home / "hf", lengths=LENGTHS)
    with pytest.raises(flanx.UserError, match=message) as caught:
        call(model, home)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_lies_on_a_mesh_and_computes_in_bfloat16(home):
    one, many = (flanx.load(home / "hf", lengths=LENGTHS, partitions=n) for n in (1, 2))
    assert many.partitioner.mesh.shape["model"] == 2
    assert one.generate(PROMPTS, max_new_tokens=4) == many.generate(PROMPTS, max_new_tokens=4)
    half = flanx.load(home / "hf", lengths=LENGTHS, dtype="bfloat16")
    assert half.predictor.model.dtype == "bfloat16" and half.generate(PROMPTS, max_new_tokens=4)


def test_importing_flanx_imports_nothing_heavy_and_programs_are_functions(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"q": "a b", "a": "b a"}\n' * 3)
    code = f"""
import sys
import flanx
heavy = {{"jax", "numpy", "gin", "tensorflow", "seqio", "huggingface_hub"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert set(flanx.__all__) <= set(dir(flanx))
assert flanx.tasks.add("{tmp_path}/mine.jsonl", inputs="q", targets="a", output="{tmp_path}/mine") == "own_mine"
assert not {{"jax", "tensorflow", "seqio"}} & set(sys.modules)
_ = flanx.load
assert not {{"scipy.stats", "nltk", "sacrebleu", "gin"}} & set(sys.modules)  # metrics and gin: half of the first token
import flanx.train, flanx.evaluate
assert list(__import__("inspect").signature(flanx.train).parameters)[:2] == ["model", "mixture"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(inspect.signature(flanx.evaluate).parameters)[:2] == ["model", "suites"]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = flanx.lod


def test_values_are_written_as_gin_reads_them():
    values = [("cot", 0.3), ["a", ("b",)], (), {"inputs": np.int64(3)}, pathlib.Path("a b"), 'it\'s "so"\n', None, 1e-3]
    for value in values:
        text = api._literal("x", value)
        plain = {"inputs": 3} if isinstance(value, dict) else str(value) if isinstance(value, pathlib.Path) else value
        assert ast.literal_eval(text) == plain
    with pytest.raises(flanx.UserError, match="train: x is <object"):
        api._literal("X", object())


@pytest.mark.slow
def test_the_name_of_a_program_is_the_same_whatever_is_imported_first():
    code = "from flanx import train, evaluate; print(callable(train), train.parent_metadata, evaluate.load_suites)"
    for first in ("", "import flanx.api; "):
        done = subprocess.run([sys.executable, "-c", first + code], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("True <function parent_metadata")
