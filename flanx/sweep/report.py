"""The report of a sweep: results.csv, cells.csv, differences.csv, figures/, report.md and report.html.

A sweep is given by its folder (OUT_DIR, which stores it as data in sweep.json) or by its gin file.
"""

import datetime
import itertools
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flanx import config
from flanx.errors import UserError, nearest
from flanx.evals import published, table5
from flanx.evals.scores import FLAGGED, interval_text, partial, score_text
from flanx.files import csv_text, write_atomic
from flanx.sweep import (
    difference_section,
    document,
    figure_specs,
    figures,
    forecast,
    law_section,
    results,
    score_expressions,
    statistics,
)
from flanx.sweep.document import Cell, Document, Section, Span, Table
from flanx.sweep.figures import Panel
from flanx.sweep.grid import GIN, RECORD, Sweep, recorded
from flanx.sweep.law_cells import NOT_COMPARABLE
from flanx.sweep.results import CHOSEN, LAST, Outcome
from flanx.sweep.state import State
from flanx.sweep.statistics import MeanScore, PairedDifference

CELL_COLUMNS = (
    *("checkpoint", "score", "mean", "runs", "items_low", "items_high", "seeds_low", "seeds_high"),
    *("flagged", "partial", "missing", "published", "points"),
)
DIFFERENCE_COLUMNS = ("against", "score", "checkpoint", "mean", "runs", "low", "high", "each")
RUN_FILES = ("config.gin", "operative_config.gin", "run.json", "metrics.jsonl", "log.txt")
VERSIONS = ("flanx", "jax", "flax", "numpy")
MARKS = (
    f"{FLAGGED} †: some runs are missing from the mean. ‡: of sample data, without some tasks, of truncated prompts or "
    "of text that the vocabulary cannot write; cells.csv says which."
)


def is_sweep(name: str) -> bool:
    """Whether `name` is a gin file or the folder of a sweep."""
    return name.endswith(".gin") or any((pathlib.Path(name) / each).is_file() for each in (RECORD, GIN))


def read(name: str, bindings: Sequence[str] = ()) -> Sweep:
    """The sweep from a gin file, which is code, or from a folder, which is read as data."""
    if name.endswith(".gin"):
        config.parse([name], bindings, whole=False)
        return config.make(Sweep)
    if bindings:
        raise UserError(f"--gin.{bindings[0]}: the report of a folder binds nothing; give the sweep's gin file instead")
    return recorded(pathlib.Path(name))


def check(sweep: Sweep) -> None:
    """Raises UserError if the sweep's scores, figures, axes or published rows name something that does not exist."""
    figures.expect_matplotlib()
    named = list(statistics.scores(sweep, []))
    # if the sweep names no scores, those in figures are suites, known once they have been run
    named = named or [name for table in sweep.figures.values() for name in table.get("scores", ())]
    figure_specs.figure_specs(sweep.figures, statistics.axes(sweep), named)
    for axis in sweep.axes:
        if axis in (*results.COLUMNS, *CELL_COLUMNS):
            raise UserError(f"Sweep.axes: '{axis}' is a column of the results; give the axis another name")
    for reference in sweep.published.values():
        published.model(reference)
    cells = {"_".join(labels) for labels in itertools.product(*statistics.axes(sweep).values())}
    if others := [cell for cell in sweep.published if cell not in cells]:  # such as when SIZES leaves a family out
        number = f"{len(others)} of {len(sweep.published)} published rows"
        print(f"note: Sweep.published: no cell for {number}: {', '.join(others)}", file=sys.stderr)
    statistics.check_compare(sweep)
    forecast.check(sweep)
    for axis in sweep.average_over:
        if axis not in sweep.axes and axis != "seed":  # the default, even for sweeps with one seed
            raise UserError(f"Sweep.average_over: the sweep has no axis '{axis}'{nearest(axis, sweep.axes)}")
    for axis in sweep.choose_per or ():
        if axis not in sweep.axes:
            raise UserError(f"Sweep.choose_per: the sweep has no axis '{axis}'{nearest(axis, sweep.axes)}")


