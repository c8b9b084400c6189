"""The report of a sweep as one self-contained HTML page: the figures, and every number linked to what is behind it."""

import base64
import html
import os
import pathlib
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

from flanx.sweep import paired_differences
from flanx.sweep.figures import Panel
from flanx.sweep.grid import Sweep
from flanx.sweep.paired_differences import Difference
from flanx.sweep.results import Outcome
from flanx.sweep.statistics import Cell

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; background: white; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; } td.absent { background: #d5000022; white-space: normal; }
small, .note { opacity: .75; } .published { color: #888; } :target { background: #ffd54f55; }
.wide { overflow-x: auto; }
"""
CHOICE = ("score", "steps chosen", "chosen", "last step", "last", "chosen - last")
MARKS = (
    "!: more than 5% of the answers could not be read, or logits were not finite; do not quote such a number. "
    "†: the mean lacks some of its runs."
)


def page(
    sweep: Sweep,
    figures: Sequence[tuple[str, str, Sequence[Panel], pathlib.Path]],
    choice: Sequence[tuple[Cell, Cell]],
    differences: Sequence[Difference],
    outcomes: Sequence[Outcome],
    facts: Mapping[str, str],
    base: pathlib.Path,
) -> str:
    """The page's text; its links are relative to `base`.

    figures: (title, caption, panels, path of the .svg); choice: cells at the chosen and at the last checkpoint, empty
    where the sweep takes the last.
    """
    states = list({o.point.name: o.state for o in outcomes}.values())
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    done = f"{len(states)} points: {_text(counts)}."
    parts = [f"<h1>{_text(sweep.title)}</h1>", f"<p>{_text(sweep.note)}</p>" if sweep.note else "", f"<p>{done}</p>"]
    for title, caption, panels, path in figures:
        picture = base64.b64encode(path.read_bytes()).decode("ascii")
        parts += [
            f'<h2>{_text(title)}</h2><p><img alt="{_text(title)}" src="data:image/svg+xml;base64,{picture}"></p>',
            f'<p class="note">{_text(caption)}</p>',
            *(_figure_table(panel) for panel in panels),
        ]
    if choice:
        head = [*choice[0][0].labels, *CHOICE]
        rows = [
            [*map(_text, best.labels.values()), _text(best.score), best.steps, _cell(best), last.steps, _cell(last)]
            for best, last in choice
        ]
        effects = [f'<td class="number">{effect(*pair)}</td>' for pair in choice]
        lines = [_row([*row, told]) for row, told in zip(rows, effects, strict=True)]
        parts += ["<h2>Chosen and last checkpoint</h2>", _table(map(_text, head), lines)]
    if differences:
        head = [*differences[0].labels, *paired_differences.SHOWN]
        lines = [_row(map(_text, each.shown())) for each in differences]
        parts += [
            "<h2>Differences</h2>",
            f'<p class="note">{paired_differences.SAID}</p>',
            _table(map(_text, head), lines),
        ]
    parts += ["<h2>Every score</h2>", _score_table(sweep, outcomes, base)]
    parts += ["<h2>Runs</h2>", _run_table(outcomes, base)]
    listed = "".join(f"<li>{_text(name)}: {_text(value)}</li>" for name, value in facts.items())
    body = "\n".join([*parts, f"<h2>How it was made</h2><ul>{listed}</ul>"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>flanx: {_text(sweep.title)}</title><style>{STYLE}</style></head><body>
{body}
</body></html>
"""


def effect(best: Cell, last: Cell) -> str:
    """What choosing the checkpoint did to a score."""
    return "-" if best.mean is None or last.mean is None else f"{best.mean - last.mean:+.1f}"


def anchor(outcome: Outcome) -> str:
    """The place on the page where the scores of an outcome begin."""
    return f"{outcome.point.name}.{outcome.checkpoint}"


def _text(text: str) -> str:
    return html.escape(text)


def _link(path: pathlib.Path, text: str, base: pathlib.Path) -> str:
    where = urllib.parse.quote(pathlib.Path(os.path.relpath(path, base)).as_posix())
    return f'<a href="{where}{"/" if path.is_dir() else ""}">{_text(text)}</a>'


def _row(cells: Iterable[str]) -> str:
    return "<tr>" + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in cells) + "</tr>"


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    top = "".join(f"<th>{name}</th>" for name in head)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n' + "\n".join(rows) + "</tbody></table></div>"
    )


