"""The state of a sweep's points: updated under a lock by any number of processes, and checked against the runs."""

import json
import multiprocessing
import pathlib

import pytest

from flanx import bucket, lease
from flanx.errors import UserError
from flanx.mirror import Mirror
from flanx.storage import open_storage
from flanx.sweep import state
from flanx.sweep.state import State
from tests import bucket_case, sweep_maker


def _write(folder: pathlib.Path, name: str) -> None:
    for attempt in range(20):
        State(folder).write(name, state="running", attempts=attempt)


def test_writes_of_several_processes_are_all_kept(tmp_path: pathlib.Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(tmp_path, f"p{i}")) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {name: entry["attempts"] for name, entry in State(tmp_path).read().items()} == {"p0": 19, "p1": 19, "p2": 19}


def test_what_the_file_says_is_checked_against_the_runs(tmp_path: pathlib.Path) -> None:
    sweep = sweep_maker.make(tmp_path, axes={"size": {name: [] for name in ("new", "gone", "killed", "failed", "ran")}})
    points = {point.name: point for point in sweep.points()}
    sweep_maker.leave(points["ran"].folder, {})
    entries = {"gone": {"state": "done"}, "killed": {"state": "running"}, "failed": {"state": "failed", "reason": "x"}}
    (tmp_path / "state.json").write_text(json.dumps(entries))
    assert State(tmp_path).statuses(sweep.points()) == {
        **{"new": ("not run", ""), "gone": ("not run", ""), "killed": ("stopped", "")},
        **{"failed": ("failed", "x"), "ran": ("done", "")},
    }


def test_a_held_lock_is_seen_and_a_shared_one_is_shared(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lock"
    assert not state.is_held(path)
    with state.inheritable_lock(path) as descriptor:
        assert descriptor is not None and state.is_held(path)
    with state.inheritable_lock(path, shared=True), state.inheritable_lock(path, shared=True) as second:
        assert second is not None and state.is_held(path)
    assert not state.is_held(path)


@pytest.mark.parametrize(
    "damage", ['{"a": 5}', '{"a": {}}', '{"a": {"state": 5}}', '{"a": {"state": "done", "at": NaN}}']
)
def test_a_damaged_state_is_named(tmp_path: pathlib.Path, damage: str) -> None:
    (tmp_path / "state.json").write_text(damage)
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        State(tmp_path).read()


def test_in_a_bucket_no_change_of_another_driver_is_lost_and_its_runs_are_not_taken(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path))
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    offer = Mirror.offer

    def late(self, path: pathlib.Path, content: bytes) -> bool:
        if "late" not in vars(self):
            self.late = True
            self.folder.write("state.json", '{"other": {"state": "done"}}')
        return offer(self, path, content)

    with bucket_case.service(), bucket.copied(["gs://bucket/out"], may_be_empty=True) as folders:
        own = State(folders[0])
        monkeypatch.setattr(Mirror, "offer", late)
        own.write("mine", state="running")
        assert {name: entry["state"] for name, entry in own.read().items()} == {"other": "done", "mine": "running"}
        run, remote = own.folder / "runs" / "a", open_storage("gs://bucket/out")
        run.mkdir(parents=True)
        assert not state.is_done(run)
        with state.inheritable_lock(run / "lock") as descriptor:
            assert descriptor is not None and lease.is_alive(remote / "drivers" / "a")
        assert not state.is_held(run / "lock")
        (remote / "drivers" / "a").write(lease.NAME, '{"token": "x", "pid": 1, "host": "far", "machine": "y"}')
        with state.inheritable_lock(run / "lock") as descriptor:
            assert descriptor is None and state.is_held(run / "lock")
        (remote / "runs" / "a").write("done.json", "{}")
        assert state.is_done(run)