def publish(sweep: Sweep, state: State) -> list[pathlib.Path]:
    """Writes the report's files into the sweep's folder and returns their paths."""
    out = pathlib.Path(sweep.out_dir)
    if not out.is_dir():
        raise UserError(f"{out} is not a folder: the sweep has not been run (Sweep.out_dir)")
    outcomes = results.collect(sweep, state.statuses(sweep.points()))
    means = statistics.mean_scores(sweep, outcomes)
    differences = [
        difference
        for difference in statistics.paired_differences(sweep, outcomes)
        if difference.checkpoint == statistics.shown_checkpoint(sweep)
    ]
    tables = {
        "results.csv": results.table(sweep, outcomes),
        "cells.csv": cells_csv(sweep, means.values()),
        **({"differences.csv": differences_csv(sweep, differences)} if sweep.compare else {}),
    }
    for name, text in tables.items():  # before the figures, which have more requirements
        write_atomic(out / name, text)
    drawn = draw_figures(sweep, means, outcomes)
    noise = difference_section.floors(sweep, means)
    report = Document(
        title=sweep.title,
        notes=[*([sweep.note] if sweep.note else []), _counts(outcomes), *results.version_note(outcomes)],
        sections=[
            *drawn,
            *_choice(sweep, means),
            *difference_section.noise_sections(noise),
            *difference_section.difference_sections(sweep, differences, noise),
            *law_section.sections(sweep, means, outcomes),
            Section("Every score", tables=[_every_score(sweep, outcomes)]),
            *validation(sweep, outcomes),
            Section("Runs", tables=[_runs(outcomes)]),
            *_missing_tasks(outcomes),
            Section("How it was made", facts=how_it_was_made(sweep, outcomes, state)),
        ],
        base=out,
    )
    pages = {"report.md": document.markdown(report), "report.html": document.page(report)}
    for name, text in pages.items():
        write_atomic(out / name, text)
    pictures = [section.figure.with_suffix(kind) for section in drawn if section.figure for kind in (".png", ".svg")]
    return [*(out / name for name in (*tables, *pages)), *pictures]


# ---- CSV -------------------------------------------------------------------------------------------------------------


def cells_csv(sweep: Sweep, means: Iterable[MeanScore]) -> str:
    """cells.csv: the numbers in the figures, ours and the published ones."""
    rows = []
    for each in means:
        missing = "; ".join(f"{point}: {reason}" for point, reason in each.missing.items())
        points = " ".join(outcome.point.name for outcome in each.outcomes)
        intervals = [*(each.items or ("", "")), *(each.seeds or ("", ""))]
        row = [each.checkpoint, each.score, each.mean, len(each.outcomes), *intervals, each.flagged]
        rows.append([*each.labels.values(), *row, "; ".join(each.partial), missing, each.published, points])
    return csv_text([*statistics.axes(sweep), *CELL_COLUMNS], rows)


def differences_csv(sweep: Sweep, differences: Iterable[PairedDifference]) -> str:
    """differences.csv: every paired difference with its interval and its values."""
    rows = []
    for each in differences:
        values = " ".join(str(value) for value in each.values)
        row = [each.against, each.score, each.checkpoint, each.mean, len(each.values), *(each.interval or ("", ""))]
        rows.append([*each.labels.values(), *row, values])
    return csv_text([*statistics.axes(sweep), *DIFFERENCE_COLUMNS], rows)


# ---- sections --------------------------------------------------------------------------------------------------------


