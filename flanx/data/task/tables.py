"""The task tables: every root's rows, collections, template blocks, licences and mixtures, read, checked and merged.

The format and a row's keys are described in flanx/data/task/spec.py.
"""

import functools
import importlib.util
import os
import pathlib
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flanx.data.task import text
from flanx.data.task.licence import UNKNOWN, classify
from flanx.data.task.row import BadRow
from flanx.data.task.spec import INVERTED, TaskSpec, parse_cell, parse_row
from flanx.data.task.template import Block, Shot, Style, parse_block
from flanx.errors import UserError, nearest
from flanx.files import local_path

ROLES = ("paper", "held_out", "extra")
NO_TASKS = ("collections", "mixtures", "licences", "mirrors")  # tables without task rows
MIXTURE_KEYS = ("collections", "rates", "caps", "styles", "inversion", "balance", "note")
NAME = re.compile(r"[A-Za-z0-9_]+")
Row = tuple[str, dict[str, Any], str]  # name, keys, file:line


@dataclass(frozen=True)
class Tables:
    """The content of all roots: tasks by name, template blocks by name, the style, the collections' sections."""

    tasks: dict[str, TaskSpec]
    blocks: dict[str, Block]
    style: Style
    collections: dict[str, dict[str, Any]]


def roots() -> list[pathlib.Path]:
    """Our own tables folder (located without importing it, which would import SeqIO), then those of FLANX_TABLES."""
    package = importlib.util.find_spec("flanx.tasks")
    if package is None or not package.submodule_search_locations:
        raise UserError("flanx.tasks is not installed: run `pip install -e .` in the repository")
    more = [local_path(p) for p in os.environ.get("FLANX_TABLES", "").split(os.pathsep) if p]
    for path in more:
        if not path.is_dir():
            raise UserError(f"FLANX_TABLES: no folder {path}")
        if path.name == "tables" and not (path / "tables").is_dir():
            raise UserError(f"FLANX_TABLES: {path} is the inner folder; give the one that holds it, {path.parent}")
    return [pathlib.Path(package.submodule_search_locations[0]), *more]


def missing_tables() -> str:
    """A hint for the message on an unknown name if no user tables are read; else ""."""
    return (
        "" if os.environ.get("FLANX_TABLES") else "; tasks of your own: name the folder of their tables in FLANX_TABLES"
    )


def load() -> Tables:
    """All tables, read once per set of roots. Raises UserError with file:line and reason; never loads partially."""
    return _load(tuple(roots()))


def load_tables() -> dict[str, TaskSpec]:
    """All tasks by name. See `load`."""
    return load().tasks


def find_task(name: str) -> tuple[TaskSpec, str | None]:
    """The row for a task name, and the style suffix (`cot_gsm8k_fsopt`) or None. Raises UserError."""
    tasks = load_tables()
    found = find_style(name, {task: spec.versions for task, spec in tasks.items()})
    if found is None:
        raise UserError(
            f"no task '{name}'{nearest(name, tasks)}; `flanx tasks list` prints all of them{missing_tables()}"
        )
    return tasks[found[0]], found[1]


def find_style(name: str, styles: Mapping[str, Container[str]]) -> tuple[str, str | None] | None:
    """(task, None) for a task name, (task, style) for `task_style`, or None. `styles`: by task."""
    if name in styles:
        return name, None
    task, _, style = name.removesuffix(INVERTED).rpartition("_")
    style += name[len(task) + 1 + len(style) :]
    return (task, style) if style in styles.get(task, ()) else None


def collections() -> dict[str, Any]:
    """Counts: {"collections": the paper's four, "total", "held_out": by collection, "extra": by collection}."""
    tables = load()
    counts: dict[str, dict[str, int]] = {role: {} for role in ROLES}
    for name, section in tables.collections.items():
        rows = [spec for spec in tables.tasks.values() if spec.collection == name]
        if rows:
            counts[section["role"]][name] = len(rows)
    paper = counts["paper"]
    return {
        "collections": paper,
        "total": sum(paper.values()),
        "held_out": counts["held_out"],
        "extra": counts["extra"],
    }


def load_mixtures() -> dict[str, dict[str, Any]]:
    """Sections of all roots' `tables/mixtures.toml`, later roots overriding earlier ones; its header lists the keys."""
    return _load_mixtures(tuple(roots()))


