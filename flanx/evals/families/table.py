"""Suites defined by a section of a TOML file and a file of rows: a new benchmark, or your own, without code.

They are in `FOLDER/suites/<family>.toml`, for each FOLDER of FLANX_TABLES, for flanx's own `tasks`, and for the folders
that installed packages name through the entry point group `flanx.suites` (a folder of such files, or a function that
returns it). Each section is a suite; duplicate names are rejected. All suites in a file belong to one family.

    [capitals]                             # SUITES = ["capitals"], "capitals[:20]", "capitals+sc8", ...
    source     = "jsonl:capitals.jsonl"    # <kind>:<path> as for a task (flanx/data/task/sources.py): jsonl, json,
                                           # yaml, csv, tsv, parquet, ...; {split} is the split, {task} the task. A path
                                           # is read next to this file if it exists there, else in DATA_DIR
    prompt     = "Q: {question}\\nA:"      # the question; {name} is a field of the row, `{{` and `}}` are braces; ""
                                   # if the ranked options are whole sentences
    answer     = "capital"                 # the field with the right answer: text, a number, or a list, any of which
                                           # counts

All other keys are optional:

    like       = "other"           # inherits the keys of another section of this file; keys given here override
    split      = "test"            # which split is scored; "test[:100]" is part of it
    columns    = ["question", "capital"]   # column names of a csv or tsv file without a header line
    other      = {source = "csv:capitals.csv", fields = "..."}  # read if only its file exists: another form of the same
                                   # rows, with the same fields; may have `columns`, too
    fields     = "keep(question) | after(capital, ': ')"   # a row's fields from its columns (flanx/data/task/fields.py)
                                   # options in separate columns: "keep(question, answer) | gather(choices, a, b)"
    tasks      = ["de", "fr"]      # scored separately, then averaged: {task} is the name in paths and templates
    task_field = "category"        # or the field with each row's task; without `tasks`, all tasks in the file
    groups     = {stem = ["math", "physics"]}              # named means over some of the tasks
    id         = "{task}-{row}"    # an item's id: fields, {task}, {split}, {row} (its number in the file, from 0)
    language   = "en"              # of the answers, for reading numbers; may be a template ("{task}")

    head       = "Answer the questions.\\n\\n"            # once, before the exemplars
    shots      = 5                 # number of exemplars
    exemplars  = "dev"             # where they come from: another split of `source` (its rows of the same task);
                                   # [{question = "...", capital = "..."}, ...], fields as templates use them;
                                   # or a separate source {source, split, columns, fields, url}
    match      = "subject"         # a field: exemplars from a split must have the item's value of it
    exemplar   = "{prompt} {target}\\n\\n"  # an exemplar: its fields, and its own {prompt}, {options} and {target}
    drop       = "last"            # which exemplars are dropped if a prompt is too long: "last", "first", "none"

    options    = "choices"         # the field with the list of options; or a list: the same options for every row
    answer_is  = "letter"          # how `answer` gives the right option: by "letter", "index" (from 0), "number"
                                   # (from 1), or "text"; "marks": a list with 1 for each right option and 0 for the
                                   # others; required with options
    foils      = "incorrect"       # the field with the list of false answers that metric = "truthfulqa" compares with
    labels     = ["gender"]        # fields: scores are also given for each of their values, as `slices` in scores.json
    option     = "({letter}) {option}"     # how {options} in the prompt writes an option; also {number}
    separator  = "\\n"             # between options
    target     = "({letter})"      # how an answer is written, in exemplars and as gold answer: with options, {letter},
                                   # {number}, {option} (default: "({letter})" if the prompt lists options, else
                                   # "{option}"), else {answer}, the first right one

    scoring    = "generate"        # "rank": the option whose `target` has the highest log-probability;
                                   # "rank_normalized": per byte
    extractor  = "letter"          # how an answer is read from an output, a kind of flanx/evals/answers.py (default:
                                   # "letter" for targets with {letter}, else "text"); {task = "kind"} by task
    cot        = false             # the output has a rationale; its last announced answer counts
    fallback   = "conclusion"      # or "none": see flanx/evals/spec.py
    metric     = "exact_match"     # "f1": SQuAD's F1 in addition; or one of flanx/evals/benchmark_metric.py
    average    = "mean"            # over tasks; "harmonic": over scores plus one, as BBEH's authors do; "items": over
                                   # all items, regardless of task
    stop       = ["Q:"]            # texts that end an output
    max_new    = 32                # maximum number of output tokens
    max_inputs = 0                 # maximum number of prompt tokens; 0: up to EVAL_LENGTHS, which always applies
    limit      = 0                 # only the first items of each task
    version    = 1                 # bump when a change to the table makes scores incomparable
    variant    = ""                # a word for the prompt format
    licence    = "MIT"             # of the data
    url        = "https://.../{file}"      # of the source's file; {file} is its name; also {split}, {task}. DATA_DIR =
                                   # "hub" downloads it from there, and converts a .parquet file to .jsonl
    note       = "free text; whose wording the prompt is, what is guessed"

The suite's hash covers the values of its `Spec` and every byte of its prompts and answers, so two tables that produce
the same prompts are one suite. An invalid row is an error, with file and line; `where(...)` in `fields` drops rows.
"""

