"""Reading benchmark files from a folder, errors name the file and line."""

import csv
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from flanx.errors import UserError
from flanx.evals import download


def existing(path: pathlib.Path, what: str) -> pathlib.Path:
    """`path`, downloaded where possible. Raises UserError with what is missing and how to leave it out by name."""
    if not download.provide(path, what) and not path.is_file():
        raise UserError(
            f"{what}: no file {path}; put it there, set DATA_DIR, or allow it to be missing by name (ALLOW_MISSING)"
        )
    return path


def present(path: pathlib.Path) -> bool:
    """Whether the file exists or can be downloaded."""
    try:
        return existing(path, "").is_file()
    except UserError:
        return False


def read_text(path: pathlib.Path, what: str) -> str:
    """A text file in UTF-8, its line ends as they are."""
    try:
        return existing(path, what).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {path} is not UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(path: pathlib.Path, what: str) -> Any:
    """A JSON file."""
    try:
        return json.loads(read_text(path, what))
    except json.JSONDecodeError as error:
        raise UserError(f"{what}: {path}:{error.lineno}: not JSON: {error.msg}") from None


def read_lines(path: pathlib.Path, what: str) -> Iterator[tuple[str, dict]]:
    """(location, record) of a JSONL file."""
    for number, line in enumerate(read_text(path, what).split("\n"), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{what}: {path}:{number}: not JSON: {error.msg}") from None
            yield f"{path}:{number}", record


def read_rows(path: pathlib.Path, what: str, columns: int, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """(location, cells) of a CSV (delimiter ",") or a plain TSV file (tab, no quoting)."""
    text = read_text(path, what)
    if delimiter == "\t":
        rows = ((n, line.rstrip("\r").split("\t")) for n, line in enumerate(text.split("\n"), 1) if line)
    else:
        reader = csv.reader(io.StringIO(text, newline=""))
        rows = ((reader.line_num, row) for row in reader if row)
    for number, row in rows:
        if len(row) != columns:
            raise UserError(f"{what}: {path}:{number}: {len(row)} columns, expected {columns}")
        yield f"{path}:{number}", row


def value(record: Any, key: str, location: str) -> str:
    """A text field of a record."""
    if not isinstance(record, dict) or not isinstance(record.get(key), str):
        known = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{location}: no text column '{key}' (there is: {known})")
    return record[key]