@functools.lru_cache(maxsize=8)
def _load_mixtures(folders: tuple[pathlib.Path, ...]) -> dict[str, dict[str, Any]]:
    mixtures: dict[str, dict[str, Any]] = {}
    for root in folders:
        path = root / "tables" / "mixtures.toml"
        for name, section, location in toml_rows(path) if path.is_file() else ():
            for key in section:
                if key not in MIXTURE_KEYS:
                    raise UserError(f"{location}: mixture '{name}' has unknown key '{key}'{nearest(key, MIXTURE_KEYS)}")
            if not section.get("collections"):
                raise UserError(f"{location}: mixture '{name}' needs 'collections'")
            mixtures[name] = section
    return mixtures


# ---- one root --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _load(folders: tuple[pathlib.Path, ...]) -> Tables:
    return read(folders)


def read(folders: Iterable[pathlib.Path]) -> Tables:
    """Reads the tables of these roots, uncached; later ones override earlier ones."""
    folders = list(folders)
    sections: dict[str, dict[str, Any]] = {}
    rows: dict[str, tuple[str, dict[str, Any], str]] = {}
    blocks: dict[str, Block] = {}
    licences: dict[tuple[str, str], str] = {}
    style = None
    for root in folders:
        _add_collections(root, sections)
        _add_rows(root, rows, sections)
        _add_licences(root, licences)
        style = _add_blocks(root, blocks) or style
    if style is None:
        raise UserError(f"{folders[0]}/templates/style.toml is missing")
    tasks = {}
    good: set[tuple[str, frozenset[str]]] = set()
    for name, (collection, row, location) in rows.items():
        stated = licences.get((collection, name.removeprefix(f"{collection}_"))) or licences.get(
            (collection, str(row.get("dataset")))
        )
        row = {"licence": stated, **row} if stated else row
        spec = parse_row(name, collection, sections[collection]["role"], row, location)
        _check_templates(spec, blocks, good)
        tasks[name] = spec
    counts = Counter(spec.collection for spec in tasks.values())
    for name, section in sections.items():
        if section.get("total", counts[name]) != counts[name]:
            raise UserError(f"{section['location']}: {name} has {counts[name]} rows instead of {section['total']}")
    return Tables(tasks, blocks, style, sections)


def _missing_field(block: Block, names: frozenset[str]) -> tuple[str, str] | None:
    """(template, field) of the first field that is not among the names, or None. `options` may be absent."""
    for prompt in (*block.prompts, block.none):
        for field in sorted(prompt.fields - names - {"options"}):
            return prompt.name, field
    return None


def _check_templates(spec: TaskSpec, blocks: dict[str, Block], good: set[tuple[str, frozenset[str]]]) -> None:
    """Rejects a block that does not exist or uses a field that the task lacks. `good`: pairs that passed."""
    try:
        names = spec.names
    except UserError as e:
        raise UserError(f"{spec.location}: {e}") from e
    if not names:
        raise UserError(f"{spec.location}: {spec.name} needs 'fields' or 'columns'")
    for name in (*spec.templates, *spec.inversions, *spec.few, *spec.noopt, *spec.worked):
        if name not in blocks:
            raise UserError(f"{spec.location}: no template block '{name}'{nearest(name, blocks)}")
        if (name, names) in good:
            continue
        if wrong := _missing_field(blocks[name], names):
            raise UserError(
                f"{spec.location}: template {wrong[0]} names the field '{wrong[1]}', which {spec.name} does not have "
                f"(it has {', '.join(sorted(names))})"
            )
        good.add((name, names))


def toml(path: pathlib.Path) -> dict[str, Any]:
    """Reads a TOML file. Raises UserError with the line."""
    try:
        return tomllib.loads(text.read(path))
    except tomllib.TOMLDecodeError as e:
        line = re.search(r"line (\d+)", str(e))
        raise UserError(f"{path}:{line[1] if line else 1}: {e}") from e
    except RecursionError:
        raise UserError(f"{path}: not TOML (nested too deeply)") from None


def line_numbers(path: pathlib.Path) -> dict[str, int]:
    """Line of each section header and of each `section.key` of a TOML file (tomllib does not keep them)."""
    lines: dict[str, int] = {}
    section = ""
    for number, line in text.lines(path):
        if hit := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            section = hit[1].replace('"', "").replace("'", "")
            lines.setdefault(section, number)
        elif hit := re.match(r"([A-Za-z_][\w-]*)\s*=", line):
            lines.setdefault(f"{section}.{hit[1]}", number)
    return lines


