"""`flanx watch`: curves in a terminal."""

import pathlib

import pytest

from flanx.cli import watch
from flanx.cli.main import main
from flanx.sweep.curves import Panel
from tests import run_maker


def test_runs_are_drawn_once(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    run_maker.leave(tmp_path / "a")
    run_maker.leave(tmp_path / "b", steps=500, sources=False, done=False)
    assert main(["watch", "--once", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "a  step 1,000  done\nb  step 500\n" in said and "Training loss, cross-entropy per token" in said
    assert "b 1.567" in said and "a cot" in said
    assert "Held-out scores: no run was evaluated while it trained (SUITES)" in said
    assert main(["watch", str(tmp_path / "a")]) == 0  # no terminal: once
    assert main(["watch", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right() -> None:
    drawn = watch.draw(Panel("x", "", {"": [(0, 1.0), (10, 0.0)]}, ""), width=8, rows=4).plain.splitlines()
    body = [text[watch.MARGIN :] for text in drawn[1:5]]
    assert [len(text.rstrip()) for text in body] == [2, 4, 6, 8]
    assert [len(text) - len(text.lstrip()) for text in body] == [0, 2, 4, 6]
    assert drawn[1].startswith("       1 |") and drawn[4].startswith("       0 |")
    flat = watch.draw(Panel("x", "u", {"one": [(7, 2.5)]}, ""), width=8, rows=4).plain
    assert flat.startswith("x, u\n") and "one 2.5" in flat
