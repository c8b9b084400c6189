"""Tables of tasks and their templates: the format, the loader, and every check that refuses a wrong one.

Standard library only; importing this module or calling `load_tables` touches no data set and imports no TensorFlow.

A root is a folder with `tables/` and `templates/`. Ours is the installed `flanx.tasks`; more are named by the
environment variable FLANX_TABLES (folders separated by the path separator), read in order after ours. Within one
root a name may stand once; in a later root a row is laid over the row of the same name key by key, and a template
block replaces the block of the same name.

`tables/collections.toml` names the collections, one section each:

    [cot]
    role     = "paper"               # "paper": part of the 1,836; "held_out": evaluation only; "extra": all others
    total    = 9                     # loading fails when the number of rows differs (not checked where absent)
    defaults = {styles = ["zsopt", "fsopt"], cap = 100000, cot = true}        # laid under every row of the collection

`tables/<collection>.toml` holds its tasks, one section each; section `gsm8k` of `cot.toml` is task `cot_gsm8k`. Long
uniform lists stand in `tables/<collection>.csv` instead: a header line with `name` and any of the keys below
(values as text; lists separated by spaces; `splits` as "train=... test=...").

    [gsm8k]
    source       = "tsv:cot/gsm8k_train.tsv"      # "<kind>:<place>", see task/sources.py; {name}: the section's
    splits       = {train = "train"}              # our split name = the source's; exemplars come from `train` only
    columns      = ["question", "answer", "rationale"]  # the source's columns; needed where `fields` does not name them
    fields       = "keep(premise) | choose(label, ['no', 'yes'])"    # see flanx/data/task/fields.py; absent: as is
    templates    = "cot_math"                     # one block or a list of blocks
    inversions   = ["cot_question"]               # blocks of the inverted tasks, at 0.3 against 1; train split only
    few          = ["flan_rte_few"]               # blocks of the few-shot styles, where they are others
    noopt        = ["flan_rte_noopt"]             # blocks of `zsnoopt`, likewise
    worked       = ["niv2_worked"]                # blocks with a worked example inside: half of the few-shot prompts
    shots        = 2                              # exemplars of the other half; absent: five, or about two and a half
    styles       = ["zsopt", "zsnoopt", "fsopt", "fsnoopt"]
    metrics      = ["exact_match"]                # see METRICS
    cap          = 30000                          # examples that count for the mixing rate at most
    num_examples = 7473                           # size of the train split, where known
    held_out     = false                          # true: refused in every training mixture
    cot          = true                           # the target holds a rationale
    group        = "dialog"                       # a part of the collection that mixtures can name and rate by itself
    dataset      = "gsm8k"                        # the original data set; the section's name where absent
    category     = "Question Answering"
    languages    = ["English"]
    licence      = "MIT"                          # of the data; absent: what licences.csv says of them
    access       = "open"                         # "open", "form" (a form or log-in first) or "user" (files you supply)
    bytes        = 3000000                        # size of the download, where known
    url          = "https://.../{file}"           # of a file source; `flanx tasks fetch` takes it from there
    note         = "free text; a guess says so"

`tables/licences.csv` says the licences of data sets, one a line: collection, name (of the data set, or of one task),
licence (see flanx/data/task/licence.py), and `stated`, the page that says so.

`templates/<any>.toml` holds template blocks by cluster. A block is a list of prompts, each [input, target] or
[head, input, target] (or a table of these, with a few-shot style of its own: shot = [before an input, before a target,
between two exemplars]); `{name}` stands for a field, `{{` and `}}` for braces:

    [nli]
    none    = ["{premise}\\n{hypothesis}\\n{options}", "{answer}"]       # the bare form, required; template `nli:none`
    prompts = [                                                                # templates `nli:0`, `nli:1`, ...
      ["{premise}\\n\\nDoes it follow that {hypothesis}?\\n{options}", "{answer}"],
      ["Read the text, then judge the claim.\\n\\n", "Text: {premise}\\nClaim: {hypothesis}\\n{options}", "{answer}"],
    ]

A head is printed once: before the input, or before all the exemplars of a few-shot prompt; it may use fields too.
`{options}` is the list of options with a drawn heading and markers; with a `noopt` style, or where a row has none, it
goes, together with the line break before it, so the words about options belong to the list and not to the prompt.
`{answer}` follows the marker where the markers are letters or numbers. `templates/style.toml` holds the option
headings, the markers and the few-shot styles.

A row of the embedded suite, complete:

    [addition]                                    # in tables/suite.toml: the task suite_addition
    source    = "suite:addition"                  # flanx.procedural.examples("addition", split)
    splits    = {train = "train", validation = "validation"}
    columns   = ["question", "answer"]            # what the generator's dicts hold (plus "options", a list, if any)
    templates = "suite_arithmetic"                # block of templates/suite.toml
    metrics   = ["exact_match"]
"""

