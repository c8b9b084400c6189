"""Pre-rendered exports of the Flan Collection as tasks: `flanx tasks import-export PATH --output DIR`.

An export has one example per row: `inputs`, `targets`, `task_name`, `task_source`, `template_type` (also with a leading
underscore), as JSONL, gzip or Parquet. Its rows are split by task and template type into separate files, each of which
becomes a task that can be read, capped and weighted on its own. Texts are unchanged except for stripped whitespace.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from typing import IO

from flanx.data.importers import user_file
from flanx.data.task import text
from flanx.data.task.row import BadRow, Record, text_of
from flanx.errors import UserError
from flanx.files import local_path

KEYS = ("inputs", "targets", "task_name", "task_source", "template_type")
OPEN_FILES = 200  # maximum number of task files open at once
MAX_BAD_ROWS = 100
MADE = ".made"  # lists the files that an import wrote, in its folder


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.is_file() and text.kind_of(p))
    if not found:
        raise UserError(f"{path}: no .jsonl, .json, .csv, .tsv or .parquet file there")
    return found


def _row(record: Record | BadRow) -> dict[str, str] | None:
    """The five texts of a row under their plain names; None if inputs, targets or the task's name are not strings."""
    if isinstance(record, BadRow):
        return None
    found = {key: record.get(key, record.get(f"_{key}")) for key in KEYS}
    try:
        row = {key: "" if value is None else text_of(value, key) for key, value in found.items()}
    except BadRow:
        return None
    return row if all(row[key].strip() for key in ("inputs", "targets", "task_name")) else None


def _name(row: dict[str, str], taken: dict[tuple[str, str], str]) -> str:
    """A task's name: the export's name and its template type, numbered if cleaning makes two names equal."""
    stem = user_file.clean(f"{row['task_name']}_{row['template_type']}")
    used = set(taken.values())
    return next(n for n in itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(2))) if n not in used)


class _Parts:
    """Appends rows to one file per task, with a bounded number of open files."""

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
            for location, record in text.records(file):
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


def _check_own(folder: pathlib.Path) -> None:
    """Raises UserError if the folder, which will be replaced, has files that no earlier import wrote."""
    if not folder.exists():
        return
    mark = folder / MADE
    own = {MADE, *(mark.read_text(encoding="utf-8", errors="replace").split("\n") if mark.is_file() else ())}
    for one in sorted(folder.iterdir()):
        if one.name not in own:
            raise UserError(f"{one}: not written by import-export; move it away, or choose another --collection")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def import_export(args: argparse.Namespace) -> int:
    """Splits the export into tasks, writes their table, and prints what was created."""
    path, output = local_path(args.path), local_path(args.output).absolute()
    if not path.exists():
        raise UserError(f"no file or folder {path}")
    collection = user_file.clean(args.collection)
    table_file = output / "tables" / f"{collection}.toml"
    user_file.write_made(table_file, "", dry_run=True)
    folder = output / "data" / collection
    _check_own(folder)
    user_file.check(output)
    empty = [one for one in (folder.parent, output) if not one.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(prefix=f".{collection}.", dir=folder.parent))
    try:  # a rejected export leaves no files behind
        rows, seen, bad = _part(path, draft)
        (draft / MADE).write_text("".join(f"{name}.jsonl\n" for name in sorted(rows)), encoding="utf-8")
        draft.chmod(0o777 & ~_umask())
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        for one in empty:
            with contextlib.suppress(OSError):  # it contains files of the user's
                one.rmdir()
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
    user_file.write_made(table_file, table)
    user_file.check(output)
    total = sum(seen.values())
    print(f"{len(rows)} tasks, {total:,} examples, {bad} bad rows; {table_file}")
    print(user_file.hint(output, f"{collection}_{next(iter(rows))}"))
    return 0
