"""Reads benchmark files from a folder; errors name the file and line."""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from flanx.data.task import text
from flanx.data.task.row import BadRow, text_of, whole
from flanx.errors import UserError
from flanx.evals import download


def draw(name: str) -> int:
    """A 64-bit hash of a row's name: the rows with the smallest hashes are a uniform draw, which depends neither on the
    order of the file nor on what else is in it."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def existing(path: pathlib.Path, what: str, url: str = "") -> pathlib.Path:
    """`path`, downloaded if possible. Raises UserError that says what is missing and how to exclude it by name."""
    if not download.provide(path, what, url) and not path.is_file():
        raise UserError(
            f"{what}: no file {path}; put {url or 'it'} there, set DATA_DIR, or allow it to "
            "be missing by name (ALLOW_MISSING)"
        )
    return path


def stamp(path: pathlib.Path, what: str) -> tuple[int, int]:
    """A file's mtime in nanoseconds and its size, a cache key for what is kept of it in memory."""
    status = existing(path, what).stat()
    return status.st_mtime_ns, status.st_size


def present(path: pathlib.Path, url: str = "") -> bool:
    """Whether the file exists or can be downloaded."""
    try:
        return existing(path, "", url).is_file()
    except UserError:
        return False


def read_text(path: pathlib.Path, what: str) -> str:
    """The text of a file, with line endings normalized to LF."""
    with _told(what):
        return text.read(existing(path, what))


def read_json(path: pathlib.Path, what: str) -> Any:
    """A JSON file."""
    with _told(what):
        return text.read_json(existing(path, what))


def read_lines(path: pathlib.Path, what: str) -> Iterator[tuple[str, dict]]:
    """(location, record) of a JSONL file."""
    with _told(what):
        for location, record in text.json_rows(existing(path, what)):
            if isinstance(record, BadRow):
                raise UserError(f"{location}: {record}")
            yield location, record


def read_rows(path: pathlib.Path, what: str, columns: int, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """(location, cells) of the rows of a CSV (delimiter ",") or TSV file (tab)."""
    with _told(what):
        found = existing(path, what)
        for number, row in text.tsv_rows(found) if delimiter == "\t" else text.csv_rows(found):
            if isinstance(row, BadRow):
                raise UserError(f"{path}:{number}: {row}")
            if len(row) != columns:
                raise UserError(f"{path}:{number}: {len(row)} columns, expected {columns}")
            yield f"{path}:{number}", row


def read_named(
    path: pathlib.Path, what: str, columns: Sequence[str], delimiter: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """(location, {column: cell}) of the rows of a CSV or TSV file with a header line that includes `columns`."""
    with _told(what):
        found = existing(path, what)
        head: list[str] = []
        for number, row in text.tsv_rows(found) if delimiter == "\t" else text.csv_rows(found):
            if isinstance(row, BadRow):
                raise UserError(f"{path}:{number}: {row}")
            if not head:
                head = text.unique(row, f"{path}:{number}")
                if absent := [name for name in columns if name not in head]:
                    raise UserError(f"{path}:{number}: no column '{absent[0]}' (there is: {', '.join(head)})")
                continue
            if len(row) != len(head):
                raise UserError(f"{path}:{number}: {len(row)} columns, expected {len(head)}")
            yield f"{path}:{number}", dict(zip(head, row, strict=True))


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Adds the benchmark's name to errors about its files."""
    try:
        yield
    except UserError as error:
        raise error if str(error).startswith(what) else UserError(f"{what}: {error}") from error.__cause__


def value(record: Any, key: str, location: str) -> str:
    """A field of a record, text or a number, as text."""
    found = record.get(key) if isinstance(record, dict) else None
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        known = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{location}: no text column '{key}' (there is: {known})")
    try:
        return whole(text_of(found, key))
    except BadRow as error:
        raise UserError(f"{location}: {error}") from None


def filled(record: Any, key: str, location: str) -> str:
    """The same, which must not be blank: a prompt without its question would be scored like any other."""
    if not (found := value(record, key, location)).strip():
        raise UserError(f"{location}: {key} is empty")
    return found
