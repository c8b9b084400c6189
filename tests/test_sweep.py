"""Sweeps: the grid, the driver with a stand-in for `flanx train`, its state, parents, retries, launchers; its door."""

import contextlib
import csv
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from flanx import config
from flanx.cli import main
from flanx.errors import UserError
from flanx.sweep import door, drive, need, report, results
from flanx.sweep.drive import Launcher
from flanx.sweep.grid import Sweep
from flanx.sweep.state import DONE, ELSEWHERE, FAILED, RETRYING, RUNNING, State, hold
from tests import run_case
from tests.sweep_maker import STAND_IN
from tests.sweep_maker import make as make_sweep


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
    assert [s.state for s in statuses] == [DONE, FAILED, DONE, FAILED]
    assert statuses[1].reason == "exit status 2: flanx train: it broke"
    again = drive.drive(sweep.points(), 1, "", lambda _: None, program)
    assert [s.skipped for s in again] == [True, False, True, False]
    runs = (tmp_path / "runs.log").read_text().split()
    assert sorted(runs) == ["d1_13", "d1_13", "d1_2", "d2_13", "d2_13", "d2_2"]


def test_two_drivers_on_one_folder_never_run_a_point_twice(tmp_path, program):
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
from tests.sweep_maker import make as make_sweep
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
from tests.sweep_maker import make as make_sweep
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
    assert all(s.state == DONE for s in statuses)
    assert sorted((tmp_path / "runs.log").read_text().split()) == ["d1_2", "d2_2"]