import functools
import importlib.util
import os
import pathlib
from dataclasses import dataclass, fields
from typing import Any

from flanx.data.task.fields import parse
from flanx.data.task.options import Style
from flanx.data.task.tables import ROLES, add_blocks, add_groups, add_licences, add_rows, toml_rows
from flanx.data.task.template import Block
from flanx.errors import UserError, nearest

STYLES = ("zsopt", "zsnoopt", "fsopt", "fsnoopt")  # zero- or few-shot, with or without the list of options
INVERSION = 0.3  # inverted examples against 1 plain one (paper.md 1.6; FLAN's own code, 2022)
SOURCES = ("suite", "tsv", "csv", "jsonl", "json", "niv2", "p3", "tfds")
ACCESS = ("open", "form", "user")
METRICS = ("exact_match", "accuracy", "final_answer", "squad", "rouge", "bleu", "pearson")


@dataclass(frozen=True)
class TaskSpec:
    """One row of the task tables, complete and checked. The keys are described above; `place` is its file:line."""

    name: str
    collection: str
    role: str
    place: str
    source: str
    splits: dict[str, str]
    templates: tuple[str, ...]
    fields: str = ""
    columns: tuple[str, ...] = ()
    inversions: tuple[str, ...] = ()
    few: tuple[str, ...] = ()
    noopt: tuple[str, ...] = ()
    worked: tuple[str, ...] = ()
    shots: int | None = None
    styles: tuple[str, ...] = STYLES
    metrics: tuple[str, ...] = ("exact_match",)
    cap: int | None = None
    num_examples: int | None = None
    held_out: bool = False
    cot: bool = False
    group: str = ""
    dataset: str = ""
    category: str = ""
    languages: tuple[str, ...] = ()
    licence: str = ""
    access: str = "open"
    bytes: int | None = None
    url: str = ""
    note: str = ""

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def names(self) -> frozenset[str]:
        """The fields that a template of this task may use."""
        return parse(self.fields).outputs if self.fields else frozenset(self.columns)


_KEYS = {f.name for f in fields(TaskSpec)} - {"name", "collection", "role", "place"}
_LISTS = {"templates", "columns", "inversions", "few", "noopt", "worked", "styles", "metrics", "languages"}
_TYPES = {"splits": dict, "cap": int, "shots": int, "num_examples": int, "bytes": int, "held_out": bool, "cot": bool}


@dataclass(frozen=True)
class Tables:
    """Everything that the roots say: tasks by name, template blocks by name, the style, the collections' sections."""

    tasks: dict[str, TaskSpec]
    blocks: dict[str, Block]
    style: Style
    collections: dict[str, dict[str, Any]]


def roots() -> list[pathlib.Path]:
    """Our own folder of tables (found without importing it, which would import SeqIO), then those of FLANX_TABLES."""
    found = importlib.util.find_spec("flanx.tasks")
    if found is None or not found.submodule_search_locations:
        raise UserError("flanx.tasks is not installed: run `pip install -e .` in the repository")
    more = [pathlib.Path(p).expanduser() for p in os.environ.get("FLANX_TABLES", "").split(os.pathsep) if p]
    for path in more:
        if not path.is_dir():
            raise UserError(f"FLANX_TABLES: no folder {path}")
    return [pathlib.Path(found.submodule_search_locations[0]), *more]


def load() -> Tables:
    """All tables, read once per set of roots. Raises UserError with file:line and reason; nothing is half loaded."""
    return _load(tuple(roots()))


def load_tables() -> dict[str, TaskSpec]:
    """All tasks by name. See `load`."""
    return load().tasks


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


MIXTURE_KEYS = ("collections", "rates", "caps", "styles", "inversion", "balance", "note")


def load_mixtures() -> dict[str, dict[str, Any]]:
    """The sections of `tables/mixtures.toml` of all roots, later roots over earlier ones; its head says the keys."""
    return _load_mixtures(tuple(roots()))


@functools.lru_cache(maxsize=8)
def _load_mixtures(folders: tuple[pathlib.Path, ...]) -> dict[str, dict[str, Any]]:
    mixtures: dict[str, dict[str, Any]] = {}
    for root in folders:
        path = root / "tables" / "mixtures.toml"
        for name, section, place in toml_rows(path) if path.is_file() else ():
            for key in section:
                if key not in MIXTURE_KEYS:
                    raise UserError(f"{place}: mixture '{name}' has unknown key '{key}'{nearest(key, MIXTURE_KEYS)}")
            if not section.get("collections"):
                raise UserError(f"{place}: mixture '{name}' needs 'collections'")
            mixtures[name] = section
    return mixtures


