"""Ballots: what a rater said of pairs, a file for each rater, a line as each is given.

    <output>/ballots/<rater>.jsonl    {"comparison", "rater", "kind", "version"}, then
                                      {"pair", "choice", "swapped", "note", "seconds", "time"}

A file says "left" and "right", never which candidate that was. A rater who changes a choice adds a line; the last one
of a pair counts. `read_back` takes the file that an exported page saves.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flanx import files
from flanx.compare.pairing import Comparison, Pair
from flanx.errors import UserError

VERSION = 1
LEFT, RIGHT, TIE, BAD = CHOICES = ("left", "right", "tie", "bad")  # "bad": both are
PEOPLE, MODEL = KINDS = ("people", "model")
LONGEST = {"rater": 60, "note": 2_000}  # characters
FOLDER = "ballots"
_HEADER = {"comparison": str, "rater": str, "kind": str, "version": int}
_BALLOT = {"pair": str, "choice": str, "swapped": bool, "note": str, "seconds": float, "time": str}


@dataclasses.dataclass(frozen=True)
class Ballot:
    """A choice between the two answers of a pair.

    Attributes:
      swapped: the pair was shown with its sides exchanged; "left" is then the pair's right one.
      seconds: that the pair was looked at; time: in ISO 8601.
    """

    pair: str
    choice: str
    swapped: bool = False
    note: str = ""
    seconds: float = 0.0
    time: str = ""

    def verdict(self, pair: Pair) -> int | str:
        """The candidate that it prefers, TIE or BAD."""
        if self.choice in (TIE, BAD):
            return self.choice
        return pair.sides[(self.choice == RIGHT) != self.swapped]


@dataclasses.dataclass
class Rater:
    """A rater's ballots as they count, (pair, swapped) -> ballot, in order; `changed`: how many replaced another."""

    name: str
    kind: str
    ballots: dict[tuple[str, bool], Ballot] = dataclasses.field(default_factory=dict)
    changed: int = 0

    def take(self, ballot: Ballot) -> None:
        """Counts a ballot; a note that is written later is no change of mind."""
        before = self.ballots.get((ballot.pair, ballot.swapped))
        self.changed += before is not None and before.choice != ballot.choice
        self.ballots[ballot.pair, ballot.swapped] = ballot


def check(made: Comparison, record: Mapping[str, Any], location: str = "") -> Ballot:
    """A ballot of untrusted values. Raises UserError for a pair that is not of the comparison, another choice, ..."""
    at = f"{location}: " if location else ""
    known = {name: record[name] for name in _BALLOT if name in record}
    for name, kind in _BALLOT.items():
        value = known.get(name, kind())
        if not isinstance(value, int | float if kind is float else kind) or (kind is float and isinstance(value, bool)):
            raise UserError(f"{at}'{name}' of a ballot is {str(value)[:40]!r}, not of type {kind.__name__}")
    ballot = Ballot(**{"pair": "", "choice": "", **known})
    if ballot.pair not in made.by_id:
        raise UserError(f"{at}'{ballot.pair[:40]}' is no pair of comparison {made.id}")
    if ballot.choice not in CHOICES:
        raise UserError(f"{at}choice is '{ballot.choice[:40]}', not one of {', '.join(CHOICES)}")
    if len(ballot.note) > LONGEST["note"]:
        raise UserError(f"{at}the note has {len(ballot.note):,} characters, {LONGEST['note']:,} at most")
    if not 0 <= ballot.seconds < 1e9:
        raise UserError(f"{at}'seconds' is {ballot.seconds}, no time")
    return dataclasses.replace(ballot, time=ballot.time[:40])


def check_name(name: Any, location: str = "") -> str:
    """A rater's name, white space around it removed. Raises UserError for none, a long one, signs that do not print."""
    at = f"{location}: " if location else ""
    text = name.strip() if isinstance(name, str) else ""
    if not 0 < len(text) <= LONGEST["rater"] or not text.isprintable():
        raise UserError(f"{at}a rater's name has 1 to {LONGEST['rater']} printable characters, not {str(name)[:70]!r}")
    return text


# ---- files -----------------------------------------------------------------------------------------------------------


def path_of(folder: pathlib.Path, rater: str) -> pathlib.Path:
    """The file of a rater; names that would give the same file differ in a digest."""
    digest = hashlib.sha256(rater.encode("utf-8", "replace")).hexdigest()[:8]
    return folder / FOLDER / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', rater)[:40].strip('-') or 'rater'}-{digest}.jsonl"