import functools
import pathlib
import re
from collections.abc import Sequence, Set
from typing import Any

from flanx.data.task import sources, tables
from flanx.data.task.row import BadRow, Record, text_of, whole
from flanx.data.task.template import compile_text, fill
from flanx.errors import UserError, nearest
from flanx.evals import answers, files, suite_row
from flanx.evals.spec import Family, Groups, Item, Spec
from flanx.evals.suite_check import check_named, names_in
from flanx.evals.suite_table import LETTERS, Table, load


def specs() -> dict[str, Spec]:
    """The suites of all folders."""
    return {name: table.spec for name, table in load().items()}


def _of(spec: Spec) -> Table:
    return load()[spec.name.partition("[")[0].partition("+")[0]]


def location(spec: Spec) -> str:
    """File and line of the suite's section."""
    return _of(spec).location


def needs_data(spec: Spec) -> bool:
    """Whether the rows are read from DATA_DIR, like those of flanx's own tables."""
    return _of(spec).folder == tables.roots()[0] / "suites"


def groups(spec: Spec) -> Groups:
    """Named means over some of the tasks."""
    return tuple(_of(spec).groups.items())


def task_name(value: str) -> str:
    """A value of `task_field` as a task name: lower case, each run of other than letters and digits as one _."""
    return re.sub(r"[^\w.-]+", "_", value.strip()).strip("_").lower()


def _task_of(table: Table, location: str, record: Record) -> str:
    name = task_name(_text(table, "task_field", record, table.task_field, location))
    if table.tasks and name not in table.tasks:
        why = f"'{table.task_field}' is '{name}', which is not a task of the suite{nearest(name, table.tasks)}"
        raise suite_row.wrong(table.name, location, why)
    return name


# ---- rows -> texts ---------------------------------------------------------------------------------------------------


def _value(table: Table, key: str, record: Record, name: str, location: str) -> Any:
    """The value of the row's field that a table key names."""
    if name not in record:
        raise table.no_field(key, name, record, location)
    return record[name]


def _text(table: Table, key: str, record: Record, name: str, location: str) -> str:
    """The same, as text."""
    try:
        return whole(text_of(_value(table, key, record, name, location), name))
    except BadRow as error:
        raise suite_row.wrong(table.name, location, error) from None


def _filled(table: Table, key: str, record: Record, location: str, **added: str) -> str:
    """A table template filled with a row's fields; `added` takes precedence."""
    template = getattr(table, key)
    values = {
        name: added[name] if name in added else _text(table, key, record, name, location) for name in names_in(template)
    }
    return fill(compile_text(template), values)


def _options(table: Table, record: Record, location: str) -> Sequence[str]:
    """The texts of a row's options."""
    if not table.options or not isinstance(table.options, str):
        return table.options
    value = _value(table, "options", record, table.options, location)
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise suite_row.wrong(table.name, location, f"'{table.options}' is not a list of 2 to {len(LETTERS)} options")
    texts = [_text(table, "options", {table.options: each}, table.options, location) for each in value]
    if not all(text.strip() for text in texts):
        raise suite_row.wrong(table.name, location, "an option is empty")
    return texts


def _named(options: Sequence[str]) -> list[dict[str, str]]:
    """The names that templates may use for each option."""
    return [
        {"letter": letter, "number": str(number), "option": option}
        for number, (letter, option) in enumerate(zip(LETTERS, options, strict=False), 1)
    ]


