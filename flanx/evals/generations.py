"""Raw generations in JSONL: what a model wrote for every item, kept so that scores can be recomputed from it.

    <out>/generations/<suite>__<task>.jsonl    first line: {"spec", "hash", "items", "run", "data",
                                               "versions"}; then one item per line
    <out>/generations_harmful/...              the same for suites whose texts may offend; the first line says so

A line is appended as each item finishes, so a killed evaluation resumes where it stopped; a truncated last line is
dropped.
"""

import dataclasses
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, get_type_hints

from flanx import files, settings
from flanx.errors import UserError, nearest
from flanx.evals import answers, metrics
from flanx.evals.spec import Spec, Suite

# Versions of answer extraction and scoring, written with generations and scores: other versions are not comparable.
VERSIONS = {"extractor": answers.EXTRACTOR_VERSION, "scorer": metrics.SCORER_VERSION}


@dataclasses.dataclass
class Generation:
    """One evaluated item; its attributes are the keys of its line.

    Attributes:
      outputs: the texts of its samples, as the model wrote them; ended: whether each reached end of sequence.
      options: the item's options; option_scores: log-probabilities of the options, for specs that rank, or of the
        samples, for open-ended prompts; None: not finite.
      shots: number of exemplars that fitted; shots_available: number available, None in files of earlier versions.
      prompt: the text that the model received; cut: whether its beginning was truncated.
      prompt_tokens, prompt_unknown, target_tokens, target_unknown: counts, for the share of unknown tokens.
      broken: whether logits were not finite.
      labels: the item's labels; {} in files of earlier versions.
      undrawn: samples not drawn because they could not change the vote; absent from the line if there are none.
      toxicity: of each output, 0 to 1, None if the scorer gave none; [] until outputs are scored. Not stored in the
        file: `toxicity.join` adds it.
    """

    id: str
    task: str
    prompt: str
    targets: list[str]
    kind: str
    language: str
    shots: int
    cut: bool
    prompt_tokens: int
    prompt_unknown: int
    target_tokens: int
    target_unknown: int
    broken: bool = False
    outputs: list[str] = dataclasses.field(default_factory=list)
    ended: list[bool] = dataclasses.field(default_factory=list)
    options: list[str] = dataclasses.field(default_factory=list)
    option_scores: list[float | None] = dataclasses.field(default_factory=list)
    shots_available: int | None = None
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    undrawn: int = 0
    toxicity: list[float | None] = dataclasses.field(default_factory=list)


_HEADER: dict[str, Any] = {"spec": dict[str, Any], "hash": str, "items": dict[str, int], "run": dict[str, Any]}
_HEADER |= {f"spec.{name}": hint for name, hint in get_type_hints(Spec).items()}
_TYPES = settings.annotations(Generation)
_FIELDS = set(_TYPES) - {"toxicity"}
_ADDED = {"shots_available", "labels", "undrawn"}  # columns that files of earlier versions lack


FOLDERS = ("generations", "generations_harmful")
HARMFUL = "prompts and outputs of this file may offend or harm; they are kept to be counted, not to be quoted"


def generation_path(folder: pathlib.Path, suite: str, task: str, harmful: bool = False) -> pathlib.Path:
    """The generation file of one task; characters that file systems do not allow become dashes."""
    clean = "".join(c if c.isalnum() or c in "_-." else "-" for c in suite)
    return folder / FOLDERS[harmful] / f"{clean}__{task}.jsonl"


ASIDE = "generations_set_aside"  # generations of other checkpoints; never deleted, since they cost hours


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Moves a generation file, or the scores.json above it, out of the way under the next free number; returns its new
    path."""
    home = path.parent.parent if path.parent.name in FOLDERS else path.parent
    folder = home / ASIDE / ("harmful" if path.parent.name == FOLDERS[True] else "")
    folder.mkdir(parents=True, exist_ok=True)
    number = next(n for n in itertools.count(1) if not (folder / f"{path.stem}.{n}{path.suffix}").exists())
    return path.rename(folder / f"{path.stem}.{number}{path.suffix}")


def is_same_run(old: Any, new: dict[str, Any]) -> bool:
    """Whether the same parameters were queried the same way; how a checkpoint's path is written does not matter."""
    if not isinstance(old, dict) or not new.get("parameters"):
        return old == new
    return {**old, "checkpoint": None} == {**new, "checkpoint": None}


def set_others_aside(folder: pathlib.Path, run: Mapping[str, Any]) -> None:
    """Moves generations and scores of other checkpoints out of the way, for all suites: a folder holds those of one
    checkpoint."""
    own = json.loads(json.dumps(dict(run)))
    headers = [(path, (files.read_jsonl(path) or [{}])[0].get("run")) for path in paths(folder)]
    headers.append((folder / "scores.json", files.read_json(folder / "scores.json").get("run")))
    others = [path for path, found in headers if found is not None and not is_same_run(found, own)]
    for path in others:
        set_aside(path)
    if others:
        print(f"{folder}: {len(others)} files of another checkpoint, seed or version kept in {folder / ASIDE}")


