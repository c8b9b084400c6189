"""Tables that a command writes for the user: tasks of own files, of pre-rendered exports, of a FLAN clone.

They go into a folder that the environment's FLANX_TABLES names from then on (`<folder>/tables`, `<folder>/templates`).
"""

import argparse
import csv
import json
import pathlib
import re
import tomllib
from typing import Any

from flanx.data.task import tables
from flanx.errors import UserError, nearest
from flanx.files import write_atomic

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
    """Adds a collection to the folder's own collections.toml and its template block, unless they are there already."""
    path = output / "tables" / "collections.toml"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Collections of this folder.\n"
    if name not in tomllib.loads(text):
        write_atomic(path, f'{text}\n[{name}]\nrole = "extra"\n{extra}')
    write_atomic(output / "templates" / f"{name}.toml", block)


def check(output: pathlib.Path) -> None:
    """Loads the tables with this folder added. Raises UserError at a mistake."""
    folders = [*tables.roots(), output.resolve()]
    tables.read(dict.fromkeys(folders))


def hint(output: pathlib.Path, name: str) -> str:
    """What to type next."""
    return f"export FLANX_TABLES={output.resolve()}\nflanx tasks show {name}"


def clean(text: str) -> str:
    """A name of letters, digits and underscores."""
    return re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower() or "task"


def _columns(path: pathlib.Path) -> list[str]:
    """The columns of a file: a header, or the keys of the first object."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind not in ("jsonl", "tsv", "csv") or path.suffix == ".gz":
        raise UserError(f"{path}: a .jsonl, .tsv or .csv file is wanted")
    with path.open(encoding="utf-8", newline="") as lines:
        if kind != "jsonl":
            return next(csv.reader(lines, delimiter="\t" if kind == "tsv" else ","), [])
        try:
            first = json.loads(next(lines, "{}"))
        except ValueError as e:
            raise UserError(f"{path}:1: no JSON: {e}") from e
    return list(first) if isinstance(first, dict) else []


def add(args: argparse.Namespace) -> int:
    """`flanx tasks add`: one file, two of its columns, one task."""
    path, output = pathlib.Path(args.file).expanduser().resolve(), pathlib.Path(args.output).expanduser()
    columns = _columns(path)
    for column in (args.inputs, args.targets):
        if column not in columns:
            raise UserError(f"{path}:1: no column '{column}'{nearest(column, columns)} (it has {', '.join(columns)})")
    kind = path.suffix[1:].lower()
    name = clean(args.name or path.stem)
    row: dict[str, Any] = {"source": f"{kind}:{path}"}
    row["splits"] = {"train": "train" if kind == "jsonl" else "train[1:]"}  # past the header
    if kind != "jsonl":
        row["columns"] = columns
    row["fields"] = f"keep(inputs=record[{args.inputs!r}], targets=record[{args.targets!r}])"
    row["templates"] = COLLECTION
    block = section(COLLECTION, {"none": ["{inputs}", "{targets}"], "prompts": [["{inputs}", "{targets}"]]})
    declare(output, COLLECTION, block, '[own.defaults]\nstyles = ["zsopt", "fsopt"]\ncap = 30000\n')
    table = output / "tables" / f"{COLLECTION}.toml"
    text = table.read_text(encoding="utf-8") if table.exists() else ""
    if name in tomllib.loads(text):
        raise UserError(f"{table}: it already has a task '{name}'; choose another --name")
    write_atomic(table, f"{text}\n{section(name, row)}".lstrip())
    check(output)
    print(f"task {COLLECTION}_{name} ({', '.join(columns)}) in {table}\n{hint(output, f'{COLLECTION}_{name}')}")
    return 0
