"""Any task of the tables, on any of its splits, with its own templates and metrics.

    muffin_rte:validation            the split of one task
    niv2:validation[:50]             each task of a collection, group or mixture, 50 items each
    muffin_*:test                    each task that matches a pattern
    cot_gsm8k:train/fsopt            in a prompt style of the task: few-shot, exemplars from the train split
    muffin_rte:test#template=3       with one template: nli:3, 3 in the task's first block, or none, the bare form
    own_capitals                     the split `test`, else `validation`

Without a style, prompts are zero-shot, with the list of options if the task has one (or the task's first style if it
has no `zsopt`); each row's template is drawn as in training and as `flanx tasks show` prints it. A few-shot prompt's
exemplars are those of `flanx tasks show --style fsopt`; a prompt too long for EVAL_LENGTHS loses the last of them.

The metrics are those of the task's row (`flanx.evals.task_metrics`); the first is the score. The score of several tasks
is the mean over tasks; those without the split, style or data are left out and named.
"""

import functools
import itertools
import os
import pathlib
import re

from flanx.data.task import select, sources, tables
from flanx.data.task.render import POOL, Parts, Pool, Renderer
from flanx.data.task.row import BadRow
from flanx.data.task.spec import STYLES, TaskSpec
from flanx.data.task.template import Prompt
from flanx.errors import UserError, nearest
from flanx.evals import suite_table, task_metrics
from flanx.evals.spec import Family, Groups, Item, Spec

SPLITS = ("test", "validation", "train")  # of a row; a name without a split means the first available of the first two
FORM = re.compile(r"(?P<name>[\w*?]+)(?::(?P<split>\w+))?(?:/(?P<style>\w+))?(?:#template=(?P<template>[\w:]+))?")
MAX_NEW = 512  # in effect the model's longest target (EVAL_LENGTHS), but no longer than the paper's


@functools.lru_cache(maxsize=256)
def _members(name: str, roots: tuple[pathlib.Path, ...]) -> tuple[TaskSpec, ...]:
    """The rows that a name without a split refers to."""
    rows = tables.load_tables()
    return tuple(rows[task] for task in select.find(name, select.of_tables(rows), tables.load_mixtures()))


def _rows(spec: Spec) -> dict[str, TaskSpec]:
    """All tasks that the suite's name refers to, by name, whether or not they have its split."""
    hit = FORM.match(spec.name)
    assert hit  # `parse` made the spec
    return {row.name: row for row in _members(hit["name"], tuple(tables.roots()))}


def place_of(name: str) -> str:
    """The location of the first task that a name without a split refers to; "" if there is none."""
    try:
        return _members(name, tuple(tables.roots()))[0].location
    except UserError:
        return ""


def parse(name: str) -> Spec | None:
    """The spec for a name of these forms. Raises UserError for an unknown task, split, style or template."""
    hit = FORM.fullmatch(name)
    if not hit:
        return None
    try:
        rows = _members(hit["name"], tuple(tables.roots()))
    except UserError:
        if hit["split"] in SPLITS:
            raise
        return None
    have = list(dict.fromkeys(split for row in rows for split in row.splits))
    split = hit["split"] or next((split for split in SPLITS[:2] if split in have), "")
    if not split:
        raise UserError(
            f"suite '{name}': there is neither a test nor a validation split, only {', '.join(have)}; give one with "
            f"`flanx tasks add --validation_share 0.1`, or name it: '{name}:{have[0]}'"
        )
    style, template = hit["style"] or "", hit["template"] or ""
    if style and style not in STYLES:
        raise UserError(f"suite '{name}': no prompt style '{style}'{nearest(style, STYLES)} ({', '.join(STYLES)})")
    spec = Spec(name, "task", f"{style}#{template}".rstrip("#"), split, max_new=MAX_NEW, metric="task")
    reasons = {row.name: _mismatch(spec, row) for row in rows}
    if all(reasons.values()):
        first = next(iter(reasons.values()))
        others = f"; as the other {len(rows) - 1} tasks" if len(rows) > 1 else ""
        hint = _of_benchmark(next(iter(reasons))) if split == "test" else ""
        raise UserError(f"suite '{name}': {first}{others}{hint}")
    missing = tuple(row.name for row in rows) if len(rows) > 1 else ()
    return Spec(name, "task", spec.variant, split, tuple(reasons), missing, max_new=MAX_NEW, metric="task")


def _of_benchmark(task: str) -> str:
    """A hint at the suites of the benchmark that a task's data come from, such as GSM8K for cot_gsm8k."""
    known = [name for name, table in suite_table.load().items() if table.family in task.split("_")]
    return f"; its benchmark has suites: {', '.join(sorted(known)[:3])}" if known else ""


def _variant(spec: Spec, row: TaskSpec) -> tuple[str, str]:
    """(style, template or "") of the suite for a task."""
    style, _, template = spec.variant.partition("#")
    return style or ("zsopt" if "zsopt" in row.styles else row.styles[0]), template


