"""The report of a sweep as one self-contained HTML page: figure, table, every number linked to its run."""

import base64
import html
import os
import pathlib
from collections.abc import Mapping, Sequence

from flanx.config import write_atomic
from flanx.sweep.grid import Sweep
from flanx.sweep.results import Row

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; background: white; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number { text-align: right; } tr.failed { background: #d5000022; } .note { opacity: .75; }
.wide { overflow-x: auto; }
"""


def write_page(
    path: pathlib.Path, sweep: Sweep, rows: Sequence[Row], figure: pathlib.Path, facts: Mapping[str, str]
) -> None:
    """Writes report.html. `figure` (PNG) is put into the page; `facts` are shown as they are (date, versions, seed)."""
    picture = base64.b64encode(figure.read_bytes()).decode("ascii")
    head = [*sweep.axes, "suite", "score (%)", "95% interval", "items", "extraction failed", "step", "run"]
    body = "\n".join(_line(row, path.parent) for row in rows)
    listed = "".join(f"<li>{html.escape(name)}: {html.escape(value)}</li>" for name, value in facts.items())
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>flanx: {html.escape(sweep.title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(sweep.title)}</h1>
<p><img alt="{html.escape(sweep.title)} against tasks and size" src="data:image/png;base64,{picture}"></p>
<p class="note">Bars are 95% bootstrap intervals over the items of the suites. A score marked * had more than 5% answers
that could not be read from the model's text.</p>
<h2>Scores</h2><div class="wide"><table><thead><tr>{"".join(f"<th>{html.escape(h)}</th>" for h in head)}</tr></thead>
<tbody>
{body}
</tbody></table></div>
<h2>How it was made</h2><ul>{listed}</ul>
</body></html>
"""
    write_atomic(path, text)


def _line(row: Row, base: pathlib.Path) -> str:
    cells = [f"<td>{html.escape(label)}</td>" for label in row.labels.values()]
    where = html.escape(os.path.relpath(row.run, base))
    if row.score is None:
        state = html.escape(f"no score: {row.state}")
        cells += [f'<td colspan="6">{state}</td>', f'<td><a href="{where}/log.txt">{html.escape(row.point)}</a></td>']
        return f'<tr class="failed">{"".join(cells)}</tr>'
    mark = "*" if row.flagged else ""
    cells += [
        f"<td>{html.escape(row.suite)}</td>",
        f'<td class="number">{row.score:.1f}{mark}</td>',
        f'<td class="number">{row.low:.1f} to {row.high:.1f}</td>',
        f'<td class="number">{row.n:,}</td>',
        f'<td class="number">{row.extraction_failed:.1%}</td>',
        f'<td class="number">{row.step:,}</td>',
        f'<td><a href="{where}/">{html.escape(row.point)}</a></td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"