def draw_figures(sweep: Sweep, means: Mapping[Any, MeanScore], outcomes: Sequence[Outcome]) -> list[Section]:
    """Draws every figure with a number to show, and returns their sections."""
    folder = pathlib.Path(sweep.out_dir) / "figures"
    folder.mkdir(exist_ok=True)
    names = list(statistics.scores(sweep, outcomes))
    sections = []
    for spec in figure_specs.figure_specs(sweep.figures, statistics.axes(sweep), names):
        panels = figures.panels(sweep, spec, means, outcomes)
        if any(each.mean is not None or each.published is not None for each in _means(panels)):
            title = spec.title or f"{sweep.title}, by {spec.x}"
            path = folder / f"{spec.name}.svg"
            figures.draw(spec, panels, title, path)
            tables = [_panel_table(panel) for panel in panels]
            sections.append(Section(title, figure=path, notes=[caption(sweep, panels)], tables=tables))
    return sections


def _means(panels: Sequence[Panel]) -> Iterable[MeanScore]:
    return (mean for panel in panels for by_x in panel.series.values() for mean in by_x.values())


def caption(sweep: Sweep, panels: Sequence[Panel]) -> str:
    """Explains the numbers and intervals in a figure."""
    counts = sorted({len(each.outcomes) for each in _means(panels) if each.mean is not None})
    sentences = []
    if counts and counts[-1] > 1:
        averaged = ", ".join(axis for axis in sweep.average_over if axis in sweep.axes)
        several = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        sentences.append(
            f"Means over {several} runs ({averaged}); bars are 95% intervals of the mean over the runs (Student's t): "
            "they cover the variation between training runs, not the choice of items. cells.csv has the intervals "
            "over the items too."
        )
    if counts and counts[0] == 1:
        what = "Single runs: their bars" if len(counts) > 1 else "Bars"
        single = (each for each in _means(panels) if each.mean is not None and each.seeds is None)
        combined = ", ".join(dict.fromkeys(each.score for each in single if each.combined))
        whose = f"; of {combined} those of its parts combined, which are wider" if combined else ""
        sentences.append(f"{what} are 95% intervals over the items (Wilson's{whose}); they do not cover another seed.")
    if sweep.choose_by:
        sentences.append(f"Scores are of the {CHOSEN} checkpoint: {selection_rule(sweep)}.")
    notes = dict.fromkeys(each.note or "the paper's own" for each in _means(panels) if each.published is not None)
    return " ".join([*sentences, MARKS, *([f"Grey: {'; '.join(notes)}."] if notes else [])])


def selection_rule(sweep: Sweep) -> str:
    """How checkpoints are chosen, as text."""
    per = "" if sweep.choose_per is None else f", one step for all points of the same {', '.join(sweep.choose_per)}"
    if score_expressions.validation_loss(sweep.choose_by) is not None:
        return f"the evaluation with the lowest {sweep.choose_by[0]}, whatever its scores{per}"
    return f"the evaluation with the highest mean of {', '.join(sweep.choose_by)}{per}"


def _counts(outcomes: Sequence[Outcome]) -> str:
    states = list({outcome.point.name: outcome.state for outcome in outcomes}.values())
    return f"{len(states)} points: {', '.join(f'{states.count(state)} {state}' for state in dict.fromkeys(states))}."


def _anchor(outcome: Outcome) -> str:
    """The name of the first row of an outcome's scores."""
    return f"{outcome.point.name}.{outcome.checkpoint}"


def _mean_cell(mean: MeanScore | None) -> Cell | str:
    """A mean, linked to the scores behind it, with its interval and the published value."""
    if mean is None:
        return "-"
    title = "; ".join([*(f"without {name}: {reason}" for name, reason in mean.missing.items()), *mean.partial])
    theirs = [] if mean.published is None else [Span(f" (published {mean.published:.1f})", tag="small")]
    if mean.mean is None or mean.interval is None:
        return Cell([Span(f"no score ({mean.missing_because})"), *theirs], "number missing", title)
    first, *others = mean.outcomes
    more = [
        span
        for number, outcome in enumerate(others, 2)
        for span in (Span(" "), Span(str(number), outcome.scores, _anchor(outcome), "sup"))
    ]
    low, high = mean.interval
    number = Span(f"{mean.mean:.1f}", first.scores, _anchor(first))
    interval = Span(f" [{low:.1f}, {high:.1f}]", tag="small")
    return Cell([number, *more, Span(mean.marks), interval, *theirs], "number score", title)


