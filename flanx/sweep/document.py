"""A report as data: sections with notes, figures and tables, rendered as Markdown and as one HTML page."""

import base64
import dataclasses
import html
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; background: white; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; } td.missing { background: #d5000022; white-space: normal; }
small, .note { opacity: .75; } td.faint { opacity: .5; } .published { color: #888; } :target { background: #ffd54f55; }
.wide { overflow-x: auto; }
"""


@dataclasses.dataclass(frozen=True)
class Span:
    """A piece of text.

    Attributes:
      path: the file that it links to.
      anchor: the row that it links to in HTML instead, see `Cell.anchor`; Markdown has no anchors.
      tag: an HTML tag, "small" or "sup".
    """

    text: str
    path: pathlib.Path | None = None
    anchor: str = ""
    tag: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      style: HTML classes: "number", "score", "missing", "faint".
      title: the tooltip in HTML.
      anchor: the name under which `Span.anchor` finds its row.
    """

    spans: Sequence[Span]
    style: str = ""
    title: str = ""
    anchor: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: a header, and rows of cells or plain texts."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
      figure: the path of its .svg; the same figure as .png is next to it.
      notes: paragraphs; facts: a list of names and values.
    """

    title: str
    figure: pathlib.Path | None = None
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Document:
    """A whole report; links are made relative to `base`."""

    title: str
    notes: Sequence[str]
    sections: Sequence[Section]
    base: pathlib.Path


def _relative(path: pathlib.Path, base: pathlib.Path) -> str:
    return pathlib.Path(os.path.relpath(path, base)).as_posix()


# ---- Markdown --------------------------------------------------------------------------------------------------------


def markdown(document: Document) -> str:
    """The report in Markdown."""
    blocks = [f"# {document.title}", *document.notes]
    for section in document.sections:
        blocks.append(f"## {section.title}")
        if section.figure:
            blocks.append(f"![{section.title}]({_relative(section.figure.with_suffix('.png'), document.base)})")
        blocks += section.notes
        for table in section.tables:
            rows = [table.head, ["---"] * len(table.head), *table.rows]
            blocks.append("\n".join(_markdown_row(row, document.base) for row in rows))
        if section.facts:
            blocks.append("\n".join(f"- {name}: {value}" for name, value in section.facts.items()))
    return "\n\n".join(blocks) + "\n"


def _markdown_row(row: Sequence[Cell | str], base: pathlib.Path) -> str:
    texts = []
    for cell in row:
        spans = [Span(cell)] if isinstance(cell, str) else cell.spans
        texts.append("".join(f"[{s.text}]({_relative(s.path, base)})" if s.path else s.text for s in spans))
    return f"| {' | '.join(text.replace('|', '/') or '-' for text in texts)} |"


# ---- HTML ------------------------------------------------------------------------------------------------------------


def page(document: Document) -> str:
    """The report as one HTML page with embedded figures."""
    title = html.escape(document.title)
    body = [f"<h1>{title}</h1>", *(f"<p>{html.escape(note)}</p>" for note in document.notes)]
    for section in document.sections:
        name = html.escape(section.title)
        body.append(f"<h2>{name}</h2>")
        if section.figure:
            picture = base64.b64encode(section.figure.read_bytes()).decode("ascii")
            body.append(f'<p><img alt="{name}" src="data:image/svg+xml;base64,{picture}"></p>')
        body += [f'<p class="note">{html.escape(note)}</p>' for note in section.notes]
        body += [_html_table(table, document.base) for table in section.tables]
        if section.facts:
            facts = "".join(f"<li>{html.escape(k)}: {html.escape(v)}</li>" for k, v in section.facts.items())
            body.append(f"<ul>{facts}</ul>")
    lines = "\n".join(body)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>flanx: {title}</title><style>{STYLE}</style></head><body>
{lines}
</body></html>
"""


def _html_table(table: Table, base: pathlib.Path) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
    rows = "\n".join("<tr>" + "".join(_html_cell(cell, base) for cell in row) + "</tr>" for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _html_cell(cell: Cell | str, base: pathlib.Path) -> str:
    if isinstance(cell, str):
        return f"<td>{html.escape(cell) or '-'}</td>"
    values = {"id": cell.anchor, "class": cell.style, "title": cell.title}
    attributes = "".join(f' {name}="{html.escape(value)}"' for name, value in values.items() if value)
    return f"<td{attributes}>{''.join(_html_span(span, base) for span in cell.spans) or '-'}</td>"


def _html_span(span: Span, base: pathlib.Path) -> str:
    text = html.escape(span.text)
    if span.anchor:
        text = f'<a href="#{urllib.parse.quote(span.anchor)}">{text}</a>'
    elif span.path:
        folder = "/" if span.path.is_dir() else ""
        text = f'<a href="{urllib.parse.quote(_relative(span.path, base))}{folder}">{text}</a>'
    return f"<{span.tag}>{text}</{span.tag}>" if span.tag else text