def _marked(table: Table, record: Record, options: Sequence[str], location: str) -> list[int]:
    """The indices of the right options, if a list marks them."""
    marks = _value(table, "answer", record, table.answer, location)
    if not isinstance(marks, list) or len(marks) != len(options) or not {*marks} <= {0, 1}:
        raise suite_row.wrong(
            table.name,
            location,
            f"'{table.answer}' is not a list of 0 or 1 for each of {len(options)} options: {marks!r}",
        )
    if not any(marks):
        raise suite_row.wrong(table.name, location, f"'{table.answer}' marks no option as right")
    return [index for index, mark in enumerate(marks) if mark]


def _right(table: Table, record: Record, options: Sequence[str], location: str) -> int:
    """The index of the right option."""
    answer = _text(table, "answer", record, table.answer, location).strip()
    count = len(options)
    known = {
        "letter": list(LETTERS[:count]),
        "index": [str(index) for index in range(count)],
        "number": [str(index + 1) for index in range(count)],
        "text": [option.strip() for option in options],
    }[table.answer_is]
    answer = answer.strip("().").upper() if table.answer_is == "letter" else answer
    if known.count(answer) != 1:
        what = "is the text of two" if answer in known else f"is not the {table.answer_is} of one"
        raise suite_row.wrong(table.name, location, f"'{table.answer}' {what} of its {count} options: {answer!r}")
    return known.index(answer)


def _answers(
    table: Table, record: Record, options: Sequence[str], location: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the right answers, all options), as `target` writes them."""
    value = _value(table, "answer", record, table.answer, location)
    texts = [value] if not isinstance(value, list) else value
    texts = [each for each in texts if each] if table.foils else texts  # TruthfulQA's lists end with empty texts
    golds = [
        "" if each is None else _text(table, "answer", {table.answer: each}, table.answer, location) for each in texts
    ]
    if not golds or not all(gold.strip() for gold in golds):
        raise suite_row.wrong(table.name, location, f"no answer: '{table.answer}' is empty")
    if not options:
        return tuple(_filled(table, "target", record, location, answer=gold) for gold in dict.fromkeys(golds)), ()
    written = tuple(_filled(table, "target", record, location, **each) for each in _named(options))
    if table.answer_is == "marks":
        return tuple(written[index] for index in _marked(table, record, options, location)), written
    return (written[_right(table, record, options, location)],), written


def _listed(table: Table, options: Sequence[str], location: str) -> str:
    """The value of {options}."""
    return table.separator.join(_filled(table, "option", {}, location, **each) for each in _named(options))


def _prompt(table: Table, task: str, record: Record, options: Sequence[str], location: str) -> str:
    text = _filled(table, "prompt", record, location, task=task, options=_listed(table, options, location))
    if table.prompt and not text.strip():
        raise suite_row.wrong(table.name, location, "the prompt is empty")
    return text


# ---- items -----------------------------------------------------------------------------------------------------------


def _shots(table: Table, data: pathlib.Path, task: str, scored: Set[str], value: Any) -> tuple[str, ...]:
    """The exemplars of a task; with the key `match`, from rows with this value. Raises UserError if any is a scored
    row, by location."""
    at = table.at("exemplars")
    if isinstance(table.exemplars, tuple):
        found = [(at, record) for record in table.exemplars]
    else:
        split = isinstance(table.exemplars, str)
        source = table.rows(table.exemplars) if isinstance(table.exemplars, str) else table.exemplars
        found = [(location, record) for _, location, record in suite_row.read_rows(table, source, data, task)]
        if split and table.task_field:
            found = [(location, record) for location, record in found if _task_of(table, location, record) == task]
        if table.match:
            found = [(location, record) for location, record in found if record.get(table.match) == value]
    if len(found) < table.shots:
        of = f"'{task}'" + (f" with {table.match} {value!r}" if table.match else "")
        raise UserError(f"{at}: {table.shots} exemplars of {of} needed, there are {len(found)}")
    if same := next((location for location, _ in found[: table.shots] if location in scored), ""):
        parts = f'another split or file, or parts of this one: split = "{table.split}[{table.shots}:]" and so on'
        raise UserError(f"{at}: {same} would be an exemplar and is scored; give {parts}")
    used = names_in(table.exemplar)
    shots = []
    for location, record in found[: table.shots]:
        options = _options(table, record, location) if used & {"prompt", "target", "options"} else ()
        prompt = _prompt(table, task, record, options, location) if "prompt" in used else ""
        target = _answers(table, record, options, location)[0][0] if "target" in used else ""
        added = {"task": task, "prompt": prompt, "target": target, "options": _listed(table, options, location)}
        shots.append(_filled(table, "exemplar", record, location, **added))
    return tuple(shots)


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The items of a task, in row order."""
    table = _of(spec)
    rows = suite_row.read_rows(table, suite_row.scored(table, folder, task), folder, task)
    scored = {location for _, location, _ in rows}
    shots = functools.cache(lambda value: _shots(table, folder, task, scored, value) if table.shots else ())
    extractor = table.extractor
    found = []
    for number, location, record in rows:
        if table.task_field and _task_of(table, location, record) != task:
            continue
        options = _options(table, record, location)
        targets, written = _answers(table, record, options, location)
        found.append(
            Item(
                task=task,
                id=_filled(table, "id", record, location, task=task, row=str(number), split=table.split),
                query=_prompt(table, task, record, options, location),
                targets=targets,
                kind=extractor if isinstance(extractor, str) else extractor.get(task, "text"),
                head=_filled(table, "head", record, location, task=task),
                shots=shots(_value(table, "match", record, table.match, location) if table.match else None),
                options=_kept(table, spec, record, location, targets, written),
                language=_filled(table, "language", record, location, task=task),
                location=location,
                labels=tuple((name, _text(table, "labels", record, name, location)) for name in table.labels),
            )
        )
    if spec.scoring == "generate":
        _check_answers(table, found)
    if repeated := len(found) - len({(item.query, item.options, item.targets) for item in found}):
        _note(f"{table.location}: {repeated:,} of {len(found):,} items of {task} repeat another one, and each counts")
    return found


