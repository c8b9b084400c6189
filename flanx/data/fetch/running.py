"""Running downloads: their bytes and rates on a shared progress display, and how to stop them."""

import contextlib
import subprocess
import threading
import time
import urllib.error
import urllib.parse
from collections.abc import Iterator

from flanx.data.fetch.downloads import Download, format_bytes
from flanx.data.fetch.http import Stopped, interrupt
from flanx.progress import Progress

LINE_PERIOD_S = 10.0  # between progress lines of a long download, if standard error is not a terminal


class Running:
    """All downloads of a fetch. Thread-safe."""

    def __init__(self, count: int) -> None:
        self.count, self.done, self.bytes = count, 0, 0
        self.progress = Progress(line_period=LINE_PERIOD_S)
        self._stopped = threading.Event()
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._answered: set[str] = set()
        self._silent: dict[str, str | BaseException] = {}  # server -> why it is unreachable

    def update(self, name: str, text: str) -> None:
        """Shows the state of a download. Raises Stopped if the user has stopped the fetch."""
        if self._stopped.is_set():
            raise Stopped
        self.progress.update("downloads", "", self.done, self.count)
        self.progress.update(name, text)

    @contextlib.contextmanager
    def killing(self, process: subprocess.Popen) -> Iterator[None]:
        """Registers a process for `stop` to kill."""
        self._processes.add(process)
        try:
            yield
        finally:
            self._processes.discard(process)

    def stop(self) -> None:
        """Stops all downloads."""
        self._stopped.set()
        interrupt()
        for process in list(self._processes):
            process.kill()

    def finish(self, name: str, line: str | None) -> None:
        """Marks a download as ended; `line` is printed to standard output unless empty."""
        with self._lock:
            self.progress.remove(name)
            self.done += 1
            if line:
                print(f"[{self.done}/{self.count}] {name}: {line}", flush=True)

    @contextlib.contextmanager
    def reaching(self, url: str) -> Iterator[None]:
        """Wraps a request to a server. Raises URLError at once if the server has failed to answer and never answered in
        this fetch, so that without a network thousands of files do not time out one by one."""
        host = urllib.parse.urlsplit(url).netloc
        if host in self._silent:
            raise urllib.error.URLError(self._silent[host])
        try:
            yield
        except urllib.error.HTTPError:
            self._answered.add(host)
            raise
        except urllib.error.URLError as error:
            if host not in self._answered:
                self._silent[host] = error.reason
            raise
        self._answered.add(host)

    def add_bytes(self, count: int) -> None:
        with self._lock:
            self.bytes += count


class DownloadedBytes:
    """The bytes of one download over all its files; `update` is the `report` of `http.download`."""

    def __init__(self, download: Download, running: Running) -> None:
        self.download, self.running, self.start = download, running, time.monotonic()
        self.files: dict[str, tuple[int, int, int | None]] = {}  # file -> bytes before this run, now, in total

    def update(self, file: str, have: int, size: int | None) -> None:
        before = self.files.get(file, (have, 0, None))[0]
        self.files[file] = (min(before, have), have, size)
        here = sum(have for _, have, _ in self.files.values())
        sizes = [size for _, _, size in self.files.values() if size is not None]
        total = f" of {format_bytes(sum(sizes))}" if len(sizes) == len(self.files) else ""
        text = f"{format_bytes(here)}{total}, {self.rate()}" if here else "no answer yet"
        self.running.update(self.download.name, text)

    def new(self) -> int:
        """Bytes received in this run."""
        return sum(have - before for before, have, _ in self.files.values())

    def rate(self) -> str:
        return f"{format_bytes(round(self.new() / max(time.monotonic() - self.start, 1e-3)))}/s"

    def __str__(self) -> str:
        total = sum(have for _, have, _ in self.files.values())
        return f"fetched {format_bytes(total)} in {time.monotonic() - self.start:.1f} s ({self.rate()})"