def toml_rows(path: pathlib.Path) -> Iterator[Row]:
    """The sections of a TOML file."""
    lines = line_numbers(path)
    for name, row in toml(path).items():
        location = f"{path}:{lines.get(name, 1)}"
        if not isinstance(row, dict):
            raise UserError(f"{location}: '{name}' is outside a section")
        yield name, row, location


def csv_rows(path: pathlib.Path, cell: Callable[[str, str], Any] = parse_cell) -> Iterator[Row]:
    """The lines of a CSV file with a column `name`; `cell(key, text)` returns a cell's value or raises ValueError."""
    header: list[str] = []
    for number, cells in text.csv_rows(path):
        location = f"{path}:{number}"
        if isinstance(cells, BadRow):
            raise UserError(f"{location}: {cells}")
        if not header:
            header = text.unique(cells, location)
            if "name" not in header:
                raise UserError(f"{path}:1: no column 'name'")
            continue
        if len(cells) != len(header):
            raise UserError(f"{location}: {len(cells)} columns instead of {len(header)}")
        row: dict[str, Any] = {}
        for key, value in zip(header, cells, strict=True):
            try:
                if value:
                    row[key] = cell(key, value)
            except (ValueError, KeyError) as e:
                raise UserError(f"{location}: {key} is {value!r}") from e
        yield row.pop("name", ""), row, location


def _add_rows(
    root: pathlib.Path, rows: dict[str, tuple[str, dict[str, Any], str]], sections: dict[str, dict[str, Any]]
) -> None:
    """Adds the rows of one root to `rows`: task name -> (collection, row, location)."""
    here: dict[str, str] = {}
    folder = root / "tables"
    for path in sorted([*folder.glob("*.toml"), *folder.glob("*.csv")]):
        collection = path.stem
        if collection in NO_TASKS:
            continue
        if collection not in sections:
            raise UserError(
                f"{path}:1: no collection '{collection}' in collections.toml{nearest(collection, sections)}"
            )
        for section, row, location in toml_rows(path) if path.suffix == ".toml" else csv_rows(path):
            name = f"{collection}_{section}"
            if not NAME.fullmatch(name):
                raise UserError(f"{location}: '{section}' is not a name (letters, digits, underscores)")
            if name in here:
                raise UserError(f"{location}: {name} is defined at {here[name]} too")
            here[name] = location
            old = rows[name][1] if name in rows else {"dataset": section, **sections[collection].get("defaults", {})}
            if "{name}" in old.get("source", ""):
                old = {**old, "source": old["source"].replace("{name}", section)}
            rows[name] = (collection, {**old, **row}, location)


def _add_licences(root: pathlib.Path, licences: dict[tuple[str, str], str]) -> None:
    """Adds the rows of one root's `licences.csv` to `licences`: (collection, data set or task) -> licence."""
    path = root / "tables" / "licences.csv"
    if not path.is_file():
        return
    for name, row, location in csv_rows(path, lambda key, cell: cell):
        if set(row) != {"collection", "licence", "stated"}:
            raise UserError(
                f"{location}: a row is collection,name,licence,stated: what it is, and the page that says so"
            )
        if classify(row["licence"]) == UNKNOWN:
            raise UserError(
                f"{location}: licence '{row['licence']}' is in none of the classes of flanx/data/task/licence.py"
            )
        licences[row["collection"], name] = row["licence"]


def _add_collections(root: pathlib.Path, sections: dict[str, dict[str, Any]]) -> None:
    """Adds the collections of one root to `sections`: name -> section of collections.toml, and its location."""
    path = root / "tables" / "collections.toml"
    if not path.is_file():
        return
    for name, section, location in toml_rows(path):
        unknown = set(section) - {"role", "total", "defaults"}
        if unknown:
            raise UserError(f"{location}: unknown key '{sorted(unknown)[0]}'")
        if section.get("role") not in ROLES:
            raise UserError(f"{location}: role is one of {', '.join(ROLES)}")
        sections[name] = {**section, "location": location}


def _add_blocks(root: pathlib.Path, blocks: dict[str, Block]) -> Style | None:
    """Adds the template blocks of one root to `blocks`; its style, if it has one."""
    here: dict[str, str] = {}
    style = None
    for path in sorted((root / "templates").glob("*.toml")):
        if path.name == "style.toml":
            style = _style(path)
            continue
        for name, table, location in toml_rows(path):
            if name in here:
                raise UserError(f"{location}: template block '{name}' is defined at {here[name]} too")
            here[name] = location
            try:
                blocks[name] = parse_block(name, table)
            except ValueError as e:
                raise UserError(f"{location}: {e}") from e
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
