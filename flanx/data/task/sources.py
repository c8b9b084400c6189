"""The rows of a task: one reader per kind of source, plain Python records, bad rows counted.

| kind | location | records |
|---|---|---|
| suite: | a generator of flanx.procedural | its dictionaries |
| tsv:, csv: | a file under the data folder, no header | `columns` by position; in TSV a literal `\\n` is a line break |
| tsv:, csv: without `columns` | a file whose first line names its columns | cells by their name; `\\n` as above |
| jsonl: | a file under the data folder (.gz too) | its objects |
| json:, yaml: | the same; `json:path#key` reads the list under a key, or the values of an object | its objects |
| parquet: | a file under the data folder | its columns |
| niv2: | a task of natural_instructions/tasks | definition, input, outputs, examples |
| p3: | a prompt-task, as p3/<name>/<split>*.parquet or .jsonl | its columns |
| tfds: | a TFDS name without version | strings, numbers, lists, dictionaries (flanx/seqio/tfds.py) |

`{split}` in a location is replaced by the source's split. A split may be a slice as in TFDS, `train[:-200]` or
`train[5%:]`; a separate file, `jsonl:/data/dev.jsonl` or `csv:dev.csv[1:]`; or a share of the rows, `train share
0.1:1`: each row has a place from 0 to 1, a hash of its fields without the answer (`ANSWERS`), so that rows with the
same question are in the same part, and every row keeps its place when others are appended.
"""

import dataclasses
import glob
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flanx import procedural
from flanx.data.task import text
from flanx.data.task.fields import parse
from flanx.data.task.row import BadRow, Record, SkipRow, draw, text_of
from flanx.data.task.spec import TaskSpec
from flanx.data.task.text import Raw
from flanx.errors import UserError

MAX_BAD_ROWS = 100  # a file with more is an error; gin and callers can set another limit
P3_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")
ANSWERS = ("targets", "answer", "options")  # fields that do not affect a row's place
_log = logging.getLogger("flanx")


def data_folder(data_dir: str | os.PathLike | None, spec: TaskSpec) -> pathlib.Path:
    """The folder of file sources: the argument, else FLANX_DATA_DIR. Raises UserError if neither is given."""
    folder = data_dir or os.environ.get("FLANX_DATA_DIR")
    if not folder and os.path.isabs(spec.source.split(":", 1)[1]):
        return pathlib.Path("/")
    if not folder:
        raise UserError(
            f"task {spec.name} reads {spec.source} from a folder: name it by --data_dir or --gin.DATA_DIR, as the "
            "command takes it, or in FLANX_DATA_DIR"
        )
    return pathlib.Path(folder).expanduser()


def files(spec: TaskSpec, split: str, data_dir: str | os.PathLike | None = None) -> list[pathlib.Path]:
    """The files that a split of a file source reads, existing or not; empty for other kinds."""
    spec = of_split(spec, split)
    kind, location = spec.source.split(":", 1)
    if kind in ("suite", "tfds"):
        return []
    folder = data_folder(data_dir, spec)
    name = _slice(spec.splits[split])["name"]
    if kind == "niv2":
        return [_niv2_file(folder / "natural_instructions" / "tasks", location)]
    if kind == "p3":
        root = pathlib.Path(location) if os.path.isabs(location) else folder / "p3" / location
        paths = sorted(glob.glob(f"{glob.escape(str(root))}/{name}*"))
        return [pathlib.Path(path) for path in paths if path.endswith(P3_ENDINGS)] or [root]
    path = folder / pathlib.Path(location).expanduser()  # if the file exists, {split} and # are part of its name
    if not path.exists():
        location = location.rpartition("#")[0] if kind in ("json", "yaml") and "#" in location else location
        path = folder / pathlib.Path(location.replace("{split}", name)).expanduser()
    packed = path.with_name(path.name + ".gz")
    return [packed if packed.exists() and not path.exists() else path]


def tfds_folder(spec: TaskSpec) -> pathlib.Path:
    """Where TFDS keeps the versions of a data set: TFDS_DATA_DIR, else its own default."""
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(root).expanduser() / spec.source.split(":", 1)[1]


