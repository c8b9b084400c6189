"""Predictions of a sweep's own cells, recorded before they run: `Sweep.predict_first`."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from flanx import files
from flanx.errors import UserError, nearest
from flanx.laws import law as laws
from flanx.laws import prediction
from flanx.laws.cell import DEFAULT
from flanx.laws.law import Law
from flanx.plan import planned_run
from flanx.sweep import law_cells, law_section, results, statistics
from flanx.sweep.dependencies import Parent
from flanx.sweep.grid import Point, Sweep
from flanx.sweep.law_cells import LOSS
from flanx.sweep.state import State


def check(sweep: Sweep) -> None:
    """Raises UserError if `predict_first` names what the sweep does not have, or leaves nothing to predict from."""
    for condition in sweep.predict_first:
        for axis, labels in condition.items():
            if axis not in sweep.axes or axis in sweep.average_over:
                raise UserError(f"Sweep.predict_first: no axis '{axis}' to predict along{nearest(axis, sweep.axes)}")
            known = [str(label) for label in sweep.axes[axis]]
            for label in map(str, labels):
                if label not in known:
                    raise UserError(f"Sweep.predict_first: axis '{axis}' has no '{label}'{nearest(label, known)}")
    if sweep.predict_first and all(is_late(sweep, point) for point in sweep.points()):
        raise UserError("Sweep.predict_first names every cell: leave some to predict from")


def is_late(sweep: Sweep, point: Point) -> bool:
    """Whether a point runs after the others, once it has been predicted."""
    return any(
        all(point.labels[axis] in map(str, labels) for axis, labels in condition.items())
        for condition in sweep.predict_first
    )


def split(sweep: Sweep, points: Sequence[Point], parents: Mapping[str, Parent]) -> tuple[list[Point], list[Point]]:
    """(points that run first, points to predict). Raises UserError if one of the first starts from a late one."""
    late = {point.name for point in points if is_late(sweep, point)}
    for name, parent in parents.items():
        if name not in late and parent.point in late:
            raise UserError(f"Sweep.predict_first: {name} starts from {parent.point}, which is to run last")
    return [p for p in points if p.name not in late], [p for p in points if p.name in late]


def planned(points: Sequence[Point], search_paths: str) -> dict[str, dict[str, float]]:
    """{point: its size, tokens and FLOPs}, from its gin files."""
    paths = [path for path in search_paths.split(",") if path]
    found = {}
    for point in points:
        run = planned_run.read(point.gin_files, point.all_bindings(), paths)
        found[point.name] = {"size": float(run.model.num_params())} | (
            {"tokens": float(run.train_steps * run.tokens_per_step), "flops": run.flops_per_step * run.train_steps}
            if run.train_steps
            else {}
        )
    return found


def write(sweep: Sweep, late: Sequence[Point], planned: law_cells.Places) -> list[str]:
    """Predicts the late cells that have not run and appends them to predictions.json; returns lines that say so.

    The laws see only the other cells. Existing predictions do not change; cells that have run are not predicted. In a
    bucket, the entries are stored when this returns, in one chain no matter how many drivers write them.
    """
    path = pathlib.Path(sweep.out_dir) / prediction.FILE
    mirror = files.mirror_of(path)
    while mirror:
        mirror.refresh()  # what other drivers have measured
        mirror.fetch(path)
        made = prediction.read(path)
        lines, new = _predicted(sweep, late, planned, made)
        if not new or mirror.offer(path, prediction.text(prediction.extended(made, new)).encode()):
            break
    else:
        lines, new = _predicted(sweep, late, planned, prediction.read(path))
        if new:
            prediction.append(path, new)
    return [*lines, *([f"written before these cells run: {files.shown(path)}"] if new else [])]


def _predicted(
    sweep: Sweep, late: Sequence[Point], planned: law_cells.Places, made: Sequence[prediction.Entry]
) -> tuple[list[str], list[prediction.Entry]]:
    """(lines, entries to write) for predictions not already in `made`."""
    outcomes = results.collect(sweep, State(sweep.out_dir).statuses(sweep.points()))
    means = statistics.mean_scores(sweep, outcomes)
    axes = list(statistics.axes(sweep))
    names = {"_".join(point.labels[axis] for axis in axes) for point in late}
    lines: list[str] = []
    new: list[prediction.Entry] = []
    for score, cells in law_cells.cells(sweep, means.values(), outcomes, planned).items():
        known = {entry["cell"] for entry in made if entry["score"] == score}
        wanted = [c for c in cells if c.name in names - known and not c.values]
        if not wanted:
            continue
        seen = [dataclasses.replace(c, values=()) if c.name in names else c for c in cells]
        # what is unknown before a run (the share of steps in its data) cannot be a variable of a law that predicts it
        known_of_all = [name for name in DEFAULT if all(name in c.at for c in wanted)]
        law = laws.make(score, law_section.data(sweep, score, seen, known_of_all))
        if law.draws is None:
            lines.append(f"{score}: not predicted. {law.choice.reason}")
            continue
        predicted = law.predict(wanted)
        new += prediction.entries(score, law.choice, predicted)
        lines += [sentence(law, each) for each in predicted]
    return lines, new


def sentence(law: Law, each: laws.Predicted) -> str:
    """A prediction as a line."""
    check = law.choice.check
    error = f"{check.error:.2g} off on {check.count} held-out cells" if check.count else "nothing could be held out"
    text = laws.predicted_text(each, law.score == LOSS)
    return f"predicted: {each.cell.name}, {law.score}: {text} ({law.choice.chosen}; {error})"
