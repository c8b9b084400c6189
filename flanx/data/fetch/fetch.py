"""Fetches the data of a mixture: `flanx tasks fetch`.

Downloads run in parallel. If one fails, its tasks are quarantined (`quarantine.json` in the data folder, with the
reason); the others stay usable, and the exit status is 1. A second run fetches what is missing and resumes truncated
files. A file fetched again, or from a mirror, must have the same examples as the first fetch
(flanx/data/fetch/checksums.py).
"""

import argparse
import concurrent.futures
import contextlib
import functools
import http.client
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
from collections.abc import Callable
from typing import Any

from flanx.data.fetch import checksums, mirrors
from flanx.data.fetch.downloads import Download, find_downloads, folder, shares
from flanx.data.fetch.http import check_pointed, open_url, without_secrets
from flanx.data.fetch.http import download as download_file
from flanx.data.fetch.running import DownloadedBytes, Running
from flanx.data.task import select
from flanx.data.task import sources as source
from flanx.data.task.row import BadRow
from flanx.data.task.spec import TaskSpec
from flanx.errors import UserError
from flanx.files import lock, read_json, write_atomic
from flanx.process import signals_as_interrupt

PREPARE = ("-m", "flanx.seqio.tfds")  # downloads and prepares a TFDS data set
LISTING_BYTES = 10_000_000  # limit for a hub's file listing
WHOLE = 0.99  # below this share of the stated examples a file counts as truncated; a few bad rows are normal
RATE_BYTES = 1_000_000  # a smaller fetch does not measure the connection
Receipt = dict[str, Any]  # row count and SHA-256 of a split


# ---- one download ----------------------------------------------------------------------------------------------------


def _fetch_url(
    task: TaskSpec, split: str, data_dir: str, received: DownloadedBytes, first: Receipt | None
) -> Receipt | None:
    """The file of one split, from its URL or the first mirror that has it unchanged; None if it is present."""
    (path,) = source.files(task, split, data_dir)
    if path.is_file():
        return None
    other = re.search(r"spelled (\S+)", task.note)  # NIV2 names that some releases hyphenate
    names = [path.name, *([f"{other[1]}{path.suffix}"] if other else [])]

    def take(url: str) -> Receipt:
        with received.running.reaching(url):
            download_file(url, path, lambda have, size: received.update(path.name, have, size))
        _try_first_row(task, split, path)
        return _compare(task, split, data_dir, first, [path])

    return _first_good([place.replace("{file}", name) for place in mirrors.places(task.url) for name in names], take)


def _fetch_p3(
    task: TaskSpec, split: str, data_dir: str, received: DownloadedBytes, first: Receipt | None
) -> Receipt | None:
    """The Parquet files of one split, as listed by the hub for a data set configuration."""
    if source.missing(task, data_dir, split) is None:
        return None
    kind, config = task.source.split(":", 1)
    name = task.splits[split].split("[")[0]
    listing = task.url.replace("{config}", config).replace("{split}", name)

    def listed(url: str) -> list[str]:
        with received.running.reaching(url), open_url(url) as reply:
            urls = json.loads(reply.read(LISTING_BYTES))
        if not isinstance(urls, list) or not urls or not all(isinstance(one, str) for one in urls):
            raise ValueError(f"{url} lists no files")
        for one in urls:
            check_pointed(one, url)
        return urls

    def take(url: str, path: pathlib.Path) -> None:
        with received.running.reaching(url):
            download_file(url, path, functools.partial(received.update, path.name))

    urls = _first_good(mirrors.places(listing), listed)
    folder = pathlib.Path(data_dir).expanduser() / kind / config
    paths = [folder / f"{name}-{number:05d}-of-{len(urls):05d}.parquet" for number in range(len(urls))]
    for url, path in zip(urls, paths, strict=True):
        if not path.is_file():
            _first_good(mirrors.places(url), functools.partial(take, path=path))
    return _compare(task, split, data_dir, first, paths)


