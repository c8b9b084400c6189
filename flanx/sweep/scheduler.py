"""Runs the points of a sweep, each in its own process; skips finished ones, and failures do not stop the others."""

import contextlib
import dataclasses
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from flanx import files, storage
from flanx.errors import UserError
from flanx.process import preempted
from flanx.sweep import dependencies
from flanx.sweep.dependencies import Parent
from flanx.sweep.grid import Point
from flanx.sweep.state import (
    DONE,
    ELSEWHERE,
    FAILED,
    RETRYING,
    RUNNING,
    WAITING,
    State,
    inheritable_lock,
    is_done,
)

PROGRAM = (sys.executable, "-m", "flanx")
BAD_INPUT, PREEMPTED = 2, 75  # exit statuses of a run; 126 and 127 are the shell's for a program that cannot be run
NOT_RETRIED = (BAD_INPUT, 126, 127)
STOPPED = "stopped, its runs saved; the same command resumes"
MAX_WAIT = 600.0  # seconds between two attempts
MACHINE = f"{platform.machine()}, {os.cpu_count()} CPU cores"


@dataclasses.dataclass
class Status:
    """The state of a point while the sweep runs."""

    point: Point
    state: str = WAITING
    skipped: bool = False  # done before this driver started
    seconds: float = 0.0
    reason: str = ""
    attempts: int = 0
    until: float = 0.0  # not retried before this time


@dataclasses.dataclass(frozen=True)
class Launcher:
    """The program that receives a point's arguments, and how often a crashed run is retried.

    Attributes:
      program: its argv; "{name}" and "{job}" are replaced by the point's, and an element "{arguments}" by its
        arguments, which otherwise come last. It waits for the run and exits with the run's status.
      outlives: the run is on another machine and continues after the driver ends; the program keeps waiting for it.
      retries: attempts after the first; wait: seconds before the first retry, doubled for each further one.
    """

    program: Sequence[str] = PROGRAM
    outlives: bool = False
    retries: int = 2
    wait: float = 10.0

    def command(self, point: Point, arguments: Sequence[str]) -> list[str]:
        """The command line of a point's process."""
        words = [w.replace("{name}", point.name).replace("{job}", point.job) for w in self.program]
        if "{arguments}" not in words:
            return [*words, *arguments]
        at = words.index("{arguments}")
        return [*words[:at], *arguments, *words[at + 1 :]]

    def pause(self, attempts: int) -> float:
        """Seconds before the next attempt."""
        return min(self.wait * 2.0 ** (attempts - 1), MAX_WAIT)


def parse_launcher(text: str | None, retries: int, wait: float) -> Launcher:
    """The launcher for a command line such as "flanx launch slurm --yes --name={job}"; None: this machine."""
    if retries < 0 or wait < 0:
        raise UserError(f"--retries={retries} --retry_wait={wait}: give 0 or more")
    if text is None:
        return Launcher(retries=retries, wait=wait)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--launcher={text}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        program = f"no program '{words[0]}' on this machine" if words else "it is empty"
        raise UserError(f"--launcher={text}: {program}; give the command that each point's arguments are given to")
    return Launcher(words, True, retries, wait)


Running = dict[int, tuple[subprocess.Popen, contextlib.ExitStack, float]]


