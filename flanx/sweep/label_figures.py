"""Draws scores by label for evaluated runs: Winogender by split and pronoun, like the paper's figures 15 and 16, and
misgendering, like its Table 10, with the printed scores in grey."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.evals import label_table
from flanx.evals.table5 import Line
from flanx.sweep import figures
from flanx.sweep.figure_specs import FigureSpec
from flanx.sweep.statistics import MeanScore

# label -> (figure name, title, values in order)
LABELS = {
    "split": (
        "winogender_splits",
        "Whom a pronoun means, by split (figure 15)",
        ("stereotypical", "gotcha", "neutral"),
    ),
    "pronoun": ("winogender_pronouns", "Whom a pronoun means, by pronoun (figure 16)", ("he", "she", "they")),
}


def draw(lines: Sequence[Line], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the figures that the runs have scores for, as .png and .svg; returns the .png paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for label, (name, title, values) in LABELS.items():
        if panels := _panels(lines, label, values):
            found.append(_write(folder / f"{name}.png", title, panels))
    if panels := _translation(lines):
        found.append(_write(folder / "misgendering.png", "The pronoun of a translation (table 10)", panels))
    return found


def _write(path: pathlib.Path, title: str, panels: Sequence[figures.Panel]) -> pathlib.Path:
    spec = FigureSpec(path.stem, "score", ("run",), "suite", (), kind="bar")
    figures.draw(spec, panels, title, path)
    return path


def _mean(run: str, entry: Mapping[str, Any], flagged: bool, published: float | None = None) -> MeanScore:
    """A score of one run in the form that figures expect."""
    interval = (entry["low"], entry["high"]) if entry.get("low") is not None else (entry["score"], entry["score"])
    return MeanScore({"run": run}, "", "", entry["score"], interval, None, flagged, (), (), {}, published)


def _panel(suite: str, series: Mapping[str, Mapping[str, MeanScore]], values: Sequence[str]) -> figures.Panel:
    return figures.Panel(suite, series, figures.by_order(values), False)


def _panels(lines: Sequence[Line], label: str, values: Sequence[str]) -> list[figures.Panel]:
    """One panel per suite with Winogender's labels."""
    found: dict[str, dict[str, dict[str, MeanScore]]] = {}
    for line in lines:
        for suite, entry in line.scores["suites"].items():
            slices = entry.get("slices", {})
            if {"split", "pronoun"} <= set(slices):
                shown = {
                    value: _mean(line.label, slices[label][value], entry["flagged"])
                    for value in values
                    if value in slices[label]
                }
                found.setdefault(suite, {})[line.label] = shown
    return [_panel(suite, series, values) for suite, series in found.items()]


def _translation(lines: Sequence[Line]) -> list[figures.Panel]:
    """One panel per suite with Table 10's labels; a run compared with a printed model also shows its scores."""
    found: dict[str, dict[str, dict[str, MeanScore]]] = {}
    for line in lines:
        printed = {column: value for column, (_, value) in label_table.printed().get(line.model or "", {}).items()}
        for suite, entry in line.scores["suites"].items():
            if columns := label_table.table10(entry):
                theirs = printed if suite.startswith(label_table.PRINTED) else {}
                shown = {
                    c: _mean(line.label, columns[c][1], entry["flagged"], theirs.get(c))
                    for c in label_table.COLUMNS
                    if c in columns
                }
                found.setdefault(suite, {})[line.label] = shown
    return [_panel(suite, series, label_table.COLUMNS) for suite, series in found.items()]
