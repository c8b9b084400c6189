"""Everything but flanx/seqio works where SeqIO, TensorFlow and TFDS are not installed, and says what to install."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

from tests import run_case

HEAVY = ("tensorflow", "seqio", "tensorflow_datasets")
# Stands for an environment without them: they can be neither imported nor looked up.
ABSENT = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
from flanx.cli.main import main
"""


def run(*argv: str, **env: str) -> subprocess.CompletedProcess:
    """A command of flanx in a process where these packages cannot be imported."""
    code = f"{ABSENT}sys.exit(main({list(argv)!r}))"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu", **env}
    )


def succeed(*argv: str, **env: str) -> str:
    done = run(*argv, **env)
    assert done.returncode == 0, f"{argv}: {done.stdout[-500:]} {done.stderr[-1500:]}"
    return done.stdout


@pytest.mark.slow
def test_tasks_store_training_and_evaluation_run_without_them(tmp_path):
    assert "suite_text" in succeed("tasks", "list")
    assert "inputs" in succeed("tasks", "show", "suite_text_word_reverse_zsopt", "--n", "1")
    store = tmp_path / "store"
    bound = {"STORE_DIR": str(store), "MIXTURE_OR_TASK_NAME": ["suite_text_word_*"], "VOCABULARY": "byte"}
    gin = [f"--gin.{name}={value!r}" for name, value in bound.items()]
    succeed("store", "build", "--gin_file=runs/store.gin", *gin)
    assert (store / "manifest.json").is_file()
    command = run_case.command(
        tmp_path / "run", TRAIN_STEPS=2, CHECKPOINT_PERIOD=2, STORE_DIR=str(store), MIXTURE_OR_TASK_NAME="suite_text"
    )
    succeed(*command[command.index("train") :])
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 2
    bound = {
        "CHECKPOINT_PATH": str(tmp_path / "run"), "OUTPUT_DIR": str(tmp_path / "out"), "VOCABULARY": "byte",
        "SUITES": ["suite_rule[:1]"], "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 8},
        "t5.T5.num_encoder_layers": 1, "t5.T5.num_decoder_layers": 1, "t5.T5.emb_dim": 16,
    }  # fmt: skip
    gin = [f"--gin.{name}={value!r}" for name, value in bound.items()]
    succeed(
        "evaluate",
        "--gin_file=models/t5_1_1/tiny.gin",
        "--gin_file=runs/evaluate.gin",
        "--gin_file=evals/suite.gin",
        *gin,
    )
    assert list((tmp_path / "out").rglob("scores.json"))


def test_a_source_that_needs_them_names_the_pip_line(tmp_path):
    (tmp_path / "trec" / "1.0.0").mkdir(parents=True)
    (tmp_path / "trec" / "1.0.0" / "dataset_info.json").write_text("{}")
    done = run("tasks", "show", "muffin_trec", TFDS_DATA_DIR=str(tmp_path))
    assert done.returncode == 2 and "pip install tensorflow-datasets tensorflow" in done.stderr
    build = ("store", "build", "--gin_file=runs/store.gin", f"--gin.STORE_DIR='{tmp_path}/store'",
             "--gin.MIXTURE_OR_TASK_NAME=['mine']", "--gin.VOCABULARY='byte'",
             "--gin.build.build_store.imports=['my_tasks']", "--import=my_tasks")  # fmt: skip
    done = run(*build)
    assert done.returncode == 2 and "pip install" in done.stderr and "seqio" in done.stderr, done.stderr[-800:]


@pytest.mark.parametrize("package", HEAVY)
def test_only_flanx_seqio_names_them_in_an_import(package):
    root = pathlib.Path(run_case.ROOT)
    for path in [*(root / "flanx").rglob("*.py"), *(root / "tasks").rglob("*.py")]:
        if path.is_relative_to(root / "flanx" / "seqio"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert package not in {name.split(".")[0] for name in names}, path
