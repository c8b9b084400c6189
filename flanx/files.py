"""What a command writes: complete files or none, and locks that end with their process."""

import contextlib
import json
import os
import pathlib
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, BinaryIO

import filelock

from flanx.errors import UserError


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """`path` as a local path, of a file:// URL too, with ~ for the home folder. Raises UserError for another URL."""
    text = os.fspath(path)
    if text.startswith("file://"):
        text = urllib.request.url2pathname(urllib.parse.urlsplit(text).path)
    if "://" in text:
        raise UserError(f"'{path}' is a URL; a local file or folder is wanted")
    return pathlib.Path(text).expanduser()


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """`path` as a folder. Raises UserError for a URL: logs are appended to, which object stores cannot."""
    if "://" in str(path):
        raise UserError(
            f"'{path}' is a URL, and a run writes to a folder: mount the bucket (gcsfuse) and give that path"
        )
    return pathlib.Path(path)


@contextlib.contextmanager
def open_atomic(path: pathlib.Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, and is removed where the block raises.

    A reader sees the old content or all of the new. With `durable` that also holds after a crash of the machine: file
    and folder are forced to disk. The temporary file carries the process number, so that two writers do not share it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def write_atomic(path: pathlib.Path, content: str | bytes, durable: bool = True) -> None:
    """Replaces `path` by `content` (text as UTF-8); see `open_atomic`."""
    with open_atomic(path, durable) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file. Raises UserError for a damaged one."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"{path} is damaged: not a JSON object (cut off by a copy or a full disk?); restore or remove it"
        )
    return found


def umask() -> int:
    """The process's mask of permissions, for folders that `tempfile.mkdtemp` makes the owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: pathlib.Path) -> None:
    """Forces the names in a folder to disk; file systems that cannot (some network mounts) are left as they are."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def lock(path: pathlib.Path, busy: str | None = None) -> Iterator[None]:
    """Holds the lock file `path` exclusively; the kernel releases it when the process ends, however that happens.

    Where another process holds it: waits, or with `busy` raises UserError(busy) at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(path, timeout=-1 if busy is None else 0)
    try:
        held.acquire()
    except filelock.Timeout as error:
        raise UserError(busy or f"{path} is locked") from error
    try:
        yield
    finally:
        held.release()
