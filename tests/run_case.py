"""Small training runs as processes of their own: a store, the command, several processes on loopback."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import numpy as np

from flanx.data import vocabulary
from flanx.data.writer import write_store

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = tempfile.TemporaryDirectory()  # processes that compile the same step share it


def make_store(folder: pathlib.Path) -> pathlib.Path:
    """A store of one task, bytes, short texts drawn by numpy."""
    words, rng = vocabulary.load("byte"), np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdef"), 12)) for _ in range(200)]
    pairs = [([*words.encode(t), 1], [*words.encode(t[:4]), 1]) for t in texts]
    tasks = {"own_a": {"collection": "own", "cap": 1000, "held_out": False, "cot": False}}
    write_store(folder, tasks, {("own_a", "zsopt"): [pairs]}, words)
    return folder


def command(store_dir: pathlib.Path, model_dir: pathlib.Path, *flags: str, **more: object) -> list[str]:
    """`flanx train` of a model of one layer; `more` binds gin names."""
    bound = {
        "STORE_DIR": str(store_dir),
        "MODEL_DIR": str(model_dir),
        "VOCABULARY": "byte",
        "MIXTURE_OR_TASK_NAME": "own",
        "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 16},
        "TRAIN_STEPS": 6,
        "BATCH_SIZE": 8,
        "CHECKPOINT_PERIOD": 2,
        "train.log_period": 1,
        "t5.T5.num_encoder_layers": 1,
        "t5.T5.num_decoder_layers": 1,
        "t5.T5.emb_dim": 16,
    } | more
    gin = [f"--gin.{name}={value!r}" for name, value in bound.items()]
    files = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/train.gin"]
    return [sys.executable, "-m", "flanx", "train", *files, *flags, *gin]


def launch(arguments: list[str], **environment: str) -> subprocess.Popen:
    """Starts a process on one CPU device."""
    cache = {"JAX_COMPILATION_CACHE_DIR": CACHE.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **cache, **environment}
    return subprocess.Popen(
        arguments,
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


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


def launch_many(count: int, commands: list[list[str]], skip: tuple[int, ...] = ()) -> list[subprocess.Popen]:
    """Starts commands[i] as process i of `count`, but for those in `skip`."""
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    flags = [[address, f"--num_processes={count}", f"--process_id={i}"] for i in range(count)]
    return [launch([*commands[i], *flags[i]]) for i in range(count) if i not in skip]


def finish(processes: list[subprocess.Popen], timeout: float = 400) -> list[tuple[int, str]]:
    """(exit status, what it said) of each; none outlives the test."""
    try:
        said = [process.communicate(timeout=timeout)[0] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def losses(folder: pathlib.Path) -> list[float]:
    """The loss of every step, from the run's log."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]
