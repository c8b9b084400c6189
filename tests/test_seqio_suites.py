"""A user's SeqIO task as a suite: its own metric functions, with the values of SeqIO's evaluator."""

import pathlib
import sys

import numpy as np
import pytest
import seqio

from flanx.data import vocabulary
from flanx.errors import UserError
from flanx.evals import registry, rescore
from flanx.evals.families import user_task
from tests.echo_case import lines, score

MODULE = """
import numpy as np
import seqio
import tensorflow as tf

words = seqio.ByteVocabulary()


def rows(split, shuffle_files=False, seed=None):
    pairs = {"inputs": [f"Say it, {n}\\nAsk {n}?" for n in range(9)], "targets": [f"ask {n}?" for n in range(9)]}
    return tf.data.Dataset.from_tensor_slices(pairs)


def post(text, example=None, is_target=False):
    return text.strip().lower().split("\\n")[-1] + (":" + str(len(example["inputs"])) if is_target is not None else "")


def same(targets, predictions):
    return {"same": 100 * float(np.mean([t == p for t, p in zip(targets, predictions)])), "order": float(
        sum(n * len(p) for n, p in enumerate(predictions)))}


def surprise(targets, scores):
    return {"surprise": seqio.metrics.Scalar(-float(np.mean(scores))), "last": float(scores[-1])}


def add(name, **more):
    seqio.TaskRegistry.add(name, source=seqio.FunctionDataSource(rows, ["train", "validation"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={n: seqio.Feature(words) for n in ("inputs", "targets")}, **more)


add("its_own", postprocess_fn=post, metric_fns=[same, surprise])
add("its_plain", metric_fns=[same])
add("its_mute")
seqio.MixtureRegistry.add("its_all", ["its_own", "its_plain"], default_rate=1)
"""


@pytest.fixture
def own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    (tmp_path / "flanx_test_its.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    if "flanx_test_its" in sys.modules:  # of an earlier test; SeqIO's registries are for the whole process
        monkeypatch.setitem(sys.modules, "flanx_test_its", sys.modules["flanx_test_its"])
    monkeypatch.setenv(user_task.MODULES, "flanx_test_its")
    return tmp_path


def evaluator_values(task: str, texts: list[str], scores: list[float]) -> dict[str, float]:
    """What `seqio.Evaluator` computes of the same predictions and scores."""
    words = vocabulary.load("byte")
    evaluator = seqio.Evaluator(task, feature_converter=seqio.EncDecFeatureConverter(pack=False),
                                eval_split="validation", sequence_length={"inputs": 64, "targets": 32})  # fmt: skip
    tokens = [(i, (words.encode(text) + [1] + 64 * [0])[:64]) for i, text in enumerate(texts)]
    metrics, _ = evaluator.evaluate(
        compute_metrics=True,
        predict_fn=lambda data, model_feature_shapes=None: tokens,
        score_fn=lambda data, model_feature_shapes=None: list(enumerate(scores)),
    )
    return {key: float(getattr(value, "value", value)) for key, value in metrics.result()[task].items()}


def test_its_metric_functions_give_the_values_of_seqios_evaluator(own: pathlib.Path) -> None:
    entry = score(own / "out", "its_own:validation")["suites"]["its_own:validation"]
    path = own / "out" / "generations" / "its_own-validation__its_own.jsonl"
    rows = sorted(lines(path)[1:], key=lambda row: int(row["id"].rpartition(":")[2]))
    texts, sums = [row["outputs"][0] for row in rows], [row["option_scores"][0] for row in rows]
    wanted = evaluator_values("its_own", texts, sums)
    assert entry["metrics"] == pytest.approx(wanted) and set(wanted) == {"same", "order", "surprise", "last"}
    assert (entry["metric"], entry["score"]) == ("same", pytest.approx(wanted["same"])) and wanted["same"] > 0
    assert rescore.rescore(own / "out")[0]["its_own:validation"]["metrics"] == entry["metrics"]
    assert rows[0]["prompt"] == "Say it, 0\nAsk 0?" and all(np.isfinite(sums))


def test_the_score_of_a_target_has_its_end_of_sequence(own: pathlib.Path) -> None:
    score(own / "out", "its_own:validation[:2]", scale=0.0)  # all 259 bytes are alike
    row = lines(own / "out" / "generations" / "its_own-validation--2-__its_own.jsonl")[1]
    assert row["option_scores"][0] == pytest.approx(-np.log(259) * (len("ask 0?") + 1), rel=1e-5)


def test_a_mixture_is_the_mean_over_its_tasks(own: pathlib.Path) -> None:
    entry = score(own / "out", "its_all:validation[:3]")["suites"]["its_all:validation[:3]"]
    assert set(entry["tasks"]) == {"its_own", "its_plain"} and entry["n"] == 6
    assert entry["metrics"].keys() == {"same", "order"}
    assert entry["score"] == pytest.approx(sum(each["score"] for each in entry["tasks"].values()) / 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("its_own:test", r"task its_own has no split 'test' \(it has train, validation\)"),
        ("its_mute:validation", "SeqIO task its_mute has no metric functions"),
        ("its_ow:validation", "no mixture, collection or task 'its_ow'"),
    ],
)
def test_what_cannot_be_scored_is_named(own: pathlib.Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        registry.load(name, "")


def test_without_its_module_a_task_is_unknown(own: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(user_task.MODULES, "")
    with pytest.raises(UserError, match="no mixture, collection or task 'its_own'"):
        registry.load("its_own:validation", "")
