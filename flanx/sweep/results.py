"""The results of a sweep: one row per (point, suite), read from the runs' own files."""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from flanx.config import write_atomic
from flanx.evals.suite import MAX_FAILED
from flanx.sweep.drive import Status
from flanx.sweep.grid import Sweep

COLUMNS = ("point", "state", "suite", "metric", "score", "low", "high", "n", "extraction_failed", "step", "spec", "run")


@dataclasses.dataclass(frozen=True)
class Row:
    """The score of one point on one suite, in percent; score None where the point has none."""

    labels: dict[str, str]
    point: str
    state: str
    suite: str
    metric: str = ""
    score: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    extraction_failed: float = 0.0
    step: int | None = None
    spec: str = ""
    run: str = ""

    @property
    def flagged(self) -> bool:
        """Whether too many answers could not be extracted for the score to stand bare."""
        return self.extraction_failed > MAX_FAILED


def collect(sweep: Sweep, statuses: Sequence[Status]) -> list[Row]:
    """Every row of the sweep, in the order of its points; a point without scores has one row that says so."""
    rows = []
    for status in statuses:
        point = status.point
        found = read_scores(point.folder)
        common = {"labels": point.labels, "point": point.name, "state": status.state, "run": str(point.folder)}
        if not found:
            rows.append(Row(**common, suite="-"))
        for name, scores in found.get("suites", {}).items():
            picked = {key: scores[key] for key in ("metric", "score", "low", "high", "n", "extraction_failed", "spec")}
            rows.append(Row(**common, suite=name, step=found["step"], **picked))
    return rows


def read_scores(folder: pathlib.Path) -> dict[str, Any]:
    """The scores of a run's newest evaluation, or {} where there is none."""
    found = sorted(
        (folder / "evals").glob("step_*/scores.json"), key=lambda p: int(p.parent.name.removeprefix("step_"))
    )
    return json.loads(found[-1].read_text(encoding="utf-8")) if found else {}


def write_csv(path: pathlib.Path, sweep: Sweep, rows: Sequence[Row]) -> None:
    """results.csv: the axes, then COLUMNS; an absent score is an empty cell beside a state that says why."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*sweep.axes, *COLUMNS])
    for row in rows:
        values = [getattr(row, column) for column in COLUMNS]
        writer.writerow([*row.labels.values(), *("" if value is None else value for value in values)])
    write_atomic(path, text.getvalue())
