"""`flanx sweep`: what it refuses, its dry run, its report, and real runs under it."""

import argparse
import csv
import dataclasses
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest

from flanx import bucket, config, files
from flanx.cli import sweep as command
from flanx.cli.main import main
from flanx.errors import UserError
from flanx.sweep import dependencies, report
from flanx.sweep.grid import Sweep
from tests import bucket_case, run_case


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
        ([ONE], ["--only=a", "--only=c*"], "--only=c* matches no point; they are called a, b"),
        (["grid.Sweep.axes = {'size': {}}"], [], "the sweep has no points"),
        (["grid.Sweep.axes = {'size': {'a b': [], 'a/b': []}}"], [], "share the folder 'a_b'"),
        (["grid.Sweep.axes = {'size': {'a': ['TRAIN_STEPZ=1']}}"], [], "did you mean 'TRAIN_STEPS'"),
        ([ONE, "grid.Sweep.figures = {'f': {'x': 'sizes'}}"], [], "did you mean 'size'"),
        ([ONE, "grid.Sweep.scores = {'s': 'suite_compositon'}"], [], "did you mean 'suite_composition'"),
        ([ONE, "grid.Sweep.published = {'a': '5:T5-Smal'}"], [], "did you mean 'T5-Small'"),
        (["grid.Sweep.axes = {'run': {'a': []}}"], [], "'run' is a column of the results"),
        ([ONE, "grid.Sweep.choose_per = ['sizes']"], [], "did you mean 'size'"),
        ([ONE, "grid.Sweep.average_over = ['seeds', 'size']"], [], "Sweep.average_over: the sweep has no axis 'seeds'"),
        (
            [ONE, "grid.Sweep.compare = {'sizes': 'a'}"],
            [],
            "Sweep.compare: the sweep has no axis 'sizes'; did you mean",
        ),
        ([ONE, "grid.Sweep.compare = {'size': 'c'}"], [], "Sweep.compare: axis 'size' has no 'c'"),
        (["grid.Sweep.axes = {'s': {'a': ['INITIAL_CHECKPOINT_PATH=\"no/where\"']}}"], [], "its parent no/where"),
        ([ONE, "grid.Sweep.out_dir = '/proc/sweep'"], [], "the sweep's folder /proc/sweep cannot be written"),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(tmp_path, capsys, lines, flags, said):
    name = sweep_gin(tmp_path, f"grid.Sweep.bindings = {BOUND}", *lines)
    assert main(["sweep", f"--gin_file={name}", *flags]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_what_waits_and_what_it_costs_and_writes_nothing(tmp_path, capsys):
    child = ["TRAIN_STEPS=0", {"INITIAL_CHECKPOINT_PATH": f"{tmp_path}/out/runs/a"}]
    axes = f"grid.Sweep.axes = {{'p': {{'a': [], 'b': {child}}}}}"
    name = sweep_gin(tmp_path, f"grid.Sweep.bindings = {BOUND}", axes)
    assert main(["sweep", f"--gin_file={name}", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["flanx", "train"]] * 2
    assert f" --gin.MODEL_DIR=\"'{tmp_path}/out/runs/a'\"" in lines[0]  # as a person types it
    assert f"--gin.INITIAL_CHECKPOINT_PATH='{tmp_path}/out/runs/a'" in shlex.split(lines[1])
    rows = {line.split()[0]: line for line in lines[3:] if line.strip()}
    assert "evaluation only" in rows["b"] and "waits for a" in rows["b"] and "scratch" in rows["a"]
    assert "without --topology: chip-hours of v4 chips at 40%" in " ".join(lines)
    assert "of one recipe differ by 3 points (assumed; standard deviation)" in " ".join(lines)
    assert not (tmp_path / "out").exists()
    assert main(["sweep", f"--gin_file={name}", "--dry_run", "--topology=v4:2x2x1"]) == 0
    assert "estimate of `flanx plan` on v4:2x2x1" in capsys.readouterr().out
    (tmp_path / "out" / "runs" / "a").mkdir(parents=True)
    (tmp_path / "out" / "runs" / "a" / "done.json").write_text("{}")
    assert main(["sweep", f"--gin_file={name}", "--dry_run", "--keep"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"--gin.MODEL_DIR=\"'{tmp_path}/out/runs/b'\"" in lines[0]
    assert not any(line.startswith("flanx train") for line in lines[1:])
    assert [line.split()[:2] for line in lines if line.startswith("a ")] == [["a", "done"]]
    assert "without 1 done: 0 FLOPs, 0 chip-hours" in " ".join(lines)


def test_the_command_runs_a_sweep_and_leaves_its_report(tmp_path, program, capsys):
    bindings = BOUND.replace("{'STORE_DIR'", "{'D': 1, 'TASKS': 2, 'STORE_DIR'")
    (tmp_path / "more.gin").write_text("D = 5\nTASKS = %D\nUSED = %TASKS\nALSO = %USED\nEVAL_PERIOD = %ALSO\n")
    name = sweep_gin(tmp_path, f"grid.Sweep.bindings = {bindings}", ONE)
    text = pathlib.Path(name).read_text().replace("'evals/suite.gin'", f"'evals/suite.gin', '{tmp_path}/more.gin'")
    pathlib.Path(name).write_text(text)
    assert main(["sweep", f"--gin_file={name}", "--jobs=2", "--only=a", f"--launcher={' '.join(program)}"]) == 0
    said, progress = capsys.readouterr()
    assert "[1/1] a: done in" in progress and "no score (not run)" in said and "report.html" in said
    out = tmp_path / "out"
    assert (out / "results.csv").read_text().count("\n") == 3
    config.parse([str(out / "sweep.gin")])  # what the sweep was, to be given back
    assert list(config.make(Sweep).axes["size"]) == ["a", "b"]
    assert report.is_sweep(str(out))


def test_points_done_with_other_settings_are_named_kept_or_set_aside_and_run_again(tmp_path, program, capsys):
    bindings = BOUND.replace("{'STORE_DIR'", "{'D': 1, 'TASKS': 2, 'STORE_DIR'")
    (tmp_path / "more.gin").write_text("D = 5\nTASKS = %D\nUSED = %TASKS\nALSO = %USED\nEVAL_PERIOD = %ALSO\n")

    def sweep(steps: int, *flags: str) -> int:
        bound = bindings.replace("'TRAIN_STEPS': 2", f"'TRAIN_STEPS': {steps}")
        name = sweep_gin(tmp_path, f"grid.Sweep.bindings = {bound}", ONE)
        text = pathlib.Path(name).read_text().replace("'evals/suite.gin'", f"'evals/suite.gin', '{tmp_path}/more.gin'")
        pathlib.Path(name).write_text(text)
        return main(["sweep", f"--gin_file={name}", f"--launcher={' '.join(program)}", *flags])

    assert sweep(2) == 0
    config.parse([str(tmp_path / "own.gin")])
    for point in config.make(Sweep).points():  # what a run records, and its stand-in does not
        config.parse(point.gin_files, point.all_bindings())
        (point.folder / "config.gin").write_text(config.text())
        (point.folder / "done.json").write_text('{"step": 2}')
    log, folder = tmp_path / "out" / "runs.log", tmp_path / "out" / "runs"
    before = log.read_text()
    recorded = folder / "a" / "config.gin"  # of an earlier version, without an option that is left off
    older = [line for line in recorded.read_text().splitlines() if "TRAINABLE" not in line]
    assert len(older) == len(recorded.read_text().splitlines()) - 2
    recorded.write_text("\n".join(older))
    assert sweep(2) == 0 and log.read_text() == before
    capsys.readouterr()
    assert sweep(3, "--dry_run") == sweep(3) == 2
    said = capsys.readouterr().err
    assert "a is done with other settings: TRAIN_STEPS was 2, now 3" in said and "--redo" in said and "--keep" in said
    assert sweep(3, "--keep") == 0 and log.read_text() == before
    assert sweep(3, "--redo") == 0 and sorted(log.read_text().split()) == ["a", "a", "b", "b"]
    assert '"step": 2' in (folder / "a.1" / "done.json").read_text() and not (folder / "a.2").exists()
    assert (folder / "a" / "done.json").read_text() == "{}"


def test_points_in_a_bucket_are_set_aside_there_unless_another_driver_is_at_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dependencies, "changed", lambda points, _: {point.name: ["x"] for point in points})
    grid = Sweep(out_dir="gs://bucket/out", gin_files=["runs/train.gin"], axes={"s": {"a": []}})
    args = argparse.Namespace(keep=False, redo=True, gin_search_paths="")
    with bucket_case.service() as service:
        service.objects |= {f"out/runs/a/{name}": (b"{}", 5) for name in ("done.json", "run.json", "checkpoints/x")}
        before = dict(service.objects)
        for held in ("out/runs/a/.flanx.lease", "out/drivers/a/.flanx.lease"):
            service.objects[held] = b'{"pid": 5, "host": "far"}', 6
            with bucket.copied([grid.out_dir]) as (copy,), pytest.raises(UserError, match="a: another driver runs it"):
                command.settle_changed(dataclasses.replace(grid, out_dir=copy).points(), args)
            del service.objects[held]
            assert service.objects == before
        with bucket.copied([grid.out_dir]) as (copy,):
            command.settle_changed(dataclasses.replace(grid, out_dir=copy).points(), args)
        assert {name.replace("/a.1/", "/a/") for name in service.objects} == set(before)
    assert capsys.readouterr().out == "a: set aside as gs://bucket/out/runs/a.1\n"


def test_no_verify_of_a_sweep_counts_for_its_runs(tmp_path, monkeypatch):
    point = Sweep(out_dir=str(tmp_path), gin_files=["runs/train.gin"], axes={"s": {"a": []}}).points()[0]
    assert "--no_verify" not in point.arguments()
    monkeypatch.setattr(files, "verifying", False)
    assert point.arguments().count("--no_verify") == 1


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


@pytest.mark.slow
def test_many_adapters_over_one_base_are_one_sweep(tmp_path, capsys):
    bound = {
        "STORE_DIR": str(run_case.store_dir()), "VOCABULARY": "byte", "MIXTURE_OR_TASK_NAME": "own", "BATCH_SIZE": 4,
        "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 16}, "TRAIN_STEPS": 4, "SUITES": ["suite_rule[:1]"],
        "INITIAL_CHECKPOINT_PATH": str(run_case.undisturbed()), "t5.T5.num_encoder_layers": 1,
        "t5.T5.num_decoder_layers": 1, "t5.T5.emb_dim": 16,
    }  # fmt: skip
    axes = {"rank": {1: ["LORA_RANK=1"], 4: ["LORA_RANK=4"]}, "layers": {"few": [], "all": ["LORA_TARGETS=['.*']"]}}
    file = sweep_gin(tmp_path, f"grid.Sweep.bindings = {bound}", f"grid.Sweep.axes = {axes}")
    text = pathlib.Path(file).read_text().replace("'evals/suite.gin'", "'evals/suite.gin', 'runs/lora.gin'")
    pathlib.Path(file).write_text(text)
    done = run_case.finish(
        [run_case.launch([sys.executable, "-m", "flanx", "sweep", f"--gin_file={file}", "--jobs=2"])]
    )
    assert done[0][0] == 0, done
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert {(row["rank"], row["layers"]) for row in rows} == {(r, k) for r in "14" for k in ("few", "all")}
    assert all(row["score"] for row in rows)
    records = list((tmp_path / "out" / "runs").glob("*/run.json"))
    assert len(records) == 4
    for record in records:
        found = files.read_json(record)
        assert found["initial_checkpoint_path"] == str(run_case.undisturbed()) and found["adapter"]["rank"] in (1, 4)
        folder = record.parent / "checkpoints"
        assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 400_000
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "rank" in (tmp_path / "out" / "report.md").read_text()


def test_a_store_that_is_not_built_stops_its_own_points(monkeypatch):
    codes = {"good": 0, "part": 1, "bad": 2}
    monkeypatch.setattr(
        command.subprocess, "run", lambda words, check: subprocess.CompletedProcess(words, codes[words[-1]])
    )
    stores = {name: [name] for name in codes}
    needs = {name: dependencies.Dependencies(None, 5, name, "byte") for name in codes} | {
        "eval": dependencies.Dependencies("p", 0, "bad", "byte")
    }
    blocked, complete = command.build_stores(stores, needs)
    assert list(blocked) == ["bad"] and "exit status 2" in blocked["bad"] and not complete
    with pytest.raises(UserError, match="no store was built"):
        command.build_stores({"bad": ["bad"]}, {"bad": needs["bad"]})


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        ("SUITES=['x']", "no evaluation suite 'x'"),
        ("SUITES=['gsm8k_cot[:1]'] DATA_DIR='nosuch'", "DATA_DIR nosuch: no such folder"),
        ("SUITES=['suite_rule[:1]'] EVAL_BATCH_SIZE=0", "EVAL_BATCH_SIZE is 0"),
        ("SUITES=['suite_rule[:1]+sc1']", "needs at least two samples"),
    ],
)
def test_a_dry_run_looks_at_the_suites_of_every_point(tmp_path, capsys, binding, said):
    axes = f"grid.Sweep.axes = {{'size': {{'a': [], 'b': {binding.split(' ')}}}}}"
    name = sweep_gin(tmp_path, f"grid.Sweep.bindings = {BOUND}", axes)
    assert main(["sweep", f"--gin_file={name}", "--dry_run"]) == 2
    errors = capsys.readouterr().err
    assert said in errors and errors.count("\n") == 1