def _niv2_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file of a task; 41 are spelled with hyphens in some releases and underscores in others."""
    path = folder / f"{name}.json"
    if not path.exists():
        for other in folder.glob(f"{name.split('_', 1)[0]}_*.json"):
            if other.stem.replace("-", "_") == name:
                return other
    return path


def missing(spec: TaskSpec, data_dir: str | os.PathLike | None = None, split: str | None = None) -> str | None:
    """One line naming the task and its first missing file (of one split, or of all), or None if nothing is missing."""
    if spec.source.startswith("tfds:"):
        folder = tfds_folder(spec)
        if any(folder.glob("*/dataset_info.json")):
            return None
        return f"task {spec.name}: no prepared {spec.source[5:]} under {folder}; run: flanx tasks fetch {spec.name}"
    for one in [split] if split else spec.splits:
        paths = files(spec, one, data_dir)
        for path in paths:
            if not path.is_file():
                return f"task {spec.name}: no file {path}; {_repair(spec)}, or leave the task out"
        parts = {hit[0] for path in paths if (hit := re.search(r"-(\d+)-of-(\d+)", path.name))}
        if parts and len(parts) < (count := max(int(part.rpartition("-")[2]) for part in parts)):
            return f"task {spec.name}: {len(parts)} of {count} files of '{one}' in {paths[0].parent}; {_repair(spec)}"
    return None


def _repair(spec: TaskSpec) -> str:
    return f"run: flanx tasks fetch {spec.name}" if spec.url else "put it there"


# ---- readers of files ------------------------------------------------------------------------------------------------


def _read_tsv(path: pathlib.Path, spec: TaskSpec) -> Raw:
    """In a plain file a literal `\\n` is a line break; cells without a header are stripped and must not be empty."""
    if not spec.columns:
        yield from text.table_rows(path, "tsv", escaped=True)
        return
    for number, cells in text.tsv_rows(path, escaped=True):
        record = _columns(spec, cells)
        if not isinstance(record, BadRow):
            record = {name: cell.strip() for name, cell in record.items()}
            if empty := [name for name, cell in record.items() if not cell]:
                record = BadRow(f"empty {empty[0]}")
        yield f"{path}:{number}", record


def _read_csv(path: pathlib.Path, spec: TaskSpec) -> Raw:
    if not spec.columns:
        yield from text.table_rows(path, "csv")
        return
    for number, cells in text.csv_rows(path):
        yield f"{path}:{number}", _columns(spec, cells)


def _columns(spec: TaskSpec, cells: list[str] | BadRow) -> Record | BadRow:
    """The cells by the task's column names."""
    if isinstance(cells, BadRow):
        return cells
    if len(cells) != len(spec.columns):
        return BadRow(f"{len(cells)} columns instead of {len(spec.columns)} ({', '.join(spec.columns)})")
    return dict(zip(spec.columns, cells, strict=True))


def _read_jsonl(path: pathlib.Path, spec: TaskSpec) -> Raw:
    return text.json_rows(path)


def _key(path: pathlib.Path, spec: TaskSpec) -> str:
    """The key after the last # of a source; empty if that # is part of the file name."""
    location = spec.source.partition(":")[2]
    return "" if str(path).removesuffix(".gz").endswith(location) else location.rpartition("#")[2]


def _read_json(path: pathlib.Path, spec: TaskSpec) -> Raw:
    value = text.read_yaml(path) if spec.source.startswith("yaml:") else text.read_json(path)
    key = _key(path, spec)
    for part in filter(None, key.split(".")):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{path}: no key '{key}', which task {spec.name} reads")
        value = value[part]
    value = list(value.values()) if key and isinstance(value, dict) else value
    if not isinstance(value, list):
        raise UserError(f"{path}: {key or 'the file'} is not a list of records")
    for number, record in enumerate(value):
        yield f"{path}[{number}]", record if isinstance(record, dict) else BadRow("not a JSON object")


def _read_niv2(path: pathlib.Path, spec: TaskSpec) -> Raw:
    """A Super-NaturalInstructions file."""
    return instances(text.read_json(path), str(path))