def _figure_table(panel: Panel) -> str:
    """The numbers of a panel."""
    columns, rows = panel.table()
    body = [_row([_text(name), *(_cell(cell) if cell else "-" for cell in cells)]) for name, cells in rows]
    return _table([_text(panel.title), *map(_text, columns)], body)


def _cell(cell: Cell) -> str:
    theirs = f' <span class="published">{cell.published:.1f}</span>' if cell.published is not None else ""
    reasons = "; ".join(f"without {name}: {reason}" for name, reason in cell.missing.items())
    why = f' title="{_text(reasons)}"' if reasons else ""
    if cell.mean is None:
        return f'<td class="number absent"{why}>no score ({_text(cell.why)}){theirs}</td>'
    first, *others = (f"#{urllib.parse.quote(anchor(outcome))}" for outcome in cell.outcomes)
    more = "".join(f'<sup> <a href="{where}">{i}</a></sup>' for i, where in enumerate(others, 2))
    low, high = cell.interval
    number = f'<a href="{first}">{cell.mean:.1f}</a>{more}{cell.marks} <small>{low:.1f} to {high:.1f}</small>'
    return f'<td class="number score"{why}>{number}{theirs}</td>'


def _score_table(sweep: Sweep, outcomes: Sequence[Outcome], base: pathlib.Path) -> str:
    head = [*sweep.axes, "checkpoint", "suite", "score (%)", "95% interval", "items", "unread", "behind it"]
    rows = []
    for outcome in outcomes:
        common = [_text(label) for label in outcome.point.labels.values()]
        step = "" if outcome.step is None else f", step {outcome.step:,}"
        common.append(f"{outcome.checkpoint}{step}")
        name = f' id="{_text(anchor(outcome))}"'
        if not outcome.suites:
            why = f'<td class="absent" colspan="5">no score ({_text(outcome.absence)})</td>'
            log = _link(outcome.point.folder / "log.txt", "log", base)
            rows.append(_row([*common, why, log if (outcome.point.folder / "log.txt").exists() else "nothing"]))
            rows[-1] = rows[-1].replace("<tr", f"<tr{name}", 1)
        for index, (suite, entry) in enumerate(outcome.suites.items()):
            mark = "!" if entry["flagged"] else ""
            links = [_link(p, t, base) for t, p in outcome.links().items() if p.exists() and t != "scores"]
            numbers = [
                _link(outcome.scores, f"{entry['score']:.1f}", base) + mark,
                f"{entry['low']:.1f} to {entry['high']:.1f}",
                f"{entry['n']:,}",
                f"{entry['extraction_failed']:.1%}",
            ]
            behind = ", ".join([*links, f"store {_text(outcome.store[:12])}"])
            shown = [f'<td class="number{" score" * (i == 0)}">{n}</td>' for i, n in enumerate(numbers)]
            row = _row([*common, _text(suite), *shown, behind])
            rows.append(row.replace("<tr", f"<tr{name}", 1) if index == 0 else row)
    return _table(map(_text, head), rows)


def _run_table(outcomes: Sequence[Outcome], base: pathlib.Path) -> str:
    head = ["point", "state", "parameters", "store", "parent", "files"]
    rows = []
    for outcome in {o.point.name: o for o in outcomes}.values():
        folder, run = outcome.point.folder, outcome.run
        names = ("config.gin", "operative_config.gin", "run.json", "metrics.jsonl", "log.txt")
        files = [_link(folder / name, name, base) for name in names if (folder / name).exists()]
        state = outcome.state + (f" ({outcome.reason})" if outcome.reason else "")
        count = f"{run['num_params']:,}" if "num_params" in run else "not known"
        parent = str(run.get("initial_checkpoint_path") or "none")
        fingerprint = (run.get("initial_checkpoint_fingerprint") or "")[:12]
        shown = _text(state) if outcome.state == "done" else f'<td class="absent">{_text(state)}</td>'
        known = [_text(outcome.store[:12]), _text(f"{parent} {fingerprint}"), ", ".join(files) or "none"]
        rows.append(_row([_text(outcome.point.name), shown, f'<td class="number">{count}</td>', *known]))
    return _table(head, rows)
