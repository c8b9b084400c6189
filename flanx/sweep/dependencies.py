"""What a point depends on: the run whose checkpoint it starts from, and the store that it reads."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flanx import config, hub
from flanx.errors import UserError, nearest
from flanx.evals import download, registry
from flanx.evaluate import load_suites, suite_names
from flanx.files import check_types, local_folder, mirror_of, read_json, read_text, shown
from flanx.storage import BUCKETS
from flanx.sweep.grid import GIN, RUNS, Point, Sweep, flags
from flanx.sweep.results import CHOSEN, read
from flanx.sweep.state import DONE, FAILED, WAITING, State, is_done, is_held

EVALUATE = "flanx.evaluate.evaluate"
SUITE_SETTINGS = ("suites", "data_dir", "allow_missing", "self_consistency", "beams")
# a sweep's bindings that are also passed to its store builds
STORE_MACROS = ("DATA_DIR", "MIXTURE_OR_TASK_NAME", "VALIDATION", "VALIDATION_EXAMPLES")
MACROS = ("INITIAL_CHECKPOINT_PATH", "TRAIN_STEPS", "STORE_DIR", "VOCABULARY")  # in the order of Dependencies


@dataclasses.dataclass(frozen=True)
class Parent:
    """The run that a point starts from.

    Attributes:
      folder: the run's folder; chosen: whether to use its chosen checkpoint, "<folder>/chosen", not its last.
      point: its name if it is a point of the same sweep.
    """

    folder: pathlib.Path
    chosen: bool
    point: str | None

    @property
    def sweep(self) -> pathlib.Path:
        """The folder of the parent's sweep."""
        return self.folder.parent.parent


@dataclasses.dataclass(frozen=True)
class Dependencies:
    """What one point's gin names: its parent's path, its steps, its store and the store's vocabulary."""

    parent: str | None
    train_steps: int
    store_dir: str
    vocabulary: str


MOVABLE = ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH")
EMPTY = ("None", "False", "()", "[]", "{}")


def dependencies(points: Sequence[Point], search_paths: str, plans: bool = False) -> dict[str, Dependencies]:
    """The dependencies of every point by name. Parses each point's gin and reads the suites that it will be scored on,
    so that errors in any of them are reported up front. With `plans`, benchmark files may still be missing: if DATA_DIR
    is not given or names downloads, only suite names are checked."""
    paths = [p for p in search_paths.split(",") if p]
    result = {}
    seen: set[str] = set()
    for point in points:
        config.parse(point.gin_files, point.all_bindings(), paths)
        if config.parameter("flanx.train.train", "evaluator") is not None:
            asked = {name: config.parameter(EVALUATE, name) for name in SUITE_SETTINGS}
            asked = {name: value for name, value in asked.items() if value is not None}
            if repr(asked) not in seen:
                _check_suites(point, asked, plans)
            seen.add(repr(asked))
        result[point.name] = Dependencies(*(config.value(macro) for macro in MACROS))
    return result


def _check_suites(point: Point, asked: dict[str, Any], plans: bool) -> None:
    """Raises UserError naming the point if its suites cannot be evaluated."""
    try:
        if plans and asked.get("data_dir") in (None, "", download.HUB, download.TFDS):
            names = suite_names(asked["suites"], asked.get("self_consistency", 0), asked.get("beams", 0))
            for name in names:
                registry.resolve(name)
        else:
            load_suites(**asked)
    except UserError as error:
        raise UserError(f"point {point.name}: {error}") from error


def changed(points: Sequence[Point], search_paths: str) -> dict[str, list[str]]:
    """Differences from the configs that finished points recorded: {point: ["NAME was 1, now 2"]}.

    A run's location and which of its parent's checkpoints it starts from do not count, nor does an unused option of a
    later version: absent from one config, empty in the other.
    """
    paths = [p for p in search_paths.split(",") if p]
    found = {}
    for point in points:
        recorded = point.folder / "config.gin"
        if not is_done(point.folder) or not recorded.exists():
            continue
        old = _settings(read_text(recorded))
        config.parse(point.gin_files, point.all_bindings(), paths)
        new = _settings(config.text())
        names = [n for n in {**old, **new} if old.get(n) != new.get(n) and n not in MOVABLE]
        names = [n for n in names if (n in old and n in new) or {**old, **new}[n] not in EMPTY]
        if names:
            found[point.name] = [f"{n} was {old.get(n, 'unset')}, now {new.get(n, 'unset')}" for n in names]
    return found


def _settings(text: str) -> dict[str, str]:
    """{macro or parameter: its value as text}, with macros replaced by their values, except MOVABLE ones."""
    found = config.assignments(text)
    plain = {f"%{name}": value for name, value in found.items() if name not in MOVABLE}
    return {name: plain.get(value, value) for name, value in found.items()}


# ---- stores ----------------------------------------------------------------------------------------------------------


