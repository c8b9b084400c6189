"""Cluster programs: run to completion, or streamed line by line with a tag; none through a shell."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TextIO

from flanx.coordination import LOST
from flanx.errors import UserError
from flanx.launch.job import Words
from flanx.process import stops_deferred

ANSWER_S = 900.0  # for a program that answers and exits; the slowest creates a queued resource or pushes an image
PERIOD = 0.05  # seconds between polls of running programs


class Result(NamedTuple):
    """How a program ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line it printed: of stderr, or of stdout if stderr is empty."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"


def require(*names: str) -> None:
    """Raises UserError for a program that is not on PATH."""
    for name in names:
        if shutil.which(name) is None:
            raise UserError(f"no program '{name}' on PATH: install it, or choose another way (`flanx launch --help`)")


def run(words: Words, limit: float = ANSWER_S) -> Result:
    """Runs a program to completion in its own session: Ctrl-C reaches only this process, which then ends it."""
    process = None
    try:
        with stops_deferred():
            process = _start(words)
        out, err = process.communicate(timeout=limit)
        return Result(process.returncode, out, err)
    except subprocess.TimeoutExpired:
        return Result(124, "", f"{words[0]} did not answer within {limit:.0f} s")
    finally:
        if process:
            end(process, 5.0)
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()


def _start(words: Words, stderr: int = subprocess.PIPE, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    try:
        return subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    except OSError as error:
        raise UserError(f"{words[0]} cannot be run: {error.strerror}; is it installed?") from error


def end(process: subprocess.Popen, grace: float) -> None:
    """Tells a program and its children to stop, waits `grace` seconds and kills them; no effect after it has ended."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace if number == signal.SIGTERM else 5.0)
            break


class Streams:
    """Programs that run side by side; every line goes to standard output and to a log, tagged with its host."""

    def __init__(self, hosts: Mapping[str, Words], folder: pathlib.Path, env: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.last: dict[str, str] = {}  # lines
        self.stopped: set[str] = set()  # by this process, after another failed
        self.order: dict[str, int] = {}  # exit statuses, in the order in which they ended
        self.processes: dict[str, subprocess.Popen] = {}
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for tag, words in hosts.items():
                with stops_deferred():
                    process = self.processes[tag] = _start(words, subprocess.STDOUT, env)
                    log = folder / f"{tag}.log"
                    thread = threading.Thread(target=self._copy, args=(tag, process, log), daemon=True)
                    thread.start()
                    self._threads.append(thread)
        except BaseException:
            self.stop(5.0)
            raise

    def _copy(self, tag: str, process: subprocess.Popen, path: pathlib.Path) -> None:
        assert process.stdout
        with process.stdout, open(path, "a", encoding="utf-8") as log:
            for line in process.stdout:
                self._write(f"[{tag}] " if tag else "", line.rstrip("\n"), log)
                self.last[tag] = line.strip() or self.last.get(tag, "")

    def _write(self, prefix: str, line: str, log: TextIO) -> None:
        log.write(f"{line}\n")
        log.flush()
        with self._lock, contextlib.suppress(BrokenPipeError):
            print(f"{prefix}{line}", flush=True)

    def wait(self, grace: float, is_over: Callable[[], bool] = lambda: False) -> dict[str, int]:
        """Waits for all and returns their exit statuses; after the first failure the others have `grace` seconds."""
        limit = None
        while not self.is_over:
            self._look()
            if limit is None and (self.failed() or is_over()):
                limit = time.monotonic() + grace
            if limit is not None and time.monotonic() > limit:
                self.stop(grace)
            time.sleep(PERIOD)
        self._join()
        self._look()
        return {tag: process.returncode for tag, process in self.processes.items()}

    def _look(self) -> None:
        for tag, process in self.processes.items():
            if process.poll() is not None:
                self.order.setdefault(tag, process.returncode)

    @property
    def cause(self) -> str:
        """The host that failed first, not counting those stopped because of another; "" if none failed."""
        bad = [tag for tag, status in self.order.items() if status]
        return next((tag for tag in bad if self.order[tag] != LOST and tag not in self.stopped), next(iter(bad), ""))

    @property
    def is_over(self) -> bool:
        """Whether all have ended."""
        return all(process.poll() is not None for process in self.processes.values())

    def failed(self) -> dict[str, int]:
        """Exit statuses of those that have failed so far."""
        return {tag: p.returncode for tag, p in self.processes.items() if p.poll() not in (None, 0)}

    def stop(self, grace: float) -> None:
        """Ends all that are still running, together."""
        alive = {tag: process for tag, process in self.processes.items() if process.poll() is None}
        self.stopped |= set(alive)
        running = list(alive.values())
        for process in running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
        limit = time.monotonic() + grace
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(limit - time.monotonic(), 0.0))
        for process in running:
            if process.poll() is None:
                end(process, 0.0)
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(5.0)


def say(text: str) -> None:
    """Prints one of the launcher's own lines."""
    print(f"launch: {text}", file=sys.stderr, flush=True)
