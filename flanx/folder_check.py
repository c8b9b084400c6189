"""Checks what a run needs of the folder or bucket it writes to, with a small file that is deleted afterwards."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Generator, Iterator

from flanx import files
from flanx.errors import UserError
from flanx.storage import ABSENT, Storage, open_storage

ORDER = ("write", "read", "condition", "rename", "list", "delete")


def check(path: str) -> Iterator[tuple[str, str]]:
    """(operation, what is wrong with it, or "") in ORDER. Stops at the first that fails.

    What a rename and a lock do in a local folder, a conditional write does in a bucket. Nothing is left behind if the
    folder allows deletion.
    """
    folder, name = open_storage(path), f".flanx.doctor.{secrets.token_hex(4)}"
    steps = _of_bucket(folder, name) if folder.is_remote else _of_folder(pathlib.Path(folder.path), name)
    waiting: list[str] = [*ORDER]
    try:
        for operation, is_right, instead in steps:
            waiting.remove(operation)
            yield operation, "" if is_right else f"{path}: {instead}"
            if not is_right:
                return
    except (OSError, UserError) as error:
        yield waiting[0], str(error)
    finally:
        steps.close()


def _of_bucket(folder: Storage, name: str) -> Generator[tuple[str, bool, str], None, None]:
    """(operation, whether it behaves as required, what it does instead)."""
    try:
        first = folder.put(name, b"1", ABSENT)
        yield "write", first is not None, "a new object is refused as if it were there"
        yield "read", folder.get(name) == (b"1", first), "what was written is not read again"
        refused = folder.put(name, b"2", ABSENT) is None and folder.get(name)[0] == b"1"
        yield "condition", refused, "a write on a condition that does not hold is done: two runs could share a folder"
        replaced = folder.put(name, b"3", first or ABSENT) is not None and folder.get(name)[0] == b"3"
        yield "rename", replaced, "an object is not replaced on a condition that holds"
        yield "list", name in folder.children(), "a new object is not listed"
        folder.remove(name)
        yield "delete", folder.find(name) is None, "a deleted object is still read"
    finally:
        with contextlib.suppress(UserError):
            folder.remove(name)


def _of_folder(folder: pathlib.Path, name: str) -> Generator[tuple[str, bool, str], None, None]:
    made = [each for each in (folder, *folder.parents) if not each.exists()]  # innermost first
    file, other, locked = folder / name, folder / f"{name}.renamed", folder / f"{name}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_atomic(file, "1")
        yield "write", file.exists(), "a new file is not there"
        yield "read", file.read_text(encoding="utf-8") == "1", "what was written is not read again"
        with files.lock(locked):
            yield "condition", True, ""
        os.replace(file, other)
        yield "rename", other.exists() and not file.exists(), "a file that was renamed is still there"
        yield "list", other.name in os.listdir(folder), "a new file is not listed"
        other.unlink()
        yield "delete", not other.exists(), "a deleted file is still there"
    finally:
        with contextlib.suppress(OSError):  # what it may not delete it has named
            for each in (file, other, locked):
                each.unlink(missing_ok=True)
            for each in made:
                each.rmdir()
