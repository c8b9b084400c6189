"""flanx as a model of lm-evaluation-harness, and its tasks as suites: with the released package, over local files."""

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import flanx
from flanx.convert import hf
from flanx.errors import UserError
from flanx.storage import open_storage
from tests.convert_case import draw
from tests.test_api import T5_SIZES

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm_eval, datasets and what they import

from flanx import lm_eval as ours  # noqa: E402

DOCS = [{"q": f"Is {n} even?", "gold": n % 2, "a": str(n), "choices": ["yes", "no"]} for n in range(6)]
CHOICE = """task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}} "
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
TEXT = """task: own_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: a
generation_kwargs: {{until: ["Q:"], max_gen_toks: 6, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A drawn model and two tasks of lm-eval over a file."""
    folder = tmp_path_factory.mktemp("lm_eval")
    hf.write(open_storage(folder / "hf"), draw(T5_SIZES), T5_SIZES, {})
    (folder / "hf" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    (folder / "tasks").mkdir()
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, text in (("own_choice", CHOICE), ("own_text", TEXT)):
        (folder / "tasks" / f"{name}.yaml").write_text(text.format(data=folder / "docs.jsonl"))
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    return folder


@pytest.fixture(scope="module")
def lm(home: pathlib.Path) -> ours.FlanxLM:
    return ours.FlanxLM(str(home / "hf"), max_length=32, max_gen_toks=8, batch_size="8")


def requests(*arguments: tuple) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


def test_scores_and_texts_are_those_of_load(lm, home):
    model = flanx.load(home / "hf", lengths={"inputs": 32, "targets": 8})
    pairs = [("Is it so?", "yes"), ("Is it so?", "no way"), ("", "x"), ("b ", "c"), ("Is it so?", "yes"), ("z", "")]
    got = lm.loglikelihood(requests(*pairs))
    wanted = model.score([("Is it so?", ["yes", "no way"]), ("", ["x"]), ("b", [" c"])])
    flat = [*wanted[0], *wanted[1], *wanted[2], wanted[0][0], 0.0]
    np.testing.assert_allclose([score for score, _ in got], flat, atol=1e-4)
    greedy = model.generate(["abc", "what"], max_new_tokens=3)
    texts = [("abc", greedy[0]), ("what", greedy[1]), ("abc", "\x01")]
    assert [is_greedy for _, is_greedy in lm.loglikelihood(requests(*texts))] == [True, True, False]
    kwargs = {"until": [], "max_gen_toks": 3}
    assert lm.generate_until(requests(("abc", kwargs), ("what", kwargs), ("abc", kwargs))) == [*greedy, greedy[0]]
    many = requests(*((text, {"max_gen_toks": 8}) for text in ("abc", "what", "x", "0 1 2", "say it", "so?")))
    context, text = max(zip(many, lm.generate_until(many), strict=True), key=lambda pair: len(pair[1]))
    until = text[len(text) // 2]
    stopped = requests((context.args[0], {"max_gen_toks": 8, "until": until}))
    assert lm.generate_until(stopped) == [text.partition(until)[0]]


def test_equal_requests_that_draw_get_other_draws(lm):
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 6}
    asked = requests(*[("abc", drawn)] * 4, ("abc", {"max_gen_toks": 6}))
    texts = lm.generate_until(asked)
    assert len(set(texts[:4])) > 1 and texts == lm.generate_until(asked)


def test_a_prompt_that_is_too_long_loses_its_beginning(lm):
    assert lm._prompt("a" * 50) == lm._prompt("b" * 19 + "a" * 31) and len(lm._prompt("a" * 50)) == 32


def test_what_flanx_has_not_is_refused(lm, home):
    for call, message in (
        (lambda: lm.loglikelihood_rolling(requests(("a text",))), "an encoder-decoder gives the probability of a cont"),
        (lambda: lm.apply_chat_template([]), "no chat template"),
        (lambda: lm.generate_until(requests(("a", {"repetition_penalty": 2}))), "flanx has no 'repetition_penalty'"),
        (lambda: ours.FlanxLM(), "no checkpoint: --model_args checkpoint="),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_a_decoder_only_model_scores_whole_texts(tmp_path):
    import flax.linen as nn
    import jax

    from flanx import checkpoint
    from flanx.models.palm import PaLM

    model = PaLM(vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_layers=1)
    checkpoint.save_params(tmp_path / "palm", nn.unbox(jax.jit(model.init)(jax.random.key(0))))
    loaded = flanx.load(tmp_path / "palm", model=model, vocabulary="byte", lengths={"inputs": 8, "targets": 8})
    lm = ours.FlanxLM.__new__(ours.FlanxLM)
    ours.LM.__init__(lm)
    lm.loaded, lm.predictor = loaded, loaded.predictor
    whole, parts = lm.loglikelihood_rolling(requests(("abcdefgh",), ("abcdefghij",)))
    ids = loaded.predictor.vocabulary.encode("abcdefgh")
    tokens = np.asarray([ids], np.int32)
    batch = {
        "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1], "decoder_segment_ids": np.ones_like(tokens),
        "decoder_positions": np.arange(8, dtype=np.int32)[None], "decoder_causal_attention": np.zeros_like(tokens),
    }  # fmt: skip
    logp = jax.nn.log_softmax(model.logits(loaded.predictor.params, batch))
    assert whole == pytest.approx(float(sum(logp[0, i, token] for i, token in enumerate(ids))), abs=1e-3)
    assert parts < whole


def test_the_program_scores_tasks_with_the_released_package(home, lm):
    command = [
        sys.executable, "-m", "flanx.lm_eval", "--model", "flanx", "--include_path", str(home / "tasks"), "--tasks",
        "own_choice,own_text", "--limit", "4", "--batch_size", "8", "--output_path", str(home / "results.json"),
        "--model_args", f"checkpoint={home / 'hf'},max_length=32", "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = home.glob("results_*.json")
    found = json.loads(path.read_text())
    prompts = [doc["q"] for doc in DOCS[:4]]
    model = flanx.load(home / "hf", lengths={"inputs": 32, "targets": 8})
    scores = model.score([(prompt, [" yes", " no"]) for prompt in prompts])
    right = [int(np.argmax(each)) == doc["gold"] for each, doc in zip(scores, DOCS[:4], strict=True)]
    assert found["results"]["own_choice"]["acc,none"] == pytest.approx(np.mean(right))
    texts = model.generate(prompts, max_new_tokens=6, stop=["Q:"])
    (samples,) = home.glob("samples_own_text_*.jsonl")
    logged = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["resps"][0][0] for row in logged] == texts
    assert found["config"]["flanx"] == flanx.__version__
    wrong = subprocess.run([*command[:-3], "--model_args", "checkpoint=no/where"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr.splitlines()[-1], wrong.stderr[-800:]


@pytest.mark.parametrize("name", ["own_choice", "own_text"])
def test_a_task_as_a_suite_has_the_scores_of_the_program(home, lm, tmp_path, monkeypatch, name):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(home / "tasks"), include_defaults=False)
    theirs = simple_evaluate(model=lm, tasks=[name], task_manager=manager, limit=5, bootstrap_iters=0)
    model = flanx.load(home / "hf", lengths={"inputs": 32, "targets": 8})
    suite = f"lm_eval:{home}/tasks/{name}.yaml[:5]"
    entry = flanx.evaluate(model, [suite], out_dir=tmp_path / "out")["suites"][suite]
    wanted = {key.removesuffix(",none"): value for key, value in theirs["results"][name].items() if ",none" in key}
    wanted = {key: 100 * value for key, value in wanted.items() if "stderr" not in key}
    assert entry["metrics"] == pytest.approx(wanted) and entry["n"] == 5
    assert entry["metric"] == next(iter(wanted)) and entry["score"] == pytest.approx(next(iter(wanted.values())))
    monkeypatch.chdir(tmp_path)
    from flanx.cli import main

    assert main.main(["rescore", "--check", "out"]) == 0


def test_a_folder_is_a_suite_of_its_tasks_and_what_cannot_be_scored_is_one_line(home, tmp_path, monkeypatch):
    from flanx.evals import registry

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match="its tasks decode in different ways"):
        registry.resolve(f"lm_eval:{home}/tasks")
    for text, message in (
        ("lm_eval:no/such.yaml", "no task file or folder"),
        (f"lm_eval:{tmp_path}", "no task is defined"),
        (f"lm_eval:{home}/tasks/own_text.yaml+rank", "score what is generated; leave '.rank' out"),
        (f"lm_eval:{home}/tasks/own_text.yaml+likelihood", "score what is generated; leave '.likelihood' out"),
        ("lm_eval:here", "lm-eval has no such task; the folder of that name is 'lm_eval:./here'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            registry.resolve(text)
        assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "absent.yaml").write_text(CHOICE.format(data=tmp_path / "absent.jsonl").replace("own_choice", "absent"))
    with pytest.raises(UserError, match="its task or data cannot be read here"):
        registry.resolve(f"lm_eval:{tmp_path}/absent.yaml")
    hub = (
        CHOICE.format(data="").replace("dataset_path: json", "dataset_path: org/not_here").replace("own_choice", "far")
    )
    (tmp_path / "far.yaml").write_text("\n".join(line for line in hub.splitlines() if "data_files" not in line))
    with pytest.raises(UserError, match="load them there once with a network"):
        registry.resolve(f"lm_eval:{tmp_path}/far.yaml")
    rolling = CHOICE.format(data=home / "docs.jsonl").replace("multiple_choice", "loglikelihood")
    (tmp_path / "odd.yaml").write_text(rolling.replace("own_choice", "odd").replace("acc_norm", "perplexity"))
    with pytest.raises(UserError, match="is of the kind loglikelihood"):
        registry.resolve(f"lm_eval:{tmp_path}/odd.yaml")


def test_ifeval_of_the_installed_package_reads_the_folder_of_its_data_set(home, lm, tmp_path, monkeypatch):
    """By the task's own name; `datasets` takes the folder google/IFEval for the data set of that name."""
    pytest.importorskip("langdetect", reason="lm-eval's IFEval needs it: pip install 'lm_eval[ifeval]'")
    docs = [
        ("Leave the commas out.", ["punctuation:no_comma"], [{}]),
        ("Quote it all.", ["startend:quotation"], [{}]),
        ("Say ab, leave the commas out.", ["keywords:existence", "punctuation:no_comma"], [{"keywords": ["ab"]}, {}]),
    ]  # fmt: skip
    (tmp_path / "google" / "IFEval").mkdir(parents=True)
    (tmp_path / "google" / "IFEval" / "train.jsonl").write_text(
        "".join(
            json.dumps({"key": n, "prompt": prompt, "instruction_id_list": ids, "kwargs": kwargs}) + "\n"
            for n, (prompt, ids, kwargs) in enumerate(docs)
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nltk.download", lambda name: False)  # no instruction of these needs what it would fetch
    from lm_eval import simple_evaluate

    theirs = simple_evaluate(model=lm, tasks=["ifeval"], bootstrap_iters=0)["results"]["ifeval"]
    model = flanx.load(home / "hf", lengths={"inputs": 32, "targets": 8})
    metrics = flanx.evaluate(model, ["lm_eval:ifeval"])["suites"]["lm_eval:ifeval"]["metrics"]
    assert len(metrics) == 4 and 0 < metrics["inst_level_strict_acc"] < 100
    assert metrics == pytest.approx({name: 100 * theirs[f"{name},none"] for name in metrics})
