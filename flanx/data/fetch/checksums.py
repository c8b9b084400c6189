"""`receipt.json` of a data folder: rows and SHA-256 of the examples of each source at its first fetch, and the rate of
the last fetch. The hash is of the examples as a task reads them, whatever their file and compression."""

import hashlib
import json
import pathlib
from typing import Any

from flanx.data.task import sources
from flanx.data.task.row import BadRow
from flanx.data.task.spec import TaskSpec
from flanx.files import check_types, read_json, write_atomic

FILE = "receipt.json"
_TYPES = {"sources": dict[str, dict[str, dict[str, Any]]], "bytes_per_second": float | None}


def read(data_dir: str) -> dict[str, Any]:
    """{"sources": {source: {split: {"rows", "sha256"}}}, "bytes_per_second": of the last fetch, or None}."""
    path = pathlib.Path(data_dir).expanduser() / FILE
    return {"sources": {}, "bytes_per_second": None} | check_types(path, read_json(path), _TYPES)


def write(data_dir: str, content: dict[str, Any]) -> None:
    """Replaces the file atomically."""
    text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    write_atomic(pathlib.Path(data_dir).expanduser() / FILE, text)


def examples(task: TaskSpec, split: str, data_dir: str) -> dict[str, Any]:
    """Rows and sha256 of the records of a split, each as JSON with sorted keys on a line; bad rows by their reason."""
    digest, rows = hashlib.sha256(), 0
    for _, record in sources.raw_rows(task, split, data_dir):
        content = str(record) if isinstance(record, BadRow) else record
        digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
        rows += 1
    return {"rows": rows, "sha256": digest.hexdigest()}


def difference(split: str, first: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """One line where the examples of a split are not those that first came; None where they are, or none came yet."""
    if first is None or first == now:
        return None
    then, here = (f"{one['rows']:,} rows, sha256 {one['sha256'][:12]}" for one in (first, now))
    return f"the examples of '{split}' are not those of the first fetch ({then}; now {here})"
