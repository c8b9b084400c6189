"""The specification of a figure: which axis lies along x, which makes the series, which the panels."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.errors import UserError, nearest

SCORE = "score"  # in place of an axis: the figure's scores side by side
KINDS = ("line", "bar")


@dataclasses.dataclass(frozen=True)
class FigureSpec:
    """One figure.

    Attributes:
      name: of its files, figures/<name>.png and .svg.
      x: the axis along x, or "score". An axis of numbers lies on a log axis, one of models by their parameters.
      series: the axes (or "score") that distinguish the lines or bars; axes that the figure does not name join them.
      panels: the axis (or "score") with a panel for each of its values; None for one panel.
      scores: which of the sweep's, in order; () for all.
      kind: "line" or "bar".
      where: {axis: labels}: only these.
      title: the text above it.
    """

    name: str
    x: str
    series: tuple[str, ...]
    panels: str | None
    scores: tuple[str, ...]
    kind: str = "line"
    where: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    title: str = ""

    def label(self, labels: Mapping[str, str], score: str, role: str) -> str:
        """The text of one role ("x", "series" or "panels") for a point's labels and a score."""
        axes = {"x": (self.x,), "series": self.series, "panels": (self.panels,) if self.panels else ()}[role]
        return ", ".join(score if axis == SCORE else labels[axis] for axis in axes)


def figure_specs(
    tables: Mapping[str, Mapping[str, Any]], axes: Mapping[str, Sequence[str]], scores: Sequence[str]
) -> list[FigureSpec]:
    """The figures that `tables` specify; without any, the scores against each of the first two axes.

    `axes` are those that are not averaged over, with their labels. Raises UserError for an unknown key, axis or score.
    """
    names = list(axes)
    if not names:
        tables = tables or {"scores": {"x": SCORE, "kind": "bar"}}
    if not tables:
        pairs = [(names[1], names[0]), (names[0], names[1])] if len(names) > 1 else [(names[0], None)]
        tables = {f"by_{x}": {"x": x} | ({"series": series} if series else {}) for x, series in pairs}
    return [_figure_spec(name, dict(table), axes, list(scores)) for name, table in tables.items()]


def _figure_spec(name: str, table: dict[str, Any], axes: Mapping[str, Sequence[str]], scores: list[str]) -> FigureSpec:
    keys = [field.name for field in dataclasses.fields(FigureSpec) if field.name != "name"]
    origin = f"figure '{name}' (Sweep.figures)"
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"{origin}: its name is the name of its files: use only letters, digits, '_', '-', '.' and '+'")
    for key in table:
        if key not in keys:
            raise UserError(f"{origin} has no '{key}'{nearest(key, keys)}")
    if "x" not in table:
        raise UserError(f"{origin} has no 'x': name an axis of the sweep, or 'score'")
    kind = table.get("kind", "line")
    if kind not in KINDS:
        raise UserError(f"{origin}: kind '{kind}' is neither 'line' nor 'bar'")
    series = table.get("series", ())
    series = [series] if isinstance(series, str) else list(series)
    chosen = [*table.get("scores", scores)]
    where = {axis: tuple(str(v) for v in values) for axis, values in table.get("where", {}).items()}
    panels = table.get("panels")
    for axis in (table["x"], *series, *([panels] if panels else []), *where):
        if axis not in axes and (axis != SCORE or axis in where):
            raise UserError(f"{origin}: the sweep has no axis '{axis}'{nearest(axis, axes)} (axes: {', '.join(axes)})")
    for score in chosen:
        if score not in scores:
            raise UserError(f"{origin}: no score '{score}'{nearest(score, scores)} (Sweep.scores: {', '.join(scores)})")
    for axis, labels in where.items():
        for label in labels:
            if label not in axes[axis]:
                raise UserError(f"{origin}: axis '{axis}' has no '{label}'{nearest(label, axes[axis])}")
    placed = {table["x"], panels, *series}
    # an axis that is not named and has more than one label becomes a series; its labels are never mixed
    series += [a for a in axes if a not in placed and len(where.get(a, axes[a])) > 1]
    if SCORE not in placed and len(chosen) > 1:
        panels, series = (SCORE, series) if panels is None else (panels, [*series, SCORE])
    return FigureSpec(name, table["x"], tuple(series), panels, tuple(chosen), kind, where, table.get("title", ""))
