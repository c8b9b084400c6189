"""One row of the task tables: the format of tables and templates, and the validation of a row.

Standard library only. `tables.load` reads all rows; it touches no data set and does not import TensorFlow.

A root is a folder with `tables/` and `templates/`. Ours is the installed `flanx.tasks`; more are named by the
environment variable FLANX_TABLES (folders separated by the path separator), read in order after ours. A name occurs
only once in a root; a row in a later root overrides the row of the same name key by key, and a template block replaces
the block of the same name.

`tables/collections.toml` names the collections, one section each:

    [cot]
    role     = "paper"               # "paper": part of the 1,836; "held_out": evaluation only; "extra": all others
    total    = 9                     # loading fails if the number of rows differs (unchecked if absent)
    defaults = {styles = ["zsopt", "fsopt"], cap = 100000, cot = true}        # for every row of the collection

`tables/<collection>.toml` holds its tasks, one section each; section `gsm8k` of `cot.toml` is task `cot_gsm8k`. Long
uniform lists are kept in `tables/<collection>.csv` instead: a header line with `name` and any of the keys below
(values as text; lists separated by spaces; `splits` as "train=... test=...").

    [gsm8k]
    source       = "tsv:cot/gsm8k_train.tsv"      # "<kind>:<location>", see task/sources.py; {name}: the section's
    splits       = {train = "train"}              # our split name = the source's, a part of it, or a separate file
                                                  # (see task/sources.py); exemplars come from `train` only
    columns      = ["question", "answer", "rationale"]  # the source's columns; needed if `fields` does not name
                                                  # them, and for tsv and csv files without a header line
    fields       = "keep(premise) | choose(label, ['no', 'yes'])"    # see flanx/data/task/fields.py; absent: as is
    templates    = "cot_math"                     # one block or a list of blocks
    inversions   = ["cot_question"]               # blocks of the inverted version of the task; train split only
    few          = ["flan_rte_few"]               # blocks of the few-shot styles, if different
    noopt        = ["flan_rte_noopt"]             # blocks of `zsnoopt`, likewise
    worked       = ["niv2_worked"]                # blocks that include a worked example: half of the few-shot prompts
    shots        = 2                              # exemplars of the other half; absent: five, or about two and a half
    styles       = ["zsopt", "zsnoopt", "fsopt", "fsnoopt"]
    metrics      = ["exact_match"]                # see METRICS
    cap          = 30000                          # maximum number of examples counted for the mixing rate
    num_examples = 7473                           # size of the train split, if known
    held_out     = false                          # true: rejected in every training mixture
    cot          = true                           # the target contains a rationale
    group        = "dialog"                       # a part of the collection that mixtures can name and rate separately
    dataset      = "gsm8k"                        # the original data set; default: the section's name
    category     = "Question Answering"
    languages    = ["English"]
    licence      = "MIT"                          # of the data; absent: looked up in licences.csv
    access       = "open"                         # "open", "form" (a form or log-in first) or "user" (files you supply)
    bytes        = 3000000                        # size of the download, if known
    url          = "https://.../{file}"           # of a file source; `flanx tasks fetch` downloads it from there
    note         = "free text; a guess says so"

`tables/licences.csv` lists the licences of data sets, one per line: collection, name (of the data set, or of one task),
licence (see flanx/data/task/licence.py), and `stated`, the page that states it.

`templates/<any>.toml` has template blocks by cluster. A block is a list of prompts, each [input, target] or
[head, input, target] (or a table of these, with its own few-shot style: shot = [before an input, before a target,
between two exemplars]); `{name}` is replaced by a field, `{{` and `}}` are braces:

    [nli]
    none    = ["{premise}\\n{hypothesis}\\n{options}", "{answer}"]       # the bare form, required; template `nli:none`
    prompts = [                                                                # templates `nli:0`, `nli:1`, ...
      ["{premise}\\n\\nDoes it follow that {hypothesis}?\\n{options}", "{answer}"],
      ["Read the text, then judge the claim.\\n\\n", "Text: {premise}\\nClaim: {hypothesis}\\n{options}", "{answer}"],
    ]

A head is printed once: before the input, or before all the exemplars of a few-shot prompt; it may use fields too.
`{options}` is the list of options with a drawn heading and markers; with a `noopt` style, or if a row has none, it is
removed together with the line break before it, so a sentence about options belongs in the list, not in the prompt.
`{answer}` is the marker if the markers are letters or numbers. `templates/style.toml` has the option headings, the
markers and the few-shot styles.

A complete row of the embedded procedural tasks:

    [addition]                                    # in tables/suite.toml: the task suite_addition
    source    = "suite:addition"                  # flanx.procedural.examples("addition", split)
    splits    = {train = "train", validation = "validation"}
    columns   = ["question", "answer"]            # keys of the generator's dicts (plus "options", a list, if any)
    templates = "suite_arithmetic"                # block of templates/suite.toml
    metrics   = ["exact_match"]
"""

