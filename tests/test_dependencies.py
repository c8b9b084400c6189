"""Sweeps: points that wait for their parents, the stores they read, launchers that take them elsewhere."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

from flanx.errors import UserError
from flanx.sweep import dependencies, results, scheduler
from flanx.sweep.grid import Sweep
from flanx.sweep.state import DONE, FAILED, State
from tests.sweep_maker import make as make_sweep
from tests.sweep_maker import no_show, runs


def wanted(sweep: Sweep, **paths: str | None) -> dict[str, dependencies.Dependencies]:
    """The needs of a sweep's points, of which some have a parent."""
    return {p.name: dependencies.Dependencies(paths.get(p.name), 5, "store", "byte") for p in sweep.points()}


def family(out: pathlib.Path, **more: object) -> Sweep:
    """Two evaluations of one training run, which comes last."""
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
    parents = dependencies.parents(sweep, sweep.points(), wanted(sweep, **paths(sweep)))
    assert {name: (p.point, p.chosen) for name, p in parents.items()} == {
        "plain": ("trained", False),
        "trigger": ("trained", True),
    }
    seen = []
    statuses = scheduler.run_points(
        sweep.points(), 3, "", lambda s: seen.append(s[0].reason), program, parents,
        on_done=lambda _: results.write_choices(sweep),
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
    parents = dependencies.parents(sweep, sweep.points(), wanted(sweep, **paths(sweep)))
    statuses = {s.point.name: s for s in scheduler.run_points(sweep.points(), 1, "", no_show, program, parents)}
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
    with pytest.raises(UserError, match="its parent good is not a point of the sweep in"):
        dependencies.parents(child, child.points(), wanted(child, **names))
    State(first).register(["good", "bad"])
    with pytest.raises(UserError, match="its parent good is not done, and no driver is running it: run `flanx sweep"):
        dependencies.parents(child, child.points(), wanted(child, **names))
    code = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent.parent)!r})
import pathlib
from tests.sweep_maker import make
from flanx.sweep import scheduler
scheduler.run_points(make(pathlib.Path({str(first)!r}), axes={axes!r}).points(), 2, "", lambda _: None, {program!r})
"""
    other = subprocess.Popen([sys.executable, "-c", code])
    while len(runs(first) if (first / "runs.log").exists() else []) < 2:
        time.sleep(0.02)
    parents = dependencies.parents(child, child.points(), wanted(child, **names))
    statuses = scheduler.run_points(child.points(), 1, "", no_show, program, parents)
    assert other.wait(30) == 0
    assert [s.state for s in statuses] == [DONE, FAILED]
    assert "its parent bad of" in statuses[1].reason and "it broke" in statuses[1].reason
    assert State(first).statuses(sweep.points())["good"][0] == DONE


def test_a_parent_of_the_hub_is_waited_for_by_nobody(tmp_path):
    sweep = make_sweep(tmp_path)
    names = {point.name: "hf:org/small@v1" for point in sweep.points()}
    assert dependencies.parents(sweep, sweep.points(), wanted(sweep, **names)) == {}


def test_a_parent_that_nobody_makes_is_an_error_at_once(tmp_path):
    sweep = make_sweep(tmp_path)
    with pytest.raises(UserError, match=r"point d1_8: its parent nowhere/xl .* does not exist, and no sweep that was"):
        dependencies.parents(sweep, sweep.points(), wanted(sweep, d1_8="nowhere/xl"))
    (tmp_path / "xl").mkdir()
    there = wanted(sweep, d1_8=str(tmp_path / "xl"), d2_8="gs://bucket/xl")
    assert dependencies.parents(sweep, sweep.points(), there) == {}
    circle = {a: str(tmp_path / "runs" / b) for a, b in (("d1_2", "d1_8"), ("d1_8", "d1_2"))}
    with pytest.raises(UserError, match="wait for one another: d1_2 -> d1_8 -> d1_2"):
        dependencies.parents(sweep, sweep.points(), wanted(sweep, **circle))
    with pytest.raises(UserError, match="chooses no checkpoint"):
        dependencies.parents(sweep, sweep.points(), wanted(sweep, d1_8=str(tmp_path / "runs" / "d1_2" / "chosen")))
    left = [p for p in sweep.points() if p.name == "d1_8"]
    with pytest.raises(UserError, match="--only leaves it out"):
        dependencies.parents(sweep, left, wanted(sweep, d1_8=str(tmp_path / "runs" / "d1_2")))


# ---- stores, launchers -----------------------------------------------------------------------------------------------


def test_a_sweep_builds_a_store_for_each_store_dir_of_the_points_that_train(tmp_path):
    sweep = make_sweep(tmp_path, store=["runs/store.gin"], bindings={"MIXTURE_OR_TASK_NAME": "cot", "STEPS": 3})
    needs = {
        "d1_2": dependencies.Dependencies(None, 5, "t5", "words"),
        "d1_8": dependencies.Dependencies(None, 5, "palm", "pieces"),
        "d2_2": dependencies.Dependencies("parent", 0, "unused", "pieces"),
        "d2_8": dependencies.Dependencies(None, 5, "t5", "words"),
    }
    found = dependencies.stores(sweep, needs, "a")
    assert list(found) == ["t5", "palm"]
    flags = ["--gin_file=runs/store.gin", "--gin_search_paths=a", "--gin.STORE_DIR='palm'", "--gin.VOCABULARY='pieces'"]
    assert found["palm"] == ["store", "build", *flags, "--gin.MIXTURE_OR_TASK_NAME='cot'"]
    with pytest.raises(UserError, match="give each vocabulary its own STORE_DIR"):
        dependencies.stores(sweep, needs | {"d2_8": dependencies.Dependencies(None, 5, "t5", "pieces")}, "")


def test_where_a_run_lies_and_which_checkpoint_it_took_are_no_other_settings():
    text = "MODEL_DIR = 'a'\nINITIAL_CHECKPOINT_PATH = 'b/chosen'\nt.f.path = %INITIAL_CHECKPOINT_PATH\n"
    text += "N = 1\nt.f.n = %N\n"
    moved = text.replace("'a'", "'c'").replace("chosen", "checkpoints/checkpoint_4")
    old, new = (dependencies._settings(each) for each in (text, moved))
    assert {name for name in old if old[name] != new[name]} == set(dependencies.MOVABLE)
    assert old["t.f.n"] == "1"