class Writer:
    """Appends to the generation files of a suite and tracks which items are done.

    Attributes:
      paths: {task: file}; done: (task, id) of the items finished by an earlier run of the same spec, model and seed.
    """

    def __init__(self, folder: pathlib.Path, suite: Suite, run: Mapping[str, Any]) -> None:
        counts = dict(sorted(Counter(item.task for item in suite.items).items()))
        self.header = {"spec": dataclasses.asdict(suite.spec), "hash": suite.hash, "items": counts, "run": dict(run)}
        self.header |= {"data": dict(suite.data), "versions": VERSIONS}
        self.header |= {"warning": HARMFUL} if suite.spec.harmful else {}
        self.paths = {
            task: generation_path(folder, suite.spec.name, task, suite.spec.harmful)
            for task in {item.task for item in suite.items}
        }
        (folder / FOLDERS[suite.spec.harmful]).mkdir(parents=True, exist_ok=True)
        self.done: set[tuple[str, str]] = set()
        self._files: dict[str, Any] = {}
        replaced = sum([self._resume(task, path) for task, path in self.paths.items()])
        if replaced:
            print(
                f"{suite.spec.name}: {replaced} files of another checkpoint, seed or version kept in {folder / ASIDE}"
            )

    def _resume(self, task: str, path: pathlib.Path) -> bool:
        """Reads which items an earlier run finished; True if the file belongs to a different run and is set aside."""
        records = files.read_jsonl(path)
        header, rows = (records[0], records[1:]) if records else (None, [])
        if header is not None and header.get("hash") != self.header["hash"]:
            raise UserError(
                f"{path} holds generations of another spec ({header.get('hash')}, now {self.header['hash']}); "
                "give another folder, or delete it"
            )
        if header is None or not is_same_run(header.get("run"), json.loads(json.dumps(self.header["run"]))):
            if path.exists():
                set_aside(path)
            return header is not None
        files.truncate_jsonl(path)
        self.done |= {(task, row["id"]) for row in rows if "id" in row}
        return False

    def add(self, row: Generation) -> None:
        """Appends one item."""
        if row.task not in self._files:
            path = self.paths[row.task]
            is_new = not path.exists()
            self._files[row.task] = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in `close`
            if is_new:
                self._line(row.task, self.header)
        record = {name: value for name, value in vars(row).items() if name in _FIELDS}
        for name in ("labels", "undrawn"):
            if not record[name]:
                del record[name]
        self._line(row.task, record)

    def _line(self, task: str, record: Mapping[str, Any]) -> None:
        self._files[task].write(files.json_line(record))
        self._files[task].flush()

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def read(path: pathlib.Path) -> tuple[dict[str, Any], list[Generation]]:
    """The header and rows of a generation file. Raises UserError with the line of any error."""
    rows: list[Generation] = []
    header: dict[str, Any] = {}
    seen: set[str] = set()
    for number, line in enumerate(files.json_lines(path), 1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON ({error.msg}); was the run killed? Evaluate again") from None
        if not header:
            if not isinstance(record, dict) or {"spec", "hash", "items", "run"} - set(record):
                raise UserError(f"{path}:1: no header with spec, hash, items and run; not a generation file of flanx")
            header = files.check_types(path, record, _HEADER)
            if "name" not in header["spec"]:
                raise UserError(f"{path}:1 is damaged: its spec has no name; evaluate again")
            continue
        wrong = sorted(({*record} ^ _FIELDS) - (_ADDED - {*record})) if isinstance(record, dict) else ["?"]
        if wrong:
            raise UserError(f"{path}:{number}: unexpected or missing column '{wrong[0]}'" + nearest(wrong[0], _FIELDS))
        files.check_types(path, record, _TYPES)
        if record["id"] in seen:
            raise UserError(f"{path}:{number}: id '{record['id']}' occurs twice")
        seen.add(record["id"])
        rows.append(Generation(**record))
    if not header:
        raise UserError(f"{path} is empty; evaluate again")
    return header, rows


def spec_of(header: Mapping[str, Any], path: pathlib.Path) -> Spec:
    """The spec in a header, with later fields at their defaults. Raises UserError for unknown or missing fields."""
    known = {field.name: bool(field.metadata.get("added")) for field in dataclasses.fields(Spec)}
    missing = [name for name, added in known.items() if not added and name not in header["spec"]]
    wrong = sorted({*header["spec"]} - {*known}) + missing
    if wrong:
        raise UserError(
            f"{path}: its spec differs from this version's in '{wrong[0]}'; rescore with the version that wrote it"
        )
    return Spec(**{key: _tuples(value) for key, value in header["spec"].items()})


def _tuples(value: Any) -> Any:
    """A JSON value with its lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """All generation files of an evaluation."""
    return [path for name in FOLDERS for path in sorted((folder / name).glob("*.jsonl"))]
