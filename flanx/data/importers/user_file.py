"""Tables that a command writes for the user: tasks of own files, of pre-rendered exports, of a FLAN clone.

They go into a folder that the environment's FLANX_TABLES names from then on (`<folder>/tables`, `<folder>/templates`).
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from flanx.data.task import sources, tables, text
from flanx.data.task.row import BadRow, text_of
from flanx.data.task.spec import FREE_TEXT, METRICS
from flanx.errors import UserError, nearest
from flanx.files import local_path, lock, write_atomic

COLLECTION = "own"
CHOICE = "own_choice"  # the template block of tasks with options
_KINDS = {
    "accuracy": "answers out of a few", "number": "numbers", "exact_match": "short answers", "rouge": "free text",
}  # fmt: skip


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


BLOCK = section(COLLECTION, {"none": ["{inputs}", "{targets}"], "prompts": [["{inputs}", "{targets}"]]})
CHOICE_BLOCK = section(
    CHOICE, {"none": ["{inputs}\n{options}", "{answer}"], "prompts": [["{inputs}\n{options}", "{answer}"]]}
)


def declare(output: pathlib.Path, name: str, block: str, extra: str = "") -> None:
    """Adds a collection to the folder's own collections.toml and its template block, unless they are there already:
    what the user has edited stays."""
    path = output / "tables" / "collections.toml"
    content = text.read(path) if path.exists() else "# Collections of this folder.\n"
    if name not in (tables.toml(path) if path.exists() else {}):
        write_atomic(path, f'{content}\n[{name}]\nrole = "extra"\n{extra}')
    if not (block_file := output / "templates" / f"{name}.toml").exists():
        write_atomic(block_file, block)


def write_made(path: pathlib.Path, content: str, dry_run: bool = False) -> None:
    """Writes a whole file of ours, and next to it `.<name>.made` with the hash of what was written.

    Raises UserError where the file that is there has another hash or none: it was edited, or is not of our making.
    """
    mark = path.with_name(f".{path.name}.made")
    made = mark.read_bytes().decode("ascii", "replace").strip() if mark.is_file() else ""
    if path.exists() and (not made or made != _hash(path.read_bytes())):
        raise UserError(f"{path}: edited, or not made by this command; move it away, or choose another --output")
    if not dry_run:
        write_atomic(path, content)
        write_atomic(mark, _hash(content.encode()) + "\n")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check(output: pathlib.Path) -> None:
    """Loads the tables with this folder added. Raises UserError at a mistake."""
    folders = [*tables.roots(), *([output.resolve()] if output.exists() else [])]
    tables.read(dict.fromkeys(folders))


def hint(output: pathlib.Path, name: str) -> str:
    """What to type next."""
    return f"export FLANX_TABLES={output.resolve()}\nflanx tasks show {name}"


def clean(name: str) -> str:
    """A name of letters, digits and underscores."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "task"


KINDS = ("jsonl", "json", "tsv", "csv")
NUMBER = re.compile(r"[-+]?[$€£]?\s?[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?\s?%?")
MOST_LABELS = 20  # so many different answers at most, each three times on average and twice at least, are labels


@dataclasses.dataclass
class _File:
    """What a file holds: its columns, and of each row with both texts its place (`sources.place_of`) and hashes of its
    question and of both texts.

    labels: how often each answer is given, None where there are too many; words: how often an answer has so many;
    wordy: how many hold no digit; indexes: rows whose answer is the index of an option, from 0, and not its text.
    """

    path: pathlib.Path
    inputs: str
    targets: str
    options: str
    columns: list[str]
    places: list[float] = dataclasses.field(default_factory=list)
    asked: list[int] = dataclasses.field(default_factory=list)
    pairs: list[int] = dataclasses.field(default_factory=list)
    labels: collections.Counter[str] | None = dataclasses.field(default_factory=collections.Counter)
    words: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    numbers: bool = True
    wordy: int = 0
    indexes: int = 0
    bad: int = 0
    first_bad: str = ""

    @property
    def is_table(self) -> bool:
        """Whether its cells are texts."""
        return text.kind_of(self.path) in ("tsv", "csv")

    @property
    def source(self) -> str:
        """`kind:path`, as tables name it."""
        kind = text.kind_of(self.path)
        return f"{'jsonl' if kind == 'json' else kind}:{self.path}"

    def add(self, inputs: Any, target: str) -> None:
        """Adds a row."""
        self.places.append(sources.place_of({"inputs": inputs}))
        self.asked.append(hash(text_of(inputs).strip()))
        self.pairs.append(hash((self.asked[-1], target)))
        self.words[len(target.split())] += 1
        has_digit = any(map(str.isdigit, target))
        self.wordy += not has_digit
        self.numbers = self.numbers and has_digit and NUMBER.fullmatch(target) is not None
        if self.labels is not None:
            self.labels[target] += 1
            self.labels = self.labels if len(self.labels) <= MOST_LABELS else None

    def notes(self, rows: str) -> str:
        """`rows`, then how many rows repeat another one and how many are left out."""
        repeated = len(self.pairs) - len(set(self.pairs))
        return (
            rows
            + (f"; {repeated:,} of them repeat another one" if repeated else "")
            + (f"; {self.bad:,} left out, the first at {self.first_bad}" if self.bad else "")
        )


