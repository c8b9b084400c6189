"""Rows of progress where standard error is not a terminal: now and then, at the end, each only when it has changed."""

from flanx.progress import Progress


def test_rows_are_printed_at_the_end_and_not_before(capsys):
    with Progress() as progress:
        progress.update("muffin", "10 examples", done=1, total=4)
        progress.update("muffin", "40 examples", done=4, total=4)
        progress.update("cot", "[bold]7[/bold] examples")
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err.splitlines() == ["muffin: 4/4  40 examples", "cot: [bold]7[/bold] examples"]


def test_rows_are_printed_as_they_change_with_a_period(capsys):
    with Progress(line_period=0.0) as progress:
        progress.update("one", "5 kB")
        progress.update("two", "9 kB")
        progress.remove("one")
        progress.update("two", "10 kB")
        progress.note("failed: three")
    assert capsys.readouterr().err.splitlines() == ["one: 5 kB", "two: 9 kB", "two: 10 kB", "failed: three"]


def test_quiet_prints_nothing(capsys):
    with Progress(quiet=True, line_period=0.0) as progress:
        progress.update("one", "5 kB", 1, 2)
        progress.note("a line")
    assert capsys.readouterr().err == ""
