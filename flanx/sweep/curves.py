"""Curves of runs over steps, from the records of each run: metrics.jsonl, tasks.jsonl, evals/.

This module only reads, and a run may still be in progress: an incomplete line is left for the next read.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flanx import files, optim, run_record
from flanx.errors import UserError
from flanx.evals import scores
from flanx.sweep import results
from flanx.train_metrics import STAGES

Curve = list[tuple[int, float]]  # (step, value)
MOST_POINTS = 600  # per drawn curve: beyond that, each point is a mean of neighbours


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has recorded so far.

    Attributes:
      name: its label, the shortest suffix of its path that no other run has.
      records, validations: the training and validation records in metrics.jsonl.
      tasks: the lines of tasks.jsonl.
      suites: {suite: its score over steps}.
      metadata: run.json.
    """

    name: str
    folder: pathlib.Path
    records: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]
    tasks: Sequence[Mapping[str, Any]]
    suites: Mapping[str, Curve]
    metadata: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The latest step in any record."""
        return max([0, *(record["step"] for record in (*self.records, *self.validations))])

    @property
    def done(self) -> bool:
        """Whether the run has finished."""
        return (self.folder / "done.json").exists()


@dataclasses.dataclass(frozen=True)
class Panel:
    """One figure: {label: curve} for all runs; `absent`: what to say if no run has one; `unit`: unit of the values."""

    title: str
    unit: str
    curves: Mapping[str, Curve]
    absent: str


def is_run(name: str) -> bool:
    """Whether `name` is the folder of a run."""
    return any((pathlib.Path(name) / each).is_file() for each in ("metrics.jsonl", "run.json"))


def read_runs(names: Sequence[str]) -> list[Run]:
    """The runs in these folders. Raises UserError for a folder that is not a run, duplicates, and damaged lines."""
    folders = [pathlib.Path(name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        if not is_run(name):
            what = "not a folder" if not folder.is_dir() else "not a run, as it has neither metrics.jsonl nor run.json"
            raise UserError(f"{folder} is {what}; give the MODEL_DIR of a `flanx train`")
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise UserError(f"{next(f for f in whole if whole.count(f) > 1)} is given twice")
    length = next(n for n in range(1, 99) if len({path.parts[-n:] for path in whole}) == len(whole))
    return [_read(folder, "/".join(path.parts[-length:])) for folder, path in zip(folders, whole, strict=True)]


def _read(folder: pathlib.Path, name: str) -> Run:
    records = list(_checked(folder / "metrics.jsonl"))
    suites: dict[str, Curve] = {}
    for step, path in results.evaluations(folder).items():
        for suite, entry in scores.read_scores(path).get("suites", {}).items():
            if not entry.get("unscored"):
                suites.setdefault(suite, []).append((step, entry["score"]))
    return Run(
        name,
        folder,
        [record for record in records if "loss" in record],
        [record for record in records if "validation" in record],
        list(_checked(folder / "tasks.jsonl")),
        suites,
        run_record.read_run(folder / "run.json"),
    )


def _checked(path: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    """The records in a file. Raises UserError with the damaged line."""
    for number, record in enumerate(files.read_jsonl(path), 1):
        yield run_record.check(path, number, record)


# ---- curves ----------------------------------------------------------------------------------------------------------


def panels(runs: Sequence[Run]) -> list[Panel]:
    """The figures of these runs: losses, validation, learning rate, speed, time, memory, padding, held-out scores."""
    made = [
        ("Training loss", "cross-entropy per token", _training, "no run has a record yet"),
        ("Training loss by collection", "cross-entropy per token", _by_source, "no run records losses by source"),
        ("Validation loss", "cross-entropy per token", _validation, "no run has been validated (VALIDATION)"),
        ("Validation loss by collection", "cross-entropy per token", _by_collection, "no run has been validated"),
        ("Learning rate", "", _learning_rate, "no run has recorded its schedule (run.json)"),
        ("Speed", "tokens per second", lambda run: {"": _of(run, "tokens_per_second")}, "no run has a record yet"),
        ("Model FLOPs utilisation", "share of the chips' peak", _utilisation, "no run knows its chips' peak"),
        ("Where the time goes", "share", _time, "no run records how its time is split"),
        ("Memory at its peak", "GB", _memory, "no run records its memory"),
        ("Padding", "share of positions", lambda run: {"": _of(run, "padding")}, "no run has a record yet"),
        ("Held-out scores", "percent", lambda run: run.suites, "no run was evaluated while it trained (SUITES)"),
    ]
    return [Panel(title, unit, _labelled(runs, find), absent) for title, unit, find, absent in made]


def _labelled(runs: Sequence[Run], find: Callable[[Run], Mapping[str, Curve]]) -> dict[str, Curve]:
    """{label: curve}; a label is the run's name, if there are several, and the curve's name, if it has one."""
    found = {}
    for run in runs:
        for name, curve in find(run).items():
            label = " ".join(filter(None, [run.name if len(runs) > 1 else "", name]))
            if finite := [(step, value) for step, value in curve if math.isfinite(value)]:
                found[label] = thinned(finite)
    return found


def thinned(curve: Curve) -> Curve:
    """A curve of at most MOST_POINTS points: each the mean of equally many neighbours, at the last neighbour's step."""
    size = max(1, -(-len(curve) // MOST_POINTS))
    if size == 1:
        return curve
    blocks = [curve[n : n + size] for n in range(0, len(curve), size)]
    return [(block[-1][0], math.fsum(value for _, value in block) / len(block)) for block in blocks]


def _of(run: Run, key: str) -> Curve:
    return [(record["step"], record[key]) for record in run.records if key in record]


def _figures(run: Run, key: str, scale: float = 1.0) -> Curve:
    """A curve of one value in the records' "performance"."""
    found = [(record["step"], record.get("performance", {}).get(key)) for record in run.records]
    return [(step, value * scale) for step, value in found if value is not None]


def _utilisation(run: Run) -> dict[str, Curve]:
    return {"": _figures(run, "mfu")}


def _time(run: Run) -> dict[str, Curve]:
    """The time shares in each record, and the goodput since the start of the run."""
    spent = {stage: dict(_figures(run, f"{stage}_seconds")) for stage in STAGES}
    whole = {step: math.fsum(each.get(step, 0.0) for each in spent.values()) or 1.0 for step in spent["step"]}
    shares = {stage: [(step, each.get(step, 0.0) / whole[step]) for step in whole] for stage, each in spent.items()}
    return {"goodput": _figures(run, "goodput")} | {stage: curve for stage, curve in shares.items() if any(curve)}


def _memory(run: Run) -> dict[str, Curve]:
    return {name: _figures(run, f"{name}_memory_peak", 1e-9) for name in ("device", "host")}


def _training(run: Run) -> dict[str, Curve]:
    return {"": _of(run, "cross_ent_loss") or _of(run, "loss")}


def _by_source(run: Run) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for record in run.records:
        for source, each in record.get("sources", {}).items():
            if each.get("tokens", 1):
                found.setdefault(source, []).append((record["step"], each["loss"]))
    return found


def _validation(run: Run) -> dict[str, Curve]:
    names = {"loss": "all tokens", "macro_loss": "mean over tasks"}
    return {
        label: [(each["step"], each["validation"][key]) for each in run.validations if key in each["validation"]]
        for key, label in names.items()
    }


def _by_collection(run: Run) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for record in run.validations:
        for name, each in record["validation"].get("collections", {}).items():
            found.setdefault(name, []).append((record["step"], each["loss"]))
    return found


def _learning_rate(run: Run) -> dict[str, Curve]:
    """The learning-rate schedule that the run recorded, at the steps of its records."""
    settings = run.metadata.get("settings", {})
    rate = next((value for name, value in settings.items() if name.endswith(".learning_rate")), None)
    steps = [step for step, _ in thinned([(record["step"], 0.0) for record in run.records])]
    make: Callable[..., optim.Schedule] | None = getattr(optim, rate, None) if isinstance(rate, str) else None
    if make:
        start = f"optim.{rate}."
        schedule = make(**{name[len(start) :]: value for name, value in settings.items() if name.startswith(start)})
        return {"": [(step, float(schedule(step))) for step in steps]}
    return {"": [(step, float(rate)) for step in steps]} if isinstance(rate, int | float) else {}


# ---- tasks -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TaskLoss:
    """One task of one run. Losses are cross-entropy per target token: over the whole run, over the first and last lines
    of tasks.jsonl with the task, and the latest on its validation split; None if there is none."""

    task: str
    examples: int
    tokens: int
    loss: float
    first: float
    last: float
    validation: float | None


def task_losses(run: Run) -> list[TaskLoss]:
    """The tasks that a run has trained on, highest last loss first."""
    lines: dict[str, list[Mapping[str, float]]] = {}
    for line in run.tasks:
        for task, sums in line.get("tasks", {}).items():
            if sums["tokens"]:
                lines.setdefault(task, []).append(sums)
    validated = run.validations[-1]["validation"].get("tasks", {}) if run.validations else {}
    found = [
        TaskLoss(
            task,
            round(math.fsum(sums["examples"] for sums in each)),
            round(math.fsum(sums["tokens"] for sums in each)),
            math.fsum(sums["loss_sum"] for sums in each) / math.fsum(sums["tokens"] for sums in each),
            each[0]["loss_sum"] / each[0]["tokens"],
            each[-1]["loss_sum"] / each[-1]["tokens"],
            validated.get(task, {}).get("loss"),
        )
        for task, each in lines.items()
    ]
    return sorted(found, key=lambda one: (-one.last, one.task))
