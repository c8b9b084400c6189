"""Problems of graded depth: a start and one to five operations on it, requested in one wording.

    ask.0 rev rol         one task: its wording (0, 1, 2, unseen or other), then the codes of its operations
    mixed.0 letters 3 a   a dataset of problems: its wording, world, depth and a letter; operations drawn for each
    corpus.letters        the pretraining corpus: any operations, depths 1 to 4, any wording
    corpus.digits         the same for moves on the ring of ten digits
    corpus.once           single operations of both, for notes that give the result directly

Two worlds. Letters: four distinct letters of a ring of twelve; operations reorder them (`ORDERS`, or a rule such as
`2413`: the second, fourth, first and third), step along the ring (`nxt`, `prv`) or sort (`srt`, `dwn`). Digits: one
digit; moves such as `+3` or `-2` along the ring of ten. Moves commute, so a rationale may take them from either end (at
random): two routes to one answer, for self-consistency votes.

A rationale gives the code of each operation before its result: `rev abcd rol bcda`. Some neighbouring pairs, `is_held`,
and some rules, `HELD_RULES`, occur in no training task and not in the corpus. The wordings are in `problem.toml`.
"""

import functools
import hashlib
import itertools
import pathlib
import tomllib

from flanx.errors import UserError, nearest
from flanx.procedural.draw import Fields, Stream

RING = "abcdefghijkl"
LENGTH = 4
ORDERS = {
    "rev": "4321", "rol": "2341", "ror": "4123", "end": "4231", "swa": "2134", "swz": "1243", "mid": "1324",
    "hal": "3412",
}  # fmt: skip
LETTERS = (*ORDERS, "nxt", "prv", "srt", "dwn")
MOVES = tuple(f"{sign}{n}" for n in range(1, 6) for sign in "+-")
RULES = tuple("".join(p) for p in itertools.permutations("1234"))[1:]
# Every third of the rules that match no operation above, starting with the second.
HELD_RULES = tuple(rule for rule in RULES if rule not in ORDERS.values())[1::3]
WORDINGS = ("0", "1", "2", "unseen", "other")
MAX_DEPTH = 5
CORPORA = {"corpus.letters": 60_000, "corpus.digits": 20_000, "corpus.once": 40_000}  # number of texts, for any split
MIXED = 2_000  # problems per dataset, for any split
CORPUS_DEPTHS = (1, 2, 2, 3, 3, 3, 4, 4)  # sampled uniformly
OTHER_SHARE = 5  # one in this many corpus texts is in the second language


def is_held(first: str, then: str) -> bool:
    """Whether a neighbouring pair occurs only in held-out tasks: about one in six of those on letters."""
    return first[0].isalpha() and hashlib.sha256(f"{first} {then}".encode()).digest()[0] % 6 == 0


def has_held(codes: tuple[str, ...]) -> bool:
    """Whether any neighbouring pair of operations is held out."""
    return any(is_held(*pair) for pair in itertools.pairwise(codes))


def apply(code: str, x: str) -> str:
    """Applies one operation: `apply("rol", "dcba")` is `"cbad"`, `apply("+3", "8")` is `"1"`."""
    if code[0] in "+-":
        return str((int(x) + int(code)) % 10)
    if code in ("nxt", "prv"):
        by = 1 if code == "nxt" else -1
        return "".join(RING[(RING.index(c) + by) % len(RING)] for c in x)
    if code in ("srt", "dwn"):
        return "".join(sorted(x, reverse=code == "dwn"))
    return "".join(x[int(place) - 1] for place in ORDERS.get(code, code))


def run(codes: tuple[str, ...], x: str) -> tuple[str, str]:
    """(answer, rationale) of the operations in order."""
    steps = []
    for code in codes:
        x = apply(code, x)
        steps += [code, x]
    return x, " ".join(steps)


def say(code: str, wording: str) -> str:
    """The wording of an operation."""
    name = {"+": "up", "-": "down"}.get(code[0], "order" if code[0].isdigit() else code)
    words = wordings()[name]
    text = words["says"][int(wording)] if wording.isdigit() else words[wording]
    return text.replace("{n}", code[1:]).replace("{order}", code)


