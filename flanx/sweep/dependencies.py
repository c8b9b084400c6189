"""What a point needs before it runs: the run whose checkpoint it starts from, and the store that it reads."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from flanx.errors import UserError, nearest
from flanx.sweep.grid import GIN, RUNS, Point, Sweep, flags
from flanx.sweep.results import CHOSEN, read
from flanx.sweep.state import FAILED, State, is_done, is_held

STORE_MACROS = ("DATA_DIR", "MIXTURE_OR_TASK_NAME")  # of a sweep's bindings, those that its stores are built with too


MACROS = ("INITIAL_CHECKPOINT_PATH", "TRAIN_STEPS", "STORE_DIR", "VOCABULARY")  # a point's, in the order of Need


@dataclasses.dataclass(frozen=True)
class Parent:
    """The run that a point starts from.

    Attributes:
      folder: the run's folder; chosen: whether its chosen checkpoint is meant, "<folder>/chosen", not its last.
      point: its name where it is a point of the same sweep.
    """

    folder: pathlib.Path
    chosen: bool
    point: str | None

    @property
    def sweep(self) -> pathlib.Path:
        """The folder of the parent's sweep."""
        return self.folder.parent.parent


@dataclasses.dataclass(frozen=True)
class Need:
    """What one point's gin asks for: the path of its parent, its steps, its store and the store's vocabulary."""

    parent: str | None
    train_steps: int
    store_dir: str
    vocabulary: str


def needs(points: Sequence[Point], search_paths: str) -> dict[str, Need]:
    """The needs of every point by name. Binds each point's gin: a wrong macro of the last one is said at once."""
    from flanx import config

    paths = [p for p in search_paths.split(",") if p]
    found = {}
    for point in points:
        config.parse(point.gin_files, point.all_bindings(), paths)
        found[point.name] = Need(*(config.value(macro) for macro in MACROS))
    return found


# ---- stores ----------------------------------------------------------------------------------------------------------


def stores(sweep: Sweep, wanted: Mapping[str, Need], search_paths: str) -> dict[str, list[str]]:
    """The command line after `flanx` of each store to build: one for each STORE_DIR of the points that train."""
    if not sweep.store:
        return {}
    vocabularies: dict[str, str] = {}
    for name, need in wanted.items():
        if not need.train_steps:
            continue
        known = vocabularies.setdefault(need.store_dir, need.vocabulary)
        if known != need.vocabulary:
            raise UserError(
                f"the store {need.store_dir} has the vocabulary {known} for one point and {need.vocabulary} for "
                f"{name}: give each vocabulary its own STORE_DIR"
            )
    common = {macro: sweep.bindings[macro] for macro in STORE_MACROS if macro in sweep.bindings}
    return {
        place: ["store", "build", *flags(sweep.store, {"STORE_DIR": place, "VOCABULARY": words} | common, search_paths)]
        for place, words in vocabularies.items()
    }


# ---- parents ---------------------------------------------------------------------------------------------------------


def parents(sweep: Sweep, points: Sequence[Point], wanted: Mapping[str, Need]) -> dict[str, Parent]:
    """The parent runs of the points that have one: {name: parent}.

    Raises UserError for a parent that is nowhere and that no sweep makes, for one that its sweep does not have, and for
    points that wait for one another.
    """
    names = {_absolute(point.folder): point.name for point in sweep.points()}
    found = {}
    for point in points:
        path = wanted[point.name].parent
        if path is None or "://" in path:
            continue
        parent = _run_of(path, names)
        if parent:
            _check(sweep, point, parent, {p.name for p in points})
            found[point.name] = parent
        elif not pathlib.Path(path).exists():
            raise UserError(
                f"point {point.name}: its parent {path} (INITIAL_CHECKPOINT_PATH) does not exist, and no sweep makes it"
            )
    _check_order(found)
    return found


def _absolute(path: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(os.path.abspath(path))


def _run_of(path: str, names: Mapping[pathlib.Path, str]) -> Parent | None:
    """The run in which a path lies: of this sweep, or of another one's folder."""
    whole = _absolute(path)
    for folder in (whole, *whole.parents):
        if folder in names:
            return Parent(folder, whole == folder / CHOSEN, names[folder])
        if folder.parent.name == RUNS and (folder.parent.parent / GIN).is_file():
            return Parent(folder, whole == folder / CHOSEN, None)
    return None


def _check(sweep: Sweep, point: Point, parent: Parent, taken: set[str]) -> None:
    what = f"point {point.name}: its parent {parent.folder.name}"
    if parent.point:
        if parent.chosen and not sweep.choose_by:
            raise UserError(f"{what}/{CHOSEN}: the sweep chooses no checkpoint (Sweep.choose_by)")
        if parent.point not in taken and not is_done(parent.folder):
            raise UserError(f"{what} is not done, and --only leaves it out")
        return
    entries = State(parent.sweep).read()
    if parent.folder.name not in entries and not is_done(parent.folder):
        raise UserError(f"{what} is no point of the sweep in {parent.sweep}{nearest(parent.folder.name, entries)}")
    state = entries.get(parent.folder.name, {}).get("state")
    if state != FAILED and not is_done(parent.folder) and not _alive(parent):
        raise UserError(f"{what} is not done, and no driver works on it: {_repair(parent)}")


def _check_order(found: Mapping[str, Parent]) -> None:
    for name in found:
        chain = [name]
        while chain[-1] in found and (above := found[chain[-1]].point):
            if above in chain:
                raise UserError(
                    f"points wait for one another: {' -> '.join([*chain, above])} (INITIAL_CHECKPOINT_PATH)"
                )
            chain.append(above)


def _alive(parent: Parent) -> bool:
    """Whether a driver, or a run that outlived its driver, holds a lock of the parent's sweep or run."""
    return is_held(parent.sweep / "driver.lock") or is_held(parent.folder / "lock")


def _repair(parent: Parent) -> str:
    return f"run `flanx sweep --gin_file={os.path.relpath(parent.sweep / GIN)}`"


def wait_for(parent: Parent) -> str | None:
    """Why a point of another sweep is not to be waited for any longer; "" while it is, None when it is done."""
    if is_done(parent.folder):
        return None
    entry = State(parent.sweep).read().get(parent.folder.name, {})
    if entry.get("state") == FAILED:
        return f"its parent {parent.folder.name} of {parent.sweep} failed: {entry.get('reason', '')}"
    if _alive(parent) or is_done(parent.folder):
        return ""
    return f"its parent {parent.folder.name} is not done, and no driver works on it any more: {_repair(parent)}"


def checkpoint(parent: Parent) -> str | None:
    """The step folder of a parent's chosen checkpoint; None where the path stands as it is."""
    if not parent.chosen:
        return None
    step = read(parent.folder / "chosen.json").get("step")
    if step is None:
        raise UserError(f"{parent.folder} has no chosen.json: its sweep chooses no checkpoint (Sweep.choose_by)")
    path = parent.folder / "checkpoints" / f"checkpoint_{step}"
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near  # tensorstore refuses paths with ..
