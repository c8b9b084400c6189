"""What is known of a sweep's points, in one file: state.json in the sweep's folder.

    {"tiny_8": {"state": "retrying", "attempts": 1, "reason": "exit status 1: ...", "until": 1763730000.0, ...}, ...}

Any number of drivers write it: each change is read, made and put back whole under the lock of state.lock. That a point
is done is not read here but in its own folder (done.json), which the run wrote last.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from flanx.files import write_atomic
from flanx.sweep.grid import Point

NOT_RUN, WAITING, RUNNING, RETRYING, DONE, FAILED = "not run", "waiting", "running", "retrying", "done", "failed"
ELSEWHERE, STOPPED = "run by another driver", "stopped"


class State:
    """The state file of one sweep."""

    def __init__(self, out_dir: str | os.PathLike) -> None:
        self.folder = pathlib.Path(out_dir)
        self.path = self.folder / "state.json"

    def read(self) -> dict[str, dict[str, Any]]:
        """Every point's entry."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def write(self, name: str, **changes: Any) -> dict[str, Any]:
        """Lays `changes` over the entry of a point and returns it."""
        with hold(self.folder / "state.lock", wait=True):
            entries = self.read()
            driver = f"{socket.gethostname()}:{os.getpid()}"
            entry = entries.get(name, {}) | {"driver": driver, "at": time.time()} | changes
            write_atomic(self.path, json.dumps(entries | {name: entry}, indent=1) + "\n")
        return entry

    def register(self, names: Sequence[str]) -> None:
        """Enters the points that have no entry yet, so that others can wait for them."""
        with hold(self.folder / "state.lock", wait=True):
            entries = self.read()
            new = {name: {"state": WAITING, "at": 0.0} for name in names if name not in entries}
            if new:
                write_atomic(self.path, json.dumps(entries | new, indent=1) + "\n")

    def told(self, points: Sequence[Point]) -> dict[str, tuple[str, str]]:
        """(state, reason) of every point by name, as a report has it."""
        entries = self.read()
        found = {}
        for point in points:
            entry = entries.get(point.name, {})
            state = DONE if is_done(point.folder) else entry.get("state", NOT_RUN)
            if state == DONE and not is_done(point.folder):
                state = NOT_RUN  # somebody deleted the run since
            if state == RUNNING and not is_held(point.folder / "lock"):
                state = STOPPED  # killed with its driver
            found[point.name] = (state, "" if state == DONE else entry.get("reason", ""))
        return found


def is_done(folder: pathlib.Path) -> bool:
    """Whether the run in `folder` wrote its last file."""
    return (folder / "done.json").exists()


def is_held(path: pathlib.Path) -> bool:
    """Whether another process holds the lock file `path`."""
    if not path.exists():
        return False
    with hold(path) as held:
        return held is None


@contextlib.contextmanager
def hold(path: pathlib.Path, wait: bool = False, shared: bool = False) -> Iterator[int | None]:
    """Holds the lock file `path`: its descriptor, or None where another process holds it and `wait` is False.

    The kernel lets go of it when the last process that has the descriptor, driver or run, is gone.
    """
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield file.fileno()
