"""Draws sweep figures, with our means and intervals in colour and published values in grey, and curves of runs.

Needs matplotlib."""

import contextlib
import dataclasses
import importlib.util
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flanx.errors import UserError
from flanx.laws.cell import number
from flanx.sweep import curves, statistics
from flanx.sweep.figure_specs import FigureSpec
from flanx.sweep.grid import Sweep
from flanx.sweep.results import Outcome
from flanx.sweep.statistics import MeanScore

# the colour-blind-safe palette of Okabe and Ito
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
GREY = "#8a8a8a"
ACROSS = 4  # panels per row
WIDE = 6  # most columns of a table
NEAR = 0.02  # fraction of a panel's height: closer points hide each other
STEP, WIDEST = 5.0, 16.0  # offset in points (1/72 inch) between such points of two series, and the most over all series


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel: {series: {x label: mean}}, and the position of each x label; `log`: whether the axis is logarithmic.

    `ticks`: the text of an x label, if it is not the label itself."""

    title: str
    series: Mapping[str, Mapping[str, MeanScore]]
    positions: Mapping[str, float]
    log: bool
    ticks: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def table(self) -> tuple[list[str], list[tuple[str, list[MeanScore | None]]]]:
        """(columns, rows): a row per series, or per x label if the table would get too wide."""
        labels = list(self.positions)
        ticks = [self.ticks.get(x, x) for x in labels]
        if len(labels) <= WIDE or len(labels) <= len(self.series):
            return ticks, [(series, [by_x.get(x) for x in labels]) for series, by_x in self.series.items()]
        return [name or "score" for name in self.series], [
            (tick, [by_x.get(x) for by_x in self.series.values()]) for x, tick in zip(labels, ticks, strict=True)
        ]


def panels(
    sweep: Sweep, figure: FigureSpec, means: Mapping[Any, MeanScore], outcomes: Sequence[Outcome]
) -> list[Panel]:
    """The panels of a figure over the means at the shown checkpoint."""
    table: dict[str, dict[str, dict[str, MeanScore]]] = {}
    for each in means.values():
        inside = all(each.labels[axis] in labels for axis, labels in figure.where.items())
        if each.checkpoint == statistics.shown_checkpoint(sweep) and each.score in figure.scores and inside:
            panel, series, x = (figure.label(each.labels, each.score, role) for role in ("panels", "series", "x"))
            table.setdefault(panel, {}).setdefault(series, {})[x] = each
    known = sizes(outcomes, figure.x)
    trained = trained_tasks(outcomes, figure.x)
    result = []
    for title, all_series in table.items():
        labels = list(dict.fromkeys(x for by_x in all_series.values() for x in by_x))
        positions, log = x_positions(labels, known) if figure.kind == "line" else (by_order(labels), False)
        ticks = {label: f"{text} of {label}" for label, (_, text) in trained.items()}
        if log and len({trained.get(x, (at, ""))[0] for x, at in positions.items()}) == len(positions):
            positions = {x: trained.get(x, (at, ""))[0] for x, at in positions.items()}
        result.append(Panel(title, all_series, positions, log, ticks))
    return result


def trained_tasks(outcomes: Sequence[Outcome], axis: str) -> dict[str, tuple[float, str]]:
    """{label: (mean, text)} of the number of tasks that runs were trained on, for labels that are NUM_TASKS and that
    some run did not match; {} if the axis is not one of NUM_TASKS."""
    found: dict[str, set[int]] = {}
    for outcome in outcomes:
        label = outcome.point.labels.get(axis, "")
        asked = outcome.mixture.get("asked", {}).get("num_tasks")
        if outcome.trained_tasks and asked is not None and asked == number(label):
            found.setdefault(label, set()).add(outcome.trained_tasks)
    return {
        label: (sum(counts) / len(counts), " to ".join(str(n) for n in dict.fromkeys((min(counts), max(counts)))))
        for label, counts in found.items()
        if counts != {number(label)}
    }


def sizes(outcomes: Sequence[Outcome], axis: str) -> dict[str, float]:
    """Parameter counts by axis label, as recorded by the runs; {} if the axis is not one of models."""
    found: dict[str, set[int]] = {}
    for outcome in outcomes:
        if axis in outcome.point.labels and "num_params" in outcome.run:
            found.setdefault(outcome.point.labels[axis], set()).add(outcome.run["num_params"])
    counts = [n for numbers in found.values() for n in numbers]
    return {label: float(min(n)) for label, n in found.items()} if len(set(counts)) == len(found) == len(counts) else {}


def x_positions(labels: Sequence[str], known: Mapping[str, float]) -> tuple[dict[str, float], bool]:
    """The position of each x label (its number, its parameter count, or else its index), and whether on a log axis."""
    numbers = {label: value for label in labels if (value := number(label)) is not None}
    if len(numbers) == len(labels):
        return numbers, len(labels) > 1
    if len(labels) > 1 and all(label in known for label in labels):
        return {label: known[label] for label in labels}, True
    return by_order(labels), False


def by_order(labels: Sequence[str]) -> dict[str, float]:
    """Positions in the order of the labels."""
    return {label: float(i) for i, label in enumerate(labels)}


def expect_matplotlib() -> None:
    """Raises UserError if figures cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("figures need matplotlib: pip install 'flanx[plots]'")