def _panel_table(panel: Panel) -> Table:
    columns, rows = panel.table()
    return Table([panel.title or "-", *columns], [[name, *map(_mean_cell, means)] for name, means in rows])


def _choice(sweep: Sweep, means: Mapping[tuple, MeanScore]) -> list[Section]:
    """Every mean at the chosen and at the last checkpoint, if the sweep chooses."""
    if not sweep.choose_by:
        return []
    rows: list[list[Cell | str]] = []
    for key, name, checkpoint in means:
        if checkpoint == CHOSEN:
            best, last = means[key, name, CHOSEN], means[key, name, LAST]
            effect = "-" if best.mean is None or last.mean is None else f"{best.mean - last.mean:+.1f}"
            pair = [best.steps, _mean_cell(best), last.steps, _mean_cell(last)]
            rows.append([*best.labels.values(), best.score, *pair, effect])
    head = [*statistics.axes(sweep), "score", "steps chosen", "chosen", "last step", "last", "chosen - last"]
    return [Section("Chosen and last checkpoint", tables=[Table(head, rows)])]


def _every_score(sweep: Sweep, outcomes: Sequence[Outcome]) -> Table:
    head = [*sweep.axes, "checkpoint", "suite", "score (%)", "95% interval", "items", "no answer", "store", "files"]
    rows: list[list[Cell | str]] = []
    for outcome in outcomes:
        step = "" if outcome.step is None else f", step {outcome.step:,}"
        first, *labels = [*outcome.point.labels.values(), f"{outcome.checkpoint}{step}"]
        names = {name: path for name, path in outcome.links().items() if name != "scores"}
        scored: list[list[Cell | str]] = [
            [
                suite,
                Cell(
                    [
                        Span(score_text(entry), outcome.scores),
                        Span("!" * entry["flagged"] + "".join(f" ({what})" for what in partial(entry))),
                    ],
                    "number score",
                ),
                Cell([Span(interval_text(entry, " to "))], "number"),
                Cell([Span(f"{entry['n']:,}")], "number"),
                Cell([Span(f"{entry['extraction_failed']:.1%}")], "number"),
                outcome.store[:12],
                _file_links(names),
            ]
            for suite, entry in outcome.suites.items()
        ]
        if not scored:
            reason = Cell([Span(f"no score ({outcome.absence})")], "missing")
            log = _file_links({"log": outcome.point.folder / "log.txt"})
            scored = [["-", reason, "-", "-", "-", outcome.store[:12], log]]
        for index, cells in enumerate(scored):
            anchor = _anchor(outcome) if index == 0 else ""
            rows.append([Cell([Span(first)], anchor=anchor), *labels, *cells])
    return Table(head, rows)


def _file_links(paths: Mapping[str, pathlib.Path]) -> Cell:
    """Links to the files that exist."""
    existing = [Span(name, path) for name, path in paths.items() if path.exists()]
    return Cell([span for link in existing for span in (Span(", "), link)][1:])