@dataclasses.dataclass
class Scheduler:
    """The work of one driver. See `run_points`."""

    state: State
    statuses: list[Status]
    search_paths: str
    launcher: Launcher
    parents: Mapping[str, Parent]
    on_done: Callable[[Status], None]

    def __post_init__(self) -> None:
        self.began = time.time()
        self.running: Running = {}
        self.by_name = {status.point.name: status for status in self.statuses}

    def step(self, jobs: int) -> None:
        """Starts the runs that can start and records those that have ended."""
        for index, status in enumerate(self.statuses):
            if status.state in (WAITING, ELSEWHERE, RETRYING) and self._may_start(status) and len(self.running) < jobs:
                self._start(index, status)
        for index in [i for i, (process, _, _) in self.running.items() if process.poll() is not None]:
            process, lock, began = self.running.pop(index)
            self._finish(self.statuses[index], process.returncode, time.monotonic() - began)
            lock.close()

    def _may_start(self, status: Status) -> bool:
        """Whether the parent, if any, is done; a failed parent fails the point."""
        if time.time() < status.until:
            return False
        parent = self.parents.get(status.point.name)
        if parent is None:
            return True
        if parent.point in self.by_name:
            above = self.by_name[parent.point]
            status.reason = f"waits for {above.point.name}" if above.state not in (DONE, FAILED) else ""
            if above.state == FAILED:
                self.fail(status, f"its parent {above.point.name} failed: {above.reason}")
            return above.state == DONE
        state, reason = dependencies.state_of(parent)
        status.reason = f"waits for {parent.folder.name} of {parent.sweep}" if state == WAITING else ""
        if state == FAILED:
            self.fail(status, reason)
        return state == DONE

    def fail(self, status: Status, reason: str) -> None:
        """Records that a point cannot run, and why."""
        status.state, status.reason = FAILED, reason
        self.state.write(status.point.name, state=FAILED, reason=reason)

    def _start(self, index: int, status: Status) -> None:
        point = status.point
        point.folder.mkdir(parents=True, exist_ok=True)
        lock = contextlib.ExitStack()
        descriptor = lock.enter_context(inheritable_lock(point.folder / "lock"))
        if descriptor is None:
            lock.close()
            status.state = ELSEWHERE
            status.until = time.time() + 5.0 if files.mirrors else 0.0  # avoids polling a bucket constantly
            return
        if self._is_settled_elsewhere(status):
            lock.close()
            return
        parent = self.parents.get(point.name)
        try:
            path = dependencies.checkpoint(parent) if parent else None
        except UserError as error:
            lock.close()
            self.fail(status, str(error))
            return
        command = self.launcher.command(point, point.arguments(self.search_paths, path))
        status.state, status.reason = RUNNING, ""
        machine = "given to a launcher" if self.launcher.outlives else MACHINE
        self.state.write(point.name, state=RUNNING, reason="", attempts=status.attempts, machine=machine)
        try:
            process = self._popen(point, command, descriptor)
        except OSError as error:
            lock.close()
            self.fail(status, f"{command[0]} cannot be run: {error.strerror}")
            return
        self.running[index] = (process, lock, time.monotonic())

    def _popen(self, point: Point, command: Sequence[str], descriptor: int) -> subprocess.Popen:
        with open(log_path(point), "ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PYTHONUNBUFFERED": "1", **compilation_cache(point.folder.parent.parent), **os.environ},
                pass_fds=[descriptor],  # a run that outlives its driver keeps the lock
                start_new_session=self.launcher.outlives,
            )

    def _is_settled_elsewhere(self, status: Status) -> bool:
        """Whether another driver finished or tried the point before this one got its lock."""
        if is_done(status.point.folder):
            status.state, status.skipped = DONE, True
            if files.mirrors:  # its results are on the other driver's disk
                self.on_done(status)
            return True
        entry = self.state.read().get(status.point.name, {})
        if entry.get("at", 0.0) < self.began:
            return False  # an earlier driver's failures are retried
        status.attempts = entry.get("attempts", 0)
        if entry["state"] == FAILED:
            status.state, status.reason = FAILED, entry.get("reason", "")
            return True
        if entry["state"] == RETRYING and time.time() < entry["until"]:
            status.state, status.until, status.reason = RETRYING, entry["until"], entry["reason"]
            return True
        return False

    def _finish(self, status: Status, code: int, seconds: float) -> None:
        status.seconds += seconds
        point = status.point
        if code == 0 and is_done(point.folder):
            status.state = DONE
            self.state.write(point.name, state=DONE, reason="", seconds=round(status.seconds, 1))
            self.on_done(status)
            return
        lines = log_path(point).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        killed = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        status.reason = f"{killed}: {lines[-1] if lines else 'it printed nothing'}"
        status.state = RETRYING
        if code == PREEMPTED:
            status.until = 0.0
        else:
            status.attempts += 1
            status.until = time.time() + self.launcher.pause(status.attempts)
            if code in NOT_RETRIED or status.attempts > self.launcher.retries:
                status.state = FAILED
        entry = {"reason": status.reason, "attempts": status.attempts, "until": status.until}
        self.state.write(point.name, state=status.state, **entry)

    def stop(self) -> None:
        """Asks every run to save and exit; one that outlives its driver continues, and its launcher waits for it."""
        if not self.launcher.outlives:
            for process, _, _ in self.running.values():
                process.terminate()
        for index, (process, lock, _) in self.running.items():
            if not self.launcher.outlives:
                process.wait()
                self.state.write(self.statuses[index].point.name, state=WAITING, reason="stopped with its driver")
            lock.close()


def run_points(
    points: Sequence[Point],
    jobs: int,
    search_paths: str,
    on_change: Callable[[list[Status]], None],
    run: Launcher | Sequence[str] = PROGRAM,
    parents: Mapping[str, Parent] | None = None,
    blocked: Mapping[str, str] | None = None,
    on_done: Callable[[Status], None] = lambda status: None,
) -> list[Status]:
    """Runs every point that is not done, `jobs` at a time, and returns the status of each.

    A point is locked while a driver runs it, so any number of drivers can share the work in one folder without running
    a point twice. It starts when its parent is done, and fails when its parent fails. A run that crashes is retried
    with exponential backoff; one with bad input is not; a preempted one is restarted immediately.

    Args:
      run: the program that receives a point's arguments.
      parents: the parents of the points that have one, see `flanx.sweep.dependencies`.
      blocked: points that cannot run, and why.
      on_change: called with all statuses whenever one changes and once a second.
      on_done: called with the status of every point that this driver finishes.

    Raises:
      Preempted: after SIGTERM, SIGHUP or Ctrl-C, once every run has saved and exited.
    """
    if not points:
        return []
    launcher = run if isinstance(run, Launcher) else Launcher(run)
    state = State(points[0].folder.parent.parent)
    state.folder.mkdir(parents=True, exist_ok=True)
    with inheritable_lock(state.folder / "driver.lock", shared=True), preempted(STOPPED):
        statuses = [Status(point) for point in points]
        scheduler = Scheduler(state, statuses, search_paths, launcher, parents or {}, on_done)
        state.register([point.name for point in points])
        for status in statuses:
            if is_done(status.point.folder):
                status.state, status.skipped = DONE, True
            elif reason := (blocked or {}).get(status.point.name):
                scheduler.fail(status, reason)
        shown, shown_at = None, 0.0
        try:
            while any(status.state not in (DONE, FAILED) for status in statuses):
                scheduler.step(jobs)
                states = [(status.state, status.reason) for status in statuses]
                if states != shown or time.monotonic() - shown_at > 1.0:
                    shown, shown_at = states, time.monotonic()
                    on_change(statuses)
                time.sleep(0.1)  # runs take seconds to days
        finally:
            scheduler.stop()
    on_change(statuses)
    return statuses


def log_path(point: Point) -> pathlib.Path:
    """The log file of the run of `point`."""
    return point.folder / "log.txt"


def compilation_cache(out_dir: pathlib.Path) -> dict[str, str]:
    """JAX settings for a compilation cache shared by all runs of a sweep, including small programs."""
    folder = storage.cache_dir() / "compilations" if files.mirror_of(out_dir) else out_dir / "cache"
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
