"""Wrong command lines, made by a generator: exit status 2, one to five lines, no traceback, nothing left behind."""

import os
import pathlib
import random
import subprocess
import sys

import pytest

WRONG = (
    "None",
    "5",
    "-1",
    "1.5",
    "[]",
    "{}",
    "'a'",
    "True",
    "1e400",
    "''",
    "a b",
    "(",
    r"'a\x00b'",
    "'~nosuchuser/x'",
    "5,",
)
NUMBERS = ("TRAIN_STEPS", "BATCH_SIZE", "SEED", "NUM_PARTITIONS", "NUM_MICROBATCHES", "CHECKPOINT_PERIOD")
TEXTS = ("STORE_DIR", "MODEL_DIR", "VOCABULARY", "MIXTURE_OR_TASK_NAME")
FITS = {  # what is no mistake
    **{name: ("5", *(("0",) if name == "TRAIN_STEPS" else ())) for name in NUMBERS},
    **{name: ("'a'",) for name in TEXTS},
    "INITIAL_CHECKPOINT_PATH": ("None",),
    "EVAL_PERIOD": ("None", "5"),
}
COMMANDS = (
    "train",
    "evaluate",
    "infer",
    "sweep",
    "recipe",
    "store",
    "tasks",
    "convert",
    "rescore",
    "report",
    "explain",
)


def wrong_commands(count: int) -> list[list[str]]:
    """Command lines of every command with one mistake each: values, unknown macros, absent and damaged files."""
    base = ["train", "--gin_file=runs/train.gin", "--gin_file=models/t5_1_1/tiny.gin", "--gin.STORE_DIR='no store'"]
    base += ["--gin.VOCABULARY='byte'", "--gin.MIXTURE_OR_TASK_NAME='suite_text'", "--gin.MODEL_DIR='run'"]
    base += ["--gin.TRAIN_STEPS=6", "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 24}"]
    found = [[*base, f"--gin.{name}={value}"] for name in FITS for value in WRONG if value not in FITS[name]]
    found += [[*base, f"--gin.{name}X=1"] for name in FITS]
    for command in COMMANDS:
        found += [[command, "nosuch"], [command, "--nosuch"], [command, "--gin_file=nosuch.gin"]]
    for file in ("bin", "folder", "self.gin", "deep.gin", "bom.gin", "import.gin", "t5x.gin"):
        found += [
            [command, f"--gin_file={file}"] for command in ("train", "evaluate", "infer", "sweep", "explain", "plan")
        ]
        found += [["report", file], ["rescore", file], ["convert", file, "o"], ["store", "show", file]]
    random.Random(0).shuffle(found)
    return found[:count]


def _make_files(folder: pathlib.Path) -> None:
    (folder / "bin").write_bytes(random.Random(1).randbytes(300))
    (folder / "folder").mkdir()
    (folder / "self.gin").write_text('include "self.gin"\n')
    (folder / "deep.gin").write_text("A = " + "[" * 3000 + "]" * 3000)
    (folder / "bom.gin").write_bytes(b"\xff\xfeA\0=\0")
    (folder / "import.gin").write_text("from __gin__ import dynamic_registration\nimport antigravity\n")
    (folder / "t5x.gin").write_text("from __gin__ import dynamic_registration\nimport __main__ as train_script\n")


def _mistakes(folder: pathlib.Path, commands: list[list[str]]) -> list[str]:
    """What is not as promised, a line for each command."""
    _make_files(folder)
    before = sorted(path.name for path in folder.iterdir())
    environment = {**os.environ, "FLANX_IMPORTS": "", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = []
    for arguments in commands:
        done = subprocess.run(
            [sys.executable, "-m", "flanx", *arguments], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(("usage", " "))]
        left = sorted(path.name for path in folder.iterdir())
        if done.returncode != 2 or not 1 <= len(said) <= 5 or "Traceback" in done.stderr or left != before:
            found.append(f"{arguments}: status {done.returncode}, {len(said)} lines, left {left}: {done.stderr[-300:]}")
    return found


def test_a_sample_of_wrong_commands(tmp_path):
    assert not _mistakes(tmp_path, wrong_commands(8))


@pytest.mark.slow
def test_hundreds_of_wrong_commands(tmp_path):
    commands = wrong_commands(500)
    found = _mistakes(tmp_path, commands)
    print(f"{len(commands) - len(found)} of {len(commands)} wrong command lines right")
    assert len(found) <= len(commands) / 100, "\n".join(found)
