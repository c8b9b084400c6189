"""Processes by more than their numbers."""

import os
import signal
import subprocess

import pytest

from flanx import process
from flanx.errors import Preempted


def test_a_process_is_known_until_it_ends():
    with subprocess.Popen(["sleep", "60"]) as other:
        record = process.describe(other.pid)
        assert process.is_here(record) and process.is_running(record)
        assert not process.is_running(record | {"host": "h", "machine": "another boot"})
        other.kill()
    assert not process.is_running(record) and not process.is_running({"host": record["host"], "pid": other.pid})


def test_a_number_that_came_again_is_another_process():
    own = process.describe(os.getpid())
    if "machine" not in own:
        pytest.skip("the system does not say when a process began")
    assert process.is_running(own) and not process.is_running(own | {"started": str(int(own["started"]) - 1)})
    assert not process.is_running(own | {"started": None})


def test_a_record_without_more_is_known_by_its_number():
    named = {"host": process.describe(1)["host"], "pid": os.getpid()}
    assert process.is_running(named) and not process.is_running(named | {"host": "another"})
    for pid in (0, -1, 2**80, "5", None):
        assert not process.is_running(named | {"pid": pid})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_that_ask_a_process_to_stop_preempt_it(number):
    before = signal.getsignal(number)
    with pytest.raises(Preempted, match="saved"), process.preempted("saved"):
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so():
    """SIGHUP, under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process.preempted("saved"):
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) == signal.default_int_handler
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stop_as_a_program_starts_comes_once_it_is_held(number):
    before = signal.getsignal(number)
    held = []
    with pytest.raises(Preempted, match="saved"), process.preempted("saved"), process.stops_deferred():
        signal.raise_signal(number)
        held.append("its Popen")
    assert held and signal.getsignal(number) == before
