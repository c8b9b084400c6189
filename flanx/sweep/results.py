"""The results of a sweep, read from the runs' files: what each point wrote at its last and chosen checkpoint."""

import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flanx import run_record
from flanx.errors import UserError
from flanx.evals import scores
from flanx.files import csv_text, read_json, write_atomic
from flanx.sweep import score_expressions
from flanx.sweep.grid import Point, Sweep
from flanx.train_metrics import read_metrics

LAST, CHOSEN = "last", "chosen"
SCORES = ("metric", "score", "low", "high", "n", "extraction_failed", "flagged", "spec")
COLUMNS = (
    *("point", "state", "checkpoint", "step", "validation_loss", "suite", *SCORES, "partial"),
    *("store", "trained_tasks", "missing_tasks", "parent", "run", "config", "scores", "generations"),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a point at one checkpoint.

    Attributes:
      state, reason: the point's, from the sweep's state.
      checkpoint: "last", or "chosen": the best step by the sweep's `choose_by`.
      suites: from scores.json; empty if there is none.
      scores: the path of scores.json.
      run: the run's metadata, run.json.
      validation_loss: at `step`, over all tokens; None if the run was not validated there.
      validated_on: the tasks of that validation and the target tokens of each: losses compare where these are equal.
    """

    point: Point
    state: str
    reason: str
    checkpoint: str
    step: int | None
    suites: Mapping[str, Any]
    scores: pathlib.Path | None
    run: Mapping[str, Any]
    validation_loss: float | None
    validated_on: tuple[tuple[str, int], ...] = ()

    @property
    def absence(self) -> str:
        """Why there are no scores: the state, then the reason."""
        if self.state == "done":
            return "no evaluation" if self.checkpoint == LAST else "no checkpoint chosen"
        return f"{self.state}: {self.reason}" if self.reason else self.state

    @property
    def store(self) -> str:
        """The hash of the store that the run read; "none" if it read no data."""
        data = self.run.get("data") or {}
        return data.get("store", {}).get("hash", "none")

    @property
    def mixture(self) -> Mapping[str, Any]:
        """What the run recorded about its mixture (`Resolved.describe`); {} if it read no data."""
        return (self.run.get("data") or {}).get("mixture", {})

    @property
    def trained_tasks(self) -> int | None:
        """How many tasks the run was trained on; None if not recorded."""
        return self.mixture.get("tasks", 0 if self.run and not self.run.get("data") else None)

    @property
    def missing_tasks(self) -> dict[str, str]:
        """{requested task or collection that was not trained on: reason}."""
        return self.mixture.get("missing", {})

    def links(self) -> dict[str, pathlib.Path]:
        """The files behind its numbers."""
        folder = self.point.folder
        found = {"run": folder, "config": folder / "config.gin"}
        if self.scores:
            found |= {"scores": self.scores, "generations": self.scores.parent / "generations"}
        return found


def evaluations(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """The evaluations of a run, by step: {step: scores.json}."""
    paths = (folder / "evals").glob("step_*/scores.json")
    found = {int(p.parent.name[5:]): p for p in paths if p.parent.name[5:].isdecimal()}
    return dict(sorted(found.items()))


def read(path: pathlib.Path, reader: Callable[[pathlib.Path], dict[Any, Any]] = read_json) -> dict[Any, Any]:
    """A JSON file, or {} if there is none. A damaged file is named and treated as absent, so the rest is reported."""
    try:
        return reader(path)
    except UserError as error:
        print(f"note: {error}", file=sys.stderr)
        return {}


def collect(sweep: Sweep, states: Mapping[str, tuple[str, str]]) -> list[Outcome]:
    """The result of every point, in point order; `states` has each point's (state, reason) by name.

    A sweep that chooses has two outcomes per point: for its last evaluation and for the chosen one.
    """
    points = sweep.points()
    chosen = choices(sweep, points) if sweep.choose_by else {}
    found = []
    for point in points:
        steps = evaluations(point.folder)
        validations = read(point.folder, validation_records)
        wanted: list[tuple[str, int | None]] = [(LAST, max(steps, default=None))]
        if sweep.choose_by:
            wanted.append((CHOSEN, chosen.get(point.name)))
        for checkpoint, step in wanted:
            path = steps.get(step) if step is not None else None
            suites = read(path, scores.read_scores).get("suites", {}) if path else {}
            run = read(point.folder / "run.json", run_record.read_run)
            validated = validations.get(step, {})
            tasks = tuple(sorted((name, each.get("tokens", 0)) for name, each in validated.get("tasks", {}).items()))
            loss = validated.get("loss")
            found.append(Outcome(point, *states[point.name], checkpoint, step, suites, path, run, loss, tasks))
    return found


def choices(sweep: Sweep, points: Sequence[Point]) -> dict[str, int]:
    """The best step by `choose_by` for each point that has one: {point: step}; ties go to the first.

    Points with the same labels on the axes `choose_per` share one step, the best by their mean over the steps that all
    of them have; if it is None, each point has its own. A parent that was evaluated unchanged has no choice.
    """
    groups: dict[tuple[str, ...], dict[str, dict[int, float]]] = {}
    chosen: dict[str, int] = {}
    by_loss = score_expressions.validation_loss(sweep.choose_by)
    for point in points:
        per = list(sweep.axes) if sweep.choose_per is None else sweep.choose_per
        key = tuple(point.labels[axis] for axis in per)
        values: dict[int, score_expressions.Estimate | str]
        if by_loss is not None:
            losses = read(point.folder, lambda folder: validation_losses(folder, by_loss))
            found = {step: losses.get(step) for step in evaluations(point.folder)}
            values = {
                step: "no validation" if loss is None else score_expressions.Estimate(-loss, -loss, -loss)
                for step, loss in found.items()
            }
        else:
            values = {
                step: score_expressions.value(sweep.choose_by, read(p, scores.read_scores).get("suites", {}))
                for step, p in evaluations(point.folder).items()
            }
        curve = {step: each.score for step, each in values.items() if isinstance(each, score_expressions.Estimate)}
        if list(curve) == [0]:
            key = (*key, point.name)
        if curve:
            groups.setdefault(key, {})[point.name] = curve
        elif len(values) == 1:  # one evaluation, without the suites that choose: there is no choice
            chosen[point.name] = next(iter(values))
    for curves in groups.values():
        shared = set.intersection(*(set(curve) for curve in curves.values()))
        if shared:
            of_group = list(curves.values())
            best = max(sorted(shared), key=lambda step: math.fsum(curve[step] for curve in of_group))
            chosen |= {name: best for name in curves}
    return chosen


def validation_records(folder: pathlib.Path) -> dict[int, dict[str, Any]]:
    """{step: record of a run's validation}; see `flanx.validation`."""
    return {record["step"]: record["validation"] for record in read_metrics(folder) if "validation" in record}


def validation_losses(folder: pathlib.Path, collection: str) -> dict[int, float]:
    """{step: validation loss} of a run, over all its tokens ("") or a collection's."""
    records = validation_records(folder)
    parts = {step: each["collections"].get(collection, {}) if collection else each for step, each in records.items()}
    return {step: each["loss"] for step, each in parts.items() if "loss" in each}


def table(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    """results.csv: the axes, then COLUMNS, with a line per point, checkpoint and suite.

    A point without scores has one line, whose state says why; paths are relative to the sweep's folder.
    """
    rows: list[list[Any]] = []
    base = pathlib.Path(sweep.out_dir)
    for outcome in outcomes:
        links = {name: path.relative_to(base).as_posix() for name, path in outcome.links().items()}
        common = {
            "point": outcome.point.name,
            "state": outcome.state,
            "checkpoint": outcome.checkpoint,
            "step": "" if outcome.step is None else outcome.step,
            "validation_loss": "" if outcome.validation_loss is None else outcome.validation_loss,
            "store": outcome.store,
            "trained_tasks": "" if outcome.trained_tasks is None else outcome.trained_tasks,
            "missing_tasks": " ".join(outcome.missing_tasks),
            "parent": outcome.run.get("initial_checkpoint_fingerprint") or "none",
        }
        for name, entry in (outcome.suites or {"-": {}}).items():
            row = common | links | {"suite": name} | {key: entry[key] for key in SCORES if key in entry}
            row["score"] = scores.not_available(entry) or row.get("score", "")
            row["partial"] = "; ".join(scores.partial(entry))
            rows.append([*outcome.point.labels.values(), *(row.get(column, "") for column in COLUMNS)])
    return csv_text([*sweep.axes, *COLUMNS], rows)


def version_note(outcomes: Sequence[Outcome]) -> list[str]:
    """A sentence if points were scored by different versions of the extractor or scorer, else nothing."""
    return scores.version_note(
        {f"{o.point.name} {name} ({o.checkpoint})": entry for o in outcomes for name, entry in o.suites.items()}
    )


def write_choices(sweep: Sweep) -> None:
    """Writes runs/<point>/chosen.json, {"step", "by"}, for every point whose step is chosen."""
    points = sweep.points()
    for name, step in choices(sweep, points).items():
        folder = next(point.folder for point in points if point.name == name)
        record = {"step": step, "by": list(sweep.choose_by)}
        if read(folder / "chosen.json") != record:
            write_atomic(folder / "chosen.json", json.dumps(record) + "\n")
