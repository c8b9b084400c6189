"""The figure of a sweep: score against task count per size, and score against size per task count. Needs matplotlib."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

from flanx.errors import UserError
from flanx.sweep.grid import Sweep
from flanx.sweep.results import Row

# Okabe and Ito's palette, told apart by colour-blind readers too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean score in percent with its 95% interval and the number of rows behind it."""

    score: float
    low: float
    high: float
    rows: int


def estimate(rows: Sequence[Row]) -> Estimate | None:
    """The mean of `rows` that have a score; None where none has.

    The interval of a mean of k independent scores: half-width sqrt(sum of squared half-widths) / k on each side.
    """
    scored = [row for row in rows if row.score is not None]
    if not scored:
        return None
    count = len(scored)
    score = sum(row.score for row in scored) / count
    below = math.sqrt(sum((row.score - row.low) ** 2 for row in scored)) / count
    above = math.sqrt(sum((row.high - row.score) ** 2 for row in scored)) / count
    return Estimate(score, score - below, score + above, count)


def panel(rows: Sequence[Row], x_axis: str, series_axis: str | None) -> dict[str, dict[str, Estimate]]:
    """{series label: {x label: estimate}}; without a series axis the suites are the series."""
    table: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        series = row.labels[series_axis] if series_axis else row.suite
        table.setdefault(series, {}).setdefault(row.labels[x_axis], []).append(row)
    found = {s: {x: estimate(cell) for x, cell in cells.items()} for s, cells in table.items()}
    kept = {s: {x: e for x, e in cells.items() if e is not None} for s, cells in found.items()}
    return {s: cells for s, cells in kept.items() if cells}


def draw(sweep: Sweep, rows: Sequence[Row], sizes: Mapping[str, int], path: pathlib.Path) -> None:
    """Writes the figure to `path` (.png) and beside it as .svg. `sizes`: parameters per label of the first axis."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("figures need matplotlib: pip install 'flanx[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if sweep.suites is None or row.suite in sweep.suites]
    axes = list(sweep.axes)
    second = axes[1] if len(axes) > 1 else None
    views = [(axes[0], second)] if second is None else [(second, axes[0]), (axes[0], second)]
    figure, panels = pyplot.subplots(1, len(views), figsize=(5.6 * len(views), 4.2), sharey=True, squeeze=False)
    for place, (x_axis, series_axis) in zip(panels[0], views, strict=True):
        labels = [str(label) for label in sweep.axes[x_axis]]
        numbers = positions(labels, sizes if x_axis == axes[0] else {})
        for index, (series, cells) in enumerate(panel(rows, x_axis, series_axis).items()):
            xs = [label for label in labels if label in cells]
            ys = [cells[x] for x in xs]
            place.errorbar(
                [numbers[x] for x in xs],
                [e.score for e in ys],
                yerr=[[e.score - e.low for e in ys], [e.high - e.score for e in ys]],
                label=_series_label(series, series_axis, sizes if series_axis == axes[0] else {}),
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                capsize=3,
                linewidth=1.6,
                markersize=6,
            )
        _dress(place, x_axis, labels, numbers, logarithmic=min(numbers.values()) > 0)
    panels[0][0].set_ylabel(f"{sweep.title} (%)")
    figure.tight_layout()
    for kind in (".png", ".svg"):
        figure.savefig(path.with_suffix(kind), dpi=160, metadata={"Date": None} if kind == ".svg" else None)
    pyplot.close(figure)


def positions(labels: Sequence[str], sizes: Mapping[str, int]) -> dict[str, float]:
    """Where each label stands on the x axis: its size, its own number, else its place in the list."""
    if all(label in sizes for label in labels):
        return {label: float(sizes[label]) for label in labels}
    if all(label.replace(".", "", 1).isdigit() for label in labels):
        return {label: float(label) for label in labels}
    return {label: float(place) for place, label in enumerate(labels)}


def _series_label(series: str, axis: str | None, sizes: Mapping[str, int]) -> str:
    if axis is None:
        return series
    return f"{series} ({sizes[series]:,} parameters)" if series in sizes else f"{series} {axis}"


def _dress(place, x_axis: str, labels: Sequence[str], numbers: Mapping[str, float], logarithmic: bool) -> None:
    if logarithmic:
        place.set_xscale("log")
    else:
        place.set_xscale("symlog", linthresh=max(1.0, min((n for n in numbers.values() if n > 0), default=1.0)))
    place.set_xticks([numbers[label] for label in labels], labels)
    place.minorticks_off()
    place.set_xlabel(x_axis)
    place.set_ylim(bottom=0)
    place.grid(alpha=0.25)
    place.spines[["top", "right"]].set_visible(False)
    place.legend(frameon=False, fontsize=9)
