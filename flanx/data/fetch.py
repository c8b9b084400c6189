"""Fetches what a mixture needs: `flanx tasks fetch`.

Needs are fetched side by side. One that fails puts its tasks into quarantine (`quarantine.json` in the data folder,
with the reason); the others stay usable, and the exit status says so. Run again, it fetches what is not there yet, and
goes on inside files that broke off.
"""

import argparse
import concurrent.futures
import contextlib
import fcntl
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from flanx.data import source
from flanx.data.download import TIMEOUT_S, Stopped, download
from flanx.data.need import Need, folder, needs, say_bytes, shares
from flanx.data.own import write
from flanx.data.spec import TaskSpec
from flanx.data.task_door import match_tasks
from flanx.data.value import BadRow
from flanx.errors import UserError

PREPARE = "import sys, tensorflow_datasets as t; t.builder(sys.argv[1]).download_and_prepare()"
EVERY_S = 10.0  # between two lines on a long download, where standard error is no terminal
LINE_S = 0.2  # between two changes of the line on a terminal


class Meter:
    """How far the running downloads are: one live line on a terminal, a line now and then elsewhere. Thread-safe."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
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


class _Count:
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

    def rate(self) -> str:
        new = sum(have - before for before, have, _ in self.files.values())
        return f"{say_bytes(round(new / max(time.monotonic() - self.start, 1e-3)))}/s"

    def __str__(self) -> str:
        total = sum(have for _, have, _ in self.files.values())
        return f"fetched {say_bytes(total)} in {time.monotonic() - self.start:.1f} s ({self.rate()})"


# ---- one need --------------------------------------------------------------------------------------------------------


def _fetch_url(task: TaskSpec, split: str, data_dir: str, count: _Count) -> None:
    (path,) = source.files(task, split, data_dir)
    if path.is_file():
        return
    other = re.search(r"spelled (\S+)", task.note)  # NIV2 names with hyphens in some releases
    names = [path.name, *([f"{other[1]}{path.suffix}"] if other else [])]
    for name in names:
        try:
            download(task.url.replace("{file}", name), path, lambda have, size: count.tell(path.name, have, size))
        except urllib.error.HTTPError as e:
            if e.code != 404 or name == names[-1]:
                raise
        else:
            _try_first_row(task, split, path)
            return


def _try_first_row(task: TaskSpec, split: str, path: pathlib.Path) -> None:
    """Sets aside a file that is not what the task reads (a log-in page, another layout). Raises ValueError."""
    try:
        _, record = next(source.READERS[task.source.split(":", 1)[0]](path, task), (None, BadRow("it is empty")))
        reason = record if isinstance(record, BadRow) else None
    except UserError as e:
        reason = e
    if reason is not None:
        aside = path.with_name(path.name + ".unreadable")
        os.replace(path, aside)
        raise ValueError(f"what came is not what the task reads ({reason}); it is kept as {aside}")


def _fetch_p3(task: TaskSpec, split: str, data_dir: str, count: _Count) -> None:
    """The Parquet files of one split, as the hub lists them for a data set's configuration."""
    kind, config = task.source.split(":", 1)
    name = task.splits[split].split("[")[0]
    listing = task.url.replace("{config}", config).replace("{split}", name)
    with urllib.request.urlopen(listing, timeout=TIMEOUT_S) as reply:
        urls = json.load(reply)
    if not isinstance(urls, list) or not urls:
        raise ValueError(f"{listing} lists no files")
    for number, url in enumerate(urls):
        path = pathlib.Path(data_dir) / kind / config / f"{name}-{number:05d}.parquet"
        if not path.is_file():
            download(url, path, lambda have, size, file=path.name: count.tell(file, have, size))


