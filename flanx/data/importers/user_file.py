"""Tables that a command writes for the user: tasks of own files, of pre-rendered exports, of a FLAN clone.

They go into a folder that the environment's FLANX_TABLES names from then on (`<folder>/tables`, `<folder>/templates`).
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

from flanx.data.task import tables, text
from flanx.data.task.row import BadRow, text_of
from flanx.errors import UserError
from flanx.files import local_path, lock, write_atomic

COLLECTION = "own"


def quote(value: Any) -> str:
    """A value as TOML (texts, numbers, booleans, lists, one level of dictionaries)."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {quote(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(quote, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's, apart from the delete character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)


def section(name: str, row: dict[str, Any]) -> str:
    """One TOML section."""
    return f"[{name}]\n" + "".join(f"{key} = {quote(value)}\n" for key, value in row.items())


def declare(output: pathlib.Path, name: str, block: str, extra: str = "") -> None:
    """Adds a collection to the folder's own collections.toml and its template block, unless they are there already:
    what the user has edited stays."""
    path = output / "tables" / "collections.toml"
    content = text.read(path) if path.exists() else "# Collections of this folder.\n"
    if name not in (tables.toml(path) if path.exists() else {}):
        write_atomic(path, f'{content}\n[{name}]\nrole = "extra"\n{extra}')
    if not (block_file := output / "templates" / f"{name}.toml").exists():
        write_atomic(block_file, block)


def write_made(path: pathlib.Path, content: str, dry_run: bool = False) -> None:
    """Writes a whole file of ours, and beside it `.<name>.made` with the hash of what was written.

    Raises UserError where the file that is there has another hash or none: it was edited, or is not of our making.
    """
    mark = path.with_name(f".{path.name}.made")
    if path.exists() and (not mark.is_file() or mark.read_text().strip() != _hash(path.read_bytes())):
        raise UserError(f"{path}: edited, or not made by this command; move it away, or choose another --output")
    if not dry_run:
        write_atomic(path, content)
        write_atomic(mark, _hash(content.encode()) + "\n")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check(output: pathlib.Path) -> None:
    """Loads the tables with this folder added. Raises UserError at a mistake."""
    folders = [*tables.roots(), output.resolve()]
    tables.read(dict.fromkeys(folders))


def hint(output: pathlib.Path, name: str) -> str:
    """What to type next."""
    return f"export FLANX_TABLES={output.resolve()}\nflanx tasks show {name}"


def clean(name: str) -> str:
    """A name of letters, digits and underscores."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "task"


@dataclasses.dataclass
class _Found:
    """What a file holds: its columns, its rows with both texts, the repeated ones among them, the bad ones."""

    inputs: str
    targets: str
    columns: list[str]
    rows: int = 0
    repeated: int = 0
    bad: int = 0
    first_bad: str = ""


def _look(path: pathlib.Path, inputs: str, targets: str) -> _Found:
    """Reads the whole file once, so that what is wrong with it is said now and not in a training."""
    found: _Found | None = None
    seen: set[int] = set()
    bad, first_bad = 0, ""
    for location, record in text.records(path):
        try:
            if isinstance(record, BadRow):
                raise record
            if found is None:
                names = list(record)
                found = _Found(text.column_of(inputs, names, location), text.column_of(targets, names, location), names)
            pair = []
            for name in (found.inputs, found.targets):
                if name not in record:
                    raise BadRow(f"no column '{name}'")
                pair.append(text_of(record[name], name).strip())
                if not pair[-1]:
                    raise BadRow(f"empty {name}")
        except BadRow as error:
            bad, first_bad = bad + 1, first_bad or f"{location}: {error}"
            continue
        found.rows += 1
        key = hash(tuple(pair))
        found.repeated += key in seen
        seen.add(key)
    if found is None or not found.rows:
        raise UserError(f"{path}: no row with both texts" + (f"; {first_bad}" if first_bad else ""))
    found.bad, found.first_bad = bad, first_bad
    return found


def add(args: argparse.Namespace) -> int:
    """`flanx tasks add`: one file, two of its columns, one task."""
    path, output = local_path(args.file).absolute(), local_path(args.output)
    kind = text.kind_of(path)
    if path.is_file() and kind not in ("jsonl", "json", "tsv", "csv"):
        raise UserError(f"{path}: a .jsonl, .json, .tsv or .csv file is wanted, .gz or not")
    found = _look(path, args.inputs, args.targets)
    name = clean(args.name or path.name.removesuffix(".gz").rpartition(".")[0])
    table_kind = kind in ("tsv", "csv")
    row: dict[str, Any] = {"source": f"{'jsonl' if kind == 'json' else kind}:{path}"}
    row["splits"] = {"train": "train[1:]" if table_kind else "train"}  # past the header
    if table_kind:
        row["columns"] = found.columns
    row["fields"] = f"keep(inputs=record[{found.inputs!r}], targets=record[{found.targets!r}])"
    row["templates"] = COLLECTION
    row["num_examples"] = found.rows
    block = section(COLLECTION, {"none": ["{inputs}", "{targets}"], "prompts": [["{inputs}", "{targets}"]]})
    table = output / "tables" / f"{COLLECTION}.toml"
    if output.exists():
        check(output)  # a folder that is broken stays as it is
    with lock(output / "tables" / ".lock"):
        if table.exists() and name in tables.toml(table):
            raise UserError(f"{table}: it already has a task '{name}'; choose another --name")
        declare(output, COLLECTION, block, '[own.defaults]\nstyles = ["zsopt", "fsopt"]\ncap = 30000\n')
        content = text.read(table) if table.exists() else ""
        write_atomic(table, f"{content}\n{section(name, row)}".lstrip())
    check(output)
    print(f"task {COLLECTION}_{name} ({', '.join(found.columns)}) in {table}")
    notes = [f"{found.rows:,} rows"]
    if found.repeated:
        notes.append(f"{found.repeated:,} of them repeat another one")
    if found.bad:
        notes.append(f"{found.bad:,} left out, the first at {found.first_bad}")
    print(f"{'; '.join(notes)}\n{hint(output, f'{COLLECTION}_{name}')}")
    return 0
