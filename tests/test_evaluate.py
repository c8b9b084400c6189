"""Evaluation from suite to report: resumed, rescored, merged; what is wrong is named, what is bad is counted."""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import pytest

from flanx.data import vocabulary
from flanx.data.store import open_store
from flanx.data.store.build import build_store
from flanx.errors import UserError
from flanx.evals import registry, rescore
from flanx.evaluate import checkpoint_step, evaluate
from tests.echo_case import BYTES, LENGTHS, Echo, lines, score

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_scores_and_raw_generations_are_kept(tmp_path: pathlib.Path) -> None:
    scores = score(tmp_path, "gsm8k_zero_shot", "mmlu_test_hendrycks[astronomy]", "bbh_direct[navigate]", step=7)
    folder = tmp_path / "step_7"
    assert json.loads((folder / "scores.json").read_text()) == scores and scores["step"] == 7
    entry = scores["suites"]["mmlu_test_hendrycks[astronomy]"]
    wanted = {"score", "low", "high", "metric", "n", "extraction_failed", "truncated", "unknown", "spec", "tasks"}
    assert wanted <= set(entry) and entry["n"] == 2 and set(entry["tasks"]) == {"astronomy"}
    assert {"checkpoint", "seed", "versions", "vocabulary", "parameters"} <= set(scores["run"])
    header, *rows = lines(folder / "generations" / "gsm8k_zero_shot__gsm8k.jsonl")
    assert header["hash"] == scores["suites"]["gsm8k_zero_shot"]["spec"] and len(rows) == 3
    assert rows[0]["outputs"][0] and rows[0]["prompt"].startswith("Q: ")
    ranked = lines(folder / "generations" / "mmlu_test_hendrycks-astronomy-__astronomy.jsonl")[1]
    assert len(ranked["option_scores"]) == 4 and ranked["options"] == ["A", "B", "C", "D"]
    assert scores["suites"]["gsm8k_zero_shot"]["flagged"]  # the echo says no number: never a bare zero
    assert scores["suites"]["gsm8k_zero_shot"]["extraction_failed"] == 1


def test_the_training_run_is_recorded_with_the_scores(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"data": {"store": {"hash": "abc"}, "missing": ["qed"]}}')
    scores = score(tmp_path / "run" / "evals", step=3, provenance={"host": "a"})
    assert scores["run"]["training"]["data"]["missing"] == ["qed"] and scores["run"]["host"] == "a"
    assert score(tmp_path / "alone")["run"]["training"] is None


def test_a_killed_evaluation_resumes_and_ends_alike(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    names = ("bbh_direct[navigate,word_sorting]", "gsm8k_zero_shot")
    whole = score(tmp_path / "whole", *names)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "scores.json").unlink()
    victim = tmp_path / "cut" / "generations" / "gsm8k_zero_shot__gsm8k.jsonl"
    victim.write_bytes(victim.read_bytes()[:-40])  # the last line was being written
    capsys.readouterr()
    assert score(tmp_path / "cut", *names) == whole
    assert "1 items in" in capsys.readouterr().out
    assert sorted(r["id"] for r in lines(victim)[1:]) == [f"gsm8k-test-{i}" for i in range(3)]