class Writer:
    """Appends to a rater's file, which begins with its first ballot."""

    def __init__(self, folder: pathlib.Path, made: Comparison, rater: str, kind: str = PEOPLE) -> None:
        self.path = path_of(folder, rater)
        self._header = {"comparison": made.id, "rater": rater, "kind": kind, "version": VERSION}

    def add(self, ballots: Sequence[Ballot]) -> None:
        """Keeps ballots, on disk when it returns."""
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not is_new:
            files.truncate_jsonl(self.path)
        with open(self.path, "a", encoding="utf-8") as file:
            records = [*([self._header] if is_new else []), *map(dataclasses.asdict, ballots)]
            file.write("".join(map(files.json_line, records)))


def read(folder: pathlib.Path, made: Comparison) -> list[Rater]:
    """The raters of a comparison, by name. Raises UserError for a file of another comparison, with the line of whatever
    else is wrong."""
    paths = sorted((folder / FOLDER).glob("*.jsonl"))
    raters = [_read(path, made, files.read_jsonl(path))[0] for path in paths]
    return sorted((rater for rater in raters if rater.ballots), key=lambda rater: (rater.kind, rater.name))


def _read(
    path: pathlib.Path, made: Comparison, records: Sequence[dict[str, Any]]
) -> tuple[Rater, dict[Any, list[int]]]:
    """The rater of a file, and the lines of each (pair, swapped)."""
    if not records:
        return Rater("", PEOPLE), {}
    header = records[0]
    if {*_HEADER} - {*header} or header.get("version") != VERSION or header.get("kind") not in KINDS:
        raise UserError(f"{path}:1: not the first line of ballots (comparison, rater, kind, version {VERSION})")
    files.check_types(path, header, _HEADER)
    if header["comparison"] != made.id:
        raise UserError(f"{path} holds ballots of another comparison ({header['comparison'][:16]}, this is {made.id})")
    rater = Rater(check_name(header["rater"], f"{path}:1"), header["kind"])
    lines: dict[Any, list[int]] = {}
    for number, record in enumerate(records[1:], 2):
        ballot = check(made, record, f"{path}:{number}")
        rater.take(ballot)
        lines.setdefault((ballot.pair, ballot.swapped), []).append(number)
    return rater, lines


def read_back(folder: pathlib.Path, made: Comparison, path: pathlib.Path) -> str:
    """Takes the ballots of a file that an exported page saved; what was taken, in a line.

    Raises UserError, and takes nothing, for a file of another comparison, two ballots of one pair, a rater whose other
    ballots are here already.
    """
    rater, lines = _read(path, made, _records(path))
    if not rater.ballots:
        raise UserError(f"{path} holds no ballots")
    for (pair, _), numbers in lines.items():
        if len(numbers) > 1:
            raise UserError(f"{path}: two ballots of pair {pair} (lines {numbers[0]} and {numbers[1]}): remove one")
    writer = Writer(folder, made, rater.name)
    kept = _read(writer.path, made, files.read_jsonl(writer.path))[0]
    if MODEL in (rater.kind, kept.kind):
        raise UserError(f"{path}: '{rater.name}' is a judge that is a model: its ballots come from --judge")
    before = kept.ballots
    known = {key for key, ballot in rater.ballots.items() if key in before and before[key].choice == ballot.choice}
    differ = [key for key in rater.ballots if key in before and key not in known]
    if differ:
        raise UserError(
            f"{path}: rater '{rater.name}' said something else of {len(differ)} pairs before, as of {differ[0][0]}: "
            f"two people of one name? Change the name in its first line, or remove {writer.path}"
        )
    new = [ballot for key, ballot in rater.ballots.items() if key not in known]
    if new:
        writer.add(new)
    return f"{path}: {len(new)} ballots of {rater.name}" + (f"; {len(known)} were here already" if known else "")


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a file that came from elsewhere: the last one may lack its line feed."""
    return [_object(line, f"{path}:{number}") for number, line in _lines(path)]


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise UserError(f"no file '{path}'")
    yield from ((number, line) for number, line in enumerate(files.json_lines(path), 1) if line.strip())


def _object(line: str, location: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{location}: not a JSON object: give the file that the page saved")
    return found
