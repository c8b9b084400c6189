"""Stages one after the other, with a stand-in for `flanx`: done once, resumed after a kill, named when changed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from flanx.errors import Preempted, UserError
from flanx.reproduction import road
from flanx.reproduction.road import Road
from flanx.reproduction.stage import Stage

ROOT = pathlib.Path(__file__).resolve().parent.parent
# `STAGE PATH [READS]`: logs itself, waits while PATH.slow is there, fails while PATH.bad is, then writes what it read
PROGRAM = """
import pathlib, signal, sys, time
name, path, *reads = sys.argv[1:]
folder = pathlib.Path(path).parent
with open(folder / "log", "a") as log:
    log.write(name + "\\n")

def stop(*_):
    with open(folder / "signals", "a") as file:
        file.write("stopped\\n")
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
print("output of", name, flush=True)
while pathlib.Path(path + ".slow").exists():
    time.sleep(0.02)
if pathlib.Path(path + ".bad").exists():
    sys.exit(3)
pathlib.Path(path).write_text(name + "".join(pathlib.Path(read).read_text() for read in reads))
"""
DRIVER = """
import pathlib, sys
sys.path.insert(0, {root!r})
from flanx.errors import Preempted, UserError
from tests import test_road
try:
    sys.exit(test_road.three(pathlib.Path({folder!r})).run())
except (Preempted, UserError) as error:
    print(error, file=sys.stderr)
    sys.exit(75 if isinstance(error, Preempted) else 2)
