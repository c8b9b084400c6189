"""Where the rows of a task come from: one reader per kind of source, plain Python records, bad rows counted.

| kind | place | records |
|---|---|---|
| suite: | a generator of flanx.procedural | its dictionaries |
| tsv:, csv: | a file under the data folder, no header | `columns` by position; in TSV a literal `\\n` is a line break |
| jsonl:, json: | a file under the data folder (.gz too); `json:path#key` takes the list under a key | its objects |
| niv2: | a task of natural_instructions/tasks | definition, input, outputs, examples |
| p3: | a prompt-task, as p3/<name>/<split>*.parquet or .jsonl | its columns |
| tfds: | a TFDS name without version | numpy turned into texts, numbers, lists, dictionaries |

`{split}` in a place stands for the source's split. A split may be a slice as in TFDS: `train[:-200]`, `train[5%:]`.
"""

import glob
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from flanx.data.task.fields import parse
from flanx.data.task.readers import READERS, Raw
from flanx.data.task.row import BadRow, Record, SkipRow, draw
from flanx.data.task.spec import TaskSpec
from flanx.errors import UserError

MAX_BAD_ROWS = 100  # a file with more of them is an error; gin and callers can say otherwise
P3_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")
POOL = 2048  # rows of the train split from which the exemplars of few-shot prompts come
_log = logging.getLogger("flanx")


def data_folder(data_dir: str | os.PathLike | None, spec: TaskSpec) -> pathlib.Path:
    """The folder of file sources: the argument, else FLANX_DATA_DIR. Raises UserError where neither is given."""
    folder = data_dir or os.environ.get("FLANX_DATA_DIR")
    if not folder and os.path.isabs(spec.source.split(":", 1)[1]):
        return pathlib.Path("/")
    if not folder:
        raise UserError(f"task {spec.name} reads {spec.source} from a folder: set --gin.DATA_DIR or FLANX_DATA_DIR")
    return pathlib.Path(folder).expanduser()


def files(spec: TaskSpec, split: str, data_dir: str | os.PathLike | None = None) -> list[pathlib.Path]:
    """The files that a split of a file source reads, whether they exist or not; empty for the other kinds."""
    kind, place = spec.source.split(":", 1)
    if kind in ("suite", "tfds"):
        return []
    folder = data_folder(data_dir, spec)
    name = _slice(spec.splits[split])[0]
    if kind == "niv2":
        return [_niv2_file(folder / "natural_instructions" / "tasks", place)]
    if kind == "p3":
        root = pathlib.Path(place) if os.path.isabs(place) else folder / "p3" / place
        found = sorted(glob.glob(f"{glob.escape(str(root))}/{name}*"))
        return [pathlib.Path(p) for p in found if p.endswith(P3_ENDINGS)] or [root]
    path = folder / place.split("#", 1)[0].replace("{split}", name)
    packed = path.with_name(path.name + ".gz")
    return [packed if packed.exists() and not path.exists() else path]


def tfds_folder(spec: TaskSpec) -> pathlib.Path:
    """Where TFDS keeps the versions of a data set: TFDS_DATA_DIR, else its own default."""
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return pathlib.Path(root).expanduser() / spec.source.split(":", 1)[1]


