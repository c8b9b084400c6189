"""Sweeps that nobody ran: folders of runs with scores as evaluations write them, and a stand-in for `flanx train`."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.sweep.grid import Sweep

# takes a point's arguments; writes what a run writes. TASKS=13 is bad input; every run leaves a line in runs.log;
# CRASHES=n fails n times first, EXIT with that status; MODEL_DIR's evaluations at steps 5 and 10 score TASKS and half
STAND_IN = """
import json, os, pathlib, signal, sys, time
bound = dict(a.removeprefix("--gin.").split("=", 1) for a in sys.argv if a.startswith("--gin."))
folder = pathlib.Path(bound["MODEL_DIR"].strip("'"))
out = folder.parent.parent
with open(out / "runs.log", "a") as log:
    log.write(folder.name + "\\n")
parent = bound.get("INITIAL_CHECKPOINT_PATH", "'none'").strip("'")
if parent != "none" and not (pathlib.Path(parent.partition("/checkpoints/")[0]) / "done.json").exists():
    print("its parent is not done")
    sys.exit(2)
time.sleep(float(bound.get("SLEEP", 0)))
if bound["TASKS"] == "13":
    print("flanx train: it broke")
    sys.exit(2)
if (out / "runs.log").read_text().split().count(folder.name) <= int(bound.get("CRASHES", 0)):
    print("lost a host")
    sys.exit(int(bound.get("EXIT", 70)))
for step, score in ((5, float(bound["TASKS"])), (10, float(bound["TASKS"]) / 2)):
    entry = {"metric": "exact_match", "score": score, "low": score / 2, "high": min(2 * score, 100), "n": 100,
             "extraction_failed": 0.1 if bound["TASKS"] == "8" else 0.0, "flagged": bound["TASKS"] == "8",
             "spec": "abc", "tasks": {}}
    (folder / "evals" / f"step_{step}" / "generations").mkdir(parents=True, exist_ok=True)
    (folder / "evals" / f"step_{step}" / "scores.json").write_text(json.dumps({"step": step,
        "suites": {"held_out": entry}, "run": {"versions": {"flanx": "0"}}}))
(folder / "config.gin").write_text("")
(folder / "run.json").write_text(json.dumps({"num_params": 1000 * int(bound["D"]), "initial_checkpoint_path": parent,
    "initial_checkpoint_fingerprint": None, "data": {"store": {"hash": "5707e"}}}))
(folder / "done.json").write_text("{}")
"""


def runs(folder: pathlib.Path) -> list[str]:
    """The runs that were started, in order."""
    return (folder / "runs.log").read_text().split()


def no_show(_) -> None:
    """Shows nothing."""


def make(out: pathlib.Path, tasks: Sequence[int] = (2, 8), **more: Any) -> Sweep:
    """A sweep of two sizes over numbers of tasks, for the stand-in."""
    axes = {"size": {"d1": ["D=1"], "d2": ["D=2"]}, "tasks": {n: [f"TASKS={n}"] for n in tasks}}
    return Sweep(out_dir=str(out), gin_files=["runs/train.gin"], **{"bindings": {"STEPS": 5}, "axes": axes} | more)


def entry(score: float, half: float = 2.0, flagged: bool = False, tasks: Mapping[str, Any] | None = None) -> dict:
    """A suite's scores."""
    shares = {"n": 250, "extraction_failed": 0.12 if flagged else 0.01, "flagged": flagged, "spec": "0123456789abcdef"}
    return {"metric": "exact_match", "score": score, "low": score - half, "high": score + half, **shares} | {
        "tasks": dict(tasks or {})
    }


def leave(
    folder: pathlib.Path, steps: Mapping[int, Mapping[str, Any]], num_params: int = 1000, done: bool = True
) -> None:
    """What a run leaves: run.json, its evaluations, done.json."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"num_params": num_params, "data": {"store": {"hash": "5707e5707e5707e"}}, "initial_checkpoint_path": None}
    (folder / "run.json").write_text(json.dumps(record))
    for name in ("config.gin", "operative_config.gin", "log.txt"):
        (folder / name).write_text("")
    for step, suites in steps.items():
        place = folder / "evals" / f"step_{step}"
        (place / "generations").mkdir(parents=True, exist_ok=True)
        run = {"versions": {"flanx": "0.2.0", "jax": "0.10.2"}}
        (place / "scores.json").write_text(json.dumps({"step": step, "suites": dict(suites), "run": run}))
    (folder / "done.json").write_text("{}")
