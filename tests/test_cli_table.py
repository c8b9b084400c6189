"""Tables of commands: one line a row off a terminal, numbers to the right, nothing interpreted."""

import io
import sys

import pytest

from flanx.cli.table import print_table


def test_a_row_is_one_line_whatever_its_length_and_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("task", "note", "examples"), [("cot [bold]a[/bold]", "n" * 300, "1,234"), ("b", "", 5)], left=["note"])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["task", "note", "examples"]
    assert first.split() == ["cot", "[bold]a[/bold]", "n" * 300, "1,234"]
    assert second.split() == ["b", "5"]
    assert header.rstrip()[-8:] == "examples"
    assert len(header.rstrip()) == len(first.rstrip()) == len(second.rstrip())


def test_a_terminal_folds_long_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    print_table(("task", "examples"), [("a" * 60, "1,234")])
    lines = sys.stdout.getvalue().splitlines()  # type: ignore[attr-defined]  # a StringIO here
    assert len(lines) == 3 and max(map(len, lines[1:])) <= 40  # the header is bold


def test_no_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("", "", ""), [("ok", "python", "3.11")], header=False)
    assert capsys.readouterr().out.split() == ["ok", "python", "3.11"]