def _niv2_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file of a task; 41 of them are spelled with hyphens in some releases and underscores in others."""
    path = folder / f"{name}.json"
    if not path.exists():
        for other in folder.glob(f"{name.split('_', 1)[0]}_*.json"):
            if other.stem.replace("-", "_") == name:
                return other
    return path


def missing(spec: TaskSpec, data_dir: str | os.PathLike | None = None, split: str | None = None) -> str | None:
    """One line that names the task and the first absent file (of one split, or of all), or None where all is there."""
    if spec.source.startswith("tfds:"):
        folder = tfds_folder(spec)
        if any(folder.glob("*/dataset_info.json")):
            return None
        return f"task {spec.name}: no prepared {spec.source[5:]} under {folder}; run: flanx tasks fetch {spec.name}"
    for one in [split] if split else spec.splits:
        found = files(spec, one, data_dir)
        for path in found:
            if not path.is_file():
                return f"task {spec.name}: no file {path}; {_repair(spec)}, or leave the task out"
        parts = {hit[0] for path in found if (hit := re.search(r"-(\d+)-of-(\d+)", path.name))}
        if parts and len(parts) < (count := max(int(part.rpartition("-")[2]) for part in parts)):
            return f"task {spec.name}: {len(parts)} of {count} files of '{one}' in {found[0].parent}; {_repair(spec)}"
    return None


def _repair(spec: TaskSpec) -> str:
    return f"run: flanx tasks fetch {spec.name}" if spec.url else "put it there"


# ---- rows ------------------------------------------------------------------------------------------------------------

_SLICE = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def _slice(split: str) -> tuple[str, str | None, str | None]:
    hit = _SLICE.fullmatch(split)
    if not hit:
        raise UserError(f"split '{split}': write name, name[:n], name[n:] or name[a:b], counts or percents")
    return hit["name"], hit["start"], hit["stop"]


def _cut(rows: Raw, split: str) -> Raw:
    """The part of the rows that a slice names; only negative and percent bounds hold all rows in memory."""
    _, start, stop = _slice(split)
    if all(bound is None or bound.isdigit() for bound in (start, stop)):
        return itertools.islice(rows, int(start or 0), int(stop) if stop else None)
    everything = list(rows)

    def place(bound: str | None) -> int | None:
        if bound is None:
            return None
        return round(len(everything) * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)

    return iter(everything[place(start) : place(stop)])


def plain(value: Any) -> Any:
    """A TFDS value (numpy, bytes, nested) as texts, numbers, lists and dictionaries."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "to_list"):  # a ragged tensor
        return plain(value.to_list())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _read_tfds(spec: TaskSpec, split: str) -> Raw:
    import tensorflow_datasets as tfds  # heavy; only sources of this kind need it

    place = spec.source.split(":", 1)[1]
    try:
        data = tfds.load(place, split=spec.splits[split], shuffle_files=False, download=False)
    except Exception as e:  # TFDS raises many kinds of error for a data set that is not there
        raise UserError(
            f"task {spec.name}: TFDS has no prepared {place} ({type(e).__name__}: {str(e).splitlines()[0][:150]}); "
            f"run: flanx tasks fetch {spec.name}"
        ) from e
    for number, record in enumerate(tfds.as_numpy(data)):
        yield f"{place}[{number}]", plain(record)


def _read_suite(spec: TaskSpec, split: str) -> Raw:
    from flanx import procedural

    place = spec.source.split(":", 1)[1]
    name = _slice(spec.splits[split])[0]
    for number, record in enumerate(procedural.examples(place, name)):
        yield f"{spec.source} {name}[{number}]", record


def raw_rows(spec: TaskSpec, split: str, data_dir: str | os.PathLike | None = None) -> Raw:
    """The records of a split in the source's order, before `fields`. Raises UserError for an absent file or split."""
    if split not in spec.splits:
        raise UserError(f"task {spec.name} has no split '{split}' (it has {', '.join(spec.splits)})")
    kind = spec.source.split(":", 1)[0]
    if kind == "tfds":
        return _read_tfds(spec, split)
    if kind == "suite":
        return _cut(_read_suite(spec, split), spec.splits[split])
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
    """(row id, place, fields) of a split. Bad rows are logged, counted, and above `max_bad_rows` a UserError.

    `raw` stands in for the source's records; `shard` (i, n) takes the records i, i + n, ... and makes nothing of the
    others, under the ids that they have in the whole."""
    bad, good, last = 0, 0, None
    numbered = enumerate(raw_rows(spec, split, data_dir) if raw is None else raw)
    for index, (place, record) in itertools.islice(numbered, shard[0], None, shard[1]):
        row = f"{split}:{index}"
        try:
            if isinstance(record, BadRow):
                raise record
            made = make_fields(spec, record, f"{spec.name}\x1f{rendering}\x1f{row}")
        except SkipRow:
            continue
        except BadRow as e:
            bad, last = bad + 1, f"{place}: {e}"
            report_bad(spec, place, e, bad, max_bad_rows)
            continue
        good += 1
        yield row, place, made
    if bad and not good and shard == (0, 1):
        raise UserError(f"task {spec.name}: every row of '{split}' is bad, the last at {last}")
    if bad:
        _log.warning("task %s: %d bad rows left out of '%s'", spec.name, bad, split)


def report_bad(spec: TaskSpec, place: str, reason: BadRow, bad: int, limit: int) -> None:
    """Logs the first bad rows; raises UserError once there are more than the limit."""
    if bad > limit:
        raise UserError(f"task {spec.name}: more than {limit} bad rows, the last at {place}: {reason}")
    if bad <= 5:
        _log.warning("task %s: %s: %s (row left out)", spec.name, place, reason)
