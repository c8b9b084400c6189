"""Sweeps: the grid, the driver (with a stand-in for `flanx train`), the results, the figure and the page."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from flanx.errors import UserError
from flanx.sweep import door, drive, page, plot, results
from flanx.sweep.grid import Sweep

# takes a point's arguments; writes what a run writes. TASKS=13 fails; every run leaves a line in runs.log
STAND_IN = """
import json, os, pathlib, sys, time
bound = dict(a.removeprefix("--gin.").split("=", 1) for a in sys.argv if a.startswith("--gin."))
folder = pathlib.Path(bound["MODEL_DIR"].strip("'"))
with open(folder.parent.parent / "runs.log", "a") as log:
    log.write(folder.name + "\\n")
time.sleep(float(bound.get("SLEEP", 0)))
if bound["TASKS"] == "13":
    print("flanx train: it broke")
    sys.exit(2)
scores = {"step": 5, "suites": {"held_out": {"metric": "exact_match", "score": float(bound["TASKS"]), "low": 1.0,
          "high": 90.0, "n": 100, "extraction_failed": 0.1 if bound["TASKS"] == "8" else 0.0, "spec": "abc"}}}
(folder / "evals" / "step_5").mkdir(parents=True)
(folder / "evals" / "step_5" / "scores.json").write_text(json.dumps(scores))
(folder / "run.json").write_text(json.dumps({"num_params": 1000 * int(bound["D"])}))
(folder / "done.json").write_text("{}")
"""


def make_sweep(out: pathlib.Path, tasks: tuple[int, ...] = (2, 8), **more: object) -> Sweep:
    axes = {"size": {"d1": ["D=1"], "d2": ["D=2"]}, "tasks": {n: [f"TASKS={n}"] for n in tasks}}
    more = {"bindings": {"STEPS": 5}, **more}
    return Sweep(out_dir=str(out), gin_files=["runs/train.gin"], axes=axes, **more)


@pytest.fixture
def program(tmp_path: pathlib.Path) -> tuple[str, ...]:
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return (sys.executable, str(path))


def test_a_grid_is_the_product_of_its_axes_as_command_lines(tmp_path):
    points = make_sweep(tmp_path).points()
    assert [p.name for p in points] == ["d1_2", "d1_8", "d2_2", "d2_8"]
    folder = str(tmp_path / "runs" / "d2_8")
    assert points[3].arguments("a,b") == [
        "train",
        "--gin_file=runs/train.gin",
        "--gin_search_paths=a,b",
        "--gin.STEPS=5",
        "--gin.D=2",
        "--gin.TASKS=8",
        f"--gin.MODEL_DIR='{folder}'",
    ]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({}, "no points"),
        ({"size": {}}, "no points"),
        ({"size": {"a/b": ["D=1"], "a b": ["D=2"]}}, "share the folder 'a_b'"),
        ({"size": {"a": ["models/tiny"]}}, "'models/tiny'"),
    ],
)
def test_a_wrong_grid_is_named(axes, said):
    with pytest.raises(UserError, match=said):
        Sweep(out_dir="out", gin_files=[], axes=axes).points()


def test_a_failing_point_is_named_and_the_others_finish(tmp_path, program):
    sweep = make_sweep(tmp_path, tasks=(2, 13))
    statuses = drive.drive(sweep.points(), 2, "", lambda _: None, program)
    assert [s.state for s in statuses] == [drive.DONE, drive.FAILED, drive.DONE, drive.FAILED]
    assert statuses[1].reason == "exit status 2: flanx train: it broke"
    again = drive.drive(sweep.points(), 1, "", lambda _: None, program)
    assert [s.skipped for s in again] == [True, False, True, False]
    runs = (tmp_path / "runs.log").read_text().split()
    assert sorted(runs) == ["d1_13", "d1_13", "d1_2", "d2_13", "d2_13", "d2_2"]


def test_two_drivers_on_one_folder_never_run_a_point_twice(tmp_path, program):
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
from tests.test_sweep import make_sweep
from flanx.sweep import drive
points = make_sweep(pathlib.Path({str(tmp_path)!r}), bindings={{"SLEEP": 0.3}}).points()
drive.drive(points, 1, "", lambda _: None, {program!r})
"""
    drivers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [d.wait(60) for d in drivers] == [0, 0]
    assert sorted((tmp_path / "runs.log").read_text().split()) == ["d1_2", "d1_8", "d2_2", "d2_8"]