def _look(path: pathlib.Path, inputs: str, targets: str, options: str) -> _File:
    """Reads the whole file once, so that what is wrong with it is said now and not in a training."""
    if path.is_file() and text.kind_of(path) not in KINDS:
        raise UserError(f"{path}: give a .jsonl, .json, .tsv or .csv file, .gz or not")
    found: _File | None = None
    bad, first_bad = 0, ""
    for location, record in text.records(path, escaped=True):
        try:
            if isinstance(record, BadRow):
                raise record
            if found is None:
                names = list(record)
                asked, answer = (text.column_of(name, names, location) for name in (inputs, targets))
                found = _File(path, asked, answer, options and text.column_of(options, names, location), names)
            for name in filter(None, (found.inputs, found.targets, found.options)):
                if name not in record:
                    raise BadRow(f"no column '{name}'")
                if not text_of(record[name], name).strip():
                    raise BadRow(f"empty {name}")
            found.add(record[found.inputs], _answer(record, found))
        except BadRow as error:
            bad, first_bad = bad + 1, first_bad or f"{location}: {error}"
    if found is None or not found.places:
        raise UserError(f"{path}: no row with both texts" + (f"; {first_bad}" if first_bad else ""))
    found.bad, found.first_bad = bad, first_bad
    return found


def _answer(record: dict[str, Any], file: _File) -> str:
    """The answer's text. Raises BadRow where the row has options and the answer is none of them."""
    said = record[file.targets]
    if not file.options:
        return text_of(said).strip()
    options = record[file.options]
    options = options.split("|") if file.is_table else options
    if not isinstance(options, list) or len(options) < 2:
        raise BadRow(f"'{file.options}' is not a list of two options or more (in CSV and TSV: one|two|three)")
    texts = [text_of(option, file.options).strip() for option in options]
    if (answer := text_of(said).strip()) in texts:
        return answer
    if not isinstance(said, int) or isinstance(said, bool) or not 0 <= said < len(texts):
        raise BadRow(f"'{file.targets}' is '{answer}', which is none of '{file.options}'")
    file.indexes += 1
    return texts[said]


def _part(split: str, part: tuple[float, float], main: _File) -> str:
    """A part of the main file, from one share to another, as tables write it. UserError where no row is in it."""
    low, high = part
    if not any(low <= place < high for place in main.places):
        raise UserError(
            f"{main.path}: none of its {len(main.places)} rows falls into '{split}' (rows are divided by a hash of "
            f"'{main.inputs}'); give another share, or a file of its own"
        )
    whole = (low, high) == (0.0, 1.0)
    return "train" if whole else f"train share {low:.6g}:{high:.6g}"


def _own(main: _File, path: str) -> _File:
    """The file of a split of its own. Raises UserError where its columns are not those of the main file."""
    file = _look(local_path(path).absolute(), main.inputs, main.targets, main.options)
    used = [(one.inputs, one.targets, one.options) for one in (main, file)]
    if used[0] != used[1]:
        raise UserError(
            f"{file.path}: its columns are {', '.join(file.columns)}, those of {main.path} {', '.join(main.columns)}; "
            "give both files the same names"
        )
    if (main.is_table, file.is_table) in ((True, False), (False, True)) and main.options:
        raise UserError(f"{file.path}: options are lists in JSON and one|two|three in a table: give both one kind")
    return file


def _metric(files: Sequence[_File]) -> tuple[str, list[str]]:
    """(the metric that fits the answers, the labels that they are or [])."""
    if files[0].options:
        return "accuracy", []
    if all(file.numbers for file in files):
        return "number", []
    rows = sum(len(file.places) for file in files)
    if all(file.labels is not None for file in files):
        labels = sum((file.labels for file in files if file.labels), collections.Counter[str]())
        if 2 <= len(labels) <= MOST_LABELS and min(labels.values()) > 1 and rows >= 3 * len(labels):
            return "accuracy", sorted(labels)
    long = sum(count for file in files for words, count in file.words.items() if words >= FREE_TEXT)
    return ("rouge" if 2 * long > rows else "exact_match"), []


def _choice(asked: str | None, fitting: str, files: Sequence[_File]) -> str:
    """Why the metric is the one it is. Raises UserError for one of numbers where the answers are none, as an evaluation
    would (`flanx.evals.task_metrics.misfit`)."""
    wordy, rows = sum(file.wordy for file in files), sum(len(file.places) for file in files)
    if (asked == "pearson" and wordy) or (asked == "number" and 2 * wordy > rows):
        raise UserError(
            f"{files[0].path}: metric {asked} compares numbers, and {wordy:,} of {rows:,} answers are none; "
            f"{fitting} fits {_KINDS[fitting]}"
        )
    if asked in ("accuracy", "exact_match") and fitting == "rouge":
        return "as asked, which compares whole answers: these are free text, and rouge fits them"
    return "as asked" if asked else f"for {_KINDS[fitting]}"


