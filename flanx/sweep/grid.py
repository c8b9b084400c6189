"""A sweep as data: axes of gin files and bindings, and the points they span."""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flanx import files, settings
from flanx.errors import UserError
from flanx.files import read_json

# what an axis sets for one of its values: gin files (ending in .gin), bindings ("NAME=VALUE"), and bindings as mappings
# {NAME: value}, whose values may be macros in the sweep's own file
Setting = Sequence[str | Mapping[str, Any]]
GIN, RECORD, RUNS = "sweep.gin", "sweep.json", "runs"  # in a sweep's folder: the sweep in two formats, and its runs


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Attributes:
      out_dir: where the sweep lives: runs/<point>/, state.json, results.csv, report.md, report.html, figures/.
      gin_files: gin files of every point.
      axes: axis -> {label: setting}.
      bindings: macros bound for every point, {"TRAIN_STEPS": 500}.
      store: gin files of `flanx store build` for the stores that the points read, one for each of their STORE_DIRs;
        none where the stores exist already.
      title, note: of the report.
      scores: the scores of the figures, {name: expressions}, see `flanx.sweep.score_expressions`; {} for every suite.
        The table and results.csv hold every suite in any case.
      figures: {name: table}, see `flanx.sweep.figure_specs.FigureSpec`; {}: scores against each of the first two axes.
      average_over: axes over which figures take the mean, with an interval over them.
      compare: {axis: label}: every score is also reported as its difference from that label, between runs that have
        all else in common.
      published: {labels of a cell, joined by "_": "TABLE:MODEL" of published.csv}, drawn in grey where the name of a
        score is a benchmark there.
      choose_by: expressions of the score that chooses the checkpoint among a run's evaluations, or ["validation loss"];
        () for the last one.
      predict_first: conditions {axis: labels}, each of cells that run last: before they do, a law of the others
        predicts them (predictions.json), and the report says what became of that. A cell is late where all axes of any
        condition hold: [{"size": ["11B"]}, {"tasks": [1836]}] is the largest size and the largest number of tasks.
      choose_per: axes whose labels points with a common step share; None: each point has its own step.
    """

    out_dir: str
    gin_files: Sequence[str]
    axes: Mapping[str, Mapping[Any, Setting]]
    bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    store: Sequence[str] = ()
    title: str = "held-out score"
    note: str = ""
    scores: Mapping[str, str | Sequence[str]] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    average_over: Sequence[str] = ("seed",)
    compare: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)
    choose_by: Sequence[str] = ()
    choose_per: Sequence[str] | None = None
    predict_first: Sequence[Mapping[str, Sequence[Any]]] = ()

    def points(self) -> list["Point"]:
        """All points of the grid, last axis varying fastest. Raises UserError for an empty or ambiguous grid."""
        if not self.axes or not all(self.axes.values()):
            raise UserError("the sweep has no points: every axis needs at least one value (Sweep.axes)")
        labels = [[(axis, str(label)) for label in values] for axis, values in self.axes.items()]
        points = [self._point(dict(combination)) for combination in itertools.product(*labels)]
        twice = {p.name for p in points if [q.name for q in points].count(p.name) > 1}
        if twice:
            raise UserError(
                f"two points of the sweep share the folder '{min(twice)}': make the labels differ (Sweep.axes)"
            )
        return points

    def _point(self, labels: dict[str, str]) -> "Point":
        settings = {axis: {str(k): v for k, v in values.items()}[labels[axis]] for axis, values in self.axes.items()}
        items = [text for setting in settings.values() for item in setting for text in _texts(item)]
        wrong = [item for item in items if not item.endswith(".gin") and "=" not in item]
        if wrong:
            raise UserError(f"'{wrong[0]}' in Sweep.axes is neither a gin file (.gin) nor a binding (NAME=VALUE)")
        name = re.sub(r"[^A-Za-z0-9.=+-]+", "_", "_".join(labels.values()))
        fixed = _texts(self.bindings)
        return Point(
            name=name,
            labels=labels,
            folder=pathlib.Path(self.out_dir) / RUNS / name,
            gin_files=[*self.gin_files, *(i for i in items if i.endswith(".gin"))],
            bindings=[*fixed, *(i for i in items if not i.endswith(".gin"))],
        )


def record(sweep: Sweep) -> str:
    """The sweep as JSON, for reports: its gin file is code, this is data."""
    return json.dumps(dataclasses.asdict(sweep), indent=1, default=repr) + "\n"


def recorded(folder: pathlib.Path) -> Sweep:
    """The sweep that `record` wrote into a folder, which may have been moved since.

    Raises UserError if it is damaged or missing.
    """
    path = folder / RECORD
    values = read_json(path)
    if not values:
        raise UserError(
            f"{folder} has no {RECORD}, as sweeps of older versions; if you trust its gin file, which is a program, "
            f"give that: {folder / GIN}"
        )
    try:
        checked = {name: settings.check(Sweep, name, value) for name, value in values.items()}
        return dataclasses.replace(Sweep(**checked), out_dir=str(folder))
    except (settings.Wrong, TypeError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); run the sweep's command again") from error


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep: its labels by axis, its folder, and the gin files and bindings passed to `flanx train`."""

    name: str
    labels: dict[str, str]
    folder: pathlib.Path
    gin_files: list[str]
    bindings: list[str]

    def arguments(self, search_paths: str = "", parent: str | None = None) -> list[str]:
        """The command line after `flanx`; `parent` replaces the point's own INITIAL_CHECKPOINT_PATH."""
        return ["train", *_flags(self.gin_files, self.all_bindings(parent), search_paths)]

    def all_bindings(self, parent: str | None = None) -> list[str]:
        """The point's bindings plus its folder and, if given, its parent."""
        last = {"MODEL_DIR": files.shown(self.folder)} | ({"INITIAL_CHECKPOINT_PATH": parent} if parent else {})
        return [*self.bindings, *_texts(last)]

    @property
    def job(self) -> str:
        """Its name in the form that cluster managers require: lower-case letters, digits and hyphens, at most 50."""
        return re.sub(r"[^a-z0-9]+", "-", f"flanx-{self.name}".lower())[:50].strip("-")


def flags(gin_files: Sequence[str], bindings: Mapping[str, Any], search_paths: str) -> list[str]:
    """Gin files and bindings as command-line flags."""
    return _flags(gin_files, _texts(bindings), search_paths)


def _texts(item: str | Mapping[str, Any]) -> list[str]:
    """The gin files and bindings in one item of a setting."""
    return [item] if isinstance(item, str) else [f"{name}={value!r}" for name, value in item.items()]


def _flags(gin_files: Sequence[str], bindings: Sequence[str], search_paths: str) -> list[str]:
    more = [f"--gin_search_paths={search_paths}"] if search_paths else []
    more += [] if files.verifying else ["--no_verify"]  # the sweep's flag applies to its runs and stores
    return [*(f"--gin_file={file}" for file in gin_files), *more, *(f"--gin.{binding}" for binding in bindings)]
