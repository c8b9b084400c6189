"""A sweep as data: axes of gin files and bindings, and the points they span."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.errors import UserError

# what an axis sets at one of its values: gin files (ending in .gin), bindings ("NAME=VALUE"), and bindings as mappings
# {NAME: value}, whose values may be macros of the sweep's own file
Setting = Sequence[str | Mapping[str, Any]]
# of a sweep's bindings, those that its store is built with
STORE_MACROS = ("STORE_DIR", "DATA_DIR", "VOCABULARY", "MIXTURE_OR_TASK_NAME")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Attributes:
      out_dir: where the sweep lives: runs/<point>/, store/, results.csv, scaling.png, report.html.
      gin_files: gin files of every point.
      axes: axis -> {label: setting}. The first axis is the model size, the second the number of tasks (the report draws
        them so); any further axis, such as the seed, is averaged over.
      bindings: macros bound for every point, {"TRAIN_STEPS": 500}.
      store: gin files of `flanx store build` for the store that the points read, bound with STORE_MACROS of `bindings`;
        none where the store exists already.
      title: what the figures are called.
      suites: the suites whose mean is drawn; None for all. The table and results.csv hold every suite.
    """

    out_dir: str
    gin_files: Sequence[str]
    axes: Mapping[str, Mapping[Any, Setting]]
    bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    store: Sequence[str] = ()
    title: str = "held-out score"
    suites: Sequence[str] | None = None

    def store_arguments(self, search_paths: str = "") -> list[str]:
        """The command line after `flanx` that builds the store; empty where the sweep builds none."""
        if not self.store:
            return []
        bindings = [f"{macro}={self.bindings[macro]!r}" for macro in STORE_MACROS if macro in self.bindings]
        return ["store", "build", *_flags(self.store, bindings, search_paths)]

    def points(self) -> list["Point"]:
        """Every point of the grid, the last axis running fastest. Raises UserError for an empty or ambiguous grid."""
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
        fixed = [f"{macro}={value!r}" for macro, value in self.bindings.items()]
        return Point(
            name=name,
            labels=labels,
            folder=pathlib.Path(self.out_dir) / "runs" / name,
            gin_files=[*self.gin_files, *(i for i in items if i.endswith(".gin"))],
            bindings=[*fixed, *(i for i in items if not i.endswith(".gin"))],
        )


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep: its labels by axis, its folder, the gin files and bindings that `flanx train` gets."""

    name: str
    labels: dict[str, str]
    folder: pathlib.Path
    gin_files: list[str]
    bindings: list[str]

    def arguments(self, search_paths: str = "") -> list[str]:
        """The command line after `flanx`."""
        return ["train", *_flags(self.gin_files, [*self.bindings, f"MODEL_DIR={str(self.folder)!r}"], search_paths)]


def _texts(item: str | Mapping[str, Any]) -> list[str]:
    """The gin files and bindings that one item of a setting stands for."""
    return [item] if isinstance(item, str) else [f"{name}={value!r}" for name, value in item.items()]


def _flags(gin_files: Sequence[str], bindings: Sequence[str], search_paths: str) -> list[str]:
    paths = [f"--gin_search_paths={search_paths}"] if search_paths else []
    return [*(f"--gin_file={file}" for file in gin_files), *paths, *(f"--gin.{binding}" for binding in bindings)]