"""


def three(folder: pathlib.Path, **settings: str) -> Road:
    """Stages a, b, c, each reading what the one before wrote; `settings` are of b."""
    script = folder / "program.py"
    if not script.exists():
        script.write_text(PROGRAM)
    road.PROGRAM = (sys.executable, str(script))

    def stage(name: str, reads: str = "", **more) -> Stage:
        words = [name, str(folder / name), *([str(folder / reads)] if reads else [])]
        inputs = {reads: str(folder / reads)} if reads else {}
        return Stage(
            name, lambda: [words], lambda: settings if name == "b" else {}, inputs, [str(folder / name)], **more
        )

    stages = [stage("a"), stage("b", "a", page=str(folder / "b.txt")), stage("c", "b", is_resumed=False)]
    return Road(folder, stages)


@pytest.fixture(autouse=True)
def program(monkeypatch):
    monkeypatch.setattr(road, "PROGRAM", road.PROGRAM)  # put back what `three` changes


def log(folder: pathlib.Path) -> str:
    """The stages that ran, in their order."""
    return "".join((folder / "log").read_text().split())


def test_each_stage_is_done_once_in_order(tmp_path, capsys):
    assert three(tmp_path).run() == 0
    assert log(tmp_path) == "abc" and (tmp_path / "c").read_text() == "cba"
    assert (tmp_path / "b.txt").read_text() == "output of b\n"
    mark = json.loads((tmp_path / "stages" / "b.json").read_text())
    assert mark["inputs"]["a"] == road.digest(str(tmp_path / "a")) and mark["commands"][0].startswith("flanx b ")
    capsys.readouterr()
    assert three(tmp_path).run() == 0
    assert log(tmp_path) == "abc" and capsys.readouterr().out.count("done before") == 3


def test_changed_settings_and_inputs_are_named_and_nothing_runs(tmp_path):
    assert three(tmp_path, steps="10").run() == 0
    named = r"b is done with other settings or inputs: steps was 10, now 20; rate was not set, now 1\n.*--redo=b"
    with pytest.raises(UserError, match=named):
        three(tmp_path, steps="20", rate="1").run()
    (tmp_path / "a").write_text("another")
    with pytest.raises(UserError, match=r"b is done .*: a \(.*/a\) is not the one that it read"):
        three(tmp_path, steps="10").run()
    assert log(tmp_path) == "abc"


def test_redo_and_keep(tmp_path, capsys):
    assert three(tmp_path, steps="10").run() == 0
    assert three(tmp_path, steps="20").run(keep=True) == 0
    assert "kept, though steps was 10, now 20" in capsys.readouterr().out and log(tmp_path) == "abc"
    assert three(tmp_path, steps="20").run(redo="b") == 0
    assert log(tmp_path) == "abcbc" and (tmp_path / "b.1").read_text() == "ba" and (tmp_path / "c.1").exists()
    assert three(tmp_path, steps="20").run() == 0 and log(tmp_path) == "abcbc"


def test_redo_of_a_stage_that_was_stopped_half_way_sets_aside_what_it_left(tmp_path):
    (tmp_path / "b.bad").touch()
    assert three(tmp_path).run() == 3
    (tmp_path / "b.bad").unlink()
    (tmp_path / "b").write_text("half")
    assert three(tmp_path).run(redo="b") == 0
    assert log(tmp_path) == "abbc" and (tmp_path / "b.1").read_text() == "half" and not (tmp_path / "a.1").exists()


def test_a_kill_amid_redo_does_not_take_old_results_for_new_ones(tmp_path, monkeypatch):
    assert three(tmp_path).run() == 0

    set_aside = road.set_aside

    def kill(path: str) -> None:
        if path.endswith("/b"):
            raise KeyboardInterrupt
        set_aside(path)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(road, "set_aside", kill)
        three(tmp_path).run(redo="b")
    assert three(tmp_path).run(redo="b") == 0
    assert log(tmp_path) == "abcbc" and (tmp_path / "b.1").exists() and (tmp_path / "c.1").exists()


def test_a_failure_ends_the_road_with_its_status_and_the_next_run_goes_on_there(tmp_path, capsys):
    (tmp_path / "b.bad").touch()
    assert three(tmp_path).run() == 3
    assert log(tmp_path) == "ab" and "b: failed (exit status 3)" in capsys.readouterr().err
    (tmp_path / "b.bad").unlink()
    assert three(tmp_path).run() == 0 and log(tmp_path) == "abbc"


def test_what_a_stage_left_that_is_not_resumed_is_set_aside(tmp_path):
    (tmp_path / "c").write_text("half")
    assert three(tmp_path).run() == 0
    assert (tmp_path / "c.1").read_text() == "half" and (tmp_path / "c").read_text() == "cba"


def test_skipped_stages_and_what_would_be_done(tmp_path):
    assert three(tmp_path).run(skipped=["c"]) == 0 and log(tmp_path) == "ab"
    lines = list(three(tmp_path, steps="1").describe(["c"]))
    assert lines[0] == "[1/3] a: done" and lines[2] == "[2/3] b: done, but steps was not set, now 1"
    assert lines[4] == "[3/3] c: skipped" and lines[5] == f"  flanx c {tmp_path}/c {tmp_path}/b"
    for flags in ({"skipped": ["d"]}, {"redo": "bb"}):
        with pytest.raises(UserError, match=r"no such stage.*they are a, b, c"):
            three(tmp_path).run(**flags)
    with pytest.raises(UserError, match="--skip=b and --redo=b exclude each other"):
        three(tmp_path).run(skipped=["b"], redo="b")
    assert log(tmp_path) == "ab" and not (tmp_path / "b.1").exists()


def test_a_damaged_mark_is_named(tmp_path):
    assert three(tmp_path).run() == 0
    path = tmp_path / "stages" / "a.json"
    for text in ('{"settings"', '{"settings": {}}', '{"settings": 5}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a\.json is damaged.*remove"):
            three(tmp_path).run()


# ---- kills -----------------------------------------------------------------------------------------------------------


def start(folder: pathlib.Path, stage: str) -> subprocess.Popen:
    """A driver in a process of its own, caught in a stage."""
    (folder / f"{stage}.slow").touch()
    three(folder)
    code = DRIVER.format(root=str(ROOT), folder=str(folder))
    with open(folder / "said", "w") as said:  # no pipe: its command, which outlives it, would hold it open
        driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=said)
    while not (folder / "log").exists() or not log(folder).endswith(stage):
        assert driver.poll() is None
        time.sleep(0.02)
    return driver


@pytest.mark.parametrize("stage", ["a", "b", "c"])
def test_after_a_kill_in_any_stage_the_same_command_goes_on(tmp_path, stage):
    driver = start(tmp_path, stage)
    driver.kill()
    driver.wait()
    with pytest.raises(UserError, match="is at work there"):  # its command has outlived it
        three(tmp_path).run()
    (tmp_path / f"{stage}.slow").unlink()
    limit = time.monotonic() + 20
    while not (tmp_path / stage).exists():
        assert time.monotonic() < limit
        time.sleep(0.02)
    while True:  # until the command has ended
        try:
            assert three(tmp_path).run() == 0
            break
        except UserError:
            assert time.monotonic() < limit
            time.sleep(0.02)
    before = "abc"[: "abc".index(stage) + 1]
    assert log(tmp_path) == before + "abc"["abc".index(stage) :] and (tmp_path / "c").read_text() == "cba"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_command_once_and_the_status_is_of_a_preemption(tmp_path, number):
    driver = start(tmp_path, "b")
    os.kill(driver.pid, number)
    assert driver.wait(20) == 75
    assert "stopped in the stage b; the same command resumes there" in (tmp_path / "said").read_text()
    assert (tmp_path / "signals").read_text() == "stopped\n"
    (tmp_path / "b.slow").unlink()
    assert three(tmp_path).run() == 0 and log(tmp_path) == "abbc"


def test_a_command_that_was_preempted_ends_the_road_so(tmp_path):
    quits = "import sys; sys.exit(75)"
    stages = [Stage("a", lambda: [["-c", quits]], dict)]
    road.PROGRAM = (sys.executable,)
    with pytest.raises(Preempted, match="stopped in the stage a"):
        Road(tmp_path, stages).run()