def stores(sweep: Sweep, of_points: Mapping[str, Dependencies], search_paths: str) -> dict[str, list[str]]:
    """The command line after `flanx` for each store to build: one per STORE_DIR of the points that train."""
    if not sweep.store:
        return {}
    vocabularies: dict[str, str] = {}
    for name, each in of_points.items():
        if not each.train_steps:
            continue
        known = vocabularies.setdefault(each.store_dir, each.vocabulary)
        if known != each.vocabulary:
            raise UserError(
                f"the store {each.store_dir} has the vocabulary {known} for one point and {each.vocabulary} for "
                f"{name}: give each vocabulary its own STORE_DIR"
            )
    common = {macro: sweep.bindings[macro] for macro in STORE_MACROS if macro in sweep.bindings}
    return {
        folder: [
            "store",
            "build",
            *flags(sweep.store, {"STORE_DIR": folder, "VOCABULARY": name} | common, search_paths),
        ]
        for folder, name in vocabularies.items()
    }


# ---- parents ---------------------------------------------------------------------------------------------------------


def parents(sweep: Sweep, points: Sequence[Point], of_points: Mapping[str, Dependencies]) -> dict[str, Parent]:
    """The parent runs of the points that have one: {name: parent}.

    Raises UserError for a parent that neither exists nor is made by a sweep, for one that its sweep does not have, and
    for points that wait for each other.
    """
    names = {_absolute(point.folder): point.name for point in sweep.points()}
    result = {}
    for point in points:
        path = of_points[point.name].parent
        if path is not None and path.startswith(BUCKETS):
            with contextlib.suppress(UserError):  # not of this sweep
                path = str(local_folder(path))
        if path is None or "://" in path or path.startswith(hub.PREFIX):
            continue
        parent = _run_of(path, names)
        if parent:
            _check(sweep, point, parent, {p.name for p in points})
            result[point.name] = parent
        elif not pathlib.Path(path).exists():
            raise UserError(
                f"point {point.name}: its parent {path} (INITIAL_CHECKPOINT_PATH) does not exist, and no "
                "sweep that was started makes it; start the one that does"
            )
    _check_order(result)
    return result


def _absolute(path: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(os.path.abspath(path))


def _run_of(path: str, names: Mapping[pathlib.Path, str]) -> Parent | None:
    """The run that contains a path: in this sweep, or in another sweep's folder."""
    absolute = _absolute(path)
    for folder in (absolute, *absolute.parents):
        if folder in names:
            return Parent(folder, absolute == folder / CHOSEN, names[folder])
        if folder.parent.name == RUNS and (folder.parent.parent / GIN).is_file():
            return Parent(folder, absolute == folder / CHOSEN, None)
    return None


def _check(sweep: Sweep, point: Point, parent: Parent, selected: set[str]) -> None:
    """Raises UserError if a parent will never be done."""
    what = f"point {point.name}: its parent {parent.folder.name}"
    if parent.point:
        if parent.chosen and not sweep.choose_by:
            raise UserError(f"{what}/{CHOSEN}: the sweep chooses no checkpoint (Sweep.choose_by)")
        if parent.point not in selected and not is_done(parent.folder):
            raise UserError(f"{what} is not done, and --only leaves it out")
        return
    if is_done(parent.folder):
        return
    entries = State(parent.sweep).read()
    if parent.folder.name not in entries:
        raise UserError(f"{what} is not a point of the sweep in {parent.sweep}{nearest(parent.folder.name, entries)}")
    if entries[parent.folder.name].get("state") != FAILED and not _is_active(parent):
        raise UserError(f"{what} is not done, and no driver is running it: {_repair(parent)}")


def _check_order(of_points: Mapping[str, Parent]) -> None:
    for name in of_points:
        chain = [name]
        while chain[-1] in of_points and (above := of_points[chain[-1]].point):
            if above in chain:
                raise UserError(
                    f"points wait for one another: {' -> '.join([*chain, above])} (INITIAL_CHECKPOINT_PATH)"
                )
            chain.append(above)


def _is_active(parent: Parent) -> bool:
    """Whether a driver, or a run that outlived its driver, holds a lock of the parent's sweep or run."""
    return is_held(parent.sweep / "driver.lock") or is_held(parent.folder / "lock")


def _repair(parent: Parent) -> str:
    return f"run `flanx sweep --gin_file={os.path.relpath(parent.sweep / GIN)}`"


def state_of(parent: Parent) -> tuple[str, str]:
    """(DONE, WAITING or FAILED, why it failed) for a parent in another sweep."""
    if is_done(parent.folder):
        return DONE, ""
    entry = State(parent.sweep).read().get(parent.folder.name, {})
    if entry.get("state") == FAILED:
        return FAILED, f"its parent {parent.folder.name} of {parent.sweep} failed: {entry.get('reason', '')}"
    if _is_active(parent) or is_done(parent.folder):
        return WAITING, ""
    return FAILED, f"its parent {parent.folder.name} is not done, and no driver is running it: {_repair(parent)}"


def checkpoint(parent: Parent) -> str | None:
    """The step folder of a parent's chosen checkpoint; None if the point's own path is right."""
    if not parent.chosen:
        return None
    chosen = parent.folder / "chosen.json"
    step = read(chosen, lambda path: check_types(path, read_json(path), {"step": int})).get("step")
    if step is None:
        raise UserError(f"{parent.folder} has no chosen.json: its sweep chooses no checkpoint (Sweep.choose_by)")
    path = parent.folder / "checkpoints" / f"checkpoint_{step}"
    relative = os.path.relpath(path)
    if mirror_of(path):
        return shown(path)
    return str(path) if relative.startswith("..") else relative  # tensorstore does not accept paths with ..
