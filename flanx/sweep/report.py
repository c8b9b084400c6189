"""`flanx report`: of a sweep its tables and figures, as CSV, Markdown and one HTML page; of runs the paper's Table 5.

A sweep is named by its folder (OUT_DIR, which keeps the sweep's gin) or by its gin file.
"""

import csv
import dataclasses
import datetime
import io
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from flanx import config
from flanx.errors import UserError, nearest
from flanx.evals import published
from flanx.evals import table5 as runs
from flanx.files import write_atomic
from flanx.sweep import figure_specs, html_report, paired_differences, results, score_expressions, statistics
from flanx.sweep import figures as plot
from flanx.sweep.figures import Panel
from flanx.sweep.grid import GIN, Sweep
from flanx.sweep.paired_differences import Difference
from flanx.sweep.results import CHOSEN, LAST, Outcome
from flanx.sweep.state import State
from flanx.sweep.statistics import Cell

CELL_COLUMNS = (
    *("checkpoint", "score", "mean", "runs", "items_low", "items_high", "seeds_low", "seeds_high"),
    *("flagged", "missing", "published", "points"),
)

VERSIONS = ("flanx", "jax", "flax", "numpy")


def is_sweep(name: str) -> bool:
    """Whether `name` is a gin file or a folder in which a sweep lives."""
    return name.endswith(".gin") or (pathlib.Path(name) / GIN).is_file()


def read(name: str, bindings: Sequence[str] = ()) -> Sweep:
    """The sweep of a gin file or of a folder; the folder may have been moved since."""
    if name.endswith(".gin"):
        config.parse([name], bindings, whole=False)
        return config.make(Sweep)
    config.parse([str(pathlib.Path(name) / GIN)], bindings, whole=False)
    return dataclasses.replace(config.make(Sweep), out_dir=name)


def check(sweep: Sweep) -> None:
    """Raises UserError where the sweep's scores, figures or published rows name what there is not."""
    named = list(statistics.scores(sweep, []))
    # where the sweep names no score, those of the figures are suites, known when they have been run
    named = named or [name for table in sweep.figures.values() for name in table.get("scores", ())]
    figure_specs.figures(sweep.figures, statistics.axes(sweep), named)
    for axis in sweep.axes:
        if axis in (*results.COLUMNS, *CELL_COLUMNS):
            raise UserError(f"Sweep.axes: '{axis}' is a column of the results; give the axis another name")
    for reference in sweep.published.values():
        published.model(reference)
    paired_differences.check(sweep)
    for axis in sweep.choose_per or ():
        if axis not in sweep.axes:
            raise UserError(f"Sweep.choose_per: the sweep has no axis '{axis}'{nearest(axis, sweep.axes)}")


def publish(sweep: Sweep, state: State) -> list[pathlib.Path]:
    """Writes results.csv, cells.csv, differences.csv where the sweep compares, report.md, report.html and figures/;
    returns their paths."""
    out = pathlib.Path(sweep.out_dir)
    if not out.is_dir():
        raise UserError(f"{out} is no folder: the sweep has not been run (Sweep.out_dir)")
    outcomes = results.collect(sweep, state.told(sweep.points()))
    cells = statistics.cells(sweep, outcomes)
    figures = figure_specs.figures(sweep.figures, statistics.axes(sweep), list(statistics.scores(sweep, outcomes)))
    (out / "figures").mkdir(exist_ok=True)
    drawn = []
    for each in figures:
        shown = plot.panels(sweep, each, cells, outcomes)
        if any(c.mean is not None or c.published is not None for c in _cells(shown)):
            path = out / "figures" / f"{each.name}.svg"
            title = each.title or f"{sweep.title}, by {each.x}"
            plot.draw(each, shown, title, path)
            drawn.append((title, caption(sweep, shown), shown, path))
    facts = how(sweep, outcomes, state)
    told = choice(sweep, cells)
    differences = [
        d for d in paired_differences.differences(sweep, outcomes) if d.checkpoint == statistics.shown(sweep)
    ]
    texts = {
        "results.csv": results.table(sweep, outcomes),
        "cells.csv": table(cells),
        **({"differences.csv": paired_differences.table(sweep, differences)} if sweep.compare else {}),
        "report.md": markdown(sweep, drawn, told, differences, outcomes, facts),
        "report.html": html_report.page(sweep, drawn, told, differences, outcomes, facts, out),
    }
    for name, text in texts.items():
        write_atomic(out / name, text)
    return [*(out / name for name in texts), *(p.with_suffix(kind) for *_, p in drawn for kind in (".png", ".svg"))]


