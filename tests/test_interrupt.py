"""Ctrl-C amid an import comes after it, and elsewhere at once."""

import importlib
import os
import signal
import sys
import time

import pytest

from flanx.cli import interrupt


@pytest.fixture(autouse=True)
def deferred():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.defer()
    yield
    signal.signal(signal.SIGINT, before)


def test_an_import_ends_before_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = ["import os, signal, time", "os.kill(os.getpid(), signal.SIGINT)", "time.sleep(0.2)", "is_whole = True"]
    (tmp_path / "interrupted_module.py").write_text("\n".join(lines))
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("interrupted_module")
        time.sleep(20)
    assert sys.modules["interrupted_module"].is_whole


def test_elsewhere_it_comes_at_once():
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    assert time.monotonic() - began < 5


def test_who_handles_it_already_keeps_it():
    def mine(*_):
        raise AssertionError

    signal.signal(signal.SIGINT, mine)
    interrupt.defer()
    assert signal.getsignal(signal.SIGINT) is mine
