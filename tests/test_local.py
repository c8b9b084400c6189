"""`flanx launch local` with real processes of a real run."""

import os
import pathlib
import signal
import subprocess

import pytest

import flanx
from flanx.launch import local, record
from tests import run_case


def test_a_port_with_one_free_above():
    assert 0 < local.free_port() < 65536 - local.PORT_OFFSET


def launch(folder: pathlib.Path) -> subprocess.Popen:
    """Four processes on one run in `folder`/run."""
    flags = ["--processes=4", "--name=run-1", f"--folder={folder}", "--yes", "--no_plan", "--dirty", "--grace=60"]
    program, module, name, *words = run_case.command(folder / "run", TRAIN_STEPS=12)
    return run_case.launch([program, module, name, "launch", "local", *words, *flags])


def children(parent: int) -> dict[str, int]:
    """Processes of a launch by their number in the run."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
            parents = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        number = next((word.partition("=")[2] for word in words if word.startswith("--process_id=")), None)
        if number is not None and parents == parent:
            found[number] = int(path.parent.name)
    return found


def fingerprint(folder: pathlib.Path) -> str | None:
    """Of a run's last parameters."""
    return flanx.load(folder, vocabulary="byte").predictor.fingerprint()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the processes in /proc")
def test_one_of_four_is_killed_and_the_run_ends_as_undisturbed(tmp_path):
    whole = launch(tmp_path / "whole")
    ((status, said),) = run_case.finish([whole])
    assert status == 0, said
    disturbed = launch(tmp_path / "disturbed")
    run_case.wait_until(lambda: run_case.newest(tmp_path / "disturbed" / "run") >= 4, disturbed)
    victims = children(disturbed.pid)
    assert set(victims) == {"0", "1", "2", "3"}
    os.kill(victims["2"], signal.SIGKILL)
    ((status, said),) = run_case.finish([disturbed])
    assert status == 0 and "2 ended with -9" in said and "(0 of 3 without progress)" in said, said
    assert not children(disturbed.pid) and record.read(tmp_path / "disturbed" / "run-1").stage == record.ENDED
    assert run_case.losses(tmp_path / "disturbed" / "run") == run_case.losses(tmp_path / "whole" / "run")
    assert fingerprint(tmp_path / "disturbed" / "run") == fingerprint(tmp_path / "whole" / "run") is not None
