"""Ballots: raters' verdicts on pairs, in one file per rater, one line per ballot, appended as it is cast.

    <output>/ballots/<rater>.jsonl    {"comparison", "rater", "kind", "version"}, then
                                      {"pair", "choice", "swapped", "note", "seconds", "time"}

A file says "left" and "right", never which candidate that was. A rater who changes a choice adds a line; the last line
for a pair counts. `read_back` imports the file that an exported page saves.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from flanx import files
from flanx.compare.pairing import Comparison, Pair
from flanx.errors import UserError

VERSION = 1
LEFT, RIGHT, TIE, BAD = CHOICES = ("left", "right", "tie", "bad")  # "bad": both are bad
PEOPLE, MODEL = KINDS = ("people", "model")
LONGEST = {"rater": 60, "note": 2_000}  # characters
FOLDER = "ballots"
_HEADER = {"comparison": str, "rater": str, "kind": str, "version": int}
_UNSEEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # categories of non-printing characters; rater.js rejects the same
_JOINERS = "\u200c\u200d"  # exceptions that occur in names, as in Persian
_BALLOT = {"pair": str, "choice": str, "swapped": bool, "note": str, "seconds": float, "time": str}


@dataclasses.dataclass(frozen=True)
class Ballot:
    """A choice between the two answers of a pair.

    Attributes:
      swapped: the pair was shown with its sides swapped; "left" then means the pair's right answer.
      seconds: how long the pair was viewed; time: in ISO 8601.
    """

    pair: str
    choice: str
    swapped: bool = False
    note: str = ""
    seconds: float = 0.0
    time: str = ""

    def verdict(self, pair: Pair) -> int | str:
        """The preferred candidate, TIE or BAD."""
        if self.choice in (TIE, BAD):
            return self.choice
        return pair.sides[(self.choice == RIGHT) != self.swapped]


@dataclasses.dataclass
class Rater:
    """A rater's ballots that count, (pair, swapped) -> ballot, in order; `changed`: how many replaced another.

    `source`: a judge's checkpoint, "" for people.
    """

    name: str
    kind: str
    source: str = ""
    ballots: dict[tuple[str, bool], Ballot] = dataclasses.field(default_factory=dict)
    changed: int = 0

    def take(self, ballot: Ballot) -> None:
        """Counts a ballot; a note added later is not a change of mind."""
        before = self.ballots.get((ballot.pair, ballot.swapped))
        self.changed += before is not None and before.choice != ballot.choice
        self.ballots[ballot.pair, ballot.swapped] = ballot


def check(made: Comparison, record: Mapping[str, Any], location: str = "") -> Ballot:
    """A ballot from untrusted values. Raises UserError for a pair outside the comparison, an unknown choice, ..."""
    at = f"{location}: " if location else ""
    known = {name: record[name] for name in _BALLOT if name in record}
    for name, kind in _BALLOT.items():
        value = known.get(name, kind())
        if not isinstance(value, int | float if kind is float else kind) or (kind is float and isinstance(value, bool)):
            raise UserError(f"{at}'{name}' of a ballot is {str(value)[:40]!r}, not of type {kind.__name__}")
    ballot = Ballot(**{"pair": "", "choice": "", **known})
    if ballot.pair not in made.by_id:
        raise UserError(f"{at}'{ballot.pair[:40]}' is not a pair of comparison {made.id}")
    if ballot.choice not in CHOICES:
        raise UserError(f"{at}choice is '{ballot.choice[:40]}', not one of {', '.join(CHOICES)}")
    if len(ballot.note) > LONGEST["note"]:
        raise UserError(f"{at}the note has {len(ballot.note):,} characters, {LONGEST['note']:,} at most")
    if not 0 <= ballot.seconds < 1e9:
        raise UserError(f"{at}'seconds' is {ballot.seconds}, no time")
    return dataclasses.replace(ballot, time=ballot.time[:40])


def check_name(name: Any, location: str = "") -> str:
    """A rater's name in NFC without surrounding whitespace, so that it is the same on every machine.

    Raises UserError for an empty or overlong name, or non-printing characters.
    """
    at = f"{location}: " if location else ""
    text = unicodedata.normalize("NFC", name.strip()) if isinstance(name, str) else ""
    unseen = any(unicodedata.category(sign) in _UNSEEN and sign not in _JOINERS for sign in text)
    if unseen or len(text) > LONGEST["rater"] or not text.strip(f" {_JOINERS}"):
        raise UserError(f"{at}a rater's name has 1 to {LONGEST['rater']} printable characters, not {str(name)[:70]!r}")
    return text


# ---- files -----------------------------------------------------------------------------------------------------------


def path_of(folder: pathlib.Path, rater: str) -> pathlib.Path:
    """The file of a rater; a digest distinguishes names that would map to the same file."""
    digest = hashlib.sha256(rater.encode("utf-8", "replace")).hexdigest()[:8]
    return folder / FOLDER / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', rater)[:40].strip('-') or 'rater'}-{digest}.jsonl"


class Writer:
    """Appends to a rater's file, which is created with the first ballot."""

    def __init__(
        self, folder: pathlib.Path, made: Comparison, rater: str, kind: str = PEOPLE, source: str = ""
    ) -> None:
        self.path = path_of(folder, rater)
        self._header = {"comparison": made.id, "rater": rater, "kind": kind, "version": VERSION}
        if source:
            self._header["source"] = source

    def add(self, ballots: Sequence[Ballot]) -> None:
        """Appends ballots, which are on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            file.seek(0)
            raw = file.read()
            kept = _complete(raw)
            file.truncate(min(len(raw), len(kept)))
            # a kill or a full disk may have left a file without its first line
            records = [*([] if kept else [self._header]), *map(dataclasses.asdict, ballots)]
            file.write(kept[len(raw) :] + "".join(map(files.json_line, records)).encode())
            file.flush()
            os.fsync(file.fileno())


def _complete(raw: bytes) -> bytes:
    """A file's lines without a last line truncated by a kill; adds a missing final line feed."""
    before, feed, last = raw.rpartition(b"\n")
    try:
        is_whole = isinstance(json.loads(last), dict)
    except (ValueError, RecursionError):
        is_whole = False
    return raw + b"\n" if is_whole else before + feed


