"""The content of run.json and of a run's JSONL files, checked when read: a person or a faulty copy may have changed it.

What writes them, and what they mean: `flanx.train_metrics`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from flanx.errors import UserError
from flanx.files import check_types, json_object, read_json

_DICTS = dict[str, dict[str, Any]]
_NUMBERS = dict[str, float]
# {file: {name: its type if present}}; every line in any of them has a step
TYPES: Mapping[str, Mapping[str, Any]] = {
    "metrics": {
        **dict.fromkeys(("loss", "cross_ent_loss", "padding", "tokens_per_second"), float),
        "sources": _DICTS,
        "performance": _NUMBERS,
        "hosts": _DICTS,
        "validation": dict[str, Any],
        **dict.fromkeys(("validation.loss", "validation.macro_loss", "validation.accuracy"), float),
        **dict.fromkeys(("validation.collections", "validation.tasks"), _DICTS),
    },
    "tasks": {"tasks": _DICTS, "total": dict[str, Any]},
    "sessions": {"started": float, "ended": float},
    "unlogged": {
        **{"tasks": list[str], "sums": _NUMBERS, "stages": _NUMBERS, "seconds": float, "since": int},
        **dict.fromkeys(("record", "line"), list[list[float]]),
    },
}
# {file: {name of a dict of dicts: what each inner dict must have}}
PARTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "metrics": {
        "sources": {"loss": float},
        "validation.collections": {"loss": float},
        "hosts": {"process": int, "host": str, "seconds": float, "median": float},
    },
    "tasks": {"tasks": {"loss_sum": float, "tokens": float, "examples": float}},
}


RUN: Mapping[str, Any] = {  # run.json
    "num_params": int,
    "settings": dict[str, Any],
    "adapter": dict[str, Any] | None,
    "initial_checkpoint_path": str | None,
    "initial_checkpoint_fingerprint": str | None,
    "initial_checkpoint_step": int | None,
    "initial_checkpoint_source": dict[str, Any] | None,
    "data": dict[str, Any] | None,
    "data.store": dict[str, Any],
    "data.store.hash": str,
    "data.store.vocabulary": str,
    "data.mixture": dict[str, Any],
    "data.mixture.tasks": int,
    "data.mixture.missing": dict[str, str],
    "data.lengths": dict[str, int],
    "data.batch_size": int,
    "data.content": dict[str, str],
}


def read_run(path: pathlib.Path) -> dict[str, Any]:
    """A run's run.json; {} if there is no file. Raises UserError if it is damaged."""
    return check_types(path, read_json(path), RUN)


def read_stored_run(folder: Any) -> dict[str, Any]:
    """The same for a `flanx.storage.Storage`."""
    record = folder.read_json("run.json") if "run.json" in folder.children() else {}
    return check_types(pathlib.Path(f"{folder}/run.json"), record, RUN)


def parse(path: pathlib.Path, number: int, line: str | bytes) -> dict[str, Any]:
    """The record in a line. Raises UserError if it is not a JSON object, or not one of this file."""
    return check(path, number, json_object(path, number, line))


def check(path: pathlib.Path, number: int, record: dict[str, Any]) -> dict[str, Any]:
    """The record in line `number` of a run's file. Raises UserError naming the line and what is missing or has the
    wrong type."""
    kind, place = path.stem, pathlib.Path(f"{path}:{number}")
    required = {"step": int} | ({"validation.loss": float} if "validation" in record else {})
    _expect(place, record, "", required)
    check_types(place, record, TYPES[kind])
    for name, wanted in PARTS.get(kind, {}).items():
        for key, part in (_at(record, name) or {}).items():
            _expect(place, part, f"{name}.{key}.", wanted)
    return record


def _expect(place: pathlib.Path, record: dict[str, Any], prefix: str, types: Mapping[str, Any]) -> None:
    check_types(place, record, types)
    for name in types:
        if _at(record, name) is None:
            raise UserError(f"{place}: no '{prefix}{name}'; the file is damaged or not written by flanx: move it away")


def _at(record: Any, name: str) -> Any:
    """The value of "a.b" in {"a": {"b": value}}, or None."""
    for part in name.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record
