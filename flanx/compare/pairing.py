"""A comparison: which answers are shown side by side, in what order and on which side; an immutable file.

    <output>/comparison.json    candidates, prompts, answers, pairs, what is left out, and a hash of all of it

Pairs are in a random order drawn from the seed. Of the pairs of two candidates, each is on the left in half, within
every task, too (or in one more, if their number is odd); which half is also random.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flanx import files
from flanx.compare.candidate import Candidate, Key
from flanx.errors import UserError

FILE = "comparison.json"
VERSION = 1
MOST_PAIRS, MOST_BYTES = 20_000, 64 << 20  # limits for one page, which contains each text once
SAME_FILE = "the file has changed since it was written, or is damaged: restore it, or compare again into another folder"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two answers to a prompt: the indices of the prompt and of the left and right candidates."""

    id: str
    prompt: int
    left: int
    right: int

    @property
    def sides(self) -> tuple[int, int]:
        """The candidates, left one first."""
        return self.left, self.right


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What raters receive.

    Attributes:
      candidates: names; sources: where their answers come from.
      prompts: their texts; tasks: the kind of each, or "".
      answers: by prompt, one per candidate.
      pairs: in display order.
      left_out: {description: count}.
    """

    candidates: tuple[str, ...]
    sources: tuple[str, ...]
    prompts: tuple[str, ...]
    tasks: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    pairs: tuple[Pair, ...]
    left_out: Mapping[str, int]
    seed: int

    @functools.cached_property
    def id(self) -> str:
        """A hash of everything, as 16 hex digits."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @functools.cached_property
    def by_id(self) -> dict[str, Pair]:
        """The pairs by id."""
        return {pair.id: pair for pair in self.pairs}


def make(candidates: Sequence[Candidate], seed: int = 0, most: int = 0) -> Comparison:
    """Compares every two candidates on every prompt that all have; `most`: draw at most this many pairs; 0: all.

    Raises UserError if no prompt is shared or nothing is left to compare.
    """
    first = candidates[0]
    shared = [key for key in first.answers if all(key in each.answers for each in candidates)]
    if not shared:
        one, other = next(iter(first.answers.values())), next(iter(candidates[-1].answers.values()))
        raise UserError(
            f"{first.name} and {candidates[-1].name} have no prompt in common ('{one.prompt[:40]}', "
            f"'{other.prompt[:40]}'): compare runs of one suite, or files of answers to the same prompts"
        )
    left_out = {
        f"prompts of {each.name} that another candidate has not": len(each.answers) - len(shared)
        for each in candidates
        if len(each.answers) > len(shared)
    }
    left_out |= {
        f"empty answers of {each.name}, shown as such": count
        for each in candidates
        if (count := sum(not each.answers[key].text.strip() for key in shared))
    }
    answers = tuple(tuple(each.answers[key].text for each in candidates) for key in shared)
    drawn, equal = [], 0
    for prompt, (a, b) in itertools.product(range(len(shared)), itertools.combinations(range(len(candidates)), 2)):
        if answers[prompt][a].split() == answers[prompt][b].split():
            equal += 1
        else:
            drawn.append((_digest(seed, shared[prompt], a, b), prompt, a, b))
    if not drawn:
        raise UserError(
            f"all {len(shared)} prompts have the same answer of every candidate: there is nothing to compare"
        )
    if equal:
        left_out["pairs of equal answers, not shown"] = equal
    drawn.sort()
    if most and len(drawn) > most:
        left_out["pairs not drawn"] = len(drawn) - most
        drawn = drawn[:most]
    if len(drawn) > MOST_PAIRS:
        raise UserError(f"{len(drawn):,} pairs; one page has {MOST_PAIRS:,} at most: draw so many with --pairs")
    texts = {first.answers[shared[prompt]].prompt for _, prompt, *_ in drawn}
    texts |= {candidates[n].answers[shared[prompt]].text for _, prompt, *two in drawn for n in two}
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if size > MOST_BYTES:
        raise UserError(
            f"the texts of {len(drawn):,} pairs have {size:,} bytes; one page has {MOST_BYTES:,} at most: draw fewer "
            f"with --pairs {len(drawn) * MOST_BYTES // size}"
        )
    tasks = tuple(first.answers[key].task for key in shared)
    prompts = tuple(first.answers[key].prompt for key in shared)
    names, sources = tuple(each.name for each in candidates), tuple(each.source for each in candidates)
    return Comparison(names, sources, prompts, tasks, answers, _sided(drawn, tasks), left_out, seed)


