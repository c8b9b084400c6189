"""`flanx compare --report`: the preferences of people and judges, as a page with a figure like the paper's Figure 8.

<comparison>/report.html, report.md, figures/preferred.png, .svg
"""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.compare import result_table
from flanx.compare.pairing import Comparison
from flanx.evals.families import open_ended
from flanx.files import write_atomic
from flanx.sweep import document
from flanx.sweep.document import Cell, Document, Section, Span, Table
from flanx.sweep.figures import COLOURS, GREY, MARKERS, plotting, save

ALL = "all"
MOST_TASKS = 40  # in the figure, by number of pairs; the table has all
PAPER = 79.0  # percent, Flan-PaLM 540B over PaLM 540B on all open-ended prompts: section 6; Figure 8 has no numbers
NOTES = {
    "Preferences": "Ties and 'both bad' count as half, a pair that several rated once. Intervals: Wilson's, 95%.",
    "Ratings": "Elo's scale: 400 points are odds of ten to one. Intervals: 1,000 draws of the prompts.",
    "Position bias": "Each candidate is on the left in half of its pairs, so 50 means no bias.",
}


def publish(made: Comparison, results: Sequence[Mapping[str, Any]], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the page, in HTML and Markdown, and its figure; returns their paths."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    picture = folder / "figures" / "preferred.svg"
    draw([record for record in results if record["what"] == "win_rate"], picture)
    left_out = "; ".join(f"{count} {what}" for what, count in made.left_out.items())
    page = Document(
        title=f"Preferences among {', '.join(made.candidates)}",
        notes=[
            f"{len(made.pairs):,} pairs of answers to {len(made.prompts):,} prompts, comparison {made.id}, seed "
            f"{made.seed}." + (f" {left_out}." if left_out else ""),
            "Models as judges are apart from people, and never added to them.",
        ],
        sections=[
            Section("Preferred", picture),
            *(_section(kind, rows) for kind, rows in result_table.tables(results)),
        ],
        base=folder,
    )
    written = {"report.md": document.markdown(page), "report.html": document.page(page)}
    for name, text in written.items():
        write_atomic(folder / name, text)
    return [*(folder / name for name in written), picture.with_suffix(".png"), picture]


def _section(kind: result_table.Result, rows: Sequence[Sequence[Any]]) -> Section:
    aligned = [number == 0 or name in kind.left for number, name in enumerate(kind.columns)]
    cells = [
        [Cell([Span(str(cell))], "" if is_left else "number") for cell, is_left in zip(row, aligned, strict=True)]
        for row in rows
    ]
    return Section(
        kind.title, notes=[NOTES[kind.title]] if kind.title in NOTES else (), tables=[Table(kind.columns, cells)]
    )


def draw(rates: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws how often the first of two candidates is preferred, by task, as .png and .svg: a panel per two candidates,
    a series for people and for each judge; for open-ended prompts, with the paper's figure in grey."""
    pairs = list(dict.fromkeys((record["a"], record["b"]) for record in rates))
    raters = list(dict.fromkeys(record["raters"] for record in rates))
    counts: Counter[str] = Counter()
    for record in rates:
        counts[record["task"]] += record["pairs"]
    most = {task for task, _ in counts.most_common(MOST_TASKS)}
    rates = [record for record in rates if record["task"] in most]
    tasks = list(dict.fromkeys(record["task"] for record in rates))
    height = 1.4 + 0.24 * len(tasks) * max(len(raters), 1)
    with plotting("preferred") as pyplot:
        canvas, spots = pyplot.subplots(len(pairs), 1, figsize=(7.6, height * len(pairs)), squeeze=False)
        for spot, pair in zip(spots.flat, pairs, strict=True):
            _panel(spot, [record for record in rates if (record["a"], record["b"]) == pair], raters, tasks)
            spot.set_title(_plain(f"{pair[0]} preferred to {pair[1]}"), fontsize=10)
        spots.flat[-1].set_xlabel("% of pairs, a tie as half")
        canvas.tight_layout()
        foot: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": 3}
        canvas.legend(*spots.flat[0].get_legend_handles_labels(), frameon=False, fontsize=9, **foot)
        save(canvas, path)
        pyplot.close(canvas)


def _plain(text: str) -> str:
    """User text as a figure label: one line, not too long, not parsed as a formula by matplotlib."""
    line = " ".join(text.split())
    return (line if len(line) <= 60 else f"{line[:59]}\u2026").replace("$", r"\$")


def _panel(spot: Any, rates: Sequence[Mapping[str, Any]], raters: Sequence[str], tasks: Sequence[str]) -> None:
    """One panel: tasks from top to bottom, `ALL` first."""
    for index, name in enumerate(raters):
        look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        look |= {"mfc": None if name == "people" else "white", "linestyle": "", "capsize": 3, "markersize": 6}
        label: str | None = _plain(name)
        for record in (record for record in rates if record["raters"] == name):
            at = tasks.index(record["task"]) + 0.7 * ((index + 0.5) / len(raters) - 0.5)
            rate, low, high = record["win_rate"], record["low"], record["high"]
            bars = None if low is None else [[max(rate - low, 0.0)], [max(high - rate, 0.0)]]
            spot.errorbar(rate, at, xerr=bars, label=label, **look)
            label = None
    if {*open_ended.KINDS} & {*tasks}:
        words = f"paper, Flan-PaLM 540B over PaLM 540B: {PAPER:.0f}"
        spot.plot([PAPER], [0], "D", color=GREY, markersize=6, label=words, zorder=0)
    spot.axvline(50, color=GREY, linewidth=0.9, linestyle="--")
    spot.set_yticks(range(len(tasks)), [_plain(task.replace("_", " ")) or ALL for task in tasks])
    spot.set_ylim(len(tasks) - 0.4, -0.6)
    spot.set_xlim(-2, 102)
    spot.grid(axis="x", alpha=0.25)
    spot.spines[["top", "right"]].set_visible(False)
