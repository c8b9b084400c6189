"""`receipt.json` of a data folder: row count and SHA-256 of each source's examples at its first fetch, and the rate of
the last fetch. The hash covers the examples as a task reads them, independent of file and compression."""

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
    """Row count and SHA-256 of a split's records, one JSON line each with sorted keys; bad rows by their reason."""
    digest, rows = hashlib.sha256(), 0
    for _, record in sources.raw_rows(task, split, data_dir):
        content = str(record) if isinstance(record, BadRow) else record
        digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
        rows += 1
    return {"rows": rows, "sha256": digest.hexdigest()}


def difference(split: str, first: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """One line if the examples of a split differ from the first fetch; None if they agree or it is the first."""
    if first is None or first == now:
        return None
    then, here = (f"{one['rows']:,} rows, sha256 {one['sha256'][:12]}" for one in (first, now))
    return f"the examples of '{split}' are not those of the first fetch ({then}; now {here})"
