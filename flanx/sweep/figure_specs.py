"""The specification of a figure: which axis is on x, which makes the series, and which the panels."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flanx.errors import UserError, nearest

SCORE = "score"  # in place of an axis: the figure's scores side by side
KINDS = ("line", "bar")


@dataclasses.dataclass(frozen=True)
class FigureSpec:
    """One figure.

    Attributes:
      name: the base name of its files, figures/<name>.png and .svg.
      x: the axis on x, or "score". An axis of numbers is logarithmic; models are placed by their parameter counts.
      series: the axes (or "score") that distinguish the lines or bars; axes that the figure does not name are added.
      panels: the axis (or "score") with one panel per value; None for a single panel.
      scores: which of the sweep's scores, in order; () for all.
      kind: "line" or "bar".
      where: {axis: labels} to show.
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
        """The text for one role ("x", "series" or "panels"), given a point's labels and a score."""
        axes = {"x": (self.x,), "series": self.series, "panels": (self.panels,) if self.panels else ()}[role]
        return ", ".join(score if axis == SCORE else labels[axis] for axis in axes)


def figure_specs(
    tables: Mapping[str, Mapping[str, Any]], axes: Mapping[str, Sequence[str]], scores: Sequence[str]
) -> list[FigureSpec]:
    """The figures that `tables` specify; by default, the scores against each of the first two axes.

    `axes` are those not averaged over, with their labels. Raises UserError for an unknown key, axis or score.
    """
    names = list(axes)
    if not names:
        tables = tables or {"scores": {"x": SCORE, "kind": "bar"}}
    if not tables:
        pairs = [(names[1], names[0]), (names[0], names[1])] if len(names) > 1 else [(names[0], None)]
        tables = {f"by_{x}": {"x": x} | ({"series": series} if series else {}) for x, series in pairs}
    return [_figure_spec(name, dict(table), axes, list(scores)) for name, table in tables.items()]


def _figure_spec(name: str, table: dict[str, Any], axes: Mapping[str, Sequence[str]], scores: list[str]) -> FigureSpec:
    kind = table.get("kind", "line")
    series = table.get("series", ())
    series = [series] if isinstance(series, str) else list(series)
    chosen = [*table.get("scores", scores)]
    where = {axis: tuple(str(v) for v in values) for axis, values in table.get("where", {}).items()}
    panels = table.get("panels")
    spec = FigureSpec(
        name, table.get("x", ""), tuple(series), panels, tuple(chosen), kind, where, table.get("title", "")
    )
    _check(spec, table, axes, scores)
    named = {spec.x, panels, *series}
    # an unnamed axis with more than one label becomes a series; its labels are never mixed
    series += [a for a in axes if a not in named and len(where.get(a, axes[a])) > 1]
    if SCORE not in named and len(chosen) > 1:
        panels, series = (SCORE, series) if panels is None else (panels, [*series, SCORE])
    return dataclasses.replace(spec, series=tuple(series), panels=panels)


def _check(
    spec: FigureSpec, table: Mapping[str, Any], axes: Mapping[str, Sequence[str]], scores: Sequence[str]
) -> None:
    """Raises UserError for an unknown key, kind, axis, label or score, and for a name that is not a valid file name."""
    origin = f"figure '{spec.name}' (Sweep.figures)"
    keys = [field.name for field in dataclasses.fields(FigureSpec) if field.name != "name"]
    if not re.fullmatch(r"[\w.+-]+", spec.name):
        raise UserError(f"{origin}: its name is the name of its files: use only letters, digits, '_', '-', '.' and '+'")
    _check_names(table, keys, f"{origin} has no '{{}}'")
    if "x" not in table:
        raise UserError(f"{origin} has no 'x': name an axis of the sweep, or 'score'")
    if spec.kind not in KINDS:
        raise UserError(f"{origin}: kind '{spec.kind}' is neither 'line' nor 'bar'")
    named = [axis for axis in (spec.x, *spec.series, spec.panels) if axis not in (SCORE, None)]
    _check_names([*named, *spec.where], axes, f"{origin}: the sweep has no axis '{{}}'", f" (axes: {', '.join(axes)})")
    known = f" (Sweep.scores: {', '.join(scores)})"
    _check_names(spec.scores, scores, f"{origin}: no score '{{}}'", known)
    for axis, labels in spec.where.items():
        _check_names(labels, axes[axis], f"{origin}: axis '{axis}' has no '{{}}'")


def _check_names(names: Iterable[Any], known: Iterable[str], message: str, more: str = "") -> None:
    """Raises UserError with the nearest known name for the first unknown name."""
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(message.format(name) + nearest(name, known) + more)
