"""Checks suite tables: keys that conflict, and templates that name fields that rows do not have."""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from flanx.data.task import fields, sources
from flanx.data.task.spec import SOURCES, TaskSpec
from flanx.data.task.template import compile_text
from flanx.errors import UserError, nearest
from flanx.evals import benchmark_metric

if TYPE_CHECKING:
    from flanx.evals.suite_table import Table

OPTION = ("letter", "number", "option")  # what a template may name of an option
ADDED = {  # what a template may name besides the fields of a row
    "prompt": ("task", "options"),
    "head": ("task",),
    "exemplar": ("task", "prompt", "options", "target"),
    "option": OPTION,
    "target": (*OPTION, "answer"),
    "id": ("task", "row", "split"),
    "language": ("task",),
}


def names_in(template: str) -> set[str]:
    """The fields that a template names. Raises ValueError for any other brace."""
    return {name for _, name in compile_text(template) if name}


def check_name(name: str, at: str, what: str) -> None:
    """Rejects an invalid name of a suite or task."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{at}: '{name}' is not a name of a {what} (letters, digits, _ - .)")


def check_source(source: TaskSpec, at: str) -> None:
    """Rejects an unknown kind of source, and `fields` that do not parse."""
    kind, _, location = source.source.partition(":")
    if not location:
        raise UserError(f"{at}: source is '<kind>:<path>', as in 'jsonl:mine.jsonl'")
    if kind not in SOURCES:
        raise UserError(f"{at}: unknown source '{kind}'{nearest(kind, SOURCES) or '; known: ' + ', '.join(SOURCES)}")
    if source.fields:
        try:
            fields.parse(source.fields)
        except UserError as error:
            raise UserError(f"{at}: {error}") from None


def check_keys(table: "Table") -> None:
    """Rejects conflicting keys."""
    of_benchmark = benchmark_metric.METRICS.get(table.metric)
    ranks, extractor, of_split = table.scoring != "generate", table.extractor, isinstance(table.exemplars, str)
    for key, wrong, why in (
        ("split", not table.split, "is empty"),
        ("scoring", ranks and not table.options, "needs `options` to rank; free answers are generated"),
        ("options", table.options and not table.answer_is, "needs `answer_is`: what `answer` says of the right option"),
        ("answer_is", table.answer_is and not table.options, "needs `options`"),
        ("prompt", "{options}" in table.prompt and not table.options, "lists {options}; say in `options` which"),
        ("shots", table.shots and not table.exemplars, "needs `exemplars`: where they come from"),
        ("exemplars", table.exemplars and not table.shots, "needs `shots`: how many of them"),
        ("exemplars", table.exemplars == table.split, "is the split that is scored; name another"),
        ("other", table.other and of_split and table.exemplars, "has no exemplars: give them a source of their own"),
        ("match", table.match and not (of_split and table.exemplars), "needs a split in exemplars"),
        ("metric", table.metric == "f1" and (ranks or extractor != "text"), "f1 compares generated texts (extractor)"),
        ("metric", of_benchmark and of_benchmark.ranks and not ranks, f"{table.metric} is of options that are ranked"),
        ("foils", bool(table.foils) != (table.metric == "truthfulqa"), "and metric = 'truthfulqa' need each other"),
        (
            "foils",
            table.foils and (ranks or table.options),
            "are compared with generated texts: no scoring, no options",
        ),
    ):
        if wrong:
            raise UserError(f"{table.at(key)}: {key} {why}")


def check_tasks(table: "Table") -> None:
    """Rejects tasks without rows of their own, and invalid task names."""
    at, by_path = table.at, "{task}" in table.source
    for name in table.tasks:
        check_name(name, at("tasks"), "task")
    for key, wrong, why in (
        ("tasks", by_path and not table.tasks, "is needed: the path of the source names the {task}"),
        ("task_field", table.task_field and by_path, "and {task} in the path of the source exclude each other"),
        ("tasks", table.tasks[1:] and not (table.task_field or by_path), "needs {task} in source, or task_field"),
        ("tasks", len({*table.tasks}) < len(table.tasks), "names one twice"),
    ):
        if wrong:
            raise UserError(f"{at(key)}: {key} {why}")
    if table.tasks or not table.task_field:  # otherwise the rows determine the tasks
        check_named(table, table.tasks or (table.name,))


def check_named(table: "Table", known: Collection[str]) -> None:
    """Rejects an extractor or group for an unknown task."""
    by_task = [*table.extractor] if isinstance(table.extractor, dict) else []
    grouped = [name for members in table.groups.values() for name in members]
    for key, names in (("extractor", by_task), ("groups", grouped)):
        for name in names:
            if name not in known:
                raise UserError(f"{table.at(key)}: {key}: no task '{name}'{nearest(name, known)}")


def check_templates(table: "Table") -> None:
    """Rejects templates that do not compile, and unknown fields if the table says which fields rows have."""
    rows = table.rows(table.split)
    check_source(rows, table.at("fields" if table.fields and ":" in table.source else "source"))
    if isinstance(table.other, TaskSpec) and (absent := sorted(rows.names - table.other.names)):
        raise UserError(f"{table.at('other')}: other makes no field '{absent[0]}', which the rows of `source` have")
    for key in ("split", "exemplars"):
        split = getattr(table, key)
        try:
            sources.files(table.rows(split), split, table.folder) if isinstance(split, str) and split else []
        except UserError as error:
            raise UserError(f"{table.at(key)}: {error}") from None
    for key, added in ADDED.items():
        try:
            used = names_in(getattr(table, key)) - {*added}
        except ValueError as error:
            raise UserError(f"{table.at(key)}: {key}: {error}") from None
        if key == "prompt" and table.prompt and not used:
            raise UserError(f"{table.at(key)}: prompt names no field of a row, as '{{question}}' does")
        known = rows.names
        if key == "exemplar" and not isinstance(table.exemplars, str):
            known = table.exemplars.names if isinstance(table.exemplars, TaskSpec) else frozenset(table.exemplars[0])
        unused = key == "exemplar" and not table.shots
        for name in used if (known or key == "option") and not unused else ():
            if key == "option" or name not in known:
                raise table.no_field(key, name, {*(() if key == "option" else known), *added}, table.name)
    named = [(key, getattr(table, key)) for key in ("answer", "task_field", "options", "match", "foils")]
    for key, name in [*named, *(("labels", name) for name in table.labels)]:
        if isinstance(name, str) and name and rows.names and name not in rows.names:
            raise table.no_field(key, name, rows.names, table.name)