def count(program: str) -> int | None:
    """How many examples a split of the program has; None for the default number."""
    return MIXED if program.startswith("mixed.") else CORPORA.get(program)


def example(program: str, split: str, index: int) -> Fields:
    """x: the start; do: the operations in words; answer; rationale. Depends only on (program, split, index).

    The start belongs to this split (`flanx.procedural.split_of`), unless it is a digit: there are only ten.
    """
    from flanx.procedural import split_of  # noqa: PLC0415  (the package imports this module)

    draw = Stream("flanx-problem", program, split, index)
    wording, codes = parse(program)
    if program.startswith("mixed."):
        codes = _draw_codes(draw, codes[0], int(codes[1]))
    elif not codes:
        wording, codes = _draw_text(draw, wording)
    if codes[0] in MOVES:
        x = str((Stream("flanx-problem", program, split).below(10) + 3 * index) % 10)  # each of the ten in turn
    else:
        x = "".join(draw.sample(RING, LENGTH))
        while split_of(x) != split:
            x = "".join(draw.sample(RING, LENGTH))
    route = codes[::-1] if codes[0] in MOVES and draw.below(2) else codes
    answer, rationale = run(route, x)
    said = [say(code, wording if wording != "any" else draw.choice(WORDINGS[:4])) for code in codes]
    return {"x": x, "do": ", ".join(said), "answer": answer, "rationale": rationale}


def _draw_text(draw: Stream, world: str) -> tuple[str, tuple[str, ...]]:
    """(wording, codes) of one corpus text."""
    depth = 1 if world == "once" else CORPUS_DEPTHS[draw.below(len(CORPUS_DEPTHS))]
    wording = "other" if draw.below(OTHER_SHARE) == 0 else "any"
    if world == "once":
        world = "digits" if draw.below(4) == 0 else "letters"
    return wording, _draw_codes(draw, world, depth)


def _draw_codes(draw: Stream, world: str, depth: int) -> tuple[str, ...]:
    """`depth` operations, none of them held out."""
    while True:
        if world == "digits":
            return tuple(draw.choice(MOVES) for _ in range(depth))
        codes = [draw.choice(LETTERS) for _ in range(depth)]
        if draw.below(4) == 0:  # one text in four contains a rule
            codes[draw.below(depth)] = draw.choice([rule for rule in RULES if rule not in HELD_RULES])
        if all(a != b for a, b in itertools.pairwise(codes)) and not has_held(tuple(codes)):
            return tuple(codes)


@functools.cache
def parse(program: str) -> tuple[str, tuple[str, ...]]:
    """`"ask.0 rev rol"` -> ("0", ("rev", "rol")); `"corpus.letters"` -> ("letters", ()); for `mixed`, world and depth.

    Raises UserError that names the invalid part.
    """
    first, *codes = program.split()
    kind, _, variant = first.partition(".")
    known = ("letters", "digits", "once") if kind == "corpus" else WORDINGS
    if variant not in known:
        raise UserError(f"suite program '{program}': '{variant}' is not one of {', '.join(known)}")
    if kind == "mixed":
        if len(codes) != 3 or codes[0] not in ("letters", "digits") or codes[1] not in "12345":
            raise UserError(
                f"suite program '{program}': write letters or digits, a depth and a letter that tells it from others, "
                "as 'mixed.0 letters 3 a'"
            )
        return variant, tuple(codes)
    if len(codes) not in (range(1) if kind == "corpus" else range(1, MAX_DEPTH + 1)):
        raise UserError(f"suite program '{program}': {len(codes)} operations; a task has one to {MAX_DEPTH}")
    for code in codes:
        if code not in (*LETTERS, *MOVES, *RULES):
            raise UserError(f"suite program '{program}': unknown operation '{code}'{nearest(code, LETTERS)}")
    if len({code in MOVES for code in codes}) > 1:
        raise UserError(f"suite program '{program}': moves on digits and operations on letters do not mix")
    return variant, tuple(codes)


@functools.cache
def wordings() -> dict[str, dict]:
    """The wordings of every operation: `says`, `unseen` and `other`."""
    return tomllib.loads((pathlib.Path(__file__).with_name("problem.toml")).read_text(encoding="utf-8"))
