"""Readers of the files behind tasks: READERS, one per kind of file source, gives (place, record) of every row.

What cannot be read as a row comes out as a BadRow in the record's place; what is no file of its kind is a UserError.
"""

import csv
import gzip
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from flanx.data.task.row import BadRow, Record, text_of
from flanx.data.task.spec import TaskSpec
from flanx.errors import UserError

csv.field_size_limit(1 << 30)  # a cell may be a whole document
Raw = Iterator[tuple[str, Record | BadRow]]  # (place for messages, the record or what is wrong with it)


def _open(path: pathlib.Path) -> Any:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8", errors="replace", newline="")


def _read_tsv(path: pathlib.Path, spec: TaskSpec) -> Raw:
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}:{number}"
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != len(spec.columns):
                yield place, BadRow(f"{len(cells)} columns instead of {len(spec.columns)} ({', '.join(spec.columns)})")
                continue
            cells = [cell.replace("\\n", "\n").strip() for cell in cells]
            empty = [name for name, cell in zip(spec.columns, cells, strict=True) if not cell]
            yield place, BadRow(f"empty {empty[0]}") if empty else dict(zip(spec.columns, cells, strict=True))


def _read_csv(path: pathlib.Path, spec: TaskSpec) -> Raw:
    with _open(path) as lines:
        reader = csv.reader(lines)
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            if len(cells) != len(spec.columns):
                yield place, BadRow(f"{len(cells)} columns instead of {len(spec.columns)} ({', '.join(spec.columns)})")
            else:
                yield place, dict(zip(spec.columns, cells, strict=True))


def _read_jsonl(path: pathlib.Path, spec: TaskSpec) -> Raw:
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as e:
                yield place, BadRow(f"no JSON: {e}")
                continue
            yield place, record if isinstance(record, dict) else BadRow("no JSON object")


def _load_json(path: pathlib.Path) -> Any:
    with _open(path) as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}: no JSON: {e}") from e


def _read_json(path: pathlib.Path, spec: TaskSpec) -> Raw:
    value = _load_json(path)
    key = spec.source.partition("#")[2]
    for part in filter(None, key.split(".")):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{path}: no key '{key}', which task {spec.name} reads")
        value = value[part]
    if not isinstance(value, list):
        raise UserError(f"{path}: {key or 'the file'} is no list of records")
    for number, record in enumerate(value):
        yield f"{path}[{number}]", record if isinstance(record, dict) else BadRow("no JSON object")


def _read_niv2(path: pathlib.Path, spec: TaskSpec) -> Raw:
    """A Super-NaturalInstructions file."""
    return instances(_load_json(path), str(path))


def instances(task: Any, place: str) -> Raw:
    """The instances of a Super-NaturalInstructions task: `Definition` a list or a text, instances with or without ids.

    Each holds definition, input, outputs, and as `examples` the positive examples that are not this instance."""
    try:
        definition = task["Definition"]
        definition = "\n".join(definition) if isinstance(definition, list) else str(definition)
        examples = [
            {"input": e["input"], "output": text_of(e["output"]), "explanation": e.get("explanation") or ""}
            for e in task.get("Positive Examples") or []
        ]
        found = list(task["Instances"])
    except (KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{place}: no Super-NaturalInstructions task ({type(e).__name__}: {e})") from e
    for number, item in enumerate(found):
        if not isinstance(item, dict) or not {"input", "output"} <= set(item):
            yield f"{place}[{number}]", BadRow("an instance without input or output")
            continue
        outputs = item["output"] if isinstance(item["output"], list) else [item["output"]]
        others = [e for e in examples if e["input"] != item["input"]]
        yield (
            f"{place}[{number}]",
            {"definition": definition, "input": item["input"], "outputs": outputs, "examples": others},
        )


def _read_p3(path: pathlib.Path, spec: TaskSpec) -> Raw:
    if path.suffix != ".parquet":
        yield from _read_jsonl(path, spec)
        return
    import pyarrow.parquet  # comes with TFDS; only Parquet rows need it

    number = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
        for record in batch.to_pylist():
            yield f"{path}[{number}]", record
            number += 1


READERS: dict[str, Callable[[pathlib.Path, TaskSpec], Raw]] = {
    "tsv": _read_tsv,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "niv2": _read_niv2,
    "p3": _read_p3,
}