def _first_good(urls: list[str], take: Callable[[str], Any]) -> Any:
    """The result of `take` for the first URL on which it succeeds; else one error with the reason for each."""
    reasons: list[str] = []
    for number, url in enumerate(urls, 1):
        try:
            return take(url)
        except (OSError, EOFError, ValueError, UserError, http.client.HTTPException) as e:
            if number == len(urls) == 1:
                raise
            reasons.append(_why(e, url))
    raise ValueError("; ".join(dict.fromkeys(reasons)))


def _aside(paths: list[pathlib.Path], ending: str) -> pathlib.Path:
    """Renames files so that no task reads them; returns the first one's new name."""
    for path in paths:
        os.replace(path, path.with_name(path.name + ending))
    return paths[0].with_name(paths[0].name + ending)


def _try_first_row(task: TaskSpec, split: str, path: pathlib.Path) -> None:
    """Sets aside a file that is not what the task reads (a login page, a different layout). Raises ValueError."""
    reason: object = None
    try:
        _, record = next(source.READERS[task.source.split(":", 1)[0]](path, task), (None, BadRow("it is empty")))
        if isinstance(record, BadRow):
            reason = record
    except UserError as e:
        reason = e
    if reason is not None:
        raise _unreadable([path], reason)


def _unreadable(paths: list[pathlib.Path], reason: object) -> ValueError:
    """Sets files aside; returns the error to raise."""
    return ValueError(f"the file is not what the task reads ({reason}); it is kept as {_aside(paths, '.unreadable')}")


def _compare(task: TaskSpec, split: str, data_dir: str, first: Receipt | None, paths: list[pathlib.Path]) -> Receipt:
    """The receipt of a split. Sets aside files without examples or with different ones, and raises ValueError."""
    try:
        now = checksums.examples(task, split, data_dir)
    except (OSError, EOFError, ValueError, UserError) as e:
        raise _unreadable(paths, e) from e
    stated = task.num_examples if split == "train" else None
    if stated and not first and now["rows"] < WHOLE * stated:
        said = f"{now['rows']:,} of the {stated:,} examples of {task.name}; the file is truncated"
        raise _unreadable(paths, said)
    if reason := checksums.difference(split, first, now):
        kept = _aside(paths, ".changed")
        raise ValueError(f"{reason}; kept as {kept}; to take it, remove {task.source} from {checksums.FILE}")
    return now


def _fetch_tfds(task: TaskSpec, download: Download, running: Running) -> str | None:
    """Prepares a TFDS data set in a separate process; the last line of its standard error is its progress."""
    command = [sys.executable, *PREPARE, task.source[5:]]
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    last, text = "no message", b""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
    assert process.stderr is not None
    with process, running.killing(process):
        while block := os.read(process.stderr.fileno(), 4096):
            *lines, text = re.split(rb"[\r\n]+", text + block)
            last = next(
                (said for one in (text, *reversed(lines)) if (said := one.decode(errors="replace").strip())), last
            )
            running.update(download.name, last[-60:])
    return last[:300] if process.returncode else None


def _fetch(download: Download, data_dir: str, running: Running, verify: bool = False) -> tuple[str | None, str]:
    """Fetches one download: (reason if it fails, line to print otherwise).

    `verify`: also read present data and compare it with the first fetch (`download.receipt`, completed here)."""
    task = download.tasks[0]
    kind = task.source.split(":", 1)[0]
    if download.present:
        return (
            (_verify(download, data_dir), "unchanged since the first fetch")
            if verify and kind != "tfds"
            else (None, "")
        )
    received = DownloadedBytes(download, running)
    try:
        if kind == "tfds":
            if reason := _fetch_tfds(task, download, running):
                return reason, ""
        elif not task.url:
            return f"{download.access}: you supply it; {task.note or 'docs/data.md has the layout'}", ""
        else:
            take = _fetch_p3 if kind == "p3" else _fetch_url
            for split in task.splits:
                came = take(task, split, data_dir, received, download.receipt.get(split))
                download.receipt |= {split: came} if came else {}
    except (OSError, EOFError, ValueError, UserError, http.client.HTTPException) as e:
        return _why(e, task.url), ""
    finally:
        running.add_bytes(received.new())
    return source.missing(task, data_dir), str(received) if received.files else "prepared"