def _mismatch(spec: Spec, row: TaskSpec) -> str:
    """Why a task's row rules it out of the suite; "" if it does not."""
    style, template = _variant(spec, row)
    if spec.split not in row.splits:
        return f"task {row.name} has no split '{spec.split}' (it has {', '.join(row.splits)})"
    if style not in row.styles:
        return f"task {row.name} has no style '{style}' (it has {', '.join(row.styles)})"
    if template and _template(Renderer(row, tables.load(), style, spec.split), template) is None:
        return f"task {row.name} has no template '{template}' (`flanx tasks show {row.name}` names those it has)"
    return ""


def _template(renderer: Renderer, name: str) -> Prompt | None:
    """The template with a name such as `nli:3`; for just the part after the colon, the first block's."""
    known = [*renderer.prompts, *renderer.nones]
    return next((prompt for prompt in known if name in (prompt.name, prompt.name.rpartition(":")[2])), None)


def _data_dir(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of file sources; None if no DATA_DIR is given."""
    return folder if folder != pathlib.Path() else None


def why_missing(folder: pathlib.Path, task: str, spec: Spec) -> str:
    """Why a task is left out of the suite; "" if it is not."""
    row = _rows(spec)[task]
    if reason := _mismatch(spec, row):
        return reason
    try:
        return sources.missing(sources.of_split(row, spec.split), _data_dir(folder), spec.split) or ""
    except UserError as error:
        return str(error)


def tasks(spec: Spec) -> tuple[str, ...]:
    """All tasks that the name refers to."""
    return tuple(_rows(spec))


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the task can be scored."""
    return not why_missing(folder, task, spec)


def groups(spec: Spec) -> Groups:
    """The collections, if there are several."""
    found: dict[str, list[str]] = {}
    for row in _rows(spec).values():
        if not _mismatch(spec, row):
            found.setdefault(row.collection, []).append(row.name)
    return tuple((name, tuple(members)) for name, members in found.items()) if len(found) > 1 else ()


def location(spec: Spec) -> str:
    """The line of the first task's row."""
    return next(iter(_rows(spec).values())).location


def needs_data(spec: Spec) -> bool:
    """Whether every task is read from files under DATA_DIR."""
    found = [sources.of_split(row, spec.split) for row in _rows(spec).values() if spec.split in row.splits]
    parts = [row.source.split(":", 1) for row in found]
    return all(kind not in ("suite", "tfds") and not os.path.isabs(place) for kind, place in parts)


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The items of a task, at most `spec.limit`. Raises UserError for missing data, for missing options to rank, and if
    a metric cannot compare the answers."""
    row = _rows(spec)[task]
    if line := why_missing(folder, task, spec):
        raise UserError(line)
    style, template = _variant(spec, row)
    data_dir = _data_dir(folder)

    def pool() -> Pool:
        found = sources.rows(row, "train", data_dir) if "train" in row.splits else ()
        return [(key, record) for key, _, record in itertools.islice(found, POOL)]

    renderer = Renderer(row, tables.load(), style, spec.split, pool=pool, count=lambda text: 0)
    prompt = _template(renderer, template) if template else None
    found: list[Item] = []
    bad = 0
    for key, place, record in sources.rows(row, spec.split, data_dir):
        try:
            parts = renderer.parts(key, record, prompt)
            if parts is None:  # a train-split row for which no exemplar fits
                continue
            options = renderer.options(key, record, parts.prompt) if spec.scoring.startswith("rank") else ()
        except BadRow as error:
            bad += 1
            sources.report_bad(row, place, error, bad, sources.MAX_BAD_ROWS)
            continue
        if spec.scoring.startswith("rank") and parts.target not in options:
            raise UserError(
                f"suite {spec.name}: {place}: no options to rank, of which one is the answer; leave '+rank' out"
            )
        found.append(_item(row, key, place, parts, options))
        if len(found) == spec.limit:
            break
    for metric in row.metrics:
        wrong = task_metrics.misfit(metric, [item.targets[0] for item in found])
        if wrong and metric in task_metrics.NUMBERS:
            raise UserError(f"suite {spec.name}: {wrong}; give {row.name} other metrics ({row.location})")
    return found


def _item(row: TaskSpec, key: str, place: str, parts: Parts, options: tuple[str, ...]) -> Item:
    """An item made from the parts of an example, its prompt stripped of surrounding whitespace."""
    texts = [parts.head, *parts.shots, parts.query.rstrip()]
    for number, text in enumerate(texts):
        texts[number] = text.lstrip()
        if texts[number]:
            break
    return Item(
        task=row.name,
        id=f"{row.name}-{key}",
        head=texts[0],
        shots=tuple(texts[1:-1]),
        query=texts[-1],
        targets=(parts.target,),
        kind="+".join(row.metrics),
        options=options,
        location=place,
    )


FAMILY = Family(
    "task", tasks, has, items, parse=parse, groups=groups, location=location, needs_data=needs_data, why=why_missing
)  # fmt: skip
