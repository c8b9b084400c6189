"""Draws laws: scores with the law's bands, hollow predicted cells, errors against reach, and iso-score lines."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flanx.laws import choice as choosing
from flanx.laws.cell import COT, TASKS, VARIABLES, Cell, quantity
from flanx.laws.fit import CONFIDENCE
from flanx.laws.law import Law
from flanx.sweep.figures import COLOURS, GREY, MARKERS, moved, plotting, save, side_by_side

GRID = 60  # points per curve
MOST_SERIES = 6
LOG_TICKS = 6
FACTORS = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]


def draw(
    law: Law, predicted: Sequence[Mapping[str, Any]], title: str, path: pathlib.Path, later: Sequence[Cell] = ()
) -> None:
    """Writes the figure of a law with a chosen form, as .png and .svg.

    Args:
      predicted: {"at", "value", "low", "high"} of cells predicted before they ran, or yet to run.
      later: measured cells that the law has not seen.
    """
    data = law.choice.data
    x = TASKS if TASKS in data.variables else data.variables[0]
    series = next((name for name in data.variables if name != x), None)
    has_lines = {"size", TASKS} <= set(data.variables)
    with plotting(path.stem) as pyplot:
        count = 2 + has_lines
        canvas, spots = pyplot.subplots(1, count, figsize=(4.9 * count, 4.3))
        _scores(spots[0], law, predicted, x, series)
        for cell in later:
            spots[0].plot(cell.at[x], cell.mean, "x", color="black", markersize=8, zorder=5)
        if later:
            spots[0].plot([], [], "x", color="black", label="measured, not seen by the law")
            _legend(spots[0])
        _errors(spots[1], law)
        if has_lines:
            _iso_lines(spots[2], canvas, law)
        canvas.suptitle(title, fontsize=11)
        canvas.tight_layout()
        save(canvas, path)
        pyplot.close(canvas)


def _levels(law: Law, predicted: Sequence[Mapping[str, Any]], series: str | None) -> list[float | None]:
    """The measured and predicted values of the variable that distinguishes the curves."""
    if series is None:
        return [None]
    found = {cell.at[series] for cell in law.choice.data.cells}
    found |= {each["at"][series] for each in predicted if series in each["at"]}
    levels = sorted(found)
    step = max(1, -(-len(levels) // MOST_SERIES))
    return [*levels[::-1][::step][::-1]]


def _scores(spot: Any, law: Law, predicted: Sequence[Mapping[str, Any]], x: str, series: str | None) -> None:
    assert law.draws is not None
    data = law.choice.data
    ends = [cell.at[x] for cell in data.cells] + [each["at"][x] for each in predicted if x in each["at"]]
    places = _grid(x, min(ends), max(ends))
    rest = {name: float(np.median([cell.at[name] for cell in data.cells])) for name in data.variables}
    levels = {
        level: [cell for cell in data.cells if level is None or cell.at[series or x] == level]
        for level in _levels(law, predicted, series)
    }
    shifts = side_by_side({level: [(cell.at[x], cell.mean) for cell in cells] for level, cells in levels.items()})
    for index, (level, cells) in enumerate(levels.items()):
        place = moved(spot, spot.transData, shifts[level])
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        fixed = rest | ({series: level} if series is not None and level is not None else {})
        curve = [Cell("", fixed | {x: float(place)}) for place in places]
        tail = (100 - CONFIDENCE) / 2
        low, high = np.clip(np.percentile(law.draws.predict(curve), [tail, 100 - tail], axis=0), *data.ends)
        spot.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        label = None if level is None else f"{VARIABLES[series or x].symbol} = {quantity(level)}"
        spot.plot(places, np.clip(law.choice.fit.predict(curve), *data.ends), color=colour, linewidth=1.3, label=label)
        for cell in cells:
            half = 2 * (law.draws.noise.seeds or 0.0) / len(cell.values) ** 0.5
            bars = [[min(half, max(cell.mean - data.ends[0], 0.0))], [min(half, max(data.ends[1] - cell.mean, 0.0))]]
            look: dict[str, Any] = {"marker": marker, "color": colour, "markersize": 5.5, "capsize": 2.5}
            spot.errorbar(cell.at[x], cell.mean, bars if half else None, linewidth=1.1, transform=place, **look)
            spot.update_datalim([(cell.at[x], cell.mean - bars[0][0]), (cell.at[x], cell.mean + bars[1][0])])
        for each in predicted:
            if x in each["at"] and (level is None or each["at"].get(series) == level):
                bars = [[each["value"] - each["low"]], [each["high"] - each["value"]]]
                look = {"marker": marker, "color": colour, "mfc": "white", "markersize": 7.5, "capsize": 4}
                spot.errorbar(each["at"][x], each["value"], bars, linewidth=1.1, linestyle="", transform=place, **look)
                spot.update_datalim([(each["at"][x], each[end]) for end in ("low", "high")])
    if predicted:
        spot.plot([], [], "o", color="#444444", mfc="white", label="predicted")
    _x_axis(spot, x, sorted(set(ends)))
    spot.set_ylabel("loss" if data.is_loss else "score (%)")
    spot.set_title(f"Law ({law.choice.chosen}) with {CONFIDENCE}% bands", fontsize=10)
    if series or predicted:
        _legend(spot)


def _grid(x: str, low: float, high: float) -> np.ndarray:
    if x == TASKS:
        return np.expm1(np.linspace(np.log1p(low), np.log1p(high), GRID))
    return np.linspace(low, high, GRID) if x == COT else np.geomspace(low, high, GRID)


def _x_axis(spot: Any, name: str, values: Sequence[float]) -> None:
    """Makes a log axis with the cells' values as ticks; the tasks axis begins at 0."""
    if name == TASKS:
        spot.set_xscale("function", functions=(np.log1p, np.expm1))  # the coordinate of laws, which allows 0
    elif name != COT:
        spot.set_xscale("log")
    step = max(1, -(-len(values) // LOG_TICKS))
    shown = [*values[::-1][::step][::-1]]
    spot.set_xticks(shown, [quantity(v) for v in shown])
    spot.minorticks_off()
    spot.set_xlabel(f"{VARIABLES[name].symbol}: {VARIABLES[name].unit}")
    _plain(spot)


def _legend(spot: Any) -> None:
    spot.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)


def _plain(spot: Any) -> None:
    spot.grid(alpha=0.25)
    spot.spines[["top", "right"]].set_visible(False)


def _errors(spot: Any, law: Law) -> None:
    """Draws the chosen form's extrapolation errors against how far beyond the fitted cells they are."""
    found = choosing.reaches(law.choice.fit.form, law.choice.data)
    for index, name in enumerate(law.choice.data.variables):
        places = [(each.factor, each.error) for each in found if each.variable == name]
        if places:
            look = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 5, "alpha": 0.8}
            spot.plot(
                *zip(*places, strict=True), linestyle="", label=f"beyond the largest {VARIABLES[name].symbol}", **look
            )
    if found:
        spot.set_xscale("log")
        low, high = min(each.factor for each in found), max(each.factor for each in found)
        inside = [tick for tick in FACTORS if low / 1.5 <= tick <= 1.5 * high]
        ticks = inside[:: -(-len(inside) // LOG_TICKS)] if inside else [low]
        spot.set_xticks(ticks, [quantity(tick) for tick in ticks])
        spot.minorticks_off()
        _legend(spot)
    else:
        spot.text(0.5, 0.5, "too few cells to hold any out", ha="center", transform=spot.transAxes, color=GREY)
    if law.draws is not None and law.draws.noise.seeds:
        spot.axhline(2 * law.draws.noise.of_new, color=GREY, linewidth=1, linestyle=":")
        spot.annotate("noise of a cell", (0.99, 2 * law.draws.noise.of_new), xycoords=("axes fraction", "data"),
                      ha="right", va="bottom", fontsize=8, color=GREY)  # fmt: skip
    spot.set_ylim(bottom=0)
    spot.set_xlabel("times the largest that was fitted")
    spot.set_ylabel("absolute error" + ("" if law.choice.data.is_loss else " (points)"))
    spot.set_title("Error of prediction against reach", fontsize=10)
    _plain(spot)


def _ticks(low: float, high: float) -> Sequence[float]:
    """About ten round numbers from `low` to `high`."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - optional

    return [*MaxNLocator(10).tick_values(low, high)] if low < high else []


def _iso_lines(spot: Any, canvas: Any, law: Law) -> None:
    """Draws iso-score lines over tasks and size, to twice the measured range."""
    data = law.choice.data
    sizes, tasks = data.levels("size"), data.levels(TASKS)
    n, t = _grid("size", sizes[0] / 2, 2 * sizes[-1]), _grid(TASKS, tasks[0], 2 * tasks[-1])
    rest = {name: float(np.median([cell.at[name] for cell in data.cells])) for name in data.variables}
    grid = [Cell("", rest | {"size": float(a), TASKS: float(b)}) for a in n for b in t]
    scores = law.choice.fit.predict(grid).reshape(len(n), len(t))
    low, high = max(float(scores.min()), data.ends[0]), min(float(scores.max()), data.ends[1])
    if levels := [level for level in _ticks(low, high) if low < level < high]:
        lines = spot.contour(t, n, scores, levels=levels, cmap="viridis", linewidths=1.2)
        for label in spot.clabel(lines, fontsize=8):
            label.set_clip_on(False)  # a level near the edge keeps its whole number
    for cell in data.cells:
        spot.plot(cell.at[TASKS], cell.at["size"], "o", color="#444444", markersize=4)
    spot.set_yscale("log")
    _x_axis(spot, TASKS, tasks)
    spot.set_yticks(sizes, [quantity(v) for v in sizes])
    spot.minorticks_off()
    spot.set_ylabel("N: parameters")
    spot.set_title("The same loss" if data.is_loss else "The same score", fontsize=10)
