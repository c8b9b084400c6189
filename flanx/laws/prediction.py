"""Predictions recorded before the cells run, in the append-only file predictions.json.

    [{"cell", "at", "score", "form", "value", "low", "high", "error", "checked", "data", "seen", "made", "flanx",
      "previous", "hash"}, ...]

`hash` covers the entry, which includes the previous entry's hash: an entry that is changed, removed or inserted breaks
the chain, and the file is rejected. A chain cannot show that its last entries are missing, or that all of it was
rewritten: reports print the hash of the last entry, and a copy of the report is the proof.
"""

import datetime
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flanx
from flanx.errors import UserError
from flanx.files import lock, open_regular, write_atomic
from flanx.laws.cell import Cell
from flanx.laws.choice import Choice, Predicted

FILE = "predictions.json"
FIRST = "0" * 64  # `previous` of the first entry
TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("cell", "score", "form", "data", "made", "flanx", "previous", "hash"), str),
    **dict.fromkeys(("value", "low", "high"), (int, float)),
    "error": (int, float, type(None)),
    "checked": int,
    "at": dict,
    "seen": list,
}
Entry = dict[str, Any]


def digest(cells: Sequence[Cell]) -> str:
    """The SHA-256 of the data that a law was fitted to: names, places, scores and losses of the measured cells."""
    rows = sorted([c.name, sorted(c.at.items()), list(c.values), c.item_error, c.loss] for c in cells if c.values)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _hash(entry: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in entry.items() if key != "hash"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def entries(score: str, choice: Choice, predicted: Sequence[Predicted]) -> list[Entry]:
    """The entries for predictions of one score; `append` adds the hash chain."""
    error = choice.check.error if choice.check.count else None
    return [
        {
            "cell": each.cell.name,
            "at": dict(each.cell.at),
            "score": score,
            "form": choice.chosen,
            "value": each.value,
            "low": each.low,
            "high": each.high,
            "error": error,
            "checked": choice.check.count,
            "data": digest(choice.data.cells),
            "seen": sorted(cell.name for cell in choice.data.cells),
        }
        for each in predicted
    ]


def read(path: pathlib.Path) -> list[Entry]:
    """The entries of a file; [] if there is none. Raises UserError if it was changed after it was written."""
    if not path.exists():
        return []
    repair = "restore it from a copy; or remove it, and its predictions with it"
    with open_regular(path) as file:
        raw = file.read()
    try:
        found = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {repair}") from error
    if not isinstance(found, list):
        raise UserError(f"{path} is damaged: it is not a list of predictions; {repair}")
    previous = FIRST
    for number, entry in enumerate(found, 1):
        is_whole = isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in TYPES.items())
        if not is_whole or entry["previous"] != previous or entry["hash"] != _hash(entry):
            raise UserError(f"{path} was changed after it was written: entry {number} is not what it was; {repair}")
        previous = entry["hash"]
    return found


def append(path: pathlib.Path, new: Sequence[Entry]) -> list[Entry]:
    """Adds the entries that are not there yet, and returns all. Existing entries for a cell, score and data stay."""
    with lock(path.with_suffix(".lock")):
        found = extended(read(path), new)
        write_atomic(path, text(found))
    return found


def extended(found: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """The entries of a file plus those that are not there yet, chained and dated."""
    found = list(found)
    known = {_same(entry) for entry in found}
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for each in new:
        if _same(each) in known:
            continue
        last = found[-1]["hash"] if found else FIRST
        entry = dict(each) | {"made": made, "flanx": flanx.__version__, "previous": last}
        found.append(json.loads(json.dumps(entry | {"hash": _hash(entry)})))
    return found


def text(found: Sequence[Entry]) -> str:
    """The content of a file with these entries."""
    return json.dumps(found, indent=1) + "\n"


def _same(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return entry["cell"], entry["score"], entry["data"], entry["form"]


class Verdict(NamedTuple):
    """A prediction and its outcome: the measured score, None until the cell has run."""

    entry: Entry
    measured: float | None

    @property
    def is_inside(self) -> bool | None:
        """Whether the measured score is in the interval; None until there is one."""
        if self.measured is None:
            return None
        return bool(self.entry["low"] <= self.measured <= self.entry["high"])

    @property
    def text(self) -> str:
        """The verdict in words."""
        return {None: "not measured yet", True: "inside", False: "outside"}[self.is_inside]


def verdicts(found: Sequence[Entry], measured: Mapping[tuple[str, str], float]) -> list[Verdict]:
    """The verdict on every entry; `measured` has the scores of finished cells by (cell, score name)."""
    return [Verdict(entry, measured.get((entry["cell"], entry["score"]))) for entry in found]


def coverage(found: Sequence[Verdict]) -> str:
    """How many predictions were right, as a sentence."""
    settled = [each for each in found if each.measured is not None]
    if not settled:
        return f"{len(found)} predictions, none measured yet."
    inside = sum(bool(each.is_inside) for each in settled)
    return f"{inside} of {len(settled)} measured cells lie inside their 95% intervals ({inside / len(settled):.0%})" + (
        f"; {len(found) - len(settled)} predictions are still open." if len(settled) < len(found) else "."
    )