def instances(task: Any, location: str) -> Raw:
    """The instances of a Super-NaturalInstructions task: `Definition` may be a list or a string, ids are optional.

    Each has definition, input, outputs, and in `examples` the positive examples other than this instance."""
    try:
        definition = task["Definition"]
        definition = "\n".join(definition) if isinstance(definition, list) else str(definition)
        examples = [
            {
                "input": text_of(e["input"], "input"),
                "output": text_of(e["output"], "output"),
                "explanation": text_of(e.get("explanation") or "", "explanation"),
            }
            for e in task.get("Positive Examples") or []
        ]
        items = list(task["Instances"])
    except BadRow as e:
        raise UserError(f"{location}: a worked example whose {e}") from e
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{location}: not a Super-NaturalInstructions task ({type(e).__name__}: {e})") from e
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not {"input", "output"} <= set(item):
            yield f"{location}[{number}]", BadRow("an instance without input or output")
            continue
        outputs = item["output"] if isinstance(item["output"], list) else [item["output"]]
        others = [e for e in examples if e["input"] != item["input"]]
        yield (
            f"{location}[{number}]",
            {"definition": definition, "input": item["input"], "outputs": outputs, "examples": others},
        )


def _read_parquet(path: pathlib.Path, spec: TaskSpec) -> Raw:
    for number, record in enumerate(text.parquet_rows(path)):
        yield f"{path}[{number}]", record


def _read_p3(path: pathlib.Path, spec: TaskSpec) -> Raw:
    return _read_parquet(path, spec) if path.suffix == ".parquet" else _read_jsonl(path, spec)


READERS: dict[str, Callable[[pathlib.Path, TaskSpec], Raw]] = {
    "tsv": _read_tsv,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "yaml": _read_json,
    "parquet": _read_parquet,
    "niv2": _read_niv2,
    "p3": _read_p3,
}


# ---- rows ------------------------------------------------------------------------------------------------------------

_SLICE = re.compile(
    r"(?P<slice>(?P<source>(?P<kind>tsv|csv|jsonl|json):)?(?P<name>.+?)"
    r"(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?)(?: share (?P<low>[01](?:\.\d+)?):(?P<high>[01](?:\.\d+)?))?"
)


def _slice(split: str) -> re.Match[str]:
    """The parsed split of a row. Raises UserError."""
    hit = _SLICE.fullmatch(split)
    if not hit or (not hit["source"] and re.search(r"[\[\]]", hit["name"])):
        raise UserError(
            f"split '{split}': write name, name[:n], name[n:] or name[a:b], counts or percents; KIND:FILE of a file of "
            "its own; and ' share 0:0.1' behind it for a part of the rows"
        )
    return hit


def of_split(spec: TaskSpec, split: str) -> TaskSpec:
    """The row for reading one split: with the split's own source, if it has one."""
    if split not in spec.splits:
        raise UserError(f"task {spec.name} has no split '{split}' (it has {', '.join(spec.splits)})")
    hit = _slice(spec.splits[split])
    return dataclasses.replace(spec, source=f"{hit['kind']}:{hit['name']}", url="") if hit["source"] else spec


def place_of(fields: Record) -> float:
    """A row's place from 0 to 1, from its fields without the answer; see the module docstring."""
    texts = [f"{name}\x1f{fields[name]!r}" for name in sorted(fields) if name not in ANSWERS]
    return draw("\x1e".join(texts), "share", 2**32) / 2**32


def _cut(rows: Raw, split: str) -> Raw:
    """The rows of a slice; only negative and percent bounds load all rows into memory."""
    start, stop = _slice(split).group("start", "stop")
    if all(bound is None or bound.isdigit() for bound in (start, stop)):
        return itertools.islice(rows, int(start or 0), int(stop) if stop else None)
    everything = list(rows)

    def index(bound: str | None) -> int | None:
        if bound is None:
            return None
        return round(len(everything) * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)

    return iter(everything[index(start) : index(stop)])


