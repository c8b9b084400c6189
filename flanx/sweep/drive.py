"""Runs the points of a sweep: each its own process, finished ones skipped, a failing one named, the others finished."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from flanx.sweep.grid import Point

PROGRAM = (sys.executable, "-m", "flanx")
WAITING, RUNNING, DONE, FAILED, ELSEWHERE = "waiting", "running", "done", "failed", "run by another driver"


@dataclasses.dataclass
class Status:
    """What is known of a point while the sweep runs."""

    point: Point
    state: str = WAITING
    skipped: bool = False  # it was done before this driver started
    seconds: float = 0.0
    reason: str = ""


def drive(
    points: Sequence[Point],
    jobs: int,
    search_paths: str,
    show: Callable[[list[Status]], None],
    program: Sequence[str] = PROGRAM,
) -> list[Status]:
    """Runs every point that is not done, `jobs` at a time, and returns what became of each.

    `program` takes the arguments of a point: flanx itself, or a launcher that hands them to another machine and waits.
    A point is locked while a driver works on it, so that two drivers on one folder share the work and never run a
    point twice. `show` is called whenever a state changes and once a second.
    """
    statuses = [Status(point) for point in points]
    for status in statuses:
        if is_done(status.point):
            status.state, status.skipped = DONE, True
    running: dict[int, tuple[subprocess.Popen, contextlib.ExitStack, float]] = {}
    shown, shown_at = None, 0.0
    try:
        while any(s.state in (WAITING, ELSEWHERE) for s in statuses) or running:
            for index, status in enumerate(statuses):
                if status.state in (WAITING, ELSEWHERE) and len(running) < jobs:
                    _start(index, status, running, [*program, *status.point.arguments(search_paths)])
            for index in [i for i, (process, _, _) in running.items() if process.poll() is not None]:
                process, lock, began = running.pop(index)
                lock.close()
                _settle(statuses[index], process.returncode, time.monotonic() - began)
            states = [status.state for status in statuses]
            if states != shown or time.monotonic() - shown_at > 1.0:
                shown, shown_at = states, time.monotonic()
                show(statuses)
            time.sleep(0.1)  # the processes' own work takes seconds to days
    finally:
        for process, lock, _ in running.values():
            process.terminate()  # a run saves on SIGTERM and goes on when the sweep does
            process.wait()
            lock.close()
    show(statuses)
    return statuses


def is_done(point: Point) -> bool:
    """Whether the run of `point` wrote its last file."""
    return (point.folder / "done.json").exists()


def log_path(point: Point) -> pathlib.Path:
    """What the run of `point` printed."""
    return point.folder / "log.txt"


def _start(index: int, status: Status, running: dict, command: Sequence[str]) -> None:
    point = status.point
    point.folder.mkdir(parents=True, exist_ok=True)
    lock = contextlib.ExitStack()
    held = lock.enter_context(_hold(point.folder / "lock"))
    if held is None:
        lock.close()
        status.state = ELSEWHERE
        return
    if is_done(point):  # another driver finished it between the look and the lock
        lock.close()
        status.state, status.skipped = DONE, True
        return
    status.state = RUNNING
    with open(log_path(point), "ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"PYTHONUNBUFFERED": "1", **compilation_cache(point.folder.parent.parent), **os.environ},
            pass_fds=[held],  # a run that outlives its driver keeps the lock
        )
    running[index] = (process, lock, time.monotonic())


def compilation_cache(out_dir: pathlib.Path) -> dict[str, str]:
    """JAX's settings by which the runs of a sweep share what one of them compiled, small programs too."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(out_dir / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _settle(status: Status, code: int, seconds: float) -> None:
    status.seconds = seconds
    if code == 0 and is_done(status.point):
        status.state = DONE
        return
    status.state = FAILED
    lines = log_path(status.point).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    killed = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    status.reason = f"{killed}: {lines[-1] if lines else 'it printed nothing'}"


@contextlib.contextmanager
def _hold(path: pathlib.Path) -> Iterator[int | None]:
    """Holds the lock file `path`: its descriptor, or None where another process holds it.

    The kernel lets go of it when the last process that has the descriptor, driver or run, is gone.
    """
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        json.dump({"pid": os.getpid()}, file)
        file.flush()
        yield file.fileno()