def _fetch_tfds(task: TaskSpec, need: Need, meter: Meter) -> str | None:
    """Prepares a TFDS data set in a process of its own; the last line of its standard error tells how far it is."""
    command = [sys.executable, "-c", PREPARE, task.source[5:]]
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    last, text = "no message", b""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
    with process, meter.ending(process):
        while block := os.read(process.stderr.fileno(), 4096):
            *lines, text = re.split(rb"[\r\n]+", text + block)
            last = next(
                (said for one in (text, *reversed(lines)) if (said := one.decode(errors="replace").strip())), last
            )
            meter.tell(need.name, last[-60:])
    return last[:300] if process.returncode else None


def _fetch(need: Need, data_dir: str, meter: Meter) -> tuple[str | None, str]:
    """Fetches one need: (the reason where it fails, what is to be said where it does not)."""
    task = need.tasks[0]
    if need.present:
        return None, ""
    count = _Count(need, meter)
    try:
        if task.source.startswith("tfds:"):
            if reason := _fetch_tfds(task, need, meter):
                return reason, ""
        elif not task.url:
            return f"{need.access}: you supply it; {task.note or 'docs/data.md has the layout'}", ""
        else:
            for split in task.splits:
                (_fetch_p3 if task.source.startswith("p3:") else _fetch_url)(task, split, data_dir, count)
    except (OSError, EOFError, ValueError, UserError, http.client.HTTPException) as e:
        return _why(e, task.url), ""
    return source.missing(task, data_dir), str(count) if count.files else "prepared"


def _why(error: Exception, url: str) -> str:
    """One line on a failed download."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.url}: {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"cannot reach {urllib.parse.urlsplit(url).hostname}: {error.reason}"
    return str(error) if isinstance(error, EOFError | ValueError | UserError) else f"{type(error).__name__}: {error}"


# ---- all of them -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(data_dir: str) -> Iterator[None]:
    """One fetch at a time in a folder."""
    path = pathlib.Path(data_dir).expanduser() / ".fetch.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"{data_dir}: another `flanx tasks fetch` is at work in this folder; wait for it") from e
        yield


@contextlib.contextmanager
def _ended_whole() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does: with what it has started, and the quarantine written."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fetch(args: argparse.Namespace) -> int:
    """Fetches every need; names what failed. Exit status 1 where a task is quarantined, unless that is allowed."""
    data_dir = folder(args)
    found = needs(match_tasks(args.mixture, args.licence), data_dir)
    meter = Meter(len(found))
    with _locked(data_dir), _ended_whole():
        failed = _fetch_all(found, data_dir, max(1, args.jobs), meter)
    ready = {task.name for need in found for task in need.tasks} - failed.keys()
    if failed:
        print("\n".join(shares(args.mixture, ready)))
    print(
        f"{len(ready)} tasks ready, {len(failed)} in quarantine" + (f" ({data_dir}/quarantine.json)" if failed else "")
    )
    return 1 if failed and not args.allow_missing else 0


def _fetch_all(found: list[Need], data_dir: str, jobs: int, meter: Meter) -> dict[str, str]:
    """{task: why it is quarantined}; recorded even when the user stops it half-way."""
    failed: dict[str, str] = {}
    tried: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_fetch, need, data_dir, meter): need for need in found}
        try:
            for done in concurrent.futures.as_completed(waiting):
                need, (reason, said) = waiting[done], done.result()
                meter.finish(need.name, reason or said)
                tried += [task.name for task in need.tasks]
                failed |= {task.name: reason for task in need.tasks if reason}
        finally:
            meter.stop()
            pool.shutdown(cancel_futures=True)
            record(data_dir, tried, failed)
    return failed


def record(data_dir: str, tried: list[str], failed: dict[str, str]) -> None:
    """Writes the quarantine anew: tasks that were tried and failed come in, those that were tried and went well go."""
    path = pathlib.Path(data_dir).expanduser() / "quarantine.json"
    old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = {name: reason for name, reason in old.items() if name not in tried} | failed
    if kept or old:
        write(path, json.dumps(kept, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