# ---- checking --------------------------------------------------------------------------------------------------------


def _cell(key: str, text: str) -> Any:
    """A CSV cell as the value that TOML would give."""
    kind = _TYPES.get(key)
    if key in _LISTS:
        return text.split()
    if kind is dict:
        return dict(part.split("=", 1) for part in text.split())
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return int(text) if kind is int else text


def _spec(name: str, collection: str, role: str, row: dict[str, Any], place: str) -> TaskSpec:
    unknown = set(row) - _KEYS
    if unknown:
        key = sorted(unknown)[0]
        raise UserError(f"{place}: unknown key '{key}'{nearest(key, _KEYS)}")
    for key in ("source", "splits", "templates"):
        if not row.get(key):
            raise UserError(f"{place}: {name} needs '{key}'")
    made = dict(row)
    for key, value in row.items():
        if key in _LISTS:
            value = (value,) if isinstance(value, str) else value
            if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
                raise UserError(f"{place}: {key} is no list of texts")
            made[key] = tuple(value)
        elif not isinstance(value, kind := _TYPES.get(key, str)) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{place}: {key} is {value!r}, not of type {kind.__name__}")
    spec = TaskSpec(name=name, collection=collection, role=role, place=place, **made)
    for key, values, known in (
        ("source", [spec.source.split(":", 1)[0]], SOURCES),
        ("style", spec.styles, STYLES),
        ("metric", spec.metrics, METRICS),
        ("access", [spec.access], ACCESS),
        ("split", spec.splits, ("train", "validation", "test")),
    ):
        for value in values:
            if value not in known:
                raise UserError(
                    f"{place}: unknown {key} '{value}'{nearest(value, known) or '; known: ' + ', '.join(known)}"
                )
    if ":" not in spec.source:
        raise UserError(f"{place}: source is '<kind>:<place>'")
    return spec


def _absent(block: Block, names: frozenset[str]) -> tuple[str, str] | None:
    """(template, field) of the first field that the names lack, or None. `options` may be absent."""
    for prompt in (*block.prompts, block.none):
        for field in sorted(prompt.fields - names - {"options"}):
            return prompt.name, field
    return None


def _check_templates(spec: TaskSpec, blocks: dict[str, Block], good: set[tuple[str, frozenset[str]]]) -> None:
    """Refuses a block that does not exist or names a field that the task lacks. `good`: pairs that passed already."""
    try:
        names = spec.names
    except UserError as e:
        raise UserError(f"{spec.place}: {e}") from e
    if not names:
        raise UserError(f"{spec.place}: {spec.name} needs 'fields' or 'columns'")
    for name in (*spec.templates, *spec.inversions, *spec.few, *spec.noopt, *spec.worked):
        if name not in blocks:
            raise UserError(f"{spec.place}: no template block '{name}'{nearest(name, blocks)}")
        if (name, names) in good:
            continue
        if wrong := _absent(blocks[name], names):
            raise UserError(
                f"{spec.place}: template {wrong[0]} names the field '{wrong[1]}', which {spec.name} lacks "
                f"(it has {', '.join(sorted(names))})"
            )
        good.add((name, names))


@functools.lru_cache(maxsize=8)
def _load(folders: tuple[pathlib.Path, ...]) -> Tables:
    groups: dict[str, dict] = {}
    found: dict[str, tuple[str, dict, str]] = {}
    blocks: dict[str, Block] = {}
    licences: dict[tuple[str, str], str] = {}
    style = None
    for root in folders:
        add_groups(root, groups)
        add_rows(root, found, groups, _cell)
        add_licences(root, licences)
        style = add_blocks(root, blocks) or style
    if style is None:
        raise UserError(f"{folders[0]}/templates/style.toml is missing")
    tasks = {}
    good: set[tuple[str, frozenset[str]]] = set()
    for name, (collection, row, place) in found.items():
        stated = licences.get((collection, name.removeprefix(f"{collection}_"))) or licences.get(
            (collection, str(row.get("dataset")))
        )
        row = {"licence": stated, **row} if stated else row
        spec = _spec(name, collection, groups[collection]["role"], row, place)
        _check_templates(spec, blocks, good)
        tasks[name] = spec
    for name, section in groups.items():
        count = sum(spec.collection == name for spec in tasks.values())
        if section.get("total", count) != count:
            raise UserError(f"{section['place']}: {name} has {count} rows instead of {section['total']}")
    return Tables(tasks, blocks, style, groups)
