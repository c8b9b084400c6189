"""Reads the rows of a suite table into fields, from files next to the table or in DATA_DIR."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from flanx.data.task import sources
from flanx.data.task.row import BadRow, Record, SkipRow
from flanx.data.task.spec import TaskSpec
from flanx.errors import UserError
from flanx.evals import files
from flanx.evals.suite_table import Table, source_of

Row = tuple[int, str, Record]  # number in its file, location, fields


def is_next_to(table: Table, source: TaskSpec) -> bool:
    """Whether a source's files are in the table's folder."""
    paths = sources.files(source, next(iter(source.splits)), table.folder)
    return bool(paths) and all(path.is_file() for path in paths)


def folder_of(table: Table, source: TaskSpec, data: pathlib.Path) -> pathlib.Path:
    """The folder that a source's paths are relative to."""
    return table.folder if data == pathlib.Path() or is_next_to(table, source) else data


def of_task(source: TaskSpec, task: str) -> TaskSpec:
    """A source with the task's name in its path."""
    (split,) = source.splits
    path, url = source.source.replace("{task}", task), source.url.replace("{task}", task).replace("{split}", split)
    return dataclasses.replace(source, source=path, url=url)


def scored(table: Table, data: pathlib.Path, task: str) -> TaskSpec:
    """The source of a task's scored rows: the table's, or `other` if only its files exist."""
    own = of_task(table.rows(table.split), task)
    if isinstance(table.other, TaskSpec):
        other = of_task(table.other, task)
        if _is_there(table, other, data) and not _is_there(table, own, data):
            return other
    return own


def _is_there(table: Table, source: TaskSpec, data: pathlib.Path) -> bool:
    paths = sources.files(source, next(iter(source.splits)), folder_of(table, source, data))
    return bool(paths) and all(path.is_file() for path in paths)


def read_rows(table: Table, source: TaskSpec, data: pathlib.Path, task: str) -> tuple[Row, ...]:
    """The rows of a source's files. Raises UserError with file and line."""
    source = of_task(source, task)
    folder = folder_of(table, source, data)
    (split,) = source.splits
    paths = sources.files(source, split, folder)
    found = [files.existing(path, table.name, source.url.replace("{file}", path.name)) for path in paths]
    stamps = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in found)
    return _read(source.source, split, source.columns, source.fields, folder, table.name, stamps)


@functools.lru_cache(maxsize=8)
def _read(
    source: str, split: str, columns: tuple[str, ...], fields: str, folder: pathlib.Path, name: str, stamps: Any
) -> tuple[Row, ...]:
    """The rows, cached while their files do not change."""
    return tuple(_made(source_of(source, split, columns, fields, "", name), split, folder))


def _made(source: TaskSpec, split: str, folder: pathlib.Path) -> Iterator[Row]:
    for number, (location, record) in enumerate(sources.raw_rows(source, split, folder)):
        try:
            if isinstance(record, BadRow):
                raise record
            key = f"{source.name}\x1f0\x1f{split}:{number}"
            made = sources.make_fields(source, record, key) if source.fields or source.columns else record
        except SkipRow:
            continue
        except BadRow as error:
            raise wrong(source.name, location, error) from None
        yield number, location, made


def wrong(suite: str, location: str, why: object) -> UserError:
    """The error for a bad row."""
    return UserError(f"suite {suite}: {location}: {why}")
