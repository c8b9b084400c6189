"""Folders in buckets (gs://, s3://) as commands use them: written to through a local copy (`flanx.mirror`)."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from flanx import cluster, files
from flanx.errors import UserError
from flanx.mirror import Mirror
from flanx.storage import BUCKETS, cache_dir, open_storage

KEPT = "kept"  # marks a scratch folder that holds what was not sent


@contextlib.contextmanager
def opened(url: str | os.PathLike | None) -> Iterator[None]:
    """Opens a folder in a bucket as a local one within the block, for all processes of a run; no effect on a local one.

    `flanx.files.local_folder` of the URL, or of a path below it, then returns the local copy. Raises UserError if
    another command is writing there, or if the bucket is missing or not writable.
    """
    if not str(url).startswith(BUCKETS):
        yield
        return
    folder, (process, processes) = open_storage(str(url)), cluster.place()
    with contextlib.ExitStack() as stack:
        mirror = Mirror(folder, stack.enter_context(_scratch()) / (folder.name or "bucket"), process, processes)
        if mirror.lease:
            mirror.lease.acquire()
            stack.callback(mirror.lease.release)
        cluster.barrier(f"{url} is this run's")
        mirror.path.mkdir()
        mirror.pull()
        files.mirrors[mirror.url] = mirror
        stack.callback(files.mirrors.pop, mirror.url)
        mirror.start()
        try:
            yield
        except BaseException as error:
            try:
                mirror.settle()
            except UserError as late:
                (mirror.path.parent / KEPT).touch()
                print(f"note: {late}", file=sys.stderr)
            if isinstance(error, UserError):
                raise type(error)(files.shown(str(error))) from error
            raise
        try:
            mirror.settle()
        except UserError:
            (mirror.path.parent / KEPT).touch()
            raise


@contextlib.contextmanager
def copied(names: Sequence[str], may_be_empty: bool = False) -> Iterator[list[str]]:
    """Folders to read; those in buckets as local copies without checkpoints. What is written into a copy is sent to its
    bucket when the block ends without an error. A name may end in "=MODEL", as for `flanx report`."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_copied(name, may_be_empty)) if name.startswith(BUCKETS) else name for name in names]


@contextlib.contextmanager
def _copied(name: str, may_be_empty: bool) -> Iterator[str]:
    url, equals, model = name.partition("=")
    folder = open_storage(url)
    with _scratch() as scratch:
        mirror = Mirror(folder, scratch / (folder.name or "bucket"), writes=False)
        mirror.path.mkdir()
        mirror.pull(checkpoints=False)
        if not may_be_empty and not any(mirror.path.iterdir()):
            raise UserError(f"{url}: no such folder, or nothing in it; check the address")
        files.mirrors[mirror.url] = mirror
        try:
            yield f"{mirror.path}{equals}{model}"
            mirror.give_back()
        except UserError as error:
            raise UserError(files.shown(str(error))) from error
        finally:
            del files.mirrors[mirror.url]


@contextlib.contextmanager
def _scratch() -> Iterator[pathlib.Path]:
    """A folder of this process in the cache, deleted at the end, as are those of killed processes."""
    parent = cache_dir() / "mirrors"
    parent.mkdir(parents=True, exist_ok=True)
    for path in parent.iterdir():
        with contextlib.suppress(UserError, OSError):
            is_young = time.time() - path.stat().st_mtime < 60  # its process may not have locked it yet
            if not is_young and not (path / KEPT).exists():
                with files.lock(path / ".lock", busy="in use"):
                    shutil.rmtree(path)
    path = pathlib.Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
    with files.lock(path / ".lock"):
        try:
            yield path
        finally:
            if not (path / KEPT).exists():
                shutil.rmtree(path, ignore_errors=True)