def read(folder: pathlib.Path, made: Comparison) -> list[Rater]:
    """The raters of a comparison, by name.

    Raises UserError for a file of another comparison, for a file not named after its rater (a copy, which would count
    twice), and with the line of any other error.
    """
    raters = []
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        rater = _kept(path, made)
        right = path_of(folder, rater.name)
        if rater.ballots and path.name != right.name:
            raise UserError(
                f"{path} holds ballots of '{rater.name}', whose file is {right.name}: move it out of the folder; one "
                "that a page saved is taken with --read"
            )
        raters.append(rater)
    return sorted((rater for rater in raters if rater.ballots), key=lambda rater: (rater.kind, rater.name))


def _kept(path: pathlib.Path, made: Comparison) -> Rater:
    """The rater in one of our files; a rater without ballots if it does not exist."""
    return _read(path, made, _records(path, _complete(_bytes(path))))[0] if path.exists() else Rater("", PEOPLE)


def _read(
    path: pathlib.Path, made: Comparison, records: Sequence[tuple[int, dict[str, Any]]]
) -> tuple[Rater, dict[Any, list[int]]]:
    """The rater in a file's numbered records, and the line numbers for each (pair, swapped)."""
    if not records:
        return Rater("", PEOPLE), {}
    header = records[0][1]
    if {*_HEADER} - {*header} or header.get("version") != VERSION or header.get("kind") not in KINDS:
        raise UserError(f"{path}:1: not the first line of ballots (comparison, rater, kind, version {VERSION})")
    files.check_types(path, header, _HEADER)
    if header["comparison"] != made.id:
        raise UserError(f"{path} holds ballots of another comparison ({header['comparison'][:16]}, this is {made.id})")
    rater = Rater(check_name(header["rater"], f"{path}:1"), header["kind"], str(header.get("source", "")))
    lines: dict[Any, list[int]] = {}
    for number, record in records[1:]:
        ballot = check(made, record, f"{path}:{number}")
        rater.take(ballot)
        lines.setdefault((ballot.pair, ballot.swapped), []).append(number)
    return rater, lines


def read_saved(made: Comparison, path: pathlib.Path) -> Rater:
    """The rater in a file that an exported page saved. Raises UserError like `read_back`."""
    if not path.is_file():
        raise UserError(f"no file '{path}'")
    rater, lines = _read(path, made, _records(path, _bytes(path)))
    if not rater.ballots:
        raise UserError(f"{path} holds no ballots")
    for (pair, _), numbers in lines.items():
        if len(numbers) > 1:
            raise UserError(f"{path}: two ballots of pair {pair} (lines {numbers[0]} and {numbers[1]}): remove one")
    return rater


def read_back(folder: pathlib.Path, made: Comparison, path: pathlib.Path) -> str:
    """Imports the ballots of a file that an exported page saved; returns a one-line summary.

    Raises UserError, and imports nothing, for a file of another comparison, two ballots on one pair, or choices that
    differ from the rater's existing ones. A note added later is imported.
    """
    rater = read_saved(made, path)
    writer = Writer(folder, made, rater.name)
    kept = _kept(writer.path, made)
    if MODEL in (rater.kind, kept.kind):
        raise UserError(f"{path}: '{rater.name}' is a judge that is a model: its ballots come from --judge")
    before = kept.ballots
    differ = [key for key, ballot in rater.ballots.items() if key in before and before[key].choice != ballot.choice]
    known = {key for key, ballot in rater.ballots.items() if key in before and ballot.note in ("", before[key].note)}
    if differ:
        raise UserError(
            f"{path}: rater '{rater.name}' said something else of {len(differ)} pairs before, as of {differ[0][0]}: "
            f"two people of one name? Change the name in its first line, or remove {writer.path}"
        )
    new = [ballot for key, ballot in rater.ballots.items() if key not in known]
    if new:
        writer.add(new)
    return f"{path}: {len(new)} ballots of {rater.name}" + (f"; {len(known)} were here already" if known else "")


def _bytes(path: pathlib.Path) -> bytes:
    with files.open_regular(path) as file:
        return file.read()


def _records(path: pathlib.Path, raw: bytes) -> list[tuple[int, dict[str, Any]]]:
    """The object on each line with its line number; ignores an editor's byte order mark, CRLF and blank lines."""
    lines = enumerate(raw.split(b"\n"), 1)
    return [(number, _object(line, f"{path}:{number}")) for number, line in lines if line.strip()]


def _object(line: bytes, location: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{location}: not a JSON object: the file is damaged, or none of ballots")
    return found
