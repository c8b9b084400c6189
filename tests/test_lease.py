"""Who may write to a folder of a bucket, against the service of this process."""

import json
import os
import subprocess
import time

import pytest

from flanx import lease, process
from flanx.errors import UserError
from flanx.lease import Lease, LeaseLost
from flanx.storage import ABSENT, Storage, open_storage
from tests import bucket_case


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    monkeypatch.setattr(lease, "_seen", {})
    with bucket_case.service():
        yield open_storage("gs://bucket/run")


def elsewhere(folder: Storage) -> None:
    """A lease that a process of another machine left."""
    record = {"token": "x", "beat": 1, "host": "far", "pid": 5, "machine": "another"}
    folder.put(lease.NAME, json.dumps(record).encode(), ABSENT)


def fails(error: UserError) -> None:
    raise AssertionError(error)


def test_a_folder_has_one_holder_until_it_is_released(folder: Storage):
    first, second = Lease(folder, fails), Lease(folder, fails)
    first.acquire()
    with pytest.raises(UserError, match=rf"gs://bucket/run: another .* writing there \(process {os.getpid()} on "):
        second.acquire()
    assert lease.is_alive(folder) and not second.try_acquire()
    first.release()
    assert not lease.is_alive(folder) and second.try_acquire()
    second.release()


def test_a_lease_that_is_not_renewed_is_taken_over_after_its_time_and_not_before(folder: Storage, capsys):
    elsewhere(folder)
    began, mine = time.monotonic(), Lease(folder, fails)
    mine.acquire()
    assert time.monotonic() - began >= 0.5
    assert "waits up to 0 s for a sign of life of process 5 on far" in capsys.readouterr().out
    mine.release()


def test_the_lease_of_a_process_that_ended_on_this_machine_is_taken_at_once(folder: Storage, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_S", 60.0)
    with subprocess.Popen(["sleep", "60"]) as ended:
        record = {"token": "x", "beat": 1, **process.describe(ended.pid)}
        ended.kill()
    folder.put(lease.NAME, json.dumps(record).encode(), ABSENT)
    mine, began = Lease(folder, fails), time.monotonic()
    mine.acquire()
    assert time.monotonic() - began < 30
    mine.release()


def test_who_asks_again_and_again_takes_what_gives_no_sign_of_life(folder: Storage):
    elsewhere(folder)
    mine, began = Lease(folder, fails), time.monotonic()
    while not mine.try_acquire():
        time.sleep(0.05)
    assert 0.5 <= time.monotonic() - began < 5
    mine.release()


def test_who_lost_the_lease_learns_it_at_the_next_renewal_and_leaves_the_other_its_own(folder: Storage):
    lost: list[UserError] = []
    mine = Lease(folder, lost.append)
    mine.acquire()
    folder.remove(lease.NAME)
    elsewhere(folder)
    for _ in range(100):
        time.sleep(0 if lost else 0.05)
    assert isinstance(lost[0], LeaseLost) and "process 5 on far took it over" in str(lost[0])
    with pytest.raises(LeaseLost):
        mine.confirm()
    mine.release()
    assert folder.find(lease.NAME) is not None


def test_a_renewal_whose_answer_was_lost_is_one(folder: Storage, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 60.0)
    mine = Lease(folder, fails)
    mine.acquire()
    mine._generation = ABSENT  # as if the write had been done without this process's knowing
    mine.confirm()
    mine.confirm()
    mine.release()
    assert folder.find(lease.NAME) is None
