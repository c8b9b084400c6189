"""Sweeps: the grid, the driver with a stand-in for `flanx train`, its state and retries."""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from flanx.errors import UserError
from flanx.sweep import results, scheduler
from flanx.sweep.scheduler import Launcher
from flanx.sweep.state import DONE, ELSEWHERE, FAILED, RETRYING, RUNNING, State, inheritable_lock
from tests.sweep_maker import make as make_sweep
from tests.sweep_maker import no_show, runs


def test_a_failing_point_is_named_and_the_others_finish(tmp_path, program):
    sweep = make_sweep(tmp_path, tasks=(2, 13))
    statuses = scheduler.run_points(sweep.points(), 2, "", lambda _: None, program)
    assert [s.state for s in statuses] == [DONE, FAILED, DONE, FAILED]
    assert statuses[1].reason == "exit status 2: flanx train: it broke"
    again = scheduler.run_points(sweep.points(), 1, "", lambda _: None, program)
    assert [s.skipped for s in again] == [True, False, True, False]
    runs = (tmp_path / "runs.log").read_text().split()
    assert sorted(runs) == ["d1_13", "d1_13", "d1_2", "d2_13", "d2_13", "d2_2"]


def test_a_run_that_exits_without_its_last_file_is_not_done(tmp_path):
    sweep = make_sweep(tmp_path)
    launcher = Launcher((sys.executable, "-c", "print('so far')"), retries=0)
    (status,) = scheduler.run_points(sweep.points()[:1], 1, "", lambda _: None, launcher)
    assert (status.state, status.reason) == (FAILED, "exit status 0: so far")


def test_two_drivers_on_one_folder_never_run_a_point_twice(tmp_path, program):
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
from tests.sweep_maker import make as make_sweep
from tests.sweep_maker import no_show, runs
from flanx.sweep import scheduler
points = make_sweep(pathlib.Path({str(tmp_path)!r}), bindings={{"SLEEP": 0.3}}).points()
scheduler.run_points(points, 1, "", lambda _: None, {program!r})
"""
    drivers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [d.wait(60) for d in drivers] == [0, 0]
    assert sorted((tmp_path / "runs.log").read_text().split()) == ["d1_2", "d1_8", "d2_2", "d2_8"]


def test_a_run_that_outlives_its_driver_is_not_started_again(tmp_path, program):
    sweep = make_sweep(tmp_path, tasks=(2,), bindings={"SLEEP": 2})
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
from tests.sweep_maker import make as make_sweep
from tests.sweep_maker import no_show, runs
from flanx.sweep import scheduler
points = make_sweep(pathlib.Path({str(tmp_path)!r}), tasks=(2,), bindings={{"SLEEP": 2}}).points()
scheduler.run_points(points, 1, "", lambda _: None, {program!r})
"""
    driver = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "runs.log").exists():
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    statuses = scheduler.run_points(sweep.points(), 1, "", lambda _: None, program)
    assert all(s.state == DONE for s in statuses)
    assert sorted((tmp_path / "runs.log").read_text().split()) == ["d1_2", "d2_2"]


