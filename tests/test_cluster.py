"""Several processes as one run, for real: on loopback, with gloo."""

import argparse
import json
import pathlib
import signal
import threading
import time

import numpy as np
import pytest

from flanx import cluster
from flanx.errors import UserError
from tests import run_case


def flags(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"coordinator_address": None, "num_processes": None, "process_id": None} | given)


def test_place_from_flags_and_environment() -> None:
    given = flags(coordinator_address="a:1", num_processes=4, process_id=2)
    assert cluster.locate(given, {}) == cluster.Place("a:1", 4, 2)
    named = {"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "1"}
    assert cluster.locate(flags(), named) == cluster.Place("b:2", 3, 1)
    indexed = {"JAX_COORDINATOR_ADDRESS": "b:2", "JAX_NUM_PROCESSES": "3", "JOB_COMPLETION_INDEX": "2"}
    assert cluster.locate(flags(), indexed) == cluster.Place("b:2", 3, 2)
    assert cluster.locate(flags(), {}) is None
    assert cluster.locate(flags(coordinator_address="a:1", num_processes=1, process_id=0), {}) is None


def test_place_that_cannot_be() -> None:
    with pytest.raises(UserError, match="need --coordinator_address"):
        cluster.locate(flags(num_processes=2), {})
    with pytest.raises(UserError, match="number is not known"):
        cluster.locate(flags(coordinator_address="a:1"), {})
    with pytest.raises(UserError, match="process 4 of 4 at 'a:1': numbers run from 0"):
        cluster.locate(flags(coordinator_address="a:1", num_processes=4, process_id=4), {})


def meet(count: int, facts: list[dict], timeout: float = 20.0) -> list[str | None]:
    """What each of the processes (threads here) hears of the roll call; None for all well."""
    address = f"127.0.0.1:{run_case.free_port()}"
    heard: list[str | None] = [None] * len(facts)

    def one(i: int) -> None:
        joined = cluster.Cluster(cluster.Place(address, count, i), timeout)
        try:
            joined.agree("roll call", facts[i])
        except UserError as error:
            heard[i] = str(error)
        finally:
            joined.leave()

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(facts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def test_roll_call_of_equal_processes() -> None:
    assert meet(3, [{"code": "a"}] * 3) == [None] * 3


def test_roll_call_names_who_is_missing() -> None:
    heard = meet(4, [{"code": "a"}] * 2, timeout=1.0)
    assert all("no word from process 2, 3 (of 4) within 1 s" in text for text in heard)


def test_roll_call_names_what_differs_and_where() -> None:
    heard = meet(3, [{"code": "a", "jax": "1"}, {"code": "a", "jax": "1"}, {"code": "a", "jax": "2"}])
    assert all("'jax' differs between hosts: process 0 has 1, process 2 (" in text for text in heard)


def test_no_answer_from_process_0() -> None:
    with pytest.raises(UserError, match="did not answer within 0 s"):
        cluster.Cluster(cluster.Place(f"127.0.0.1:{run_case.free_port()}", 2, 1), 0.3)


def test_stop_is_one_step_for_all() -> None:
    address = f"127.0.0.1:{run_case.free_port()}"
    both = [cluster.Cluster(cluster.Place(address, 2, i), 10.0) for i in range(2)]
    threads = [threading.Thread(target=c.agree, args=("start", {})) for c in both]
    [t.start() for t in threads], [t.join() for t in threads]
    both[1].announce_stop(7)
    limit = time.monotonic() + 10
    while any(c.stop_step is None for c in both) and time.monotonic() < limit:
        time.sleep(0.01)
    assert [c.stop_step for c in both] == [7 + cluster.AHEAD] * 2
    [c.leave() for c in both]


def test_a_failure_is_told_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(cluster.Cluster, "_end", lambda self, reason: self._leaving or ended.append(reason))
    address = f"127.0.0.1:{run_case.free_port()}"
    both = [cluster.Cluster(cluster.Place(address, 2, i), 10.0) for i in range(2)]
    threads = [threading.Thread(target=c.agree, args=("start", {})) for c in both]
    [t.start() for t in threads], [t.join() for t in threads]
    both[1].fail("the loss of step 3 is nan")
    limit = time.monotonic() + 10
    while not ended and time.monotonic() < limit:
        time.sleep(0.01)
    both[0].leave()
    assert ended[0] == "process 1 failed: the loss of step 3 is nan"


@pytest.fixture(scope="module")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return run_case.make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def alone(store_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the run as a single process."""
    folder = tmp_path_factory.mktemp("alone")
    ((status, said),) = run_case.finish([run_case.launch(run_case.command(store_dir, folder))])
    assert status == 0, said
    return run_case.losses(folder)


def test_two_processes_lose_as_one_does(store_dir: pathlib.Path, alone: list[float], tmp_path: pathlib.Path) -> None:
    ended = run_case.finish(run_case.launch_many(2, [run_case.command(store_dir, tmp_path)] * 2))
    assert [status for status, _ in ended] == [0, 0], ended
    np.testing.assert_allclose(run_case.losses(tmp_path), alone, rtol=1e-5)
    assert json.loads((tmp_path / "done.json").read_text()) == {"step": 6}


def test_another_recipe_on_one_host_is_refused(store_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    commands = [run_case.command(store_dir, tmp_path), run_case.command(store_dir, tmp_path, SEED=1)]
    for status, said in run_case.finish(run_case.launch_many(2, commands)):
        assert status == 2
        assert "'recipe' differs between hosts" in said.splitlines()[-1]


@pytest.mark.slow
def test_checkpoint_of_four_processes_is_resumed_by_one_and_by_two(
    store_dir: pathlib.Path, alone: list[float], tmp_path: pathlib.Path
) -> None:
    for count in (1, 2):
        folder = tmp_path / str(count)
        ended = run_case.finish(run_case.launch_many(4, [run_case.command(store_dir, folder, TRAIN_STEPS=3)] * 4))
        assert [status for status, _ in ended] == [0] * 4, ended
        rest = run_case.command(store_dir, folder)
        ended = run_case.finish(run_case.launch_many(count, [rest] * count))
        assert [status for status, _ in ended] == [0] * count, ended
        np.testing.assert_allclose(run_case.losses(folder), alone, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_with_its_name_and_the_run_goes_on(
    store_dir: pathlib.Path, tmp_path: pathlib.Path, victim: int
) -> None:
    long = run_case.command(store_dir, tmp_path, TRAIN_STEPS=100000, CHECKPOINT_PERIOD=5)
    processes = run_case.launch_many(2, [long] * 2)
    wait_for_checkpoint(tmp_path)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    ended = run_case.finish(processes, timeout=90)
    assert time.monotonic() - began < 60
    assert ended[1 - victim][0] == cluster.LOST
    assert f"process {victim}" in ended[1 - victim][1].splitlines()[-1]
    kept = run_case.losses(tmp_path)[:5]
    again = run_case.command(store_dir, tmp_path, TRAIN_STEPS=latest(tmp_path) + 3, CHECKPOINT_PERIOD=5)
    ended = run_case.finish(run_case.launch_many(2, [again] * 2))
    assert [status for status, _ in ended] == [0, 0], ended
    assert run_case.losses(tmp_path)[:5] == kept


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_stops_all(store_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    long = run_case.command(store_dir, tmp_path, TRAIN_STEPS=100000, CHECKPOINT_PERIOD=5)
    processes = run_case.launch_many(2, [long] * 2)
    wait_for_checkpoint(tmp_path)
    processes[1].send_signal(signal.SIGTERM)
    assert [status for status, _ in run_case.finish(processes, timeout=90)] == [75, 75]


def latest(folder: pathlib.Path) -> int:
    return max((int(p.name.split("_")[1]) for p in folder.glob("checkpoints/checkpoint_*[0-9]")), default=0)


def wait_for_checkpoint(folder: pathlib.Path) -> None:
    limit = time.monotonic() + 300
    while not latest(folder) and time.monotonic() < limit:
        time.sleep(0.2)
