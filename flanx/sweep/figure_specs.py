"""A figure of a sweep as a table: which axis lies along x, which makes the series, which the panels."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.errors import UserError, nearest

SCORE = "score"  # stands where an axis does: the figure's scores side by side
KINDS = ("line", "bar")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
      name: of its files, figures/<name>.png and .svg.
      x: the axis along x, or "score". An axis of numbers lies on a log axis, one of models by their parameters.
      series: the axis (or "score") that tells the lines or bars apart; axes that stand nowhere join it.
      panels: the axis (or "score") with a panel for each of its values; None for one panel.
      scores: of the sweep's, in order; () for all.
      kind: "line" or "bar".
      where: {axis: labels}: only these.
      title: what stands above it.
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


def figures(
    tables: Mapping[str, Mapping[str, Any]], axes: Mapping[str, Sequence[str]], scores: Sequence[str]
) -> list[Figure]:
    """The figures that `tables` describe; without any, the scores against each of the first two axes.

    `axes` are those that nothing averages over, with their labels. Raises UserError for an unknown key, axis or score.
    """
    names = list(axes)
    if not names:
        tables = tables or {"scores": {"x": SCORE, "kind": "bar"}}
    if not tables:
        pairs = [(names[1], names[0]), (names[0], names[1])] if len(names) > 1 else [(names[0], None)]
        tables = {f"by_{x}": {"x": x} | ({"series": series} if series else {}) for x, series in pairs}
    return [_figure(name, dict(table), axes, list(scores)) for name, table in tables.items()]


def _figure(name: str, table: dict[str, Any], axes: Mapping[str, Sequence[str]], scores: list[str]) -> Figure:
    keys = [field.name for field in dataclasses.fields(Figure) if field.name != "name"]
    place = f"figure '{name}' (Sweep.figures)"
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"{place}: its name is that of its files: letters, digits, '_', '-', '.' and '+' alone")
    for key in table:
        if key not in keys:
            raise UserError(f"{place} has no '{key}'{nearest(key, keys)}")
    if "x" not in table:
        raise UserError(f"{place} has no 'x': name an axis of the sweep, or 'score'")
    kind = table.get("kind", "line")
    if kind not in KINDS:
        raise UserError(f"{place}: kind '{kind}' is neither 'line' nor 'bar'")
    series = table.get("series", ())
    series = [series] if isinstance(series, str) else list(series)
    chosen = [*table.get("scores", scores)]
    where = {axis: tuple(str(v) for v in values) for axis, values in table.get("where", {}).items()}
    panels = table.get("panels")
    for axis in (table["x"], *series, *([panels] if panels else []), *where):
        if axis not in axes and (axis != SCORE or axis in where):
            raise UserError(f"{place}: the sweep has no axis '{axis}'{nearest(axis, axes)} (axes: {', '.join(axes)})")
    for score in chosen:
        if score not in scores:
            raise UserError(f"{place}: no score '{score}'{nearest(score, scores)} (Sweep.scores: {', '.join(scores)})")
    for axis, labels in where.items():
        for label in labels:
            if label not in axes[axis]:
                raise UserError(f"{place}: axis '{axis}' has no '{label}'{nearest(label, axes[axis])}")
    placed = {table["x"], panels, *series}
    # what stands nowhere and has more than one value is told apart, never mixed
    series += [a for a in axes if a not in placed and len(where.get(a, axes[a])) > 1]
    if SCORE not in placed and len(chosen) > 1:
        panels, series = (SCORE, series) if panels is None else (panels, [*series, SCORE])
    return Figure(name, table["x"], tuple(series), panels, tuple(chosen), kind, where, table.get("title", ""))