def validation(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[Section]:
    """The validation loss of every point at the shown checkpoint, lowest first among those that compare."""
    shown = statistics.shown_checkpoint(sweep)
    groups: dict[tuple[tuple[str, int], ...], list[tuple[float, Outcome]]] = {}
    for o in outcomes:
        if o.checkpoint == shown and o.validation_loss is not None:
            groups.setdefault(o.validated_on, []).append((o.validation_loss, o))
    notes: list[str] = []
    rows: list[list[Cell | str]] = []
    for tasks, pairs in groups.items():
        ranked = sorted(pairs, key=lambda pair: pair[0])
        loss, best = ranked[0]
        where = f"{len(tasks):,} tasks, {sum(tokens for _, tokens in tasks):,} tokens" if len(groups) > 1 else ""
        of_them = f" of the {len(ranked)} validated on {where}" if where else ""
        notes.append(f"The lowest{of_them} is {best.point.name}'s, {loss:.4f} at step {best.step:,}.")
        for loss, o in ranked:
            numbers: list[Cell | str] = [Cell([Span(text)], "number") for text in (f"{o.step:,}", f"{loss:.4f}")]
            rows.append([o.point.name, *numbers, *[where] * bool(where)])
    if len(groups) > 1:
        notes.append(f"{NOT_COMPARABLE}; name the tasks in VALIDATION to validate all points on the same.")
    head = ["point", f"{shown} step", "loss per token", *["validated on"] * (len(groups) > 1)]
    return [Section("Validation loss", notes=notes, tables=[Table(head, rows)])] if rows else []


def _runs(outcomes: Sequence[Outcome]) -> Table:
    rows: list[list[Cell | str]] = []
    for outcome in {outcome.point.name: outcome for outcome in outcomes}.values():
        folder, run = outcome.point.folder, outcome.run
        state = outcome.state + (f" ({outcome.reason})" if outcome.reason else "")
        parameters = f"{run['num_params']:,}" if "num_params" in run else "not known"
        parent = str(run.get("initial_checkpoint_path") or "none")
        fingerprint = (run.get("initial_checkpoint_fingerprint") or "")[:12]
        rows.append(
            [
                outcome.point.name,
                state if outcome.state == "done" else Cell([Span(state)], "missing"),
                Cell([Span(parameters)], "number"),
                _tasks(outcome),
                outcome.store[:12],
                f"{parent} {fingerprint}".strip(),
                _file_links({name: folder / name for name in RUN_FILES}),
            ]
        )
    return Table(["point", "state", "parameters", "trained tasks", "store", "parent", "files"], rows)


def _tasks(outcome: Outcome) -> Cell | str:
    """How many tasks a run was trained on, and how many of those requested were missing."""
    if outcome.trained_tasks is None:
        return "not known"
    missing = f" ({len(outcome.missing_tasks):,} missing)" if outcome.missing_tasks else ""
    return Cell([Span(f"{outcome.trained_tasks:,}{missing}")], "number missing" if missing else "number")


def _missing_tasks(outcomes: Sequence[Outcome]) -> list[Section]:
    """Every task or collection that a mixture requested but a run was not trained on, with the reason and the runs."""
    points: dict[tuple[str, str], list[str]] = {}
    for outcome in {outcome.point.name: outcome for outcome in outcomes}.values():
        for item in outcome.missing_tasks.items():
            points.setdefault(item, []).append(outcome.point.name)
    if not points:
        return []
    rows = [[name, reason, ", ".join(names)] for (name, reason), names in sorted(points.items())]
    note = "Asked for and not trained on; the rates of the others are in each run's run.json."
    return [Section("Missing tasks", notes=[note], tables=[Table(["task", "reason", "points"], rows)])]


def how_it_was_made(sweep: Sweep, outcomes: Sequence[Outcome], state: State) -> dict[str, str]:
    """Date, versions, machines and rules, for the end of a report."""
    read = [results.read(each.scores) for each in outcomes if each.scores and each.suites]
    recorded = [each.get("run", {}).get("versions", {}) for each in read]
    versions = {", ".join(f"{name} {each[name]}" for name in VERSIONS if name in each) for each in recorded if each}
    machines = {str(entry["machine"]) for entry in state.read().values() if "machine" in entry}
    facts = {
        "report made": datetime.date.today().isoformat(),
        "versions": "; ".join(sorted(versions)) or "not recorded",
        "machine": "; ".join(sorted(machines)) or "not recorded",
        "config": f"{GIN} next to this file; config.gin and operative_config.gin in every run's folder",
        "checkpoint": f"last, and chosen: {selection_rule(sweep)}" if sweep.choose_by else "last",
    }
    if any(score_expressions.AVERAGE in terms or "normalized" in str(terms) for terms in sweep.scores.values()):
        facts["lower bounds"] = " ".join(table5.bounds())
    return facts
