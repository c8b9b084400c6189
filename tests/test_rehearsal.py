"""The rehearsal of a reproduction: its drawn files; the whole road, undisturbed and killed in every stage."""

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

from flanx.data.task import sources, tables
from flanx.data.task.row import BadRow
from flanx.reproduction import rehearsal

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_drawn_files_are_read_as_the_real_ones_are(tmp_path, monkeypatch):
    texts = rehearsal.draw_tasks(tmp_path)
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path / "sample"))
    public, known = tmp_path / "sample" / "public", tables.load_tables()
    for collection in ("cot", "niv2"):  # what `flanx tasks fetch` brings
        for path in (public / collection).iterdir():
            target = tmp_path / "data" / ("cot" if collection == "cot" else "natural_instructions/tasks") / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for name in rehearsal.FETCHED:
        if rehearsal.ABSENT in name:
            continue
        for split in known[name].splits:
            rows = [row for _, row in sources.raw_rows(known[name], split, tmp_path / "data")]
            assert len(rows) == (8 if split in ("validation", "test") else rehearsal.EXAMPLES), (name, split)
            assert not any(isinstance(row, BadRow) for row in rows), name
    assert known["cot_gsm8k"].url == f"{public.as_uri()}/cot/{{file}}"
    assert rehearsal.draw_tasks(tmp_path / "again") == texts  # the same everywhere


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they did."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, last = [], [pid]
    while last:
        last = [child for child, parent in parents.items() if parent in last]
        found += last
    return found


def walk(folder: pathlib.Path, kill_at: str = "", after: float = 0.0) -> int:
    """Runs the command; with `kill_at` it and all its processes are killed so long after that stage began."""
    command = [sys.executable, "-m", "flanx", "reproduce", "flan_t5_small", "--rehearse", f"--folder={folder}"]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # a user's machine: one device
    with open(folder.with_suffix(".log"), "a") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout
    with process:
        for line in process.stdout:
            if kill_at and f"] {kill_at}: flanx" in line:
                time.sleep(after)
                for pid in [process.pid, *descendants(process.pid)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                break
        process.stdout.read()
        return process.wait()


def results(folder: pathlib.Path) -> dict[str, object]:
    """The scores of every evaluation, and the parameters that are given away."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("scores/*/scores.json")):
        suites = json.loads(path.read_text())["suites"]
        found[path.parent.name] = {name: (entry["score"], entry["n"], entry["spec"]) for name, entry in suites.items()}
    for path in sorted(folder.glob("exports/*_d[0-9][0-9]/flanx_convert.json")):  # not what a kill had set aside
        found[path.parent.name] = json.loads(path.read_text())["fingerprint"]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the processes in /proc")
def test_the_whole_road_and_the_same_one_killed_in_every_stage(tmp_path):
    began = time.monotonic()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert walk(whole) == 0
    assert time.monotonic() - began < 15 * 60
    stages = [path.stem for path in sorted((whole / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime)]
    assert len(stages) == 12
    draws = random.Random(0)
    for stage in stages:
        seconds = json.loads((whole / "stages" / f"{stage}.json").read_text())["seconds"]
        assert walk(killed, stage, draws.uniform(0.1, 0.8) * seconds) == -signal.SIGKILL, stage
    assert walk(killed) == 0
    found = results(whole)
    assert len(found) == 9 and results(killed) == found
    report = (whole / "report.md").read_text()
    assert report.count("| published: Flan-T5-Small |") == 3 and report.count("sample data") >= 36
    run = json.loads((whole / "runs" / "flan_t5_small_d32" / "run.json").read_text())
    assert run["data"]["mixture"]["tasks"] == 9 and len(run["data"]["mixture"]["missing"]) == 1836 - 9
    assert run["initial_checkpoint_step"] == rehearsal.STEP
    card = (whole / "exports" / "flan_t5_small_d32" / "README.md").read_text()
    assert "mmlu_direct" in card and str(tmp_path) not in card