def test_a_killed_driver_lets_go_of_its_point(tmp_path, program):
    points = make_sweep(tmp_path).points()
    points[0].folder.mkdir(parents=True)
    code = (
        "import pathlib, sys, time\n"
        f"sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})\n"
        "from flanx.sweep import state\n"
        f"with state.inheritable_lock(pathlib.Path({str(points[0].folder / 'lock')!r})) as held:\n"
        "    print(held is not None, flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline().strip() == "True"
    seen = []

    def show(statuses):
        seen.append(statuses[0].state)
        if seen.count(ELSEWHERE) == 2:
            os.kill(holder.pid, signal.SIGKILL)
        time.sleep(0.01)

    statuses = scheduler.run_points(points, 1, "", show, program)
    holder.wait()
    holder.stdout.close()
    assert ELSEWHERE in seen
    assert all(s.state == DONE for s in statuses)


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_a_crashed_run_is_tried_again_after_growing_waits_and_named_in_the_end(tmp_path, program):
    sweep = make_sweep(
        tmp_path, axes={"size": {"a": ["D=1", "TASKS=2", "CRASHES=2"], "b": ["D=1", "TASKS=2", "CRASHES=9"]}}
    )
    how = Launcher(program, retries=2, wait=0.2)
    assert [how.pause(n) for n in (1, 2, 3, 20)] == [0.2, 0.4, 0.8, 600.0]
    began = time.monotonic()
    statuses = scheduler.run_points(sweep.points(), 2, "", no_show, how)
    assert [(s.point.name, s.state, s.attempts) for s in statuses] == [("a", DONE, 2), ("b", FAILED, 3)]
    assert time.monotonic() - began > 0.6
    assert statuses[1].reason == "exit status 70: lost a host"
    assert sorted(runs(tmp_path)) == ["a", "a", "a", "b", "b", "b"]
    entries = State(tmp_path).read()
    assert entries["b"]["state"] == FAILED and entries["b"]["attempts"] == 3 and entries["a"]["state"] == DONE


def test_a_preempted_run_goes_on_at_once_and_bad_input_is_not_tried_again(tmp_path, program):
    axes = {"size": {"a": ["D=1", "TASKS=2", "CRASHES=5", "EXIT=75"], "b": ["D=1", "TASKS=13"]}}
    sweep = make_sweep(tmp_path, axes=axes)
    statuses = scheduler.run_points(sweep.points(), 1, "", no_show, Launcher(program, retries=0, wait=600))
    assert [s.state for s in statuses] == [DONE, FAILED]
    assert sorted(runs(tmp_path)) == ["a"] * 6 + ["b"]


@pytest.mark.parametrize(
    ("entry", "state", "started"),
    [
        ({"state": FAILED, "reason": "given up", "attempts": 3}, FAILED, []),
        ({"state": RETRYING, "reason": "lost a host", "attempts": 2, "until": 0.0}, FAILED, ["a"]),
    ],
)
def test_a_driver_takes_over_what_another_found_out(tmp_path, program, entry, state, started):
    """The point's lock is another driver's, which then gives up, or leaves with its last attempt to be made."""
    sweep = make_sweep(tmp_path, axes={"size": {"a": ["D=1", "TASKS=2", "CRASHES=9"]}})
    (point,) = sweep.points()
    point.folder.mkdir(parents=True)
    other, seen = contextlib.ExitStack(), []
    other.enter_context(inheritable_lock(point.folder / "lock"))

    def show(statuses):
        seen.append(statuses[0].state)
        if seen.count(ELSEWHERE) == 1:
            State(tmp_path).write("a", **entry)
            other.close()

    (status,) = scheduler.run_points([point], 1, "", show, Launcher(program, retries=2, wait=0.1))
    assert ELSEWHERE in seen and status.state == state
    assert (runs(tmp_path) if started else []) == started
    assert (tmp_path / "runs.log").exists() == bool(started)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_reaches_the_runs_and_ends_the_driver_with_75(tmp_path, program, number):
    sweep = make_sweep(tmp_path, tasks=(2,), bindings={"SLEEP": 30})
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
from flanx.errors import Preempted
from tests.sweep_maker import make
from flanx.sweep import scheduler
sweep = make(pathlib.Path({str(tmp_path)!r}), tasks=(2,), bindings={{"SLEEP": 30}})
try:
    scheduler.run_points(sweep.points(), 2, "", lambda _: None, {program!r})
except Preempted:
    sys.exit(75)
"""
    driver = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "runs.log").exists() or len(runs(tmp_path)) < 2:
        time.sleep(0.02)
    assert State(tmp_path).statuses(sweep.points())["d1_2"][0] == RUNNING
    driver.send_signal(number)
    assert driver.wait(20) == 75
    assert State(tmp_path).statuses(sweep.points())["d1_2"] == ("waiting", "stopped with its driver")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_driver_killed_at_many_moments_ends_with_the_same_table(tmp_path, program, kills):
    """Killed with SIGKILL while runs sleep, crash and finish; then once to the end, as an undisturbed sweep ends."""
    more = {"tasks": (2, 8, 13, 20), "bindings": {"SLEEP": 0.15, "CRASHES": 1}, "choose_by": ["held_out"]}

    def code(out: pathlib.Path) -> list[str]:
        text = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
from tests.sweep_maker import make
from flanx.sweep import scheduler
sweep = make(pathlib.Path({str(out)!r}), **{more!r})
how = scheduler.Launcher({program!r}, retries=3, wait=0.05)
scheduler.run_points(sweep.points(), 2, "", lambda _: None, how)
"""
        return [sys.executable, "-c", text]

    def table(out: pathlib.Path) -> str:
        sweep = make_sweep(out, **more)
        return results.table(sweep, results.collect(sweep, State(out).statuses(sweep.points())))

    subprocess.run(code(tmp_path / "calm"), check=True)
    rng = random.Random(7)
    for _ in range(kills):
        driver = subprocess.Popen(code(tmp_path / "killed"))
        time.sleep(rng.uniform(0.05, 0.9))
        driver.kill()
        driver.wait()
        json.loads((tmp_path / "killed" / "state.json").read_text() if (tmp_path / "killed").exists() else "{}")
    subprocess.run(code(tmp_path / "killed"), check=True)
    assert table(tmp_path / "killed") == table(tmp_path / "calm")
    finished = {name for name in set(runs(tmp_path / "killed")) if "13" not in name}
    assert len(finished) == 6 and all(runs(tmp_path / "killed").count(name) == 2 for name in finished)  # one crash each


def test_blocked_points_fail_by_name_and_the_others_run(tmp_path, program):
    points = make_sweep(tmp_path).points()
    statuses = scheduler.run_points(points, 2, "", no_show, program, blocked={"d1_8": "its store was not built"})
    assert [s.state for s in statuses] == [DONE, FAILED, DONE, DONE]
    assert "d1_8" not in runs(tmp_path)


def test_a_launcher_gets_the_points_name_and_arguments(tmp_path, program):
    point = make_sweep(tmp_path, axes={"model": {"Flan-T5 XL": []}}).points()[0]
    assert point.job == "flanx-flan-t5-xl"
    how = scheduler.parse_launcher("sh {job}", 1, 5.0)
    assert how.command(point, ["train", "x"]) == ["sh", "flanx-flan-t5-xl", "train", "x"]
    how = scheduler.parse_launcher("env A=1 'cd there' {arguments} --point={name}", 1, 5.0)
    assert how.command(point, ["train", "x"]) == ["env", "A=1", "cd there", "train", "x", "--point=Flan-T5_XL"]
    assert how.outlives and not scheduler.parse_launcher(None, 1, 5.0).outlives
    for wrong, message in (
        ("sh 'host", "No closing quotation"),
        ("", "it is empty"),
        (f"{tmp_path} x", "no program '.*' on this machine"),
    ):
        with pytest.raises(UserError, match=message):
            scheduler.parse_launcher(wrong, 1, 5.0)
    script = tmp_path / "hand_over.sh"
    script.write_text(f'#!/bin/sh\necho handed $1; shift; exec {program[0]} {program[1]} "$@"\n')
    script.chmod(0o755)
    points = make_sweep(tmp_path / "swept", tasks=(2,)).points()
    statuses = scheduler.run_points(points, 2, "", no_show, scheduler.parse_launcher(f"{script} {{job}}", 0, 1.0))
    assert [s.state for s in statuses] == [DONE, DONE]
    assert scheduler.log_path(points[0]).read_text() == "handed flanx-d1-2\n"
    assert State(tmp_path / "swept").read()["d1_2"]["machine"] == "given to a launcher"
    more = make_sweep(tmp_path / "other", tasks=(2,)).points()
    statuses = scheduler.run_points(more, 2, "", no_show, scheduler.Launcher(["no/such/launcher"], True, 0, 1.0))
    assert {s.reason for s in statuses} == {"no/such/launcher cannot be run: No such file or directory"}
