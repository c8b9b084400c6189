"""`flanx watch RUN...`: the curves of training runs in a terminal, over one another, read again as they are written."""

import argparse
import itertools
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flanx import bucket
from flanx.settings import RANGES, flag, path_flag
from flanx.sweep import curves
from flanx.sweep.curves import Curve, Panel

COLOURS = ("bright_blue", "bright_red", "bright_green", "bright_magenta", "bright_yellow", "bright_cyan", "white")
WIDEST, ROWS = 72, 9  # panel size, in characters
MARGIN = 10  # for the numbers to its left
# the bit of each dot of a braille character (U+2800), by row and column
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx watch`."""
    parser.add_argument(
        "run", nargs="+", type=path_flag, metavar="RUN", help="the folder or bucket of a training run (MODEL_DIR)"
    )
    parser.add_argument("--once", action="store_true", help="print what there is and end")
    parser.add_argument(
        "--every", type=flag(float, RANGES["timeout"]), default=5.0, metavar="SECONDS", help="between readings"
    )


def run(args: argparse.Namespace) -> int:
    """Draws until every run is done or Ctrl-C; only once if the output is not a terminal."""
    console = Console(highlight=False)
    if args.once or not console.is_terminal:
        console.print(_read(args.run, console.width)[0])
        return 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            picture, is_over = _read(args.run, console.width, console.height)
            live.update(picture, refresh=True)
            if is_over:
                break
            time.sleep(args.every)
    console.print(_read(args.run, console.width)[0])
    return 0


def _read(names: Sequence[str], width: int, height: int | None = None) -> tuple[Group, bool]:
    """The picture of these runs, and whether all are done; runs in buckets are first copied."""
    with bucket.copied(names) as copies:
        runs = curves.read_runs(copies)
        return _picture(runs, width, height), all(each.done for each in runs)


def _picture(runs: Sequence[curves.Run], width: int, height: int | None = None) -> Group:
    """A line per run, the panels side by side if two fit, and a line per empty panel; panels shrink if `height` is
    given and too small for all of them."""
    heads = [Text(f"{each.name}  step {each.step:,}{'  done' if each.done else ''}", style="bold") for each in runs]
    panels = curves.panels(runs)
    drawn = [panel for panel in panels if panel.curves]
    across = 2 if width >= 2 * 56 else 1
    wide = min(WIDEST, width // across - MARGIN - 4)
    lines = -(-len(drawn) // across)
    rows = ROWS if height is None or not lines else max(3, min(ROWS, (height - len(runs) - 2) // lines - 5))
    grid = Table.grid(padding=(0, 2, 1, 0))
    for start in range(0, len(drawn), across):
        grid.add_row(*(draw(panel, wide, rows) for panel in drawn[start : start + across]))
    empty = [Text(f"{panel.title}: {panel.absent}", style="dim") for panel in panels if not panel.curves]
    return Group(*heads, Text(), grid, *empty)


def draw(panel: Panel, width: int, rows: int = ROWS) -> Text:
    """A panel as text: title, curves in braille dots, the limits of both axes, and labels with their last values."""
    points = [point for curve in panel.curves.values() for point in curve]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    cells: dict[tuple[int, int], tuple[int, str]] = {}  # (row, column) -> dots, color
    for number, curve in enumerate(panel.curves.values()):
        for column, row in _dots(curve, (first, last, low, high), 2 * width, 4 * rows):
            place = row // 4, column // 2
            cells[place] = cells.get(place, (0, ""))[0] | DOTS[row % 4][column % 2], COLOURS[number % len(COLOURS)]
    text = Text(f"{panel.title}{f', {panel.unit}' if panel.unit else ''}\n", style="")
    for row in range(rows):
        edge = f"{high:.4g}" if row == 0 else f"{low:.4g}" if row == rows - 1 else ""
        text.append(f"{edge:>{MARGIN - 2}} |", style="dim")
        for column in range(width):
            dots, colour = cells.get((row, column), (0, ""))
            text.append(chr(0x2800 + dots) if dots else " ", style=colour)
        text.append("\n")
    text.append(f"{'':{MARGIN}}{first:<{width // 2},}{last:>{width - width // 2},}\n", style="dim")
    for number, (label, curve) in enumerate(panel.curves.items()):
        text.append(f"{'':{MARGIN}}{label or 'last'} {curve[-1][1]:.4g}\n", style=COLOURS[number % len(COLOURS)])
    return text


def _dots(curve: Curve, edges: tuple[float, float, float, float], width: int, height: int) -> list[tuple[int, int]]:
    """(column, row from the top) of every dot of a curve, with points joined by straight lines."""
    first, last, low, high = edges
    places = [
        ((x - first) / (last - first or 1) * (width - 1), (high - y) / (high - low or 1) * (height - 1))
        for x, y in curve
    ]
    found = [(round(x), round(y)) for x, y in places]
    for (x, y), (to_x, to_y) in itertools.pairwise(places):
        steps = round(max(abs(to_x - x), abs(to_y - y)))
        found += [(round(x + (to_x - x) * n / steps), round(y + (to_y - y) * n / steps)) for n in range(1, steps)]
    return found
