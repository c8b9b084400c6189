"""Identifies a process of this machine (ids are reused, also after a reboot), and handles requests to stop."""

import contextlib
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

from flanx.errors import Preempted


def describe(number: int) -> dict[str, Any]:
    """A process as identified in a record: {"host", "pid"}, and on Linux its start ("started": clock ticks after boot,
    None for one that has ended) and the boot with its pid namespace ("machine")."""
    with contextlib.suppress(OSError, IndexError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space, started = os.readlink("/proc/self/ns/pid"), None
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stat = pathlib.Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
            state, *values = stat.rpartition(")")[2].split()
            started = values[18] if state != "Z" else None  # Z: ended, not reaped
        return {"host": socket.gethostname(), "pid": number, "started": started, "machine": f"{boot} {space}"}
    return {"host": socket.gethostname(), "pid": number}


def is_here(record: Mapping[str, Any]) -> bool:
    """Whether a record's process is, or was, on this machine since its last boot, as far as the system tells."""
    own = describe(os.getpid())
    return "machine" in own and record.get("machine") == own["machine"] and isinstance(record.get("pid"), int)


def is_running(record: Mapping[str, Any]) -> bool:
    """Whether a record's process, not another with its pid, is still running on this machine; by pid only if the
    system, or an older record, has no more."""
    if "machine" in record:
        started = record.get("started")
        return is_here(record) and started is not None and describe(record["pid"]).get("started") == started
    number = record.get("pid")
    if record.get("host") != socket.gethostname() or not isinstance(number, int) or number <= 0:
        return False
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """`handler` for these signals in this block; ignored ones, such as SIGHUP under nohup, stay ignored. Main thread
    only, a limit of Python: elsewhere nothing changes."""
    kept: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        kept = {number: signal.getsignal(number) for number in numbers}
        kept = {number: each for number, each in kept.items() if each not in (signal.SIG_IGN, None)}
    for number in kept:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, each in kept.items():
            signal.signal(number, each)


def signals_as_interrupt() -> contextlib.AbstractContextManager[None]:
    """Handles SIGTERM and SIGHUP like Ctrl-C, as a KeyboardInterrupt; ignored ones stay so, main thread only."""
    return _handled((signal.SIGTERM, signal.SIGHUP), signal.default_int_handler)


@contextlib.contextmanager
def stops_deferred() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP in this block take effect at its end: for starting a program, which would otherwise be
    running with nobody holding its Popen. Ignored ones stay so; main thread only."""
    stops, came = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP), list[int]()
    try:
        with _handled(stops, lambda number, _: came.append(number)):
            yield
    finally:
        for stop in came:
            signal.raise_signal(stop)


@contextlib.contextmanager
def preempted(message: str) -> Iterator[None]:
    """Raises Preempted with this message on SIGTERM, SIGHUP and Ctrl-C."""
    with signals_as_interrupt():
        try:
            yield
        except KeyboardInterrupt:
            raise Preempted(message) from None