def _cells(shown: Sequence[Panel]) -> Iterable[Cell]:
    return (c for panel in shown for by_x in panel.series.values() for c in by_x.values())


def caption(sweep: Sweep, shown: Sequence[Panel]) -> str:
    """What the figure's numbers and intervals are."""
    counts = sorted({len(c.outcomes) for c in _cells(shown) if c.mean is not None})
    said = []
    if counts and counts[-1] > 1:
        averaged = ", ".join(axis for axis in sweep.average_over if axis in sweep.axes)
        several = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        said.append(
            f"Means over {several} runs ({averaged}); bars are 95% intervals of the mean over the runs (Student's t): "
            "they cover what training makes of the seed, and not the choice of items. cells.csv has the intervals over "
            "the items too."
        )
    if counts and counts[0] == 1:
        what = "Single runs: their bars" if len(counts) > 1 else "Bars"
        said.append(f"{what} are 95% bootstrap intervals over the items; they do not cover another seed.")
    if sweep.choose_by:
        said.append(f"Scores are of the {CHOSEN} checkpoint: {rule(sweep)}.")
    notes = dict.fromkeys(c.note or "the paper's own" for c in _cells(shown) if c.published is not None)
    return " ".join([*said, html_report.MARKS, *([f"Grey: {'; '.join(notes)}."] if notes else [])])


def rule(sweep: Sweep) -> str:
    """How checkpoints are chosen, in words."""
    per = "" if sweep.choose_per is None else f", one step for all points of the same {', '.join(sweep.choose_per)}"
    return f"the evaluation with the highest mean of {', '.join(sweep.choose_by)}{per}"


def choice(sweep: Sweep, cells: Mapping[tuple, Cell]) -> list[tuple[Cell, Cell]]:
    """Every cell at the chosen and at the last checkpoint; [] where the sweep takes the last."""
    if not sweep.choose_by:
        return []
    found = [(key, name) for key, name, checkpoint in cells if checkpoint == CHOSEN]
    return [(cells[key, name, CHOSEN], cells[key, name, LAST]) for key, name in found]


