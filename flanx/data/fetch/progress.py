"""How far a fetch is: one live line on a terminal, a line now and then elsewhere; bytes and rate of each need."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from flanx.data.fetch.downloads import Need, say_bytes
from flanx.data.fetch.http import Stopped

EVERY_S = 10.0  # between two lines on a long download, where standard error is no terminal
LINE_S = 0.2  # between two changes of the line on a terminal


class Meter:
    """How far the running downloads are: one live line on a terminal, a line now and then elsewhere. Thread-safe."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.bytes = count, 0, 0
        self.live = sys.stderr.isatty()
        self._stopped = threading.Event()
        self._processes: set[subprocess.Popen] = set()
        self._running: dict[str, str] = {}
        self._lock = threading.Lock()
        self._said = time.monotonic()

    def tell(self, name: str, text: str) -> None:
        """News of a need. Raises Stopped once the user has ended the whole."""
        if self._stopped.is_set():
            raise Stopped
        with self._lock:
            self._running[name] = text
            now = time.monotonic()
            if now - self._said < (LINE_S if self.live else EVERY_S):
                return
            self._said = now
            if self.live:
                most = os.get_terminal_size(sys.stderr.fileno()).columns - 1
                line = f"[{self.done}/{self.count}] " + " | ".join(f"{n}: {t}" for n, t in self._running.items())
                print(f"\r\x1b[K{line[:most]}", end="", file=sys.stderr, flush=True)
            else:
                for running, last in self._running.items():
                    print(f"[{self.done}/{self.count}] {running}: {last}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def ending(self, process: subprocess.Popen) -> Iterator[None]:
        """A process that `stop` ends too."""
        self._processes.add(process)
        try:
            yield
        finally:
            self._processes.discard(process)

    def stop(self) -> None:
        """Ends what is running."""
        self._stopped.set()
        for process in list(self._processes):
            process.kill()

    def finish(self, name: str, line: str | None) -> None:
        """A need is over; `line` is printed on standard output, unless it is None."""
        with self._lock:
            self.done += 1
            self._running.pop(name, None)
            if self.live:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            if line:
                print(f"[{self.done}/{self.count}] {name}: {line}", flush=True)


class Count:
    """The bytes of one need, over its files: `tell` for `download`."""

    def __init__(self, need: Need, meter: Meter) -> None:
        self.need, self.meter, self.start = need, meter, time.monotonic()
        self.files: dict[str, tuple[int, int, int | None]] = {}  # file -> bytes before this run, now, in the end

    def tell(self, file: str, have: int, size: int | None) -> None:
        before = self.files.get(file, (have, 0, None))[0]
        self.files[file] = (min(before, have), have, size)
        sizes = [size for _, _, size in self.files.values()]
        if not any(have for _, have, _ in self.files.values()):
            return self.meter.tell(self.need.name, "no answer yet")
        whole = f" of {say_bytes(sum(sizes))}" if None not in sizes else ""
        self.meter.tell(self.need.name, f"{say_bytes(sum(h for _, h, _ in self.files.values()))}{whole}, {self.rate()}")

    def new(self) -> int:
        """Bytes that came in this run."""
        return sum(have - before for before, have, _ in self.files.values())

    def rate(self) -> str:
        return f"{say_bytes(round(self.new() / max(time.monotonic() - self.start, 1e-3)))}/s"

    def __str__(self) -> str:
        total = sum(have for _, have, _ in self.files.values())
        return f"fetched {say_bytes(total)} in {time.monotonic() - self.start:.1f} s ({self.rate()})"
