"""Reads, checks and merges suite tables, FOLDER/suites/*.toml. flanx/evals/families/table.py documents their keys."""

import dataclasses
import functools
import importlib.metadata
import pathlib
import sys
from collections.abc import Collection, Mapping
from typing import Any

from flanx.data.task import tables
from flanx.data.task.spec import TaskSpec
from flanx.errors import UserError, nearest
from flanx.evals import answers, benchmark_metric, suite_check
from flanx.evals.spec import AVERAGES, Spec
from flanx.settings import COUNT

GROUP = "flanx.suites"  # entry point group of installed packages
CHOICES = {
    "answer_is": ("letter", "index", "number", "text", "marks"),
    "drop": ("last", "first", "none"),
    "scoring": ("generate", "rank", "rank_normalized"),
    "metric": ("exact_match", "f1", *(name for name in benchmark_metric.METRICS if name not in ("bbq", "open_ended"))),
    "average": AVERAGES,
    "fallback": answers.FALLBACKS,
}
HINTS = {"metric": "; options are ranked by `scoring`, numbers compared by `extractor`"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """One section, complete and checked.

    `folder`: its file's folder; `location`: its file:line; `places`: file:line of its keys. `exemplars`: the name of a
    split, the records themselves, or a source.
    """

    name: str
    family: str
    folder: pathlib.Path
    location: str
    places: Mapping[str, str]
    source: str
    prompt: str
    answer: str
    split: str = "test"
    columns: tuple[str, ...] = ()
    other: str | TaskSpec = ""
    fields: str = ""
    tasks: tuple[str, ...] = ()
    task_field: str = ""
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    id: str = "{task}-{row}"
    language: str = "en"
    head: str = ""
    shots: int = 0
    exemplars: str | tuple[dict[str, Any], ...] | TaskSpec = ""
    match: str = ""
    exemplar: str = "{prompt} {target}\n\n"
    drop: str = "last"
    labels: tuple[str, ...] = ()
    foils: str = ""
    options: str | tuple[str, ...] = ""
    answer_is: str = ""
    option: str = "({letter}) {option}"
    separator: str = "\n"
    target: str = ""
    scoring: str = "generate"
    extractor: str | Mapping[str, str] = ""
    cot: bool = False
    fallback: str = "conclusion"
    metric: str = "exact_match"
    average: str = "mean"
    stop: tuple[str, ...] = ()
    max_new: int = 32
    max_inputs: int = 0
    limit: int = 0
    version: int = 1
    variant: str = ""
    licence: str = ""
    url: str = ""
    note: str = ""

    def at(self, key: str) -> str:
        """File and line of a key, or of the section."""
        return self.places.get(key, self.location)

    @property
    def spec(self) -> Spec:
        """The suite's spec."""
        names = {field.name for field in dataclasses.fields(Spec)} - {"tasks", "groups"}
        return Spec(**{name: value for name, value in vars(self).items() if name in names})

    def rows(self, split: str) -> TaskSpec:
        """The source of a split, in the form that task readers accept."""
        return source_of(self.source, split, self.columns, self.fields, self.url, self.name, self.at("source"))

    def no_field(self, key: str, name: str, known: Collection[str], whose: str) -> UserError:
        """The error for a key that names an unknown field."""
        has = f"{nearest(name, known)} (there is: {', '.join(map(str, known))})"
        return UserError(f"{self.at(key)}: {key} names '{name}', which {whose} does not have{has}")


def source_of(
    source: str, split: str, columns: tuple[str, ...], fields: str, url: str, name: str = "", at: str = ""
) -> TaskSpec:
    """A source with one split."""
    return TaskSpec(name, "suites", "extra", at, source, {split: split}, (), fields=fields, columns=columns, url=url)


# ---- folders -> tables -----------------------------------------------------------------------------------------------


def load() -> dict[str, Table]:
    """All readable tables by name; `wrong` lists the others."""
    return _read()[0]


def wrong() -> list[UserError]:
    """The errors, with file and line, of files, packages and names whose suites are left out: a mistake in one file
    does not affect the suites of the others."""
    return _read()[1]


def _read() -> tuple[dict[str, Table], list[UserError]]:
    installed, errors = _installed(tuple(sys.path))
    own = [root / "suites" for root in tables.roots()]
    found: dict[str, Table] = {}
    twice: dict[str, UserError] = {}
    for path in (path for folder in dict.fromkeys([*own, *installed]) for path in sorted(folder.glob("*.toml"))):
        status = path.stat()
        try:
            read = _load(path, status.st_mtime_ns, status.st_size)
        except UserError as error:
            errors = [*errors, error]
            continue
        for name, table in read.items():
            if name in found:
                both = f"{found[name].location} and {table.location}"
                twice[name] = UserError(f"two suites are named '{name}': {both}; rename one")
            found[name] = table
    return {name: table for name, table in found.items() if name not in twice}, [*errors, *twice.values()]


@functools.lru_cache(maxsize=8)
def _installed(path: tuple[str, ...]) -> tuple[list[pathlib.Path], list[UserError]]:
    """The folders named by the packages on `path`, and the errors of those that name none."""
    found, errors = [], []
    for point in importlib.metadata.entry_points(group=GROUP):
        what = f"entry point {GROUP}: {point.name} = {point.value}" + (f" of {point.dist.name}" if point.dist else "")
        try:
            value: Any = point.load()
            value = value() if callable(value) else value
            folder = pathlib.Path(value.__path__[0] if hasattr(value, "__path__") else value)
        except (Exception, SystemExit) as error:  # a third-party package may raise anything, or exit
            why = f"{type(error).__name__}: {error}".rstrip(": ")
            errors.append(UserError(f"{what}: gives no folder ({why}); fix or remove it"))
            continue
        if folder.is_dir():
            found.append(folder)
        else:
            errors.append(UserError(f"{what}: {folder} is not a folder; fix or remove the package"))
    return found, errors


@functools.lru_cache(maxsize=256)
def _load(path: pathlib.Path, time_ns: int, size: int) -> dict[str, Table]:
    lines = tables.line_numbers(path)
    sections = {name: row for name, row, _ in tables.toml_rows(path)}

    def place(name: str, key: str = "") -> str:
        return f"{path}:{lines.get(f'{name}.{key}') or lines.get(name, 1)}"

    def keys(name: str, seen: tuple[str, ...] = ()) -> dict[str, tuple[Any, str]]:
        """{key: (value, file:line)} of a section, including those inherited by `like`."""
        own = {key: (value, place(name, key)) for key, value in sections[name].items()}
        if "like" not in own:
            return own
        other, at = own.pop("like")
        if other in (name, *seen):
            raise UserError(f"{at}: {name} would be like itself; name another section")
        if not isinstance(other, str) or other not in sections:
            raise UserError(f"{at}: no section {other!r} in this file{nearest(str(other), sections)}")
        return {**keys(other, (*seen, name)), **own}

    return {name: _table(name, path, place(name), keys(name)) for name in sections}


# ---- one table -------------------------------------------------------------------------------------------------------

_OPEN = ("exemplars", "options", "extractor", "groups", "other")  # keys of more than one type
_KEYS = {
    field.name: "" if field.default is dataclasses.MISSING else field.default
    for field in dataclasses.fields(Table)
    if field.name not in ("name", "family", "folder", "location", "places")
}
_LEAST = {"max_new": 1, "version": 1}


def _table(name: str, path: pathlib.Path, location: str, row: Mapping[str, tuple[Any, str]]) -> Table:
    """Checks a section and makes its table."""
    suite_check.check_name(name, location, "suite")
    values: dict[str, Any] = {}
    for key, (value, at) in row.items():
        if key not in _KEYS:
            raise UserError(f"{at}: unknown key '{key}'{nearest(key, [*_KEYS, 'like'])}")
        values[key] = _texts(value, f"{at}: {key}") if isinstance(_KEYS[key], tuple) else value
        if key not in _OPEN and type(values[key]) is not type(_KEYS[key]):
            raise UserError(f"{at}: {key} is {value!r}, not of type {type(_KEYS[key]).__name__}")
        if key in CHOICES and value not in CHOICES[key]:
            raise UserError(f"{at}: {key} is {value!r}, not one of {', '.join(CHOICES[key])}{HINTS.get(key, '')}")
        if isinstance(value, int) and not _LEAST.get(key, 0) <= value <= COUNT.high:
            raise UserError(f"{at}: {key} is {value}; it is {_LEAST.get(key, 0)} to {COUNT.high}")
    may_be_empty = "prompt" if values.get("scoring", "generate") != "generate" else ""  # whole sentences compared
    for key in ("source", "prompt", "answer"):
        if not values.get(key) and not (key == may_be_empty and key in values):
            raise UserError(f"{location}: {name} needs '{key}'")
    places = {key: at for key, (_, at) in row.items()}
    table = Table(name=name, family=path.stem, folder=path.parent, location=location, places=places, **values)
    table = _complete(table)
    suite_check.check_keys(table)
    suite_check.check_tasks(table)
    suite_check.check_templates(table)
    return table


def _texts(value: Any, what: str) -> tuple[str, ...]:
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise UserError(f"{what} is not a list of texts")
    return tuple(value)


def _complete(table: Table) -> Table:
    """The table with multi-type keys normalized, and absent keys derived from others."""
    at, groups, options, extractor = table.at, table.groups, table.options, table.extractor
    if isinstance(options, list):
        options = _texts(options, f"{at('options')}: options")
        if not 2 <= len(options) <= len(LETTERS):
            raise UserError(f"{at('options')}: options are 2 to {len(LETTERS)}, not {len(options)}")
    elif not isinstance(options, str):
        raise UserError(f"{at('options')}: options is {options!r}, not the name of a field or a list of texts")
    if not isinstance(groups, dict):
        raise UserError(f"{at('groups')}: groups is {groups!r}, not {{name = [tasks]}}")
    lists = "({letter})" if "{options}" in table.prompt else "{option}"
    target = table.target or (lists if options else "{answer}")
    extractor = extractor or ("letter" if options and "{letter}" in target else "text")
    for kind in extractor.values() if isinstance(extractor, dict) else [extractor]:
        if kind not in answers.KINDS:
            known = nearest(str(kind), answers.KINDS) or f"; known: {', '.join(answers.KINDS)}"
            raise UserError(f"{at('extractor')}: no extractor {kind!r}{known}")
    return dataclasses.replace(
        table,
        options=options,
        target=target,
        extractor=extractor,
        groups={name: _texts(members, f"{at('groups')}: group '{name}'") for name, members in groups.items()},
        exemplars=_exemplars(table),
        other=_source(table, "other", table.other, ("source", "columns", "fields"), table.split) if table.other else "",
    )


def _exemplars(table: Table) -> str | tuple[dict[str, Any], ...] | TaskSpec:
    """Where exemplars come from."""
    value: Any = table.exemplars
    at = table.at("exemplars")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(each, dict) and each for each in value):
        return tuple(value)
    if not isinstance(value, dict):
        raise UserError(f"{at}: exemplars is the name of a split, a list of {{field = value}}, or {{source = ...}}")
    return _source(table, "exemplars", value, ("source", "split", "columns", "fields", "url"), "train")


def _source(table: Table, name: str, value: Any, keys: Collection[str], split: str) -> TaskSpec:
    """The source given as a key's value, {source = ..., ...}; its split is `split` unless it names one."""
    at = table.at(name)
    if not isinstance(value, dict):
        raise UserError(f"{at}: {name} is {value!r}, not {{source = ...}}")
    for key, each in value.items():
        if key not in keys:
            raise UserError(f"{at}: {name} has unknown key '{key}'{nearest(key, keys)}")
        if key != "columns" and not isinstance(each, str):
            raise UserError(f"{at}: {key} of {name} is {each!r}, not a text")
    columns = _texts(value.get("columns", []), f"{at}: columns of {name}")
    of_own = source_of(
        value.get("source", ""), value.get("split", split), columns, value.get("fields", ""), value.get("url", ""),
        table.name, at,
    )  # fmt: skip
    suite_check.check_source(of_own, at)
    return of_own
