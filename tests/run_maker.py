"""Records of training runs that nobody ran, as `flanx train` writes them."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

COLLECTIONS = ("cot", "muffin")
PERFORMANCE = {"mfu": 0.4, "goodput": 0.9, "input_seconds": 2.5, "step_seconds": 7.5, "checkpoint_seconds": 0.0,
               "evaluation_seconds": 0.0, "compile_seconds": 0.0, "host_memory_peak": 2e9}  # fmt: skip


def line(record: Mapping[str, Any]) -> str:
    """A line of JSON."""
    return json.dumps(record) + "\n"


def loss(step: int) -> float:
    """The loss of a step."""
    return 1.0 + 3 * math.exp(-step / 300)


def leave(folder: pathlib.Path, steps: int = 1000, period: int = 50, sources: bool = True, done: bool = True) -> None:
    """What a run leaves that logs every `period` steps, validates every fifth time, and has scores at its end."""
    folder.mkdir(parents=True)
    metrics, tasks = [], []
    for step in range(period, steps + 1, period):
        speed = {"padding": 0.05, "tokens_per_second": 2e4 + step, "steps_per_second": 5.0, "grad_norm": 1.0}
        record = {"step": step, "loss": loss(step) + 0.01, "cross_ent_loss": loss(step), "accuracy": 0.5, **speed}
        each = {name: {"loss": loss(step) + n, "tokens": 100, "examples": 7} for n, name in enumerate(COLLECTIONS)}
        metrics.append(record | ({"sources": each, "performance": PERFORMANCE} if sources else {}))
        if sources and step % (5 * period) == 0:
            of_tasks = {f"{name}_a": {"loss_sum": 100 * (loss(step) + n), "tokens": 100, "examples": 9}
                        for n, name in enumerate(COLLECTIONS)}  # fmt: skip
            total = {"loss_sum": sum(sums["loss_sum"] for sums in of_tasks.values()), "tokens": 200, "examples": 18}
            tasks.append({"step": step, "total": total, "tasks": of_tasks})
            part = {"loss": loss(step) + 0.2, "bits_per_byte": 1.0, "accuracy": 0.4, "tokens": 50}
            whole = part | {"macro_loss": loss(step) + 0.3, "macro_accuracy": 0.4, "examples": 10, "seconds": 0.5}
            found = whole | {"collections": dict.fromkeys(COLLECTIONS, part), "tasks": {"cot_a": part}}
            metrics.append({"step": step, "validation": found})
    (folder / "metrics.jsonl").write_text("".join(map(line, metrics)))
    if sources:
        (folder / "tasks.jsonl").write_text("".join(map(line, tasks)))
    settings = {"optim.adafactor.learning_rate": "linear", "optim.linear.rate": 0.05, "optim.linear.total_steps": steps,
                "optim.linear.warmup_steps": 0, "optim.linear.final": 0.0}  # fmt: skip
    mixture = {"asked": {"name": "both"}, "tasks": 2, "missing": {}}
    metadata = {"num_params": 1234, "settings": settings, "data": {"mixture": mixture, "store": {"hash": "5707e"}}}
    (folder / "run.json").write_text(json.dumps(metadata))
    if done:
        (folder / "done.json").write_text("{}")
