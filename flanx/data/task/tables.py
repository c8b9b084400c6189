"""The files of a root of tables: rows with their places (TOML or CSV), collections, template blocks, the style.

What a row may hold is said and checked in flanx/data/task/spec.py; here a later root is laid over an earlier one.
"""

import csv
import pathlib
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

from flanx.data.task.licence import UNKNOWN, classify
from flanx.data.task.options import Style
from flanx.data.task.template import Block, Shot, parse_block
from flanx.errors import UserError, nearest

ROLES = ("paper", "held_out", "extra")
NO_TASKS = ("collections", "mixtures", "licences", "mirrors")  # tables that hold no rows of tasks
Row = tuple[str, dict[str, Any], str]  # name, keys, file:line
Cell = Callable[[str, str], Any]  # (key, text of a CSV cell) -> the value that TOML would give, or a ValueError


def toml(path: pathlib.Path) -> dict[str, Any]:
    """A TOML file. Raises UserError with the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        line = re.search(r"line (\d+)", str(e))
        raise UserError(f"{path}:{line[1] if line else 1}: {e}") from e


def _lines(path: pathlib.Path) -> dict[str, int]:
    """Line of each section header and of each `section.key` of a TOML file (tomllib does not keep them)."""
    places: dict[str, int] = {}
    section = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if hit := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            section = hit[1].replace('"', "").replace("'", "")
            places.setdefault(section, number)
        elif hit := re.match(r"([A-Za-z_][\w-]*)\s*=", line):
            places.setdefault(f"{section}.{hit[1]}", number)
    return places


def toml_rows(path: pathlib.Path) -> Iterator[Row]:
    """The sections of a TOML file."""
    lines = _lines(path)
    for name, row in toml(path).items():
        place = f"{path}:{lines.get(name, 1)}"
        if not isinstance(row, dict):
            raise UserError(f"{place}: '{name}' stands outside a section")
        yield name, row, place


def csv_rows(path: pathlib.Path, cell: Cell) -> Iterator[Row]:
    """The lines of a CSV file with a column `name`."""
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        if "name" not in header:
            raise UserError(f"{path}:1: no column 'name'")
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            if len(cells) != len(header):
                raise UserError(f"{place}: {len(cells)} columns instead of {len(header)}")
            row = {}
            for key, text in zip(header, cells, strict=True):
                try:
                    row |= {key: cell(key, text)} if text else {}
                except (ValueError, KeyError) as e:
                    raise UserError(f"{place}: {key} is {text!r}") from e
            yield row.pop("name", ""), row, place


# ---- a root ----------------------------------------------------------------------------------------------------------


def add_rows(root: pathlib.Path, found: dict[str, tuple[str, dict, str]], groups: dict[str, dict], cell: Cell) -> None:
    """Adds the rows of one root to `found`: task name -> (collection, row, place)."""
    here: dict[str, str] = {}
    folder = root / "tables"
    for path in sorted([*folder.glob("*.toml"), *folder.glob("*.csv")]):
        collection = path.stem
        if collection in NO_TASKS:
            continue
        if collection not in groups:
            raise UserError(f"{path}:1: no collection '{collection}' in collections.toml{nearest(collection, groups)}")
        for section, row, place in toml_rows(path) if path.suffix == ".toml" else csv_rows(path, cell):
            name = f"{collection}_{section}"
            if not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise UserError(f"{place}: '{section}' is no name (letters, digits, underscores)")
            if name in here:
                raise UserError(f"{place}: {name} stands at {here[name]} too")
            here[name] = place
            old = found[name][1] if name in found else {"dataset": section, **groups[collection].get("defaults", {})}
            if "{name}" in old.get("source", ""):
                old = {**old, "source": old["source"].replace("{name}", section)}
            found[name] = (collection, {**old, **row}, place)


def add_licences(root: pathlib.Path, licences: dict[tuple[str, str], str]) -> None:
    """Adds the rows of one root's `licences.csv` to `licences`: (collection, data set or task) -> licence."""
    path = root / "tables" / "licences.csv"
    if not path.is_file():
        return
    for name, row, place in csv_rows(path, lambda key, text: text):
        if set(row) != {"collection", "licence", "stated"}:
            raise UserError(f"{place}: a row is collection,name,licence,stated: what it is, and the page that says so")
        if classify(row["licence"]) == UNKNOWN:
            raise UserError(f"{place}: licence '{row['licence']}' is in no class of flanx/data/task/licence.py")
        licences[row["collection"], name] = row["licence"]


def add_groups(root: pathlib.Path, groups: dict[str, dict]) -> None:
    """Adds the collections of one root to `groups`: name -> section of collections.toml, and its place."""
    path = root / "tables" / "collections.toml"
    if not path.is_file():
        return
    for name, section, place in toml_rows(path):
        unknown = set(section) - {"role", "total", "defaults"}
        if unknown:
            raise UserError(f"{place}: unknown key '{sorted(unknown)[0]}'")
        if section.get("role") not in ROLES:
            raise UserError(f"{place}: role is one of {', '.join(ROLES)}")
        groups[name] = {**section, "place": place}


def add_blocks(root: pathlib.Path, blocks: dict[str, Block]) -> Style | None:
    """Adds the template blocks of one root to `blocks`; its style, if it has one."""
    here: dict[str, str] = {}
    style = None
    for path in sorted((root / "templates").glob("*.toml")):
        if path.name == "style.toml":
            style = _style(path)
            continue
        for name, table, place in toml_rows(path):
            if name in here:
                raise UserError(f"{place}: template block '{name}' stands at {here[name]} too")
            here[name] = place
            try:
                blocks[name] = parse_block(name, table)
            except ValueError as e:
                raise UserError(f"{place}: {e}") from e
    return style


def _style(path: pathlib.Path) -> Style:
    table = toml(path)
    try:
        options = table["options"]
        for marker in options["markers"]:
            if not marker.endswith("{}") or marker.count("{}") != 1:
                raise ValueError(f"marker {marker!r} does not end in a single {{}}")
        if all(re.search(r"\{\w\}", marker) for marker in options["markers"]):
            raise ValueError("no marker is a bullet, as '- {}' is")
        return Style(
            headings=tuple(options["headings"]),
            markers=tuple(options["markers"]),
            separators=tuple(options["separators"]),
            shots=tuple(Shot(**shot) for shot in table["shots"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{path}:1: {type(e).__name__}: {e}") from e
