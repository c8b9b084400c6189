"""The state of a sweep's points, in state.json in the sweep's folder.

    {"tiny_8": {"state": "retrying", "attempts": 1, "reason": "exit status 1: ...", "until": 1763730000.0, ...}, ...}

Any number of drivers may write it: each reads it, changes an entry and replaces the file while holding state.lock.
Whether a point is done is not read from this file but from done.json in the point's folder, which the run writes last.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flanx import files, lease
from flanx.errors import UserError
from flanx.files import check_types, lock, read_json, write_atomic
from flanx.storage import Storage, patiently
from flanx.sweep.grid import Point

NOT_RUN, WAITING, RUNNING, RETRYING, DONE, FAILED = "not run", "waiting", "running", "retrying", "done", "failed"
ELSEWHERE, STOPPED = "run by another driver", "stopped"

ENTRY = {"state": str, "reason": str, "attempts": int, "until": float, "at": float, "seconds": float, "machine": str}
Entries = dict[str, dict[str, Any]]


class State:
    """The state file of one sweep."""

    def __init__(self, out_dir: str | os.PathLike) -> None:
        self.folder = pathlib.Path(out_dir)
        self.path = self.folder / "state.json"

    def read(self) -> Entries:
        """Every point's entry."""
        if mirror := files.mirror_of(self.path):
            mirror.fetch(self.path)
        entries = read_json(self.path)
        check_types(self.path, {"points": entries}, {"points": dict[str, dict[str, Any]]})
        for name, entry in entries.items():
            check_types(self.path, entry, ENTRY)
            if "state" not in entry:
                raise UserError(f"{self.path} is damaged: '{name}' has no state; restore or remove it")
        return entries

    def write(self, name: str, **changes: Any) -> None:
        """Updates the entry of a point."""
        driver = f"{socket.gethostname()}:{os.getpid()}"
        common = {"driver": driver, "at": time.time()}
        self._update(lambda entries: {name: entries.get(name, {}) | common | changes})

    def register(self, names: Sequence[str]) -> None:
        """Adds entries for points that have none yet, so that others can wait for them."""
        self._update(lambda entries: {n: {"state": WAITING, "at": 0.0} for n in names if n not in entries})

    def _update(self, change: Callable[[Entries], Entries]) -> None:
        mirror = files.mirror_of(self.path)
        with lock(self.folder / "state.lock"):
            while new := change(entries := self.read()):
                text = json.dumps(entries | new, indent=1) + "\n"
                if mirror is None:
                    write_atomic(self.path, text)
                    return
                if mirror.offer(self.path, text.encode()):
                    return
                time.sleep(random.random())  # another driver was faster

    def statuses(self, points: Sequence[Point]) -> dict[str, tuple[str, str]]:
        """(state, reason) for every point by name, for a report."""
        entries = self.read()
        result = {}
        for point in points:
            entry = entries.get(point.name, {})
            state = DONE if is_done(point.folder) else entry.get("state", NOT_RUN)
            if state == DONE and not is_done(point.folder):
                state = NOT_RUN  # its folder was deleted
            if state == RUNNING and not is_held(point.folder / "lock"):
                state = STOPPED  # killed with its driver
            result[point.name] = (state, "" if state == DONE else entry.get("reason", ""))
        return result


def is_done(folder: pathlib.Path) -> bool:
    """Whether the run in `folder` wrote its last file."""
    mirror = files.mirror_of(folder)
    return (folder / "done.json").exists() or (mirror is not None and mirror.fetch(folder / "done.json"))


def is_held(path: pathlib.Path) -> bool:
    """Whether another process holds the lock file `path`."""
    if mirror := files.mirror_of(path):
        return any(map(lease.is_alive, _places(mirror, path)))
    if not path.exists():
        return False
    with inheritable_lock(path) as descriptor:
        return descriptor is None


def _places(mirror: Any, path: pathlib.Path) -> tuple[Storage, Storage]:
    """For the lock of a run in a bucket: the locations of its driver's lease and of the run's own."""
    run = path.relative_to(mirror.path).parent
    return mirror.folder / "drivers" / run.name, mirror.folder / run.as_posix()


@contextlib.contextmanager
def _alone_in_bucket(path: pathlib.Path) -> Iterator[bool]:
    """Holds a driver's lease on a run in a bucket; yields whether it has it and the run is not already running."""
    driver, run = _places(files.mirror_of(path), path)
    mine = lease.Lease(driver, lambda error: print(f"note: {error}"))
    if patiently(lambda: lease.is_alive(run) or not mine.try_acquire()):
        yield False
        return
    try:
        yield True
    finally:
        mine.release()


@contextlib.contextmanager
def inheritable_lock(path: pathlib.Path, shared: bool = False) -> Iterator[int | None]:
    """Holds the lock file `path`; yields its descriptor, or None if another process holds it. Waits for a shared lock.

    Unlike `flanx.files.lock`, a child process that inherits the descriptor keeps the lock after its driver is gone (it
    is closed, never unlocked), and any number of drivers can share it. filelock supports neither.
    """
    with contextlib.ExitStack() as stack:
        if not shared and files.mirror_of(path) and not stack.enter_context(_alone_in_bucket(path)):
            yield None
            return
        file = stack.enter_context(open(path, "a", encoding="utf-8"))
        try:
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()