def _read_tfds(spec: TaskSpec, split: str) -> Raw:
    from flanx.seqio import tfds  # noqa: PLC0415  (only this kind of source needs TensorFlow)

    name = spec.source.split(":", 1)[1]
    try:
        for number, record in enumerate(tfds.records(name, _slice(spec.splits[split])["slice"])):
            yield f"{name}[{number}]", record
    except UserError:
        raise
    except Exception as e:  # TFDS raises various errors for an incomplete data set
        raise UserError(
            f"task {spec.name}: TFDS cannot read {name} ({type(e).__name__}: {str(e).splitlines()[0][:150]}); "
            f"run: flanx tasks fetch {spec.name}"
        ) from e


def _read_procedural(spec: TaskSpec, split: str) -> Raw:
    name = _slice(spec.splits[split])["name"]
    for number, record in enumerate(procedural.examples(spec.source.split(":", 1)[1], name)):
        yield f"{spec.source} {name}[{number}]", record


def raw_rows(spec: TaskSpec, split: str, data_dir: str | os.PathLike | None = None) -> Raw:
    """The records of a split in source order, before `fields` and `share`. UserError: no such file or split."""
    spec = of_split(spec, split)
    kind = spec.source.split(":", 1)[0]
    if kind == "tfds":
        return _read_tfds(spec, split)
    if kind == "suite":
        return _cut(_read_procedural(spec, split), spec.splits[split])
    paths = files(spec, split, data_dir)
    for path in paths:
        if not path.is_file():
            raise UserError(f"task {spec.name}: no file {path}; {_repair(spec)}, or leave the task out")
    return _cut(itertools.chain.from_iterable(READERS[kind](path, spec) for path in paths), spec.splits[split])


def make_fields(spec: TaskSpec, record: Record, key: str) -> Record:
    """The named values of one raw record. Raises BadRow or SkipRow."""
    if spec.fields:
        return parse(spec.fields).run(record, lambda label, n: draw(key, label, n))
    absent = [name for name in spec.columns if name not in record and name != "options"]
    if absent:
        raise BadRow(f"no column '{absent[0]}'")
    return {name: record[name] for name in spec.columns if name in record}


def rows(
    spec: TaskSpec, split: str, data_dir: str | os.PathLike | None = None, rendering: int = 0,
    max_bad_rows: int = MAX_BAD_ROWS, raw: Iterable[tuple[str, Record | BadRow]] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[str, str, Record]]:  # fmt: skip
    """(row id, location, fields) of a split. Bad rows are logged and counted; more than `max_bad_rows` is a UserError.

    `raw` replaces the source's records; `shard` (i, n) takes records i, i + n, ... and ignores the others; row ids are
    those of the whole split."""
    bad, good, last = 0, 0, None
    part = _slice(spec.splits.get(split, split))
    low, high = float(part["low"] or 0), float(part["high"] or 1)
    numbered = enumerate(raw_rows(spec, split, data_dir) if raw is None else raw)
    for index, (location, record) in itertools.islice(numbered, shard[0], None, shard[1]):
        row = f"{split}:{index}"
        try:
            if isinstance(record, BadRow):
                raise record
            made = make_fields(spec, record, f"{spec.name}\x1f{rendering}\x1f{row}")
        except SkipRow:
            continue
        except BadRow as e:
            bad, last = bad + 1, f"{location}: {e}"
            report_bad(spec, location, e, bad, max_bad_rows)
            continue
        good += 1
        if not part["low"] or low <= place_of(made) < high:
            yield row, location, made
    if bad and not good and shard == (0, 1):
        raise UserError(f"task {spec.name}: every row of '{split}' is bad, the last at {last}")
    if bad:
        part_of = f", part {shard[0] + 1} of {shard[1]}" if shard[1] > 1 else ""  # else equal counts are one message
        _log.warning("task %s: bad rows left out of '%s'%s: %d", spec.name, split, part_of, bad)


def report_bad(spec: TaskSpec, location: str, reason: BadRow, bad: int, limit: int) -> None:
    """Logs the first bad rows; raises UserError once there are more than the limit."""
    if bad > limit:
        raise UserError(f"task {spec.name}: more than {limit} bad rows, the last at {location}: {reason}")
    if bad <= 5:
        _log.warning("task %s: %s: %s (row left out)", spec.name, location, reason)
