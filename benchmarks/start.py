"""How soon commands begin: seconds from the command to what it is asked for, its programs in the compilation cache.

    python benchmarks/start.py [--quick]

One JSON object per command, the median of runs after one that fills the cache: `flanx --help` and `flanx tasks list` to
their end, `flanx train` (T5 of width 96 over bytes) to the record of its first step, `flanx evaluate` of that run to
its first score. Of `train` also where the time goes, in seconds: `imports` (Python, libraries, gin), `opening` (store,
parameters), `first_step` (tracing, lowering, reading the program from the cache, one step).
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import record

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tests import run_case

TARGETS = {"--help": 0.15, "tasks list": 0.3, "train": 6.0, "evaluate": 6.0}


def until(arguments: Sequence[str], mark: str, cache: pathlib.Path) -> tuple[float, float]:
    """Seconds from the start of `flanx ARGUMENTS` to the output line with `mark`, or to its end if there is none; and
    the Unix time of its start."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # modules are compiled once, as where it is not set
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    command, seconds, began, said = [sys.executable, "-m", "flanx", *arguments], 0.0, time.time(), []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=env, cwd=run_case.ROOT, **pipes) as process:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if mark and mark in line and not seconds:
                seconds = time.time() - began
    if process.returncode or (mark and not seconds):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(said)}")
    return seconds or time.time() - began, began


def main() -> None:
    """Prints one JSON object per command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once, a tiny model")
    quick = parser.parse_args().quick
    repeats, size = (1, "tiny") if quick else (5, "d96")
    with tempfile.TemporaryDirectory() as folder:
        base, run = pathlib.Path(folder), pathlib.Path(folder) / "run"
        more = {"TRAIN_STEPS": 1} | {f"t5.T5.num_{side}_layers": 2 for side in ("encoder", "decoder")}
        train = [text for text in run_case.command(run, **more)[3:] if quick or "emb_dim" not in text]
        train = [text.replace("/tiny.gin", f"/{size}.gin") for text in train]
        evaluate = ["evaluate", "--gin_file=runs/evaluate.gin", "--gin_file=evals/suite.gin", f"--gin.MODEL='{run}'"]
        bound = {"SUITES": ["suite_frame[:1]"], "VOCABULARY": "byte", "CHECKPOINT_PATH": str(run)}
        bound |= {"OUTPUT_DIR": str(base / "scores"), "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 24}}
        evaluate += [f"--gin.{name}={value!r}" for name, value in bound.items()]
        commands = {
            "--help": (["--help"], ""),
            "tasks list": (["tasks", "list"], ""),
            "train": (train, " step 1/1 "),
            "evaluate": (evaluate, "items/s"),
        }
        for name, (arguments, mark) in commands.items():
            taken, parts = [], []
            for turn in range(1 + repeats):
                for path in (base / "scores", *([run] if name == "train" else [])):
                    shutil.rmtree(path, ignore_errors=True)
                seconds, began = until(arguments, mark, base / "cache")
                if turn and name == "train":
                    session = json.loads((run / "sessions.jsonl").read_text().splitlines()[0])
                    imports, opening = session["started"] - began, session["start_seconds"]
                    parts.append({"imports": imports, "opening": opening, "first_step": seconds - imports - opening})
                taken += [seconds] * bool(turn)
            line = {"benchmark": "start", "metric": f"flanx {name}", "value": round(statistics.median(taken), 3)}
            line |= {"unit": "s", "target": TARGETS[name]}
            line |= {part: round(statistics.median(each[part] for each in parts), 2) for part in (parts or [{}])[0]}
            record.write(line)


if __name__ == "__main__":
    main()