def test_a_killed_driver_lets_go_of_its_point(tmp_path, program):
    points = make_sweep(tmp_path).points()
    points[0].folder.mkdir(parents=True)
    code = (
        "import pathlib, sys, time\n"
        f"sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})\n"
        "from flanx.sweep import state\n"
        f"with state.hold(pathlib.Path({str(points[0].folder / 'lock')!r})) as held:\n"
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

    statuses = drive.drive(points, 1, "", show, program)
    holder.wait()
    holder.stdout.close()
    assert ELSEWHERE in seen
    assert all(s.state == DONE for s in statuses)


# ---- crashes ---------------------------------------------------------------------------------------------------------


def runs(folder: pathlib.Path) -> list[str]:
    """The runs that were started, in order."""
    return (folder / "runs.log").read_text().split()


def no_show(_) -> None:
    """Shows nothing."""


def test_a_crashed_run_is_tried_again_after_growing_waits_and_named_in_the_end(tmp_path, program):
    sweep = make_sweep(
        tmp_path, axes={"size": {"a": ["D=1", "TASKS=2", "CRASHES=2"], "b": ["D=1", "TASKS=2", "CRASHES=9"]}}
    )
    how = Launcher(program, retries=2, wait=0.2)
    assert [how.pause(n) for n in (1, 2, 3, 20)] == [0.2, 0.4, 0.8, 600.0]
    began = time.monotonic()
    statuses = drive.drive(sweep.points(), 2, "", no_show, how)
    assert [(s.point.name, s.state, s.attempts) for s in statuses] == [("a", DONE, 2), ("b", FAILED, 3)]
    assert time.monotonic() - began > 0.6
    assert statuses[1].reason == "exit status 70: lost a host"
    assert sorted(runs(tmp_path)) == ["a", "a", "a", "b", "b", "b"]
    entries = State(tmp_path).read()
    assert entries["b"]["state"] == FAILED and entries["b"]["attempts"] == 3 and entries["a"]["state"] == DONE


def test_a_preempted_run_goes_on_at_once_and_bad_input_is_not_tried_again(tmp_path, program):
    axes = {"size": {"a": ["D=1", "TASKS=2", "CRASHES=5", "EXIT=75"], "b": ["D=1", "TASKS=13"]}}
    sweep = make_sweep(tmp_path, axes=axes)
    statuses = drive.drive(sweep.points(), 1, "", no_show, Launcher(program, retries=0, wait=600))
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
    other.enter_context(hold(point.folder / "lock"))

    def show(statuses):
        seen.append(statuses[0].state)
        if seen.count(ELSEWHERE) == 1:
            State(tmp_path).write("a", **entry)
            other.close()

    (status,) = drive.drive([point], 1, "", show, Launcher(program, retries=2, wait=0.1))
    assert ELSEWHERE in seen and status.state == state
    assert (runs(tmp_path) if started else []) == started
    assert (tmp_path / "runs.log").exists() == bool(started)


def test_sigterm_reaches_the_runs_and_ends_the_driver_with_75(tmp_path, program):
    sweep = make_sweep(tmp_path, tasks=(2,), bindings={"SLEEP": 30})
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
from flanx.errors import Preempted
from tests.sweep_maker import make
from flanx.sweep import drive
sweep = make(pathlib.Path({str(tmp_path)!r}), tasks=(2,), bindings={{"SLEEP": 30}})
try:
    drive.drive(sweep.points(), 2, "", lambda _: None, {program!r})
except Preempted:
    sys.exit(75)
"""
    driver = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "runs.log").exists() or len(runs(tmp_path)) < 2:
        time.sleep(0.02)
    assert State(tmp_path).told(sweep.points())["d1_2"][0] == RUNNING
    driver.terminate()
    assert driver.wait(20) == 75
    assert State(tmp_path).told(sweep.points())["d1_2"] == ("waiting", "stopped with its driver")


def test_a_driver_killed_at_twenty_moments_ends_with_the_same_table(tmp_path, program):
    """Killed with SIGKILL while runs sleep, crash and finish; then once to the end, as an undisturbed sweep ends."""
    more = {"tasks": (2, 8, 13, 20), "bindings": {"SLEEP": 0.15, "CRASHES": 1}, "choose_by": ["held_out"]}

    def code(out: pathlib.Path) -> list[str]:
        text = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
from tests.sweep_maker import make
from flanx.sweep import drive
sweep = make(pathlib.Path({str(out)!r}), **{more!r})
how = drive.Launcher({program!r}, retries=3, wait=0.05)
drive.drive(sweep.points(), 2, "", lambda _: None, how)
"""
        return [sys.executable, "-c", text]

    def table(out: pathlib.Path) -> str:
        sweep = make_sweep(out, **more)
        return results.table(sweep, results.collect(sweep, State(out).told(sweep.points())))

    subprocess.run(code(tmp_path / "calm"), check=True)
    rng = random.Random(7)
    for _ in range(20):
        driver = subprocess.Popen(code(tmp_path / "killed"))
        time.sleep(rng.uniform(0.05, 0.9))
        driver.kill()
        driver.wait()
        json.loads((tmp_path / "killed" / "state.json").read_text() if (tmp_path / "killed").exists() else "{}")
    subprocess.run(code(tmp_path / "killed"), check=True)
    assert table(tmp_path / "killed") == table(tmp_path / "calm")
    finished = {name for name in set(runs(tmp_path / "killed")) if "13" not in name}
    assert len(finished) == 6 and all(runs(tmp_path / "killed").count(name) == 2 for name in finished)  # one crash each


# ---- parents ---------------------------------------------------------------------------------------------------------


def wanted(sweep: Sweep, **paths: str | None) -> dict[str, need.Need]:
    """The needs of a sweep's points, of which some have a parent."""
    return {p.name: need.Need(paths.get(p.name), 5, "store", "byte") for p in sweep.points()}


def family(out: pathlib.Path, **more: object) -> Sweep:
    """Two evaluations of one training run, which stands last."""
    parent = out / "runs" / "trained"
    axes = {
        "point": {
            "plain": ["D=1", "TASKS=2", {"INITIAL_CHECKPOINT_PATH": f"{parent}/checkpoints/checkpoint_5"}],
            "trigger": ["D=1", "TASKS=3", {"INITIAL_CHECKPOINT_PATH": f"{parent}/chosen"}],
            "trained": ["D=1", "TASKS=4"],
        }
    }
    return make_sweep(out, axes=axes, **{"choose_by": ["held_out"]} | more)


def paths(sweep: Sweep) -> dict[str, str]:
    parent = str(pathlib.Path(sweep.out_dir) / "runs" / "trained")
    return {"plain": f"{parent}/checkpoints/checkpoint_5", "trigger": f"{parent}/chosen"}


def test_points_start_when_their_parent_is_done_and_read_the_chosen_checkpoint(tmp_path, program):
    sweep = family(tmp_path)
    parents = need.parents(sweep, sweep.points(), wanted(sweep, **paths(sweep)))
    assert {name: (p.point, p.chosen) for name, p in parents.items()} == {
        "plain": ("trained", False),
        "trigger": ("trained", True),
    }
    seen = []
    statuses = drive.drive(
        sweep.points(), 3, "", lambda s: seen.append(s[0].reason), program, parents,
        settled=lambda _: results.write_choices(sweep),
    )  # fmt: skip
    assert [s.state for s in statuses] == [DONE] * 3
    assert runs(tmp_path)[0] == "trained" and len(runs(tmp_path)) == 3
    assert "waits for trained" in seen
    read = json.loads((tmp_path / "runs" / "trigger" / "run.json").read_text())["initial_checkpoint_path"]
    assert read == str(tmp_path / "runs/trained/checkpoints/checkpoint_5")  # step 5 scored twice what step 10 did


def test_a_failed_parent_fails_its_children_by_name(tmp_path, program):
    sweep = family(tmp_path)
    axes = {"point": dict(sweep.axes["point"]) | {"trained": ["D=1", "TASKS=13"], "alone": ["D=1", "TASKS=5"]}}
    sweep = make_sweep(tmp_path, axes=axes, choose_by=["held_out"])
    parents = need.parents(sweep, sweep.points(), wanted(sweep, **paths(sweep)))
    statuses = {s.point.name: s for s in drive.drive(sweep.points(), 1, "", no_show, program, parents)}
    assert [s.state for s in statuses.values()] == [FAILED, FAILED, FAILED, DONE]
    assert statuses["plain"].reason == "its parent trained failed: exit status 2: flanx train: it broke"
    assert sorted(runs(tmp_path)) == ["alone", "trained"]


def test_a_parent_of_another_sweep_is_waited_for(tmp_path, program):
    """The other sweep runs in another process; its run is done, fails, or is driven by nobody."""
    first, second = tmp_path / "first", tmp_path / "second"
    axes = {"p": {"good": ["D=1", "TASKS=2", "SLEEP=1"], "bad": ["D=1", "TASKS=13", "SLEEP=1"]}}
    sweep = make_sweep(first, axes=axes)
    first.mkdir()
    (first / "sweep.gin").write_text("")
    child = make_sweep(second, axes={"q": {"a": ["D=1", "TASKS=3"], "b": ["D=1", "TASKS=3"]}})
    names = {"a": str(first / "runs" / "good"), "b": str(first / "runs" / "bad")}
    with pytest.raises(UserError, match="its parent good is no point of the sweep in"):
        need.parents(child, child.points(), wanted(child, **names))
    State(first).register(["good", "bad"])
    with pytest.raises(UserError, match="its parent good is not done, and no driver works on it: run `flanx sweep"):
        need.parents(child, child.points(), wanted(child, **names))
    code = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
import pathlib
from tests.sweep_maker import make
from flanx.sweep import drive
drive.drive(make(pathlib.Path({str(first)!r}), axes={axes!r}).points(), 2, "", lambda _: None, {program!r})
"""
    other = subprocess.Popen([sys.executable, "-c", code])
    while len(runs(first) if (first / "runs.log").exists() else []) < 2:
        time.sleep(0.02)
    parents = need.parents(child, child.points(), wanted(child, **names))
    statuses = drive.drive(child.points(), 1, "", no_show, program, parents)
    assert other.wait(30) == 0
    assert [s.state for s in statuses] == [DONE, FAILED]
    assert "its parent bad of" in statuses[1].reason and "it broke" in statuses[1].reason
    assert State(first).told(sweep.points())["good"][0] == DONE


def test_a_parent_that_nobody_makes_is_an_error_at_once(tmp_path):
    sweep = make_sweep(tmp_path)
    with pytest.raises(UserError, match=r"point d1_8: its parent nowhere/xl .* does not exist, and no sweep makes it"):
        need.parents(sweep, sweep.points(), wanted(sweep, d1_8="nowhere/xl"))
    (tmp_path / "xl").mkdir()
    there = wanted(sweep, d1_8=str(tmp_path / "xl"), d2_8="gs://bucket/xl")
    assert need.parents(sweep, sweep.points(), there) == {}
    circle = {a: str(tmp_path / "runs" / b) for a, b in (("d1_2", "d1_8"), ("d1_8", "d1_2"))}
    with pytest.raises(UserError, match="wait for one another: d1_2 -> d1_8 -> d1_2"):
        need.parents(sweep, sweep.points(), wanted(sweep, **circle))
    with pytest.raises(UserError, match="chooses no checkpoint"):
        need.parents(sweep, sweep.points(), wanted(sweep, d1_8=str(tmp_path / "runs" / "d1_2" / "chosen")))
    left = [p for p in sweep.points() if p.name == "d1_8"]
    with pytest.raises(UserError, match="--only leaves it out"):
        need.parents(sweep, left, wanted(sweep, d1_8=str(tmp_path / "runs" / "d1_2")))


# ---- stores, launchers -----------------------------------------------------------------------------------------------


def test_a_sweep_builds_a_store_for_each_store_dir_of_the_points_that_train(tmp_path):
    sweep = make_sweep(tmp_path, store=["runs/store.gin"], bindings={"MIXTURE_OR_TASK_NAME": "cot", "STEPS": 3})
    needs = {
        "d1_2": need.Need(None, 5, "t5", "words"),
        "d1_8": need.Need(None, 5, "palm", "pieces"),
        "d2_2": need.Need("parent", 0, "unused", "pieces"),
        "d2_8": need.Need(None, 5, "t5", "words"),
    }
    found = need.stores(sweep, needs, "a")
    assert list(found) == ["t5", "palm"]
    flags = ["--gin_file=runs/store.gin", "--gin_search_paths=a", "--gin.STORE_DIR='palm'", "--gin.VOCABULARY='pieces'"]
    assert found["palm"] == ["store", "build", *flags, "--gin.MIXTURE_OR_TASK_NAME='cot'"]
    with pytest.raises(UserError, match="give each vocabulary its own STORE_DIR"):
        need.stores(sweep, needs | {"d2_8": need.Need(None, 5, "t5", "pieces")}, "")


def test_a_store_that_is_not_built_stops_its_own_points(monkeypatch):
    codes = {"good": 0, "part": 1, "bad": 2}
    monkeypatch.setattr(
        door.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, codes[command[-1]])
    )
    stores = {name: [name] for name in codes}
    needs = {name: need.Need(None, 5, name, "byte") for name in codes} | {"eval": need.Need("p", 0, "bad", "byte")}
    blocked, complete = door.build_stores(stores, needs)
    assert list(blocked) == ["bad"] and "exit status 2" in blocked["bad"] and not complete
    with pytest.raises(UserError, match="no store was built"):
        door.build_stores({"bad": ["bad"]}, {"bad": needs["bad"]})


def test_blocked_points_fail_by_name_and_the_others_run(tmp_path, program):
    points = make_sweep(tmp_path).points()
    statuses = drive.drive(points, 2, "", no_show, program, blocked={"d1_8": "its store was not built"})
    assert [s.state for s in statuses] == [DONE, FAILED, DONE, DONE]
    assert "d1_8" not in runs(tmp_path)


def test_a_launcher_gets_the_points_name_and_arguments(tmp_path, program):
    point = make_sweep(tmp_path, axes={"model": {"Flan-T5 XL": []}}).points()[0]
    assert point.job == "flanx-flan-t5-xl"
    how = drive.launcher("launch/tpu_vm.sh {job}", 1, 5.0)
    assert how.command(point, ["train", "x"]) == ["launch/tpu_vm.sh", "flanx-flan-t5-xl", "train", "x"]
    how = drive.launcher("ssh host 'cd there' {arguments} --point={name}", 1, 5.0)
    assert how.command(point, ["train", "x"]) == ["ssh", "host", "cd there", "train", "x", "--point=Flan-T5_XL"]
    assert how.outlives and not drive.launcher("", 1, 5.0).outlives
    with pytest.raises(UserError, match="No closing quotation"):
        drive.launcher("ssh 'host", 1, 5.0)
    script = tmp_path / "hand_over.sh"
    script.write_text(f'#!/bin/sh\necho handed $1; shift; exec {program[0]} {program[1]} "$@"\n')
    script.chmod(0o755)
    points = make_sweep(tmp_path / "swept", tasks=(2,)).points()
    statuses = drive.drive(points, 2, "", no_show, drive.launcher(f"{script} {{job}}", 0, 1.0))
    assert [s.state for s in statuses] == [DONE, DONE]
    assert drive.log_path(points[0]).read_text() == "handed flanx-d1-2\n"
    assert State(tmp_path / "swept").read()["d1_2"]["machine"] == "handed to a launcher"
    more = make_sweep(tmp_path / "other", tasks=(2,)).points()
    statuses = drive.drive(more, 2, "", no_show, drive.launcher("no/such/launcher", 0, 1.0))
    assert {s.reason for s in statuses} == {"no/such/launcher cannot be run: No such file or directory"}


def test_the_launcher_of_gke_fills_in_the_jobset_and_waits_for_its_end(tmp_path):
    """With a stand-in for kubectl: the points arguments come through to the byte, and the end's kind is the status."""
    yaml = pytest.importorskip("yaml", reason="reads what the script hands to kubectl")
    fake = tmp_path / "kubectl"
    end = f"if [ -e {tmp_path}/second ]; then echo $END; else touch {tmp_path}/second; fi"
    fake.write_text(f"#!/bin/sh\ncase $1 in apply) cat > {tmp_path}/applied.yaml;; get) {end};; esac\n")
    fake.chmod(0o755)
    words = ["train", "--gin_file=runs/train.gin", "--gin.MODEL_DIR='/bucket/a b'", '--gin.L={"inputs": 3}']
    env = {**os.environ, "KUBECTL": str(fake), "PERIOD": "0.05"}
    for end, status in (("Completed", 0), ("Failed", 1)):
        command = [str(run_case.ROOT / "launch" / "gke_point.sh"), "flanx-8b-9", *words]
        assert subprocess.run(command, env=env | {"END": end}, capture_output=True, check=False).returncode == status
        (tmp_path / "second").unlink()
    applied = yaml.safe_load((tmp_path / "applied.yaml").read_text())
    container = applied["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert applied["metadata"]["name"] == "flanx-8b-9"
    assert container["command"] == ["flanx", *words, "--cluster_timeout=900"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


# ---- the door --------------------------------------------------------------------------------------------------------


def sweep_gin(folder: pathlib.Path, *more: str) -> str:
    path = folder / "own.gin"
    lines = [
        "from __gin__ import dynamic_registration",
        "from flanx.sweep import grid",
        f"grid.Sweep.out_dir = '{folder}/out'",
    ]
    lines += ["grid.Sweep.gin_files = ['runs/train.gin', 'models/t5_1_1/tiny.gin', 'evals/suite.gin']"]
    path.write_text("\n".join([*lines, *more]) + "\n")
    return str(path)


BOUND = (
    "{'STORE_DIR': 'store', 'VOCABULARY': 'byte', 'MIXTURE_OR_TASK_NAME': 'suite', 'TRAIN_STEPS': 2, "
    "'TASK_FEATURE_LENGTHS': {'inputs': 64, 'targets': 16}}"
)
ONE = "grid.Sweep.axes = {'size': {'a': [], 'b': []}}"


@pytest.mark.parametrize(
    ("lines", "flags", "said"),
    [
        ([ONE], ["--jobs=0"], "--jobs=0: at least 1 point"),
        ([ONE], ["--retries=-1"], "--retries=-1"),
        ([ONE], ["--only=c*"], "--only=c* matches no point; they are called a, b"),
        (["grid.Sweep.axes = {'size': {}}"], [], "the sweep has no points"),
        (["grid.Sweep.axes = {'size': {'a b': [], 'a/b': []}}"], [], "share the folder 'a_b'"),
        (["grid.Sweep.axes = {'size': {'a': ['TRAIN_STEPZ=1']}}"], [], "did you mean 'TRAIN_STEPS'"),
        ([ONE, "grid.Sweep.figures = {'f': {'x': 'sizes'}}"], [], "did you mean 'size'"),
        ([ONE, "grid.Sweep.scores = {'s': 'suite_compositon'}"], [], "did you mean 'suite_composition'"),
        ([ONE, "grid.Sweep.published = {'a': '5:T5-Smal'}"], [], "did you mean 'T5-Small'"),
        (["grid.Sweep.axes = {'run': {'a': []}}"], [], "'run' is a column of the results"),
        ([ONE, "grid.Sweep.choose_per = ['sizes']"], [], "did you mean 'size'"),
        (["grid.Sweep.axes = {'s': {'a': ['INITIAL_CHECKPOINT_PATH=\"no/where\"']}}"], [], "its parent no/where"),
        ([ONE, "grid.Sweep.out_dir = '/proc/sweep'"], [], "the sweep's folder /proc/sweep cannot be written"),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(tmp_path, capsys, lines, flags, said):
    name = sweep_gin(tmp_path, f"grid.Sweep.bindings = {BOUND}", *lines)
    assert main(["sweep", f"--gin_file={name}", *flags]) == 2
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tells_what_waits_and_what_it_costs_and_writes_nothing(tmp_path, capsys):
    child = ["TRAIN_STEPS=0", {"INITIAL_CHECKPOINT_PATH": f"{tmp_path}/out/runs/a"}]
    axes = f"grid.Sweep.axes = {{'p': {{'a': [], 'b': {child}}}}}"
    name = sweep_gin(tmp_path, f"grid.Sweep.bindings = {BOUND}", axes)
    assert main(["sweep", f"--gin_file={name}", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["flanx", "train"]] * 2
    rows = {line.split()[0]: line for line in lines[3:] if line.strip()}
    assert "evaluation alone" in rows["b"] and "waits for a" in rows["b"] and "scratch" in rows["a"]
    assert "no --topology is named: chip-hours are those of v4 chips at 40%" in " ".join(lines)
    assert not (tmp_path / "out").exists()
    assert main(["sweep", f"--gin_file={name}", "--dry_run", "--topology=v4:2x2x1"]) == 0
    assert "estimate of `flanx plan` on v4:2x2x1" in capsys.readouterr().out


def test_the_door_runs_a_sweep_and_leaves_its_report(tmp_path, program, capsys):
    bindings = BOUND.replace("{'STORE_DIR'", "{'D': 1, 'TASKS': 2, 'STORE_DIR'")
    (tmp_path / "more.gin").write_text("D = 0\nTASKS = 0\nUSED = [%D, %TASKS]\nALSO = %USED\nEVAL_PERIOD = %ALSO\n")
    name = sweep_gin(tmp_path, f"grid.Sweep.bindings = {bindings}", ONE)
    text = pathlib.Path(name).read_text().replace("'evals/suite.gin'", f"'evals/suite.gin', '{tmp_path}/more.gin'")
    pathlib.Path(name).write_text(text)
    assert main(["sweep", f"--gin_file={name}", "--jobs=2", "--only=a", f"--launcher={' '.join(program)}"]) == 0
    said = capsys.readouterr().out
    assert "a: done in" in said and "no score (not run)" in said and "report.html" in said
    out = tmp_path / "out"
    assert (out / "results.csv").read_text().count("\n") == 3
    config.parse([str(out / "sweep.gin")])  # what the sweep was, to be given back
    assert list(config.make(Sweep).axes["size"]) == ["a", "b"]
    assert report.is_sweep(str(out))


# ---- a real sweep ----------------------------------------------------------------------------------------------------


def real_sweep(folder: pathlib.Path, store: pathlib.Path) -> str:
    """The gin file of a sweep that trains one small model and evaluates its chosen checkpoint with two prompts."""
    trained = f"{folder}/out/runs/model_trained"
    bound = {
        "STORE_DIR": str(store),
        "VOCABULARY": "byte",
        "MIXTURE_OR_TASK_NAME": "own",
        "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 16},
        "TRAIN_STEPS": 8,
        "EVAL_PERIOD": 4,
        "CHECKPOINT_PERIOD": 2,
        "BATCH_SIZE": 4,
        "SUITES": ["suite_rule[:1]"],
        "t5.T5.num_encoder_layers": 1,
        "t5.T5.num_decoder_layers": 1,
        "t5.T5.emb_dim": 16,
        "checkpoint.SaveCheckpointConfig.keep_period": 4,
    }
    alone = {"TRAIN_STEPS": 0, "INITIAL_CHECKPOINT_PATH": f"{trained}/chosen"}
    axes = {
        "model": {"model": []},
        "way": {
            "plain": [alone],
            "sampled": [alone | {"SUITES": ["suite_rule[:1]+sc2"]}],
            "trained": [],
        },
    }
    more = [f"grid.Sweep.bindings = {bound}", f"grid.Sweep.axes = {axes}", "grid.Sweep.choose_by = ['suite_rule[:1]']"]
    return sweep_gin(folder, *more)


@pytest.mark.slow
def test_a_real_sweep_killed_at_random_moments_ends_with_the_same_results(tmp_path):
    store = run_case.store_dir()
    found = {}
    rng = random.Random(3)
    for name, kills in (("calm", 0), ("killed", 4)):
        (tmp_path / name).mkdir()
        file = real_sweep(tmp_path / name, store)
        command = [sys.executable, "-m", "flanx", "sweep", f"--gin_file={file}", "--jobs=2", "--retry_wait=1"]
        for _ in range(kills):
            driver = run_case.launch(command)
            time.sleep(rng.uniform(2, 9))
            os.killpg(driver.pid, signal.SIGKILL)  # the driver and its runs
            driver.communicate()
        driver = run_case.launch(command)
        try:
            said, _ = driver.communicate(timeout=400)
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
        assert driver.returncode == 0, said
        found[name] = (tmp_path / name / "out" / "results.csv").read_text()
    assert found["killed"] == found["calm"]
    table = list(csv.DictReader(found["calm"].splitlines()))
    steps = {(row["way"], row["checkpoint"]): row["step"] for row in table}
    assert steps["trained", "last"] == "8" and steps["trained", "chosen"] in ("4", "8")
    assert steps["plain", "last"] == steps["sampled", "chosen"] == "0"
    scores = {(row["way"], row["checkpoint"]): row["score"] for row in table}
    assert scores["plain", "last"] == scores["trained", "chosen"]  # the very checkpoint
    assert not (tmp_path / "calm" / "out" / "runs" / "model_plain" / "checkpoints" / "checkpoint_0").exists()
