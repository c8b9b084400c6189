"""`flanx report RUN...`: one page that overlays the curves and tasks of training runs.

<run>/report.html, report.md, figures/          for one run
<common parent folder>/runs.html, ...           for several
"""

import datetime
import os
import pathlib
from collections.abc import Sequence

from flanx.errors import UserError
from flanx.files import open_regular, write_atomic
from flanx.sweep import curves, document, figures
from flanx.sweep.curves import Run
from flanx.sweep.document import Cell, Document, Section, Span, Table

MARK = "<!-- written by flanx report, which replaces it -->"
FILES = ("config.gin", "run.json", "metrics.jsonl", "tasks.jsonl", "log.txt")


def publish(runs: Sequence[Run], output: pathlib.Path | None = None) -> list[pathlib.Path]:
    """Writes the page, in HTML and Markdown, and its figures; returns their paths. UserError for others' files."""
    one = len(runs) == 1
    base = output or (
        runs[0].folder if one else pathlib.Path(os.path.commonpath([run.folder.resolve() for run in runs]))
    )
    stem = "report" if one else "runs"
    for path in (base / f"{stem}.md", base / f"{stem}.html"):
        if path.exists():
            with open_regular(path) as opened:
                if MARK.encode() not in opened.read():
                    raise UserError(f"{path} is not a page of training runs; move it away, or give another --output")
    (base / "figures").mkdir(parents=True, exist_ok=True)
    sections, pictures = [], []
    for panel in curves.panels(runs):
        name = base / "figures" / f"{stem}_{panel.title.lower().replace(' ', '_').replace('-', '_')}.svg"
        if panel.curves:
            figures.draw_curves(panel, name)
            pictures += [name.with_suffix(".png"), name]
        sections.append(
            Section(
                panel.title, name if panel.curves else None, notes=[] if panel.curves else [f"None: {panel.absent}."]
            )
        )
    page = Document(
        title=f"Run {runs[0].name}" if one else f"{len(runs)} runs",
        notes=[_newest(runs)],
        sections=[*sections, *(_tasks(run, one) for run in runs), Section("Runs", tables=[_table(runs)])],
        base=base,
    )
    written = {f"{stem}.md": document.markdown(page), f"{stem}.html": document.page(page)}
    for file, text in written.items():
        write_atomic(base / file, f"{text.rstrip()}\n{MARK}\n")
    return [*(base / file for file in written), *pictures]


def _newest(runs: Sequence[Run]) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes")
    states = [f"{run.name} at step {run.step:,}{'' if run.done else ', not done'}" for run in runs]
    slow = [f"Slowest of {run.name}: {text}. " for run in runs if (text := _slowest(run))]
    found = f"{'; '.join(states)}. {''.join(slow)}"
    return f"{found}Read on {now}. A point of a long curve is the mean of neighbouring records."


def _slowest(run: Run) -> str:
    """For a multi-process run, the process slowest at its own work, from the latest record."""
    found = run.records[-1].get("hosts", {}) if run.records else {}
    names = {"input": "waiting for input", "product": "a matrix product"}
    return ", ".join(
        f"process {each['process']} ({each['host']}) at {names.get(name, name)}, {each['seconds']:.3g} s, median "
        f"{each['median']:.3g} s"
        for name, each in found.items()
    )


def _tasks(run: Run, alone: bool) -> Section:
    """The losses by task, highest last loss first."""
    title = "Loss by task" + ("" if alone else f", {run.name}")
    found = curves.task_losses(run)
    if not found:
        return Section(title, notes=["None: the run has no tasks.jsonl."])
    head = ("task", "examples", "tokens", "loss over the run", "first", "last", "validation")
    rows: list[list[Cell | str]] = []
    for one in found:
        losses = (one.loss, one.first, one.last, one.validation)
        numbers = [f"{one.examples:,}", f"{one.tokens:,}", *("" if loss is None else f"{loss:.4f}" for loss in losses)]
        rows.append([one.task, *map(_number, numbers)])
    note = (
        "Cross-entropy per target token, over the run, and in the first and the last line of tasks.jsonl with the task."
    )
    return Section(title, notes=[note], tables=[Table(head, rows)])


def _table(runs: Sequence[Run]) -> Table:
    """A description of each run, with its files."""
    rows: list[list[Cell | str]] = []
    for run in runs:
        mixture = (run.metadata.get("data") or {}).get("mixture", {})
        links = [Span(f"{name} ", run.folder / name) for name in FILES if (run.folder / name).exists()]
        parameters = run.metadata.get("num_params")
        rows.append(
            [
                Cell([Span(run.name, run.folder)]),
                _number(f"{parameters:,}" if parameters else ""),
                f"{mixture.get('asked', {}).get('name', '')} ({mixture['tasks']:,} tasks)"
                if mixture.get("tasks")
                else "",
                _number(f"{run.step:,}"),
                "done" if run.done else "not done",
                Cell(links),
            ]
        )
    return Table(("run", "parameters", "mixture", "step", "state", "files"), rows)


def _number(text: str) -> Cell:
    return Cell([Span(text)] if text else [], "number")
