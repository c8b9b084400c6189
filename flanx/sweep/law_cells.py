"""The cells of a sweep as laws see them: their coordinates, and the scores of their runs."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist

from flanx.laws.cell import COT, DEFAULT, TASKS, Cell, number
from flanx.sweep import statistics
from flanx.sweep.grid import Point, Sweep
from flanx.sweep.results import Outcome
from flanx.sweep.statistics import MeanScore

LOSS = "validation loss"
NOT_COMPARABLE = "Validation losses of different examples do not compare, so no law is fitted to them"
NAMES = {"size": "size", "model": "size", "tasks": TASKS, "cot": COT, "cot_ratio": COT}  # axes whose labels are values
MACROS = {"NUM_TASKS": TASKS, "COT_RATIO": COT}  # point bindings that are values
Places = Mapping[str, Mapping[str, float]]


def is_scaling(sweep: Sweep) -> bool:
    """Whether a sweep may have two sizes or numbers of tasks, on an axis that it does not average over."""
    return any(len(labels) > 1 for labels in statistics.axes(sweep).values())


def place(outcome: Outcome, by_name: Mapping[str, Outcome]) -> dict[str, float]:
    """A run's coordinates, from its own record; {} if it has none.

    A run that trains nothing and starts from another point of the sweep has that point's coordinates.
    """
    parent = re.search(r"/runs/([^/]+)/", str(outcome.run.get("initial_checkpoint_path") or ""))
    if parent and not outcome.run.get("data") and parent[1] in by_name and by_name[parent[1]] is not outcome:
        return place(by_name[parent[1]], by_name)
    found: dict[str, float] = {}
    if "num_params" in outcome.run:
        found["size"] = float(outcome.run["num_params"])
    if outcome.trained_tasks is not None:
        found[TASKS] = float(outcome.trained_tasks)
    data = outcome.run.get("data") or {}
    if outcome.run:
        found[COT] = float(outcome.mixture.get("cot_share", 0.0))
    if outcome.step and "batch_size" in data and data.get("lengths"):
        found["tokens"] = float(outcome.step * data["batch_size"] * sum(data["lengths"].values()))
    if "tokens" in found and "size" in found:
        is_t5 = any(name.startswith("t5.") for name in outcome.run.get("settings", {}))
        # forward and backward; in an encoder-decoder, each token passes half of the parameters (paper.md, Table 2)
        found["flops"] = (3.0 if is_t5 else 6.0) * found["size"] * found["tokens"]
    return found


def places(sweep: Sweep, outcomes: Sequence[Outcome], planned: Places | None = None) -> dict[str, dict[str, float]]:
    """{point: its coordinates}; for a point that has not run, from runs with its labels, `planned`, or its labels."""
    by_name = {outcome.point.name: outcome for outcome in outcomes}
    found = {name: place(outcome, by_name) for name, outcome in by_name.items()}
    learned = _by_label(outcomes, found)
    for name, outcome in by_name.items():
        for (axis, label, variable), value in learned.items():
            if outcome.point.labels[axis] == label:
                found[name].setdefault(variable, value)
        for variable, value in {**_of_labels(outcome.point), **(planned or {}).get(name, {})}.items():
            found[name].setdefault(variable, value)
    return found


def _by_label(outcomes: Sequence[Outcome], known: Places) -> dict[tuple[str, str, str], float]:
    """{(axis, label, variable): value} if all runs with a label share a value that the axis's other labels do not have.

    A variable that is the same in all runs applies to any label.
    """
    values: dict[tuple[str, str, str], set[float]] = {}
    for outcome in outcomes:
        for variable, value in known[outcome.point.name].items():
            for axis, label in outcome.point.labels.items():
                values.setdefault((axis, label, variable), set()).add(value)
    found = {}
    for (axis, label, variable), each in values.items():
        others = [v for (a, b, c), v in values.items() if a == axis and c == variable and b != label]
        is_of_axis = all(not (each & other) for other in others)
        whole = set().union(each, *others)
        if len(each) == 1 and (is_of_axis or len(whole) == 1):
            found[axis, label, variable] = next(iter(each))
    return found


def _of_labels(point: Point) -> dict[str, float]:
    """The coordinates that a point's bindings and axis labels give by themselves."""
    found: dict[str, float] = {}
    for binding in point.bindings:
        name, _, text = binding.partition("=")
        if name in MACROS and (value := number(text)) is not None:
            found[MACROS[name]] = value
    for axis, label in point.labels.items():
        if axis in NAMES and (value := number(label)) is not None:
            found.setdefault(NAMES[axis], value)
    return found