def _fields(files: Sequence[_File], labels: Sequence[str]) -> str:
    """The `fields` of the row. Raises UserError where answers are indexes of options here and texts there."""
    main, rows, indexes = files[0], sum(len(file.places) for file in files), sum(file.indexes for file in files)
    inputs, targets, options = (f"record[{name!r}]" for name in (main.inputs, main.targets, main.options))
    if not main.options:
        return f"keep(inputs={inputs}, targets={targets})" + (f" | const(options, {list(labels)!r})" if labels else "")
    if 0 < indexes < rows:
        raise UserError(
            f"{main.path}: '{main.targets}' is the index of an option in {indexes:,} of {rows:,} rows, and the text of "
            "one in the others; give all of them as texts"
        )
    parts = [f"keep(inputs={inputs})"]
    if main.is_table:
        parts, options = [*parts, f"split(options, {options}, '|')"], "options"
    if not indexes:  # as text, lest a number be an index
        parts, targets = [*parts, f"join(answer, '', {targets})"], "answer"
    return " | ".join([*parts, f"choose({targets}, {options})"])


def add(args: argparse.Namespace) -> int:
    """`flanx tasks add`: one file, two of its columns, one task; its other splits are parts of it or other files."""
    path, output = local_path(args.file).absolute(), local_path(args.output)
    if args.metric and args.metric not in METRICS:
        raise UserError(f"no metric '{args.metric}'{nearest(args.metric, METRICS)}; known: {', '.join(METRICS)}")
    main = _look(path, args.inputs, args.targets, args.options or "")
    if main.inputs == main.targets:
        raise UserError(f"{path}: column '{main.inputs}' is what is asked and what is to be answered; name two columns")
    own: dict[str, _File] = {
        split: _own(main, given) for split in ("validation", "test") if (given := getattr(args, split))
    }
    shares = [args.validation_share or 0.0, args.test_share or 0.0]
    if sum(shares) >= 1:
        raise UserError(f"the shares of validation and test add up to {sum(shares):g}: they must be below 1")
    bounds: dict[str, tuple[float, float]] = {
        "validation": (0.0, shares[0]),
        "test": (shares[0], sum(shares)),
        "train": (sum(shares), 1.0),
    }
    parts = {split: bound for split, bound in bounds.items() if bound[0] < bound[1]}
    splits: dict[str, str] = {
        split: _part(split, parts[split], main) for split in ("train", "validation", "test") if split in parts
    }
    splits |= {split: file.source for split, file in own.items()}
    counts = {split: sum(low <= place < high for place in main.places) for split, (low, high) in parts.items()}

    files = [main, *own.values()]
    fitting, labels = _metric(files)
    chosen = _choice(args.metric, fitting, files)
    name = clean(args.name or path.name.removesuffix(".gz").rpartition(".")[0])
    row: dict[str, Any] = {"source": main.source, "splits": splits}
    row["fields"] = _fields(files, labels)
    row["templates"] = CHOICE if main.options else COLLECTION
    row["metrics"] = [args.metric or fitting]
    row["num_examples"] = counts["train"]
    table = output / "tables" / f"{COLLECTION}.toml"
    check(output)  # a folder that is broken stays as it is
    with lock(output / "tables" / ".lock"):
        if table.exists() and name in tables.toml(table):
            raise UserError(f"{table}: it already has a task '{name}'; choose another --name")
        declare(output, COLLECTION, BLOCK, '[own.defaults]\nstyles = ["zsopt", "fsopt"]\ncap = 30000\n')
        if main.options and not (block := output / "templates" / f"{CHOICE}.toml").exists():
            write_atomic(block, CHOICE_BLOCK)
        content = text.read(table) if table.exists() else ""
        write_atomic(table, f"{content}\n{section(name, row)}".lstrip())
    check(output)
    print(f"task {COLLECTION}_{name} ({', '.join(main.columns)}) in {table}")
    divided = ", ".join(f"{split} {counts[split]:,}" for split in splits if split in counts)
    print(main.notes(f"{len(main.places):,} rows" + (f" ({divided})" if len(counts) > 1 else "")))
    asked = set(main.asked)
    for split, file in own.items():
        both = sum(question in asked for question in file.asked)
        print(
            file.notes(f"{split}: {len(file.places):,} rows of {file.path}")
            + (f"; {both:,} of them ask what a row of {path.name} asks" if both else "")
        )
    print(f"metric {row['metrics'][0]}, {chosen}\n{hint(output, f'{COLLECTION}_{name}')}")
    return 0
