"""A task of one's own through the command line: from files of three splits to a sweep that reports its test score."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import run_case

SWEEP = """
from __gin__ import dynamic_registration
from flanx.sweep import grid

grid.Sweep:
  out_dir = "out"
  title = "Own task"
  gin_files = ["runs/train.gin", "models/t5_1_1/tiny.gin", "evals/base.gin"]
  store = ["runs/store.gin"]
  bindings = {
    "STORE_DIR": "store",
    "VOCABULARY": "byte",
    "MIXTURE_OR_TASK_NAME": "own_letters",
    "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 12},
    "BATCH_SIZE": 8,
    "TRAIN_STEPS": 20,
    "EVAL_PERIOD": 10,
    "CHECKPOINT_PERIOD": 10,
    "SUITES": ["own_letters"],
    "t5.T5.num_encoder_layers": 1,
    "t5.T5.num_decoder_layers": 1,
  }
  axes = {"rate": {"low": ["LEARNING_RATE=1e-7"], "high": ["LEARNING_RATE=0.02"]}}
  scores = {"test": "own_letters"}
  choose_by = ["validation loss"]
"""


def flanx(folder: pathlib.Path, *arguments: str) -> str:
    """What a command of the program says; it must end well."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": run_case.XLA_FLAGS,
        "FLANX_TABLES": str(folder / "mine"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "flanx", *arguments], env=env, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_a_file_to_a_sweep_that_reports_the_test_score(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").mkdir()
    rows = [(f"first letter of {word} {n}", word[0]) for n in range(60) for word in ("ant", "bee", "cow")]
    text = "".join(json.dumps({"ask": ask, "say": say}) + "\n" for ask, say in rows)
    (tmp_path / "letters.jsonl").write_text(text)
    (tmp_path / "test.csv").write_text(
        "ask,say\n" + "first letter of ant 99,a\nfirst letter of bee 99,b\nlast of dog,g\n" * 2
    )
    added = flanx(
        tmp_path, "tasks", "add", "letters.jsonl", "--inputs", "ask", "--targets", "say", "--output", "mine",
        "--validation_share", "0.1", "--test", "test.csv",
    )  # fmt: skip
    assert "test: 6 rows" in added and "metric accuracy" in added
    (tmp_path / "own.gin").write_text(SWEEP)
    flanx(tmp_path, "sweep", "--gin_file=own.gin")
    flanx(tmp_path, "report", "out")
    points = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    test = [row for row in points if row["suite"] == "own_letters"]
    assert {(row["rate"], row["checkpoint"]) for row in test} == {
        (rate, checkpoint) for rate in ("low", "high") for checkpoint in ("last", "chosen")
    }
    assert all(row["metric"] == "accuracy" and row["n"] == "6" and row["state"] == "done" for row in test)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "validation loss" in page and "test" in page
    records = map(json.loads, (tmp_path / "out" / "runs" / "high" / "metrics.jsonl").read_text().splitlines())
    losses = {each["step"]: each["validation"]["loss"] for each in records if "validation" in each}
    chosen = json.loads((tmp_path / "out" / "runs" / "high" / "chosen.json").read_text())
    assert set(losses) == {10, 20} and chosen["step"] == min(losses, key=lambda step: losses[step])
    scores = json.loads((tmp_path / "out" / "runs" / "high" / "evals" / "step_20" / "scores.json").read_text())
    rescored = flanx(tmp_path, "rescore", "out/runs/high/evals/step_20", "--check")
    assert scores["suites"]["own_letters"]["n"] == 6 and "own_letters" in rescored + str(scores)
    flanx(tmp_path, "report", "out/runs/low", "out/runs/high")
    page = (tmp_path / "out" / "runs" / "runs.md").read_text()
    assert all(f"![{title}]" in page for title in ("Training loss by collection", "Validation loss", "Held-out scores"))
    assert "| own_letters | " in page
    assert "high all tokens" in flanx(tmp_path, "watch", "--once", "out/runs/low", "out/runs/high")