def labels(sweep: Sweep, outcomes: Sequence[Outcome]) -> dict[tuple[str, str], float]:
    """{(variable, label of the axis for it): value}."""
    found = {}
    where = places(sweep, outcomes)
    for outcome in outcomes:
        for axis, label in outcome.point.labels.items():
            variable, known = NAMES.get(axis, axis), where[outcome.point.name]
            if variable in known:
                found[variable, label] = known[variable]
    return found


def cells(
    sweep: Sweep, means: Iterable[MeanScore], outcomes: Sequence[Outcome], planned: Places | None = None
) -> dict[str, list[Cell]]:
    """{score: the cells of the sweep's grid}, at the shown checkpoint; cells that have not run have no values.

    The validation loss is one of the scores if any run has it and all were validated on the same examples.
    """
    where = places(sweep, outcomes, planned)
    shown = [each for each in means if each.checkpoint == statistics.shown_checkpoint(sweep)]
    found: dict[str, list[Cell]] = {}
    for each in shown:
        runs = [outcome for outcome in outcomes if _is_of(outcome, each)]
        done = each.outcomes
        losses = [o.validation_loss for o in done if o.validation_loss is not None]
        loss = math.fsum(losses) / len(losses) if done and len(losses) == len(done) else None
        name, at = "_".join(each.labels.values()), _mean_place([where[o.point.name] for o in done or runs])
        error = (each.items[1] - each.items[0]) / (2 * NormalDist().inv_cdf(0.975)) if each.items else 0.0
        found.setdefault(each.score, []).append(Cell(name, at, each.values, error, loss))
        if losses and name not in {cell.name for cell in found.get(LOSS, [])}:
            found.setdefault(LOSS, []).append(Cell(name, at, tuple(losses)))
    return found if len(statistics.validated_on(sweep, outcomes)) <= 1 else without_losses(found)


def without_losses(cells: Mapping[str, Sequence[Cell]]) -> dict[str, list[Cell]]:
    """The cells without validation losses, neither as a score nor beside one."""
    return {s: [dataclasses.replace(cell, loss=None) for cell in of_s] for s, of_s in cells.items() if s != LOSS}


def _is_of(outcome: Outcome, mean: MeanScore) -> bool:
    """Whether a run belongs to a cell."""
    same = all(outcome.point.labels[axis] == label for axis, label in mean.labels.items())
    return same and outcome.checkpoint == mean.checkpoint


def _mean_place(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each variable that all runs of a cell have."""
    shared = set.intersection(*(set(each) for each in found)) if found else set()
    return {name: math.fsum(each[name] for each in found) / len(found) for name in sorted(shared)}


def finished(means: Iterable[MeanScore]) -> dict[tuple[str, str], float]:
    """{(cell, score): mean} for cells with no missing runs."""
    return {
        ("_".join(each.labels.values()), each.score): each.mean
        for each in means
        if each.mean is not None and not each.missing
    }


def varies(cells_of: Sequence[Cell]) -> bool:
    """Whether the cells, run or not, include two sizes or two numbers of tasks."""
    return any(len({cell.at.get(name) for cell in cells_of} - {None}) > 1 for name in DEFAULT[:2])
