"""Command lines run in one process: their status, what they print and leave; and a folder of good and odd files.

python -m tests.command_case CASES    runs each line {"id", "argv", "folder"} of a file, a JSON line for each result
"""

import contextlib
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flanx.cli import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = """from __gin__ import dynamic_registration
from flanx.models import t5
include "models/t5_1_1/tiny.gin"
t5.T5:
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 32
  num_encoder_layers = 1
  num_decoder_layers = 1
"""
TASKS = ["suite_text_word_reverse", "suite_text_word_first", "suite_text_word_last", "suite_text_word_upper"]
LENGTHS = "{'inputs': 64, 'targets': 24}"


class Result(NamedTuple):
    """What a command line came to; `status` is -1 where it took longer than its limit, -2 where it raised."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip()]

    def mistake(self) -> str:
        """Why this is neither a success nor an error of one to five lines; "" where it is one of them."""
        if "Traceback" in self.err:
            return "traceback"
        if self.status == 2:
            return "" if 1 <= len(self.lines) <= 5 else f"{len(self.lines)} lines"
        return "" if self.status == 0 else {-1: "took too long", -2: "raised"}.get(self.status, f"exit {self.status}")


class _TooLong(BaseException):
    pass


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong

    kept = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


def run(arguments: Sequence[str], folder: pathlib.Path, limit: float = 60) -> Result:
    """`flanx` with these arguments in `folder`, in this process: a start of Python and jax takes longer than most."""
    out, err, began = io.StringIO(), io.StringIO(), time.monotonic()
    kept, variables = os.getcwd(), dict(os.environ)
    os.chdir(folder)
    status: object
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limit(limit):
            try:
                status = main.main(arguments)
            except SystemExit as end:
                status = end.code
    except _TooLong:
        status = -1
    except BaseException:
        status = -2
        err.write(traceback.format_exc())
    finally:
        os.chdir(kept)
        os.environ.clear()  # some commands set variables for their children
        os.environ.update(variables)
    return Result(status if isinstance(status, int) else 0, out.getvalue(), err.getvalue(), time.monotonic() - began)


def run_all(cases: Sequence[Mapping[str, Any]], folder: pathlib.Path, limit: float = 60) -> list[dict[str, Any]]:
    """The cases in a process of their own, which has one device; for each what it was, what came out, the mistake.

    A case that keeps the process from its signals ends it, and the next process takes the rest.
    """
    unset = {"XLA_FLAGS": "", "FLANX_IMPORTS": "", "FLANX_DATA_DIR": ""}
    env = {**os.environ, **unset, "FLANX_CACHE": str(folder / "cache")}
    file, found = folder / "cases.jsonl", []
    while len(found) < len(cases):
        file.write_text("".join(json.dumps(case) + "\n" for case in cases[len(found) :]))
        done = subprocess.run(
            [sys.executable, "-m", "tests.command_case", str(file), str(limit)],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        assert done.stdout, done
        found += [json.loads(line) for line in done.stdout.splitlines()]
    return found


def _main(file: str, limit: str) -> None:
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a child process prints
    for line in pathlib.Path(file).read_text().splitlines():
        case = json.loads(line)
        folder = pathlib.Path(case["folder"])

        def tell(case: Mapping[str, Any], result: Result, mistake: str) -> None:
            print(json.dumps({**case, **result._asdict(), "mistake": mistake}), file=report, flush=True)

        def give_up(case: Mapping[str, Any] = case) -> None:
            tell(case, Result(-1, "", "", float(limit)), "hangs, and takes no signal")
            os._exit(1)

        watch = threading.Timer(float(limit) + 5, give_up)
        watch.daemon = True
        watch.start()
        before = listing(folder)
        result = run(case["argv"], folder, float(limit))
        watch.cancel()
        after, mistake = listing(folder), result.mistake()
        if not mistake and result.status != 0 and before != after:
            changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
            mistake = f"refused, but changed {changed[:5]}"
        if not mistake and result.status == 0 and case.get("wrong"):
            mistake = "accepted"
        tell(case, result, mistake)


def listing(folder: pathlib.Path) -> dict[str, bytes]:
    """{path in the folder: its content}; of what is not a file b""."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def train(base: pathlib.Path, *more: str) -> list[str]:
    """A training of six steps on the store of `base`."""
    return [
        "train", "--gin_file=runs/train.gin", f"--gin_file={base}/tiny.gin", f"--gin.STORE_DIR='{base}/store'",
        "--gin.VOCABULARY='byte'", "--gin.MIXTURE_OR_TASK_NAME='suite_text'", "--gin.MODEL_DIR='run'",
        "--gin.TRAIN_STEPS=6", "--gin.BATCH_SIZE=8", f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}", *more,
    ]  # fmt: skip


