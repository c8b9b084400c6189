"""One run from the command line: it trains, resumes to the last bit after a kill, refuses to become another run."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from flanx import cli
from flanx.data import vocabulary
from flanx.data.writer import write_store
from flanx.report import read_metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 8
CACHE = tempfile.TemporaryDirectory()  # every process of this module compiles the same step


@pytest.fixture(scope="module")
def store_dir(tmp_path_factory) -> pathlib.Path:
    """A store of two tasks of the suite's kind, bytes, short texts drawn by numpy."""
    words, rng = vocabulary.load("byte"), np.random.default_rng(0)
    tasks, examples = {}, {}
    for name in ("suite_text_a", "suite_text_b"):
        texts = ["".join(rng.choice(list("abcdef"), 12)) for _ in range(200)]
        pairs = [([*words.encode(t), 1], [*words.encode(t[:4]), 1]) for t in texts]
        tasks[name] = {"collection": "suite_text", "cap": 1000, "held_out": False, "cot": False}
        examples[name, "zsopt"] = [pairs]
    folder = tmp_path_factory.mktemp("store")
    write_store(folder, tasks, examples, words)
    return folder


def command(store_dir: pathlib.Path, model_dir: pathlib.Path, **more: object) -> list[str]:
    bound = {
        "STORE_DIR": str(store_dir),
        "MODEL_DIR": str(model_dir),
        "VOCABULARY": "byte",
        "MIXTURE_OR_TASK_NAME": "suite_text",
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 16},
        "TRAIN_STEPS": STEPS,
        "BATCH_SIZE": 4,
        "DROPOUT_RATE": 0.1,
        "CHECKPOINT_PERIOD": 2,
        "train.log_period": 1,
        "t5.T5.num_encoder_layers": 1,
        "t5.T5.num_decoder_layers": 1,
        "t5.T5.emb_dim": 16,
    } | more
    gin = [f"--gin.{name}={value!r}" for name, value in bound.items()]
    files = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/train.gin"]
    return [sys.executable, "-m", "flanx", "train", *files, *gin]


def launch(arguments: list[str], **more: object) -> subprocess.Popen:
    cache = {"JAX_COMPILATION_CACHE_DIR": CACHE.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **cache}
    return subprocess.Popen(
        arguments, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
    )


def run(arguments: list[str]) -> tuple[int, str]:
    process = launch(arguments)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def losses(folder: pathlib.Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(folder)}


@pytest.fixture(scope="module")
def undisturbed(store_dir, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, said = run(command(store_dir, folder))
    assert code == 0, said
    assert f"step {STEPS}/{STEPS}" in said
    return folder


def test_a_run_leaves_its_config_its_identity_its_metrics_and_its_checkpoint(undisturbed):
    found = losses(undisturbed)
    assert list(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < found[1]
    assert json.loads((undisturbed / "done.json").read_text()) == {"step": STEPS}
    assert json.loads((undisturbed / "run.json").read_text())["data"]["mixture"]["tasks"] == 2
    assert [p.name for p in (undisturbed / "checkpoints").iterdir()] == [f"checkpoint_{STEPS}"]
    assert "TRAIN_STEPS" in (undisturbed / "config.gin").read_text()
    assert "batch_size" in (undisturbed / "operative_config.gin").read_text()


def test_a_run_killed_at_a_random_moment_ends_with_the_same_losses_to_the_last_bit(store_dir, undisturbed, tmp_path):
    folder, draw = tmp_path / "killed", random.Random(time.time_ns())
    step = draw.randrange(1, STEPS)
    process = launch(command(store_dir, folder))
    while step not in losses(folder):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "done.json").exists()
    code, said = run(command(store_dir, folder))
    assert code == 0, said
    assert losses(folder) == losses(undisturbed), f"killed after step {step}"


def test_sigterm_saves_and_exits_with_75(store_dir, undisturbed, tmp_path):
    folder = tmp_path / "preempted"
    process = launch(command(store_dir, folder, CHECKPOINT_PERIOD=1000))
    while 2 not in losses(folder):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    process.terminate()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    (saved,) = (folder / "checkpoints").iterdir()
    assert f"saved at step {saved.name.removeprefix('checkpoint_')}" in said
    assert run(command(store_dir, folder))[0] == 0
    assert losses(folder) == losses(undisturbed)


def test_a_finished_run_says_so_and_a_changed_one_is_refused(store_dir, undisturbed, capsys):
    assert cli.main(command(store_dir, undisturbed)[3:]) == 0
    assert "done already" in capsys.readouterr().out
    assert cli.main(command(store_dir, undisturbed, TRAIN_STEPS=STEPS + 1, SEED=1)[3:]) == 2
    assert "is another run" in capsys.readouterr().err


def test_an_unknown_mixture_and_a_missing_store_are_one_line(store_dir, tmp_path, capsys):
    assert cli.main(command(store_dir, tmp_path / "a", MIXTURE_OR_TASK_NAME="suite_tetx")[3:]) == 2
    said = capsys.readouterr().err
    assert "'suite_tetx'" in said and "'suite_text'" in said and said.count("\n") == 1
    assert cli.main(command(tmp_path / "nowhere", tmp_path / "b")[3:]) == 2
    said = capsys.readouterr().err
    assert "nowhere" in said and said.count("\n") == 1