def test_a_run_that_outlives_its_driver_is_not_started_again(tmp_path, program):
    sweep = make_sweep(tmp_path, tasks=(2,), bindings={"SLEEP": 2})
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
from tests.test_sweep import make_sweep
from flanx.sweep import drive
points = make_sweep(pathlib.Path({str(tmp_path)!r}), tasks=(2,), bindings={{"SLEEP": 2}}).points()
drive.drive(points, 1, "", lambda _: None, {program!r})
"""
    driver = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "runs.log").exists():
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    statuses = drive.drive(sweep.points(), 1, "", lambda _: None, program)
    assert all(s.state == drive.DONE for s in statuses)
    assert sorted((tmp_path / "runs.log").read_text().split()) == ["d1_2", "d2_2"]


def test_a_killed_driver_lets_go_of_its_point(tmp_path, program):
    points = make_sweep(tmp_path).points()
    points[0].folder.mkdir(parents=True)
    code = (
        "import pathlib, sys, time\n"
        f"sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})\n"
        "from flanx.sweep import drive\n"
        f"with drive._hold(pathlib.Path({str(points[0].folder / 'lock')!r})) as held:\n"
        "    print(held is not None, flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline().strip() == "True"
    seen = []

    def show(statuses):
        seen.append(statuses[0].state)
        if seen.count(drive.ELSEWHERE) == 2:
            os.kill(holder.pid, signal.SIGKILL)
        time.sleep(0.01)

    statuses = drive.drive(points, 1, "", show, program)
    holder.wait()
    holder.stdout.close()
    assert drive.ELSEWHERE in seen
    assert all(s.state == drive.DONE for s in statuses)


@pytest.fixture
def finished(tmp_path, program):
    sweep = make_sweep(tmp_path, tasks=(2, 8, 13), title="held-out <exact> match")
    statuses = drive.drive(sweep.points(), 2, "", lambda _: None, program)
    return sweep, statuses, results.collect(sweep, statuses)


def test_results_are_rows_with_a_state_and_never_a_blank_that_reads_as_success(finished, tmp_path):
    sweep, _, rows = finished
    results.write_csv(tmp_path / "results.csv", sweep, rows)
    table = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(r["size"], r["tasks"], r["state"], r["score"]) for r in table] == [
        ("d1", "2", "done", "2.0"),
        ("d1", "8", "done", "8.0"),
        ("d1", "13", "failed", ""),
        ("d2", "2", "done", "2.0"),
        ("d2", "8", "done", "8.0"),
        ("d2", "13", "failed", ""),
    ]
    assert [r.flagged for r in rows] == [False, True, False, False, True, False]


def test_a_mean_has_the_interval_of_independent_scores():
    def row(score, low, high):
        return results.Row({}, "p", "done", "s", score=score, low=low, high=high)

    found = plot.estimate([row(10.0, 7.0, 13.0), row(20.0, 16.0, 24.0), results.Row({}, "q", "failed", "-")])
    assert (found.score, found.low, found.high, found.rows) == (15.0, 12.5, 17.5, 2)
    assert plot.estimate([]) is None


def test_figure_and_page(finished, tmp_path):
    pytest.importorskip("matplotlib", reason="figures need the extra plots")
    sweep, statuses, rows = finished
    sizes = door.sizes(sweep, statuses)
    assert sizes == {"d1": 1000, "d2": 2000}
    plot.draw(sweep, rows, sizes, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "scaling.svg").read_text()
    page.write_page(tmp_path / "report.html", sweep, rows, tmp_path / "scaling.png", {"date": "2026-11-21"})
    text = (tmp_path / "report.html").read_text()
    assert "held-out &lt;exact&gt; match" in text
    assert "8.0*" in text
    assert "no score: failed" in text
    assert not re.search(r"""(src|href)=["']https?:""", text)
    for where in re.findall(r'href="([^"]+)"', text):
        assert (tmp_path / where).exists(), where


def test_scores_are_those_of_the_newest_step(tmp_path):
    for step in (5, 10):
        folder = tmp_path / "evals" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps({"step": step}))
    assert results.read_scores(tmp_path) == {"step": 10}
    assert results.read_scores(tmp_path / "none") == {}


def test_positions_follow_sizes_numbers_or_order():
    assert plot.positions(["a", "b"], {"a": 10, "b": 20}) == {"a": 10.0, "b": 20.0}
    assert plot.positions(["0", "9"], {}) == {"0": 0.0, "9": 9.0}
    assert plot.positions(["x", "9"], {}) == {"x": 0.0, "9": 1.0}