@functools.cache
def _note(text: str) -> None:
    """Prints a note once, however often a suite is loaded."""
    print(f"note: {text}")


def _kept(
    table: Table, spec: Spec, record: Record, location: str, targets: tuple[str, ...], written: tuple[str, ...]
) -> tuple[str, ...]:
    """The options of an item: those to rank, or the true and false answers that its metric compares outputs with."""
    if not table.foils:
        return () if spec.scoring == "generate" else written
    foils = _value(table, "foils", record, table.foils, location)
    listed = foils if isinstance(foils, list) else []
    texts = [_text(table, "foils", {table.foils: each}, table.foils, location) for each in listed]
    if not any(text.strip() for text in texts):
        raise suite_row.wrong(table.name, location, f"'{table.foils}' is not a list of false answers")
    return (*targets, *(text for text in texts if text.strip() and text not in targets))


def _check_answers(table: Table, items: Sequence[Item]) -> None:
    """Rejects a task if its extractor cannot read most of its gold answers: no output could be right."""
    unread = [
        item
        for item in items
        if item.kind not in ("text", *answers.LITERAL) and not any(answers.extract(t, item.kind) for t in item.targets)
    ]
    if 2 * len(unread) > len(items):
        first = unread[0]
        raise suite_row.wrong(
            table.name,
            first.location,
            f"extractor '{first.kind}' reads no answer in {first.targets[0][:60]!r}, and in {len(unread)} of "
            f"{len(items)} answers of {first.task}; give another ({table.at('extractor')})",
        )


def tasks(spec: Spec) -> tuple[str, ...]:
    """The tasks that the table names, or those of its rows; with neither, the suite is one task."""
    table = _of(spec)
    if table.tasks or not table.task_field:
        return table.tasks or (table.name,)
    source = suite_row.scored(table, table.folder, "")
    if not suite_row.is_next_to(table, source):
        raise UserError(
            f"{table.at('task_field')}: name the tasks in `tasks`, or put the file of rows next to the table"
        )
    values: dict[str, str] = {}
    for _, location, record in suite_row.read_rows(table, source, table.folder, ""):
        value = _text(table, "task_field", record, table.task_field, location)
        other = values.setdefault(task_name(value), value)
        if other != value or not task_name(value):
            raise suite_row.wrong(
                table.name, location, f"'{table.task_field}': {value!r} and {other!r} would be one task"
            )
    check_named(table, values)
    return tuple(values)


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the task's files exist and have rows of it."""
    table = _of(spec)
    source = suite_row.scored(table, folder, task)
    paths = sources.files(source, table.split, suite_row.folder_of(table, source, folder))
    if not paths:  # a source of another kind
        return sources.missing(source, folder, table.split) is None
    if not all(files.present(path, source.url.replace("{file}", path.name)) for path in paths):
        return False
    rows = suite_row.read_rows(table, source, folder, task) if table.task_field else ()
    return not table.task_field or any(_task_of(table, location, record) == task for _, location, record in rows)


FAMILY = Family("table", tasks, has, items, specs, groups=groups, location=location, needs_data=needs_data)