def evaluate(base: pathlib.Path, *more: str) -> list[str]:
    """An evaluation of the run of `base` on two items."""
    return [
        "evaluate", "--gin_file=runs/evaluate.gin", "--gin_file=evals/suite.gin", f"--gin_file={base}/tiny.gin",
        "--gin.VOCABULARY='byte'", f"--gin.CHECKPOINT_PATH='{base}/run'", "--gin.OUTPUT_DIR='ev'",
        f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}", "--gin.SUITES=['suite_rule[:2]']", *more,
    ]  # fmt: skip


def infer(base: pathlib.Path, *more: str) -> list[str]:
    """Answers of the run of `base` to two prompts."""
    return [
        "infer", "--gin_file=runs/infer.gin", f"--gin_file={base}/tiny.gin", "--gin.VOCABULARY='byte'",
        f"--gin.CHECKPOINT_PATH='{base}/run'", "--gin.INFER_OUTPUT_DIR='inf'", f"--gin.PROMPTS='{base}/p.txt'",
        f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}", *more,
    ]  # fmt: skip


def make_odd_files(base: pathlib.Path) -> None:
    """A folder with the gin file of a model, and files that are something else than they should."""
    base.mkdir(exist_ok=True)
    texts = {
        "tiny.gin": TINY,
        "empty.gin": "",
        "syn.gin": "A = = 3\n",
        "self.gin": 'include "self.gin"\n',
        "deep.gin": "A = " + "[" * 3000 + "]" * 3000,
        "import.gin": "from __gin__ import dynamic_registration\nimport antigravity\n",
        "t5x.gin": "from __gin__ import dynamic_registration\nimport __main__ as train_script\n",
        "afile": "a file\n",
        "badp.jsonl": '{"inputs": "a"}\n{"inputs": \n',
        "p.txt": "say a\nsay b\n",
        "p.jsonl": '{"inputs": "say a", "targets": "a"}\n{"inputs": "say b", "targets": "b"}\n',
    }
    for name, text in texts.items():
        (base / name).write_text(text)
    noise = random.Random(1).randbytes(300)
    for name in ("bin.gin", "bin.txt", "bin.jsonl"):
        (base / name).write_bytes(noise)
    (base / "notutf.gin").write_bytes(b"\xff\xfeA\0=\0")
    (base / "dir.gin").mkdir(exist_ok=True)
    os.mkfifo(base / "fifo")
    for name in ("notmine", "nofetch", "priv"):
        (base / name).mkdir()


def make_base(base: pathlib.Path) -> None:
    """The same, with a store, a run on it and an evaluation of the run."""
    make_odd_files(base)
    build = [f"--gin.STORE_DIR='{base}/store'", "--gin.VOCABULARY='byte'", f"--gin.MIXTURE_OR_TASK_NAME={TASKS}"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        for argv in (
            ["store", "build", "--quiet", *build, "--gin.WORKERS=1"],
            train(base, f"--gin.MODEL_DIR='{base}/run'", "--gin.TRAIN_STEPS=20"),
            evaluate(base, f"--gin.OUTPUT_DIR='{base}/ev'"),
        ):
            done = run(argv, folder, 600)
            assert done.status == 0, done.err


if __name__ == "__main__":
    _main(*sys.argv[1:])