def _digest(seed: int, key: Key, a: int, b: int) -> str:
    """A pair's id, which also decides the draw; it does not reveal which candidate is which."""
    return hashlib.sha256(json.dumps([seed, *key, a, b]).encode()).hexdigest()[:16]


def _sided(drawn: Sequence[tuple[str, int, int, int]], tasks: Sequence[str]) -> tuple[Pair, ...]:
    """Assigns sides to pairs: task by task, two candidates alternate on the left."""
    left_first: dict[str, bool] = {}
    groups: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for digest, prompt, a, b in drawn:
        groups.setdefault((a, b), []).append((tasks[prompt], digest))
    for members in groups.values():
        members.sort()
        begin = int(members[0][1], 16) % 2  # random
        left_first |= {digest: (begin + turn) % 2 == 0 for turn, (_, digest) in enumerate(members)}
    return tuple(Pair(digest, prompt, *((a, b) if left_first[digest] else (b, a))) for digest, prompt, a, b in drawn)


# ---- the file --------------------------------------------------------------------------------------------------------


def expect_same(folder: pathlib.Path, made: Comparison) -> Comparison:
    """The comparison itself, or the folder's, if they differ only in how the paths of the answers are spelled. Raises
    UserError if the folder has a different one."""
    if not (folder / FILE).exists():
        return made
    kept = read(folder)
    if kept.id != dataclasses.replace(made, sources=kept.sources).id:
        raise UserError(
            f"{folder} holds another comparison (of other candidates, answers, pairs or another seed): give "
            "another --output, or leave the candidates out to resume that one"
        )
    return kept


def write(folder: pathlib.Path, made: Comparison) -> Comparison:
    """Writes a comparison if the folder has none; see `expect_same`."""
    if (folder / FILE).exists():
        return expect_same(folder, made)
    record = {"version": VERSION, "id": made.id, **dataclasses.asdict(made)}
    files.write_atomic(folder / FILE, json.dumps(record, ensure_ascii=False) + "\n")
    return made


_TYPES = {
    "version": int,
    "id": str,
    **dict.fromkeys(("candidates", "sources", "prompts", "tasks"), list[str]),
    "answers": list[list[str]],
    "pairs": list[dict[str, Any]],
    "left_out": dict[str, int],
    "seed": int,
}


def read(folder: pathlib.Path) -> Comparison:
    """The comparison in a folder. Raises UserError if there is none, or it has been changed."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no comparison: name the runs or files to compare")
    record = files.check_types(path, files.read_json(path), _TYPES)
    if record.get("version") != VERSION:
        raise UserError(f"{path} is of version {record.get('version')}, this flanx reads {VERSION}: compare again")
    del record["version"]
    said = record.pop("id", "")
    try:
        lists = {name: tuple(record[name]) for name in ("candidates", "sources", "prompts", "tasks")}
        made = Comparison(
            **lists,
            answers=tuple(map(tuple, record["answers"])),
            pairs=tuple(Pair(**pair) for pair in record["pairs"]),
            left_out=record["left_out"],
            seed=record["seed"],
        )
    except (KeyError, TypeError):
        raise UserError(f"{path}: {SAME_FILE}") from None
    if made.id != said:
        raise UserError(f"{path}: {SAME_FILE}")
    return made