@contextlib.contextmanager
def plotting(name: str) -> Iterator[Any]:
    """pyplot without a display, in the style of our figures; `name` makes SVG ids reproducible."""
    expect_matplotlib()
    import matplotlib  # noqa: PLC0415 - optional

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - after choosing a backend

    with matplotlib.rc_context({"svg.hashsalt": name, "font.size": 10}):
        yield pyplot


def save(canvas: Any, path: pathlib.Path) -> None:
    """Writes a canvas as .png and .svg, without a date."""
    for kind in (".png", ".svg"):
        metadata = {"Date": None} if kind == ".svg" else None
        canvas.savefig(path.with_suffix(kind), dpi=150, metadata=metadata, bbox_inches="tight")


def draw(figure: FigureSpec, shown: Sequence[Panel], title: str, path: pathlib.Path) -> None:
    """Writes the figure as .png and .svg."""
    columns = min(len(shown), ACROSS)
    rows = math.ceil(len(shown) / ACROSS)
    one = len(shown) == 1
    size = (7.6, 4.6) if one else (4.3 * columns, 3.9 * rows)
    with plotting(figure.name) as pyplot:
        canvas, spots = pyplot.subplots(rows, columns, figsize=size, squeeze=False, sharey=figure.panels != "score")
        every = list(dict.fromkeys(s for panel in shown for s in panel.series))
        for index, spot in enumerate(spots.flat):
            if index >= len(shown):
                spot.set_visible(False)
                continue
            (_lines if figure.kind == "line" else _bars)(spot, shown[index], every)
        for index, panel in enumerate(shown):  # after all are drawn: panels that share an axis share its limits
            _dress(spots.flat[index], panel, figure, first=index % columns == 0)
        _legend(canvas, shown, every, figure)
        canvas.suptitle(title, fontsize=11)
        canvas.tight_layout(rect=(0, 0.02, 1, 0.99))
        save(canvas, path)
        pyplot.close(canvas)