def _verify(download: Download, data_dir: str) -> str | None:
    """Reads present data; returns a line if it differs from the first fetch. A split without a receipt gets one."""
    task = download.tasks[0]
    try:
        for split in task.splits:
            now = checksums.examples(task, split, data_dir)
            if reason := checksums.difference(split, download.receipt.get(split), now):
                return reason
            download.receipt[split] = now
    except (OSError, ValueError, UserError) as e:
        return str(e)
    return None


def _why(error: Exception, url: str) -> str:
    """One line on why a download failed."""
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.url}: {error.code} {' '.join(str(error.reason).split())}"
    if isinstance(error, urllib.error.URLError):
        return f"cannot reach {urllib.parse.urlsplit(url).hostname}: {error.reason}"
    return str(error) if isinstance(error, EOFError | ValueError | UserError) else f"{type(error).__name__}: {error}"


# ---- all of them -----------------------------------------------------------------------------------------------------


def _locked(data_dir: str) -> contextlib.AbstractContextManager[None]:
    """A lock: one fetch at a time per folder."""
    path = pathlib.Path(data_dir).expanduser() / ".fetch.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return lock(
        path, busy=f"{data_dir}: another `flanx tasks fetch` is running in this folder; wait until it has ended"
    )


def fetch(args: argparse.Namespace) -> int:
    """Fetches every download; reports failures. Exit status 1 if a task is quarantined, unless that is allowed."""
    data_dir = folder(args)
    found = find_downloads(select.find_specs(args.mixture, args.licence), data_dir)
    running = Running(len(found))
    with _locked(data_dir), signals_as_interrupt():  # so that downloads stop and the quarantine is written
        known = checksums.read(data_dir)
        for download in found:
            download.receipt = dict(known["sources"].get(download.name, {}))
        failed = _fetch_all(found, data_dir, max(1, args.jobs), running, args.verify)
    ready = {task.name for download in found for task in download.tasks} - failed.keys()
    if failed:
        print("\n".join(shares(args.mixture, ready)))
    print(
        f"{len(ready)} tasks ready, {len(failed)} in quarantine" + (f" ({data_dir}/quarantine.json)" if failed else "")
    )
    return 1 if failed and not args.allow_missing else 0


def _fetch_all(found: list[Download], data_dir: str, jobs: int, running: Running, verify: bool) -> dict[str, str]:
    """{task: why it is quarantined}; recorded even if the user interrupts it."""
    failed: dict[str, str] = {}
    tried: list[str] = []
    start = time.monotonic()
    with running.progress, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_fetch, download, data_dir, running, verify): download for download in found}
        try:
            for done in concurrent.futures.as_completed(waiting):
                download, (reason, said) = waiting[done], done.result()
                reason = reason and without_secrets(reason)
                running.finish(download.name, reason or said)
                tried += [task.name for task in download.tasks]
                failed |= {task.name: reason for task in download.tasks if reason}
        finally:
            running.stop()
            pool.shutdown(cancel_futures=True)
            record(data_dir, tried, failed)
            _keep_receipts(data_dir, found, running.bytes, time.monotonic() - start)
    return failed


def _keep_receipts(data_dir: str, found: list[Download], brought: int, seconds: float) -> None:
    """Writes the new receipts into the folder's file, and the rate from `brought` bytes in `seconds`."""
    known = checksums.read(data_dir)
    sources = known["sources"] | {download.name: download.receipt for download in found if download.receipt}
    rate = brought / max(seconds, 1e-3) if brought >= RATE_BYTES else known["bytes_per_second"]
    now = {"sources": sources, "bytes_per_second": rate and round(rate)}
    if now != known:
        checksums.write(data_dir, now)


def record(data_dir: str, tried: list[str], failed: dict[str, str]) -> None:
    """Updates the quarantine: adds tasks that were tried and failed, removes those that succeeded."""
    path = pathlib.Path(data_dir).expanduser() / "quarantine.json"
    old = read_json(path)
    kept = {name: reason for name, reason in old.items() if name not in tried} | failed
    if kept or old:
        write_atomic(path, json.dumps(kept, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