def table(cells: Mapping[tuple, Cell]) -> str:
    """cells.csv: the numbers of the figures, ours and the published ones."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head: list[str] = []
    for found in cells.values():
        if not head:
            head = [*found.labels, *CELL_COLUMNS]
            writer.writerow(head)
        items, seeds = found.items or ("", ""), found.seeds or ("", "")
        mean = "" if found.mean is None else found.mean
        missing = "; ".join(f"{point}: {why}" for point, why in found.missing.items())
        theirs = "" if found.published is None else found.published
        behind = " ".join(o.point.name for o in found.outcomes)
        row = [found.checkpoint, found.score, mean, len(found.outcomes), *items, *seeds, found.flagged, missing]
        writer.writerow([*found.labels.values(), *row, theirs, behind])
    return text.getvalue()


def markdown(
    sweep: Sweep,
    drawn: Sequence[tuple[str, str, Sequence[Panel], pathlib.Path]],
    told: Sequence[tuple[Cell, Cell]],
    differences: Sequence[Difference],
    outcomes: Sequence[Outcome],
    facts: Mapping[str, str],
) -> str:
    """report.md: figures, their numbers, every score; each number linked to its scores.json."""
    base = pathlib.Path(sweep.out_dir)

    def link(path: pathlib.Path, text: str) -> str:
        return f"[{text}]({pathlib.Path(os.path.relpath(path, base)).as_posix()})"

    lines = [f"# {sweep.title}", "", *([sweep.note, ""] if sweep.note else [])]
    for title, said, shown, path in drawn:
        lines += [f"## {title}", "", f"![{title}](figures/{path.stem}.png)", "", said, ""]
        for panel in shown:
            columns, rows = panel.table()
            told_rows = [[name or "-", *(_told(each, link) for each in row)] for name, row in rows]
            lines += [*_lines([panel.title or "-", *columns], told_rows), ""]
    if told:
        chosen = [
            [*best.labels.values(), best.score, best.steps, _told(best, link), last.steps, _told(last, link), effect]
            for best, last in told
            for effect in [html_report.effect(best, last)]
        ]
        lines += [
            "## Chosen and last checkpoint",
            "",
            *_lines([*statistics.axes(sweep), *html_report.CHOICE], chosen),
            "",
        ]
    if differences:
        head, rows = [*statistics.axes(sweep), *paired_differences.SHOWN], [each.shown() for each in differences]
        lines += ["## Differences", "", paired_differences.SAID, "", *_lines(head, rows), ""]
    head = [*sweep.axes, "checkpoint", "suite", "score (%)", "95% interval", "items", "unread", "store"]
    rows = []
    for outcome in outcomes:
        labels = [*outcome.point.labels.values(), outcome.checkpoint]
        if not outcome.suites:
            rows.append([*labels, f"no score ({outcome.absence})", "-", "-", "-", "-", "-"])
        for name, entry in outcome.suites.items():
            number = link(outcome.scores, f"{entry['score']:.1f}") + ("!" if entry["flagged"] else "")
            interval = f"{entry['low']:.1f} to {entry['high']:.1f}"
            shares = [f"{entry['n']:,}", f"{entry['extraction_failed']:.1%}", outcome.store[:12]]
            rows.append([*labels, name, number, interval, *shares])
    lines += ["## Every score", "", *_lines(head, rows), "", "## How it was made", ""]
    return "\n".join([*lines, *(f"- {name}: {value}" for name, value in facts.items())]) + "\n"


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        f"| {' | '.join(text.replace('|', '/') for text in cells)} |" for cells in (head, ["---"] * len(head), *rows)
    ]


def _told(found: Cell | None, link) -> str:
    if found is None:
        return "-"
    theirs = f" (published {found.published:.1f})" if found.published is not None else ""
    if found.mean is None:
        return f"no score ({found.why}){theirs}"
    numbers = [link(o.scores, f"{found.mean:.1f}" if i == 0 else str(i + 1)) for i, o in enumerate(found.outcomes)]
    low, high = found.interval
    return f"{' '.join(numbers)}{found.marks} [{low:.1f}, {high:.1f}]{theirs}"


def how(sweep: Sweep, outcomes: Sequence[Outcome], state: State) -> dict[str, str]:
    """Date, versions, machines and rules, for the end of a report."""
    made = [results.read(o.scores).get("run", {}).get("versions", {}) for o in outcomes if o.scores]
    versions = {", ".join(f"{name} {found[name]}" for name in VERSIONS if name in found) for found in made if found}
    machines = {str(entry["machine"]) for entry in state.read().values() if "machine" in entry}
    facts = {
        "report made": datetime.date.today().isoformat(),
        "versions": "; ".join(sorted(versions)) or "not recorded",
        "machine": "; ".join(sorted(machines)) or "not recorded",
        "config": f"{GIN} beside this file; config.gin and operative_config.gin in every run's folder",
        "checkpoint": f"last, and chosen: {rule(sweep)}" if sweep.choose_by else "last",
    }
    if any(score_expressions.AVERAGE in terms or "normalized" in str(terms) for terms in sweep.scores.values()):
        facts["lower bounds"] = " ".join(runs.bounds())
    return facts