def draw_curves(panel: curves.Panel, path: pathlib.Path) -> None:
    """Writes the curves of runs over steps as .png and .svg."""
    with plotting(panel.title) as pyplot:
        canvas, spot = pyplot.subplots(figsize=(7.6, 4.0))
        for index, (label, curve) in enumerate(panel.curves.items()):
            style = ("-", "--", ":", "-.")[index // len(COLOURS) % 4]
            look: dict[str, Any] = {"marker": "o" if len(curve) < 20 else "", "markersize": 3.5, "linestyle": style}
            look |= {"color": COLOURS[index % len(COLOURS)], "linewidth": 1.4}
            spot.plot(*zip(*curve, strict=True), label=label or None, **look)
        spot.set_xlabel("step")
        spot.set_ylabel(panel.unit)
        spot.grid(alpha=0.25)
        spot.spines[["top", "right"]].set_visible(False)
        if any(panel.curves):
            spot.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        save(canvas, path)
        pyplot.close(canvas)


def side_by_side(series: Mapping[Any, Sequence[tuple[float, float | None]]]) -> dict[Any, float]:
    """{series: its offset to the right in points (1/72 inch)}, from their (x, y), with y None if missing: zero unless
    two series have a point in the same place."""
    known = [y for points in series.values() for _, y in points if y is not None]
    near = NEAR * (max(known, default=0.0) - min([0.0, *known]))
    columns: dict[float, list[float]] = {}
    for points in series.values():
        for x, y in points:
            columns.setdefault(x, []).append(-math.inf if y is None else y)  # missing ones are at the bottom
    pairs = [pair for column in columns.values() for pair in itertools.pairwise(sorted(column))]
    is_hidden = any(low == high or high - low <= near for low, high in pairs)
    step = min(STEP, WIDEST / max(len(series) - 1, 1)) if is_hidden else 0.0
    return {name: (index - (len(series) - 1) / 2) * step for index, name in enumerate(series)}


def moved(spot: Any, transform: Any, points: float) -> Any:
    """A plot transform shifted this many points to the right."""
    from matplotlib.transforms import ScaledTranslation  # noqa: PLC0415 - optional

    return transform + ScaledTranslation(points / 72, 0, spot.figure.dpi_scale_trans) if points else transform


def _lines(spot: Any, panel: Panel, every: Sequence[str]) -> None:
    shifts = side_by_side(
        {series: [(panel.positions[x], c.mean) for x, c in by_x.items()] for series, by_x in panel.series.items()}
    )
    for series, by_x in panel.series.items():
        colour, marker = _look(every, series)
        place = moved(spot, spot.transData, shifts[series])
        theirs = [(panel.positions[x], c.published) for x, c in by_x.items() if c.published is not None]
        if theirs:
            look: dict[str, Any] = {"color": GREY, "marker": marker, "markersize": 4, "linewidth": 1.1}
            spot.plot(*zip(*sorted(theirs), strict=True), "--", transform=place, **look)
        ours = sorted((panel.positions[x], c) for x, c in by_x.items() if c.mean is not None)
        _marks(spot, ours, colour, marker, place)
        spot.plot([x for x, _ in ours], [c.mean for _, c in ours], color=colour, linewidth=1.6, transform=place)
        _missing(spot, [panel.positions[x] for x, c in by_x.items() if c.mean is None], colour, shifts[series])


def _bars(spot: Any, panel: Panel, every: Sequence[str]) -> None:
    width = 0.8 / max(len(every), 1)
    for series, by_x in panel.series.items():
        colour, _ = _look(every, series)
        shift = (every.index(series) - (len(every) - 1) / 2) * width
        ours = [(panel.positions[x] + shift, c) for x, c in by_x.items() if c.mean is not None]
        for at, c in ours:
            face = "white" if c.flagged else colour
            spot.bar(at, c.mean, width * 0.92, color=face, edgecolor=colour, hatch="//" if c.flagged else None)
        _marks(spot, ours, "#333333", "", spot.transData)
        for x, c in by_x.items():
            if c.published is not None:
                at = panel.positions[x] + shift
                spot.plot([at - width * 0.45, at + width * 0.45], [c.published] * 2, color=GREY, linewidth=2.5)
        _missing(spot, [panel.positions[x] + shift for x, c in by_x.items() if c.mean is None], colour)
    spot.axhline(0, color="black", linewidth=0.6)


def _marks(spot: Any, ours: Sequence[tuple[float, MeanScore]], colour: str, marker: str, place: Any) -> None:
    """Draws points with their intervals; flagged ones are hollow."""
    for x, c in ours:
        assert c.mean is not None and c.bar is not None  # every mean has an interval
        low, high = c.bar
        bars = [[max(c.mean - low, 0.0)], [max(high - c.mean, 0.0)]]
        look = {"color": colour, "marker": marker, "mfc": "white" if c.flagged else colour, "transform": place}
        spot.errorbar(x, c.mean, bars, capsize=3, markersize=6, linewidth=1.2, **look)
        spot.update_datalim([(x, edge) for edge in c.bar])  # shifted bars are not included automatically


def _missing(spot: Any, positions: Sequence[float], colour: str, points: float = 0.0) -> None:
    """Draws a cross at the bottom of the panel for every missing mean."""
    if positions:
        foot = moved(spot, spot.get_xaxis_transform(), points)
        spot.plot(positions, [0.02] * len(positions), "x", color=colour, transform=foot, clip_on=False)


def _look(every: Sequence[str], series: str) -> tuple[str, str]:
    index = every.index(series)
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _dress(spot: Any, panel: Panel, figure: FigureSpec, first: bool) -> None:
    numbers = panel.positions
    if panel.log and min(numbers.values()) > 0:
        spot.set_xscale("log")
    elif panel.log:
        spot.set_xscale("symlog", linthresh=min((n for n in numbers.values() if n > 0), default=1.0))
    long = max((len(label) for label in numbers), default=0) * len(numbers) > 60
    spot.set_xticks(
        list(numbers.values()),
        [panel.ticks.get(x, x) for x in numbers],
        rotation=30 if long else 0,
        ha="right" if long else "center",
    )
    spot.minorticks_off()
    spot.set_xlabel("" if figure.x == "score" else figure.x)
    if first:
        spot.set_ylabel(f"{figure.scores[0]} (%)" if len(figure.scores) == 1 else "score (%)")
    if panel.title:
        spot.set_title(panel.title, fontsize=10)
    values = [v for by_x in panel.series.values() for c in by_x.values() for v in (c.published, *(c.bar or ())) if v]
    spot.set_ylim(bottom=None if min(values, default=0.0) < 0 else 0)
    spot.grid(alpha=0.25)
    spot.spines[["top", "right"]].set_visible(False)


def _legend(canvas: Any, shown: Sequence[Panel], every: Sequence[str], figure: FigureSpec) -> None:
    """Draws one legend for all panels: the series, and what grey, hollow and crosses mean if they occur."""
    from matplotlib.lines import Line2D  # noqa: PLC0415 - optional

    def key(label: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, **look)

    found = [c for panel in shown for by_x in panel.series.values() for c in by_x.values()]
    keys, is_line = [], figure.kind == "line"
    if figure.series:
        looks = [(series, *_look(every, series)) for series in every]
        shape = {"linewidth": 1.6} if is_line else {"linestyle": "", "markersize": 9}
        keys = [
            key(series, color=colour, marker=marker if is_line else "s", **shape) for series, colour, marker in looks
        ]
    if any(c.published is not None for c in found):
        keys.append(key("published", color=GREY, linestyle="--" if is_line else "-", linewidth=1.4))
    if any(c.flagged for c in found):
        keys.append(key("flagged", color="#444444", marker="o", mfc="white", linestyle=""))
    if any(c.mean is None for c in found):
        keys.append(key("no score", color="#444444", marker="x", linestyle=""))
    if keys:
        foot = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.02)}
        canvas.legend(
            handles=keys, ncols=min(len(keys), 6), frameon=False, title=", ".join(figure.series) or None, **foot
        )
