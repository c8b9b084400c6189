"""Small training runs as processes of their own: a store, the command, several processes on loopback."""

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from flanx.data import vocabulary
from flanx.data.store.assemble import write_store
from flanx.train_metrics import read_metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 8
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # half of the compilation
_SHARED = tempfile.TemporaryDirectory()  # a store and a run, for every test of this process
SHARED = pathlib.Path(_SHARED.name)


@functools.cache
def store_dir() -> pathlib.Path:
    """A store of one task, bytes, short texts drawn by numpy."""
    words, rng = vocabulary.load("byte"), np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdef"), 12)) for _ in range(200)]
    pairs = [([*words.encode(t), 1], [*words.encode(t[:4]), 1]) for t in texts]
    tasks = {"own_a": {"collection": "own", "cap": 1000, "held_out": False, "cot": False}}
    write_store(SHARED / "store", tasks, {("own_a", "zsopt"): [pairs]}, words)
    return SHARED / "store"


@functools.cache
def undisturbed() -> pathlib.Path:
    """A run that one process took from its first step to its last."""
    run(command(SHARED / "undisturbed"))
    return SHARED / "undisturbed"


def command(model_dir: pathlib.Path, **more: object) -> list[str]:
    """`flanx train` of a model of one layer; `more` binds gin names."""
    bound = {
        "STORE_DIR": str(store_dir()),
        "MODEL_DIR": str(model_dir),
        "VOCABULARY": "byte",
        "MIXTURE_OR_TASK_NAME": "own",
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 16},
        "TRAIN_STEPS": STEPS,
        "BATCH_SIZE": 8,
        "DROPOUT_RATE": 0.1,
        "LEARNING_RATE": 0.02,
        "CHECKPOINT_PERIOD": 2,
        "train.log_period": 1,
        "train.task_loss_period": 3,
        "t5.T5.num_encoder_layers": 1,
        "t5.T5.num_decoder_layers": 1,
        "t5.T5.emb_dim": 16,
    } | more
    gin = [f"--gin.{name}={value!r}" for name, value in bound.items()]
    files = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/train.gin"]
    return [sys.executable, "-m", "flanx", "train", *files, *gin]


def signalled(arguments: list[str], step: int, signum: int) -> list[str]:
    """The same command, whose process sends itself a signal when its loop has finished `step`: no clock decides."""
    code = f"""
import os
from flanx import train_metrics
from flanx.cli import main
record = train_metrics.Watch.record
def record_and_signal(self, step, *rest):
    record(self, step, *rest)
    if step == {step}:
        os.kill(os.getpid(), {int(signum)})
train_metrics.Watch.record = record_and_signal
main.entry()
"""
    return [sys.executable, "-c", code, *arguments[3:]]


def launch(arguments: list[str]) -> subprocess.Popen:
    """Starts a process on one CPU device."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": XLA_FLAGS}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(arguments, env=env, cwd=ROOT, start_new_session=True, **pipes)


def run(arguments: list[str]) -> str:
    """Runs one process to its good end; what it said."""
    ((status, said),) = finish([launch(arguments)])
    assert status == 0, said
    return said


def free_port() -> int:
    """A port that is free now, as is the one of the roll call above it."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1000))
            except (OSError, OverflowError):
                continue
            return port


def launch_many(commands: list[list[str]]) -> list[subprocess.Popen]:
    """Starts commands[i] as process i of as many."""
    shared = [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={len(commands)}"]
    return [launch([*each, *shared, f"--process_id={i}"]) for i, each in enumerate(commands)]


def finish(processes: list[subprocess.Popen], timeout: float = 400) -> list[tuple[int, str]]:
    """(exit status, what it said) of each; none outlives the test."""
    try:
        said = [process.communicate(timeout=timeout)[0] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def wait_until(happened: Callable[[], object], process: subprocess.Popen, timeout: float = 300) -> None:
    """Waits for something that a running process does."""
    limit = time.monotonic() + timeout
    while not happened() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)


def losses(folder: pathlib.Path) -> dict[int, float]:
    """The loss of every step, from the run's log."""
    return {record["step"]: record["loss"] for record in read_metrics(folder) if "loss" in record}


def newest(folder: pathlib.Path) -> int:
    """The step of the newest whole checkpoint, 0 for none."""
    return max((int(p.name.split("_")[1]) for p in folder.glob("checkpoints/checkpoint_*[0-9]")), default=0)


def done(folder: pathlib.Path) -> int | None:
    """The step at which a run was done."""
    path = folder / "done.json"
    return json.loads(path.read_text())["step"] if path.exists() else None
