"""Pre-rendered exports of the Flan Collection as tasks: `flanx tasks import-export PATH --output DIR`.

An export holds one example a row: `inputs`, `targets`, `task_name`, `task_source`, `template_type` (also with a leading
underscore), as JSONL, gzip or Parquet. Its rows are parted by task and template type into files of their own, so that
each becomes a task that is read, capped and weighted by itself. The texts stay as they are, apart from blanks at the
ends.
"""

import argparse
import collections
import contextlib
import gzip
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO, Any

from flanx.data.importers import user_file
from flanx.data.task.sources import parquet_rows
from flanx.errors import UserError
from flanx.files import write_atomic

KEYS = ("inputs", "targets", "task_name", "task_source", "template_type")
OPEN_FILES = 200  # at most so many tasks' files at once
MAX_BAD_ROWS = 100


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    found = sorted(
        p for p in path.rglob("*") if p.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet"))
    )
    if not found:
        raise UserError(f"{path}: no .jsonl, .jsonl.gz or .parquet file there")
    return found


def _records(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """(location, record or None where the line is not one)."""
    if path.suffix == ".parquet":
        yield from ((f"{path}[{number}]", row) for number, row in enumerate(parquet_rows(path)))
        return
    opener = gzip.open if path.suffix == ".gz" else open
    record: Any
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line) if line.strip() else None
            except ValueError:
                record = line
            if record is not None:
                yield f"{path}:{number}", record


def _row(record: Any) -> dict[str, str] | None:
    """The five texts of a row under their plain names; None where inputs, targets or the task's name are no texts."""
    if not isinstance(record, dict):
        return None
    row = {key: record.get(key, record.get(f"_{key}")) for key in KEYS}
    for key in ("inputs", "targets", "task_name"):
        value = row[key]
        if not isinstance(value, str) or not value.strip():
            return None
    return {key: str(value or "") for key, value in row.items()}


def _name(row: dict[str, str], taken: dict[tuple[str, str], str]) -> str:
    """A task's name: that of the export and its template type, numbered where cleaning makes two equal."""
    stem = user_file.clean(f"{row['task_name']}_{row['template_type']}")
    used = set(taken.values())
    return next(n for n in itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2))) if n not in used)


class _Parts:
    """Appends rows to one file a task; a bounded number of them is open."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.open: collections.OrderedDict[str, IO[str]] = collections.OrderedDict()
        self.seen: dict[str, int] = {}

    def append(self, name: str, row: dict[str, str]) -> None:
        if name not in self.open:
            if len(self.open) == OPEN_FILES:
                self.open.popitem(last=False)[1].close()
            mode = "a" if name in self.seen else "w"
            self.open[name] = (self.folder / f"{name}.jsonl").open(mode, encoding="utf-8")
        self.open.move_to_end(name)
        self.open[name].write(json.dumps(row, ensure_ascii=False) + "\n")
        self.seen[name] = self.seen.get(name, 0) + 1

    def close(self) -> None:
        for file in self.open.values():
            file.close()
        self.open.clear()


def _part(path: pathlib.Path, folder: pathlib.Path) -> tuple[dict[str, dict[str, str]], dict[str, int], int]:
    """Writes one file per task into `folder`: (first row by task, number of rows by task, bad rows)."""
    parts, bad = _Parts(folder), 0
    rows: dict[str, dict[str, str]] = {}
    names: dict[tuple[str, str], str] = {}
    try:
        for file in _files(path):
            for location, record in _records(file):
                row = _row(record)
                if row is None:
                    bad += 1
                    print(f"{location}: no inputs, targets or task_name (row left out)")
                    if bad > MAX_BAD_ROWS:
                        raise UserError(f"{location}: more than {MAX_BAD_ROWS} bad rows; is this an export?")
                    continue
                name = names.get((row["task_name"], row["template_type"])) or _name(row, names)
                names[row["task_name"], row["template_type"]] = name
                rows.setdefault(name, row)
                parts.append(name, {"inputs": row["inputs"], "targets": row["targets"]})
    finally:
        parts.close()
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows, parts.seen, bad


def import_export(args: argparse.Namespace) -> int:
    """Divides the export into tasks, writes their table, prints what was made."""
    path, output = pathlib.Path(args.path).expanduser(), pathlib.Path(args.output).expanduser().resolve()
    if not path.exists():
        raise UserError(f"no file or folder {path}")
    collection = user_file.clean(args.collection)
    folder = output / "data" / collection
    draft = folder.with_name(f".{collection}.part")  # the files of a refused export leave nothing behind
    draft.mkdir(parents=True, exist_ok=True)
    try:
        rows, seen, bad = _part(path, draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft)
        for empty in (draft.parent, output):
            with contextlib.suppress(OSError):  # something of the user's is in it
                empty.rmdir()
        raise
    block = user_file.section(collection, {"none": ["{inputs}", "{targets}"], "prompts": [["{inputs}", "{targets}"]]})
    user_file.declare(output, collection, block, f'[{collection}.defaults]\nstyles = ["zsopt"]\ncap = 30000\n')
    table = "# Made by `flanx tasks import-export`; the prompts are rendered already.\n"
    for name, row in sorted(rows.items()):
        table += "\n" + user_file.section(name, {
            "source": f"jsonl:{folder / name}.jsonl", "splits": {"train": "train"}, "columns": ["inputs", "targets"],
            "templates": collection, "dataset": row["task_name"], "category": row["template_type"],
            "num_examples": seen[name], "note": row["task_source"],
        })  # fmt: skip
    write_atomic(output / "tables" / f"{collection}.toml", table)
    user_file.check(output)
    total = sum(seen.values())
    print(f"{len(rows)} tasks, {total:,} examples, {bad} bad rows; {output / 'tables' / f'{collection}.toml'}")
    print(user_file.hint(output, f"{collection}_{next(iter(rows))}"))
    return 0
