"""A report rendered as Markdown and as HTML from the same tables."""

import pathlib

from flanx.sweep import document
from flanx.sweep.document import Cell, Document, Section, Span, Table


def report(base: pathlib.Path) -> Document:
    """A report with a link, an anchor, markup in its texts and an empty cell."""
    (base / "runs").mkdir()
    (base / "runs" / "scores.json").write_text("{}")
    number = Cell([Span("33.0", base / "runs" / "scores.json", "d1.last"), Span("!")], "number score", "without <d2>")
    rows = [[Cell([Span("d1|a &")], anchor="d1.last"), number], ["d2", Cell([])]]
    section = Section("Scores", notes=["a < b"], tables=[Table(["size", "score"], rows)], facts={"date": "today"})
    return Document("held-out <exact>", ["A note."], [section], base)


def test_markdown_links_to_files(tmp_path: pathlib.Path) -> None:
    assert document.markdown(report(tmp_path)) == (
        "# held-out <exact>\n\nA note.\n\n## Scores\n\na < b\n\n"
        "| size | score |\n| --- | --- |\n| d1/a & | [33.0](runs/scores.json)! |\n| d2 | - |\n\n- date: today\n"
    )


def test_html_links_to_rows_and_escapes_every_text(tmp_path: pathlib.Path) -> None:
    page = document.page(report(tmp_path))
    assert "<h1>held-out &lt;exact&gt;</h1>" in page and "a &lt; b" in page
    assert '<td id="d1.last">d1|a &amp;</td>' in page
    assert '<td class="number score" title="without &lt;d2&gt;"><a href="#d1.last">33.0</a>!</td>' in page
    assert "<td>d2</td><td>-</td>" in page  # no cell is blank