import itertools
from dataclasses import MISSING, dataclass, fields
from typing import Any

from flanx.data.task.fields import parse
from flanx.errors import UserError, nearest

STYLES = ("zsopt", "zsnoopt", "fsopt", "fsnoopt")  # zero- or few-shot, with or without the list of options
INVERTED = "_inverted"  # suffix of a style's inverted version: the prompts ask for the question, given the answer
# How often the inverted version of a task is drawn relative to 1 for the plain one, by collection or group: FLAN's
# released code (flan/v2/mixtures.py, 2022) has 0.3 in its CoT and dialog submixtures and no rate elsewhere; Flan 2021's
# own inversions are among its templates, and those of program synthesis were never mixed.
INVERSION = {"cot": 0.3, "dialog": 0.3}
SOURCES = ("suite", "tsv", "csv", "jsonl", "json", "yaml", "parquet", "niv2", "p3", "tfds")
ACCESS = ("open", "form", "user")
METRICS = ("exact_match", "accuracy", "number", "final_answer", "squad", "rouge", "bleu", "pearson")
FREE_TEXT = 6  # if half of the answers have at least this many words, whole answers are not compared


@dataclass(frozen=True)
class TaskSpec:
    """One row of the task tables, complete and validated. The keys are described above; `location` is its file:line."""

    name: str
    collection: str
    role: str
    location: str
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
    def versions(self) -> tuple[str, ...]:
        """The prompt styles, then those of the inverted version, if any."""
        return self.styles + tuple(style + INVERTED for style in self.styles if self.inversions)

    @property
    def names(self) -> frozenset[str]:
        """The fields that a template of this task may use."""
        return parse(self.fields).outputs if self.fields else frozenset(self.columns)


_KEYS = {f.name for f in fields(TaskSpec)} - {"name", "collection", "role", "location"}
_DEFAULTS = {f.name: None if f.default is MISSING else f.default for f in fields(TaskSpec)}
_LISTS = {"templates", "columns", "inversions", "few", "noopt", "worked", "styles", "metrics", "languages"}
_TEXT = {str}
_TYPES = {"splits": dict, "cap": int, "shots": int, "num_examples": int, "bytes": int, "held_out": bool, "cot": bool}


def parse_cell(key: str, text: str) -> Any:
    """Parses a CSV cell to the value that TOML would give."""
    kind = _TYPES.get(key)
    if key in _LISTS:
        return text.split()
    if kind is dict:
        return dict(part.split("=", 1) for part in text.split())
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return int(text) if kind is int else text


def parse_row(name: str, collection: str, role: str, row: dict[str, Any], location: str) -> TaskSpec:
    """A validated row. Raises UserError with the location."""
    unknown = set(row) - _KEYS
    if unknown:
        key = sorted(unknown)[0]
        raise UserError(f"{location}: unknown key '{key}'{nearest(key, _KEYS)}")
    for key in ("source", "splits", "templates"):
        if not row.get(key):
            raise UserError(f"{location}: {name} needs '{key}'")
    values = dict(row)
    for key, value in row.items():
        kind = _TYPES.get(key, str)
        if type(value) is kind and key not in _LISTS:
            continue
        if key in _LISTS:
            value = (value,) if isinstance(value, str) else value
            if not isinstance(value, (list, tuple)) or not _TEXT.issuperset(map(type, value)):
                raise UserError(f"{location}: {key} is not a list of texts")
            values[key] = tuple(value)
        elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{location}: {key} is {value!r}, not of type {kind.__name__}")
    spec = object.__new__(TaskSpec)  # 5,000 rows: a frozen dataclass's __init__ takes four times as long
    vars(spec).update(_DEFAULTS, name=name, collection=collection, role=role, location=location)
    vars(spec).update(values)
    for key, given, known in (
        ("source", [spec.source.split(":", 1)[0]], SOURCES),
        ("style", spec.styles, STYLES),
        ("metric", spec.metrics, METRICS),
        ("access", [spec.access], ACCESS),
        ("split", spec.splits, ("train", "validation", "test")),
    ):
        for value in itertools.filterfalse(known.__contains__, given):
            raise UserError(
                f"{location}: unknown {key} '{value}'{nearest(value, known) or '; known: ' + ', '.join(known)}"
            )
    if ":" not in spec.source:
        raise UserError(f"{location}: source is '<kind>:<location>'")
    return spec