def test_an_evaluation_that_is_killed_outright_resumes(tmp_path: pathlib.Path) -> None:
    name = "bbh_direct[navigate,word_sorting]"
    whole = score(tmp_path / "whole", name)
    code = f"""
import os, signal
from flanx.evals import generations
from tests import echo_case
add, count = generations.Writer.add, []
def stop(self, row):
    add(self, row)
    count.append(row)
    if len(count) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
generations.Writer.add = stop
echo_case.score({str(tmp_path / "cut")!r}, {name!r})
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == -signal.SIGKILL
    files = list((tmp_path / "cut" / "generations").glob("*.jsonl"))
    assert sum(len(lines(path)) - 1 for path in files) == 2
    assert score(tmp_path / "cut", name) == whole


def test_another_model_is_evaluated_again_and_another_spec_refused(tmp_path: pathlib.Path, capsys: Any) -> None:
    first = score(tmp_path)
    assert "kept in" not in capsys.readouterr().out
    assert score(tmp_path, scale=2.0)["run"]["parameters"] != first["run"]["parameters"]
    assert "2 files of another checkpoint, seed or version kept in" in capsys.readouterr().out
    path = tmp_path / "generations" / "gsm8k_zero_shot__gsm8k.jsonl"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header.replace(first["suites"]["gsm8k_zero_shot"]["spec"], "0" * 16), *rows]) + "\n")
    with pytest.raises(UserError, match="generations of another spec"):
        score(tmp_path, scale=2.0)


def test_scores_of_earlier_suites_stay(tmp_path: pathlib.Path) -> None:
    score(tmp_path, "gsm8k_zero_shot")
    assert set(score(tmp_path, "tydiqa")["suites"]) == {"gsm8k_zero_shot", "tydiqa"}
    assert set(score(tmp_path, "tydiqa", scale=3.0)["suites"]) == {"tydiqa"}
    assert set(rescore.rescore(tmp_path)[0]) == {"tydiqa"}  # not the other checkpoint's as well, under one record
    aside = [path.name for path in (tmp_path / "generations_set_aside").iterdir()]
    assert "gsm8k_zero_shot__gsm8k.1.jsonl" in aside and len(aside) > 1


def test_scores_stay_however_the_path_of_the_checkpoint_is_written(tmp_path: pathlib.Path) -> None:
    score(tmp_path, "gsm8k_zero_shot")
    path = tmp_path / "scores.json"
    path.write_text(path.read_text().replace('"checkpoint": null', '"checkpoint": "./run"'))
    assert '"./run"' in path.read_text()
    assert set(score(tmp_path, "tydiqa")["suites"]) == {"gsm8k_zero_shot", "tydiqa"}


def test_self_consistency_is_one_argument(tmp_path: pathlib.Path) -> None:
    scores = score(tmp_path, "gsm8k_zero_shot", "mmlu_test_hendrycks", self_consistency=3)
    assert scores["suites"]["gsm8k_zero_shot+sc3"]["samples"] == 3
    assert "mmlu_test_hendrycks" in scores["suites"]
    row = lines(tmp_path / "generations" / "gsm8k_zero_shot-sc3__gsm8k.jsonl")[1]
    assert len(row["outputs"]) == 3
    assert registry.resolve("gsm8k_cot+sc") == dataclasses.replace(
        registry.resolve("gsm8k_cot"), name="gsm8k_cot+sc", samples=40, temperature=0.7, top_k=40
    )


def test_likelihood_is_the_mean_probability_of_the_gold_tokens(tmp_path: pathlib.Path) -> None:
    entry = score(tmp_path, "bbh_zero_shot[navigate]+likelihood", scale=0.0)["suites"][
        "bbh_zero_shot[navigate]+likelihood"
    ]
    assert entry["metric"] == "likelihood" and not entry["flagged"]
    assert entry["score"] == pytest.approx(100 / 259, rel=1e-4)  # all bytes alike, however long the answer is
    with pytest.raises(UserError, match=r"ranks options; '\+likelihood' needs a suite that generates"):
        registry.resolve("mmlu_hendrycks+likelihood")


def test_beams_are_one_argument(tmp_path: pathlib.Path) -> None:
    greedy = score(tmp_path, "gsm8k_zero_shot[:2]")["suites"]["gsm8k_zero_shot[:2]"]
    found = score(tmp_path, "gsm8k_zero_shot[:2]", "mmlu_test_hendrycks[astronomy]", beams=2)["suites"]
    assert found["gsm8k_zero_shot[:2]+beam2"]["n"] == greedy["n"] == 2 and "mmlu_test_hendrycks[astronomy]" in found
    row = lines(tmp_path / "generations" / "gsm8k_zero_shot--2--beam2__gsm8k.jsonl")[1]
    assert len(row["outputs"]) == len(row["ended"]) == 1
    assert registry.resolve("gsm8k_cot+beam") == dataclasses.replace(
        registry.resolve("gsm8k_cot"), name="gsm8k_cot+beam", beams=4
    )
    with pytest.raises(UserError, match="SELF_CONSISTENCY and BEAMS exclude each other"):
        score(tmp_path, beams=2, self_consistency=2)


def test_an_output_ends_with_its_stop_text(tmp_path: pathlib.Path) -> None:
    score(tmp_path, "tydiqa")
    for task in ("fi", "sw"):
        rows = lines(tmp_path / "generations" / f"tydiqa__{task}.jsonl")[1:]
        assert rows
        for row in rows:
            assert row["prompt"].endswith("?\nA:")  # the echo says its end again, and "\n" ends an answer
            assert row["outputs"][0].endswith("?\n") and row["ended"] == [True]


def test_broken_logits_are_counted_not_scored(tmp_path: pathlib.Path) -> None:
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "data")
    path = tmp_path / "data" / "gsm8k" / "test.jsonl"
    path.write_text(path.read_text().replace("A bus has", "A ~ bus has"))
    entry = score(tmp_path / "out", data_dir=str(tmp_path / "data"))["suites"]["gsm8k_zero_shot"]
    assert entry["broken"] == 1 and entry["flagged"]


def test_prompts_too_long_for_the_model_are_counted(tmp_path: pathlib.Path) -> None:
    entry = score(tmp_path / "some", "gsm8k_cot", lengths={"inputs": 70, "targets": 8})["suites"]["gsm8k_cot"]
    assert 0 < entry["truncated"] < 1 and entry["shots_dropped"] == 1
    with pytest.raises(UserError, match=r"gsm8k_cot: every prompt would be truncated; the shortest takes 61 tokens"):
        score(tmp_path / "all", "gsm8k_cot", lengths={"inputs": 48, "targets": 8})
    assert not list((tmp_path / "all" / "generations").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": {"inputs": 64}}, r"lengths are .'inputs': 64.: give 'inputs' and 'targets'"),
        ({"lengths": {"inputs": 1, "targets": 4}}, "two tokens or more"),
        ({"batch_size": 0}, "EVAL_BATCH_SIZE is 0"),
        ({"vocabulary": vocabulary.load("byte", 100)}, "VOCABULARY byte has 359 ids, the model's table has 259 rows"),
        ({"suites": []}, "SUITES is empty"),
        ({"allow_missing": ("finish",)}, "ALLOW_MISSING names 'finish', which is a task of no suite"),
        ({"data_dir": ""}, "suite gsm8k_zero_shot: no folder of benchmark data; set DATA_DIR"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(
    tmp_path: pathlib.Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLANX_DATA_DIR", raising=False)
    given = {
        "suites": "gsm8k_zero_shot",
        "data_dir": registry.SAMPLE,
        "vocabulary": BYTES,
        "lengths": LENGTHS,
    } | options
    with pytest.raises(UserError, match=message):
        evaluate(model=Echo(), params={"scale": jnp.float32(1)}, out_dir=tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_a_store_and_an_evaluation_keep_line_breaks_by_the_same_mark(
    tmp_path: pathlib.Path, t5_like: vocabulary.Vocabulary, capsys: pytest.CaptureFixture
) -> None:
    spec = f"{t5_like.spec}#line_break=<extra_id_99>"
    build_store(tmp_path / "store", ["suite_text_word_reverse"], vocabulary=spec, workers=1)
    opened = open_store(tmp_path / "store")
    opened.check_vocabulary(vocabulary.load(spec).fingerprint)
    with pytest.raises(UserError, match="set VOCABULARY to the store's"):
        opened.check_vocabulary(t5_like.fingerprint)
    part = next(iter(opened.tasks["suite_text_word_reverse"].parts.values()))[0]
    stored = [opened.example(part, n)[0] for n in range(20)]
    assert any("\n" in vocabulary.load(opened.vocabulary).decode(inputs.tolist()) for inputs in stored)
    capsys.readouterr()
    options: dict[str, Any] = {"force_vocabulary": True, "lengths": {"inputs": 800, "targets": 8}}
    plain, marked = (
        score(tmp_path / name, "gsm8k_cot", vocabulary=words, **options)["suites"]["gsm8k_cot"]
        for name, words in (("plain", t5_like.spec), ("marked", spec))
    )
    said = capsys.readouterr().out.splitlines()
    assert ["line breaks" in line for line in said if "cannot write" in line] == [True, False]
    assert plain["spec"] == registry.load("gsm8k_cot", registry.SAMPLE).hash != marked["spec"]
    header, row = lines(tmp_path / "marked" / "generations" / "gsm8k_cot__gsm8k.jsonl")[:2]
    assert header["spec"]["line_break"] == "<extra_id_99>" and "\n" in row["prompt"]


def test_a_runs_folder_is_scored_at_the_step_of_its_newest_checkpoint(tmp_path):
    for step in (2, 10, 9):
        (tmp_path / "run" / "checkpoints" / f"checkpoint_{step}").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "checkpoint_11.orbax-checkpoint-tmp").mkdir()
    assert checkpoint_step(str(tmp_path / "run")) == 10
    assert checkpoint_step(str(tmp_path / "run" / "checkpoints" / "checkpoint_9")) == 9
    assert checkpoint_step(str(tmp_path)) is checkpoint_step(None) is checkpoint_step("hf:org/small") is None
