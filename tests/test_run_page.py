"""`flanx report RUN...`: one page of a run, and one of several over one another."""

import argparse
import html.parser
import pathlib

import pytest

from flanx.cli import report
from flanx.cli.main import main
from flanx.sweep import curves, run_page
from tests import run_maker
from tests.sweep_maker import entry, leave


def test_a_runs_page_holds_its_figures_and_its_tasks(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    run_maker.leave(tmp_path / "a")
    assert main(["report", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    page, text = (tmp_path / "a" / f"report.{kind}" for kind in ("html", "md"))
    assert str(page) in said and "norm. avg." not in said
    found = page.read_text()
    html.parser.HTMLParser().feed(found)
    assert found.count("data:image/svg+xml;base64,") == 10 and "src=" in found and "<script" not in found
    assert "None: no run was evaluated while it trained (SUITES)." in found and "a at step 1,000." in found
    assert "| muffin_a | 36 | 400 |" in text.read_text()
    assert "![Training loss](figures/report_training_loss.png)" in text.read_text()
    assert (tmp_path / "a" / "figures" / "report_training_loss.png").exists()


def test_the_slowest_host_is_named(tmp_path: pathlib.Path) -> None:
    run_maker.leave(tmp_path / "a")
    slow = {"process": 3, "host": "h3", "seconds": 0.25, "median": 0.01}
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write(run_maker.line({"step": 1050, "loss": 1.0, "hosts": {"input": slow}}))
    (run,) = curves.read_runs([str(tmp_path / "a")])
    assert run_page._slowest(run) == "process 3 (h3) at waiting for input, 0.25 s, median 0.01 s"


def test_several_runs_are_drawn_over_one_another(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    run_maker.leave(tmp_path / "a")
    run_maker.leave(tmp_path / "b", steps=500, sources=False, done=False)
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    found = (tmp_path / "runs.html").read_text()
    assert "a at step 1,000; b at step 500, not done." in found and "Loss by task, b" in found
    assert main(["report", str(tmp_path / "a"), "--output", str(tmp_path / "else")]) == 0
    assert (tmp_path / "else" / "report.html").exists() and not (tmp_path / "a" / "report.html").exists()
    assert main(["report", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_scores_of_a_run_are_printed_as_before(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    leave(tmp_path / "a", {5: {"gsm8k_cot": entry(12.5)}})
    assert main(["report", str(tmp_path / "a")]) == 0
    assert "| gsm8k_cot | 12.5" in capsys.readouterr().out and (tmp_path / "a" / "report.html").exists()


def test_a_report_leaves_what_the_command_line_said_as_it_is(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    run_maker.leave(tmp_path / "a")
    leave(tmp_path / "b", {5: {"gsm8k_cot": entry(12.5)}})
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    words = [str(tmp_path / name) for name in "ab"]
    args, other = parser.parse_args(words), parser.parse_args(words)
    assert report.run(args) == 0 and args == other  # one of the two has no scores, and is in no table


def test_files_of_others_are_not_written_over(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Also of a folder that the user did not name, the one that holds all runs."""
    pytest.importorskip("matplotlib")
    run_maker.leave(tmp_path / "a")
    leave(tmp_path / "lr=0.1", {5: {"gsm8k_cot": entry(12.5)}})
    (tmp_path / "runs.md").write_text("my notes")
    two = ["report", str(tmp_path / "a"), str(tmp_path / "lr=0.1")]
    assert main(two) == 2
    assert "runs.md is not a page of training runs" in capsys.readouterr().err
    assert (tmp_path / "runs.md").read_text() == "my notes" and not (tmp_path / "figures").exists()
    (tmp_path / "runs.md").unlink()
    assert main(two) == main(two) == 0
    printed = capsys.readouterr()
    assert "| gsm8k_cot | 12.5" in printed.out and "a has no scores.json: it is in no table below" in printed.err
    assert main(["report", str(tmp_path / "lr=0.1"), "--csv", str(tmp_path / "scores.csv")]) == 0
    assert "lr=0.1" in (tmp_path / "scores.csv").read_text()
    assert main([*two, "--csv", str(tmp_path / "other.csv")]) == 2
    assert "a has no scores.json" in capsys.readouterr().err
