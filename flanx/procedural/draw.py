"""Draws the inputs of examples: a stateless random stream, and one small function per kind of input.

Every maker returns the fields of one question. `x` is the input as text and identifies it; the others (`a`, `b`, `key`,
`name`, ...) are its individual values, for templates that spell them out. Higher `level` (1, 2, 3) means longer inputs.
"""

import hashlib
from collections.abc import Callable, Sequence

Fields = dict[str, str]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
HEADINGS = ("north", "east", "south", "west")
NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Pam", "Ray")
THINGS = ("pens", "nuts", "figs", "cups", "eggs", "keys", "toys", "caps", "maps", "bags")
CLASSES = {
    "animal": ("cat", "dog", "cow", "hen", "fox", "owl", "ant", "bee", "pig", "rat", "elk", "bat"),
    "colour": ("red", "blue", "pink", "gold", "grey", "teal", "green", "brown", "black", "white"),
    "food": ("pie", "jam", "rice", "soup", "cake", "ham", "corn", "plum", "pear", "bread"),
    "tool": ("saw", "axe", "drill", "file", "nail", "clamp", "spade", "rake", "hammer", "wrench"),
}


class Stream:
    """Draws that depend only on `key`: SHA-256 in counter mode, the same on every machine and version."""

    def __init__(self, *key: object) -> None:
        self._key = "\x1f".join(map(str, key)).encode()
        self._block = 0
        self._pool = b""

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1 (the modulo bias is under n / 2**32)."""
        if not self._pool:
            self._pool = hashlib.sha256(self._key + self._block.to_bytes(4, "big")).digest()
            self._block += 1
        word, self._pool = self._pool[:4], self._pool[4:]
        return int.from_bytes(word, "big") % n

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, inclusive."""
        return low + self.below(high - low + 1)

    def choice(self, options: Sequence[str]) -> str:
        return options[self.below(len(options))]

    def sample(self, options: Sequence[str], count: int) -> list[str]:
        """`count` distinct options in random order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def _word(draw: Stream, level: int) -> Fields:
    return {"x": "".join(draw.sample(LETTERS, draw.between(3 + level - (level > 1), 3 + level)))}


def _list(draw: Stream, level: int) -> Fields:
    return {"x": " ".join(draw.sample(LETTERS, draw.between(3 + level - (level > 1), 3 + level)))}


def _digits(draw: Stream, level: int) -> Fields:
    return {"x": " ".join(draw.sample("0123456789", draw.between(3 + level - (level > 1), 3 + level)))}


def _doubles(draw: Stream, level: int) -> Fields:
    """A word with repeated letters, for operations that look for them."""
    few = draw.sample(LETTERS, 2 + level)
    return {"x": "".join(draw.choice(few) for _ in range(draw.between(3 + level, 4 + level)))}


def _vowel_or_not(draw: Stream, level: int) -> Fields:
    first = draw.choice("aeiou" if draw.below(2) else "bcdfghjklmnpqrstvwxyz")
    return {"x": first + "".join(draw.sample(LETTERS, 1 + level))}


def _repeat_or_not(draw: Stream, level: int) -> Fields:
    letters = draw.sample(LETTERS, 3 + level)
    if draw.below(2):
        letters[draw.below(2)] = letters[-1]
    return {"x": "".join(letters)}


def _ordered_or_not(draw: Stream, level: int) -> Fields:
    letters = draw.sample(LETTERS, 2 + level)
    return {"x": " ".join(sorted(letters) if draw.below(2) else letters)}


def _palindrome_or_not(draw: Stream, level: int) -> Fields:
    half = "".join(draw.choice(LETTERS) for _ in range(1 + level))
    other = half if draw.below(2) else "".join(draw.choice(LETTERS) for _ in range(1 + level))
    return {"x": half + draw.choice(LETTERS) + other[::-1]}


def _number(draw: Stream, level: int) -> Fields:
    return {"x": str(draw.between(10, (99, 499, 999)[level - 1]))}


def _even_number(draw: Stream, level: int) -> Fields:
    return {"x": str(2 * draw.between(5, (99, 249, 499)[level - 1]))}


def _pair(draw: Stream, level: int) -> Fields:
    top = (20, 60, 200)[level - 1]
    a, b = draw.between(1, top), draw.between(1, top)
    return {"x": f"{a} {b}", "a": str(a), "b": str(b)}


def _small_pair(draw: Stream, level: int) -> Fields:
    a, b = draw.between(2, (20, 40, 90)[level - 1]), draw.between(2, 9)
    return {"x": f"{a} {b}", "a": str(a), "b": str(b)}


def _multiple_or_not(draw: Stream, level: int) -> Fields:
    b = draw.between(2, 9)
    a = b * draw.between(2, 10 * level) + (draw.between(1, b - 1) if draw.below(2) else 0)
    return {"x": f"{a} {b}", "a": str(a), "b": str(b)}


def _triple(draw: Stream, level: int) -> Fields:
    a, b, c = (draw.between(2, (9, 20, 40)[level - 1]) for _ in range(3))
    a += b + c  # keeps stories positive: nobody gives away more than they have
    return {"x": f"{a} {b} {c}", "a": str(a), "b": str(b), "c": str(c)}


def _story(draw: Stream, level: int) -> Fields:
    fields = _triple(draw, level)
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    return {**fields, "name": name, "thing": thing}


def _words(draw: Stream, level: int) -> Fields:
    every = [word for kind in CLASSES.values() for word in kind]
    return {"x": " ".join(draw.sample(every, 1 + level))}


def _odd_one(draw: Stream, level: int) -> Fields:
    kind, other = draw.sample(list(CLASSES), 2)
    words = draw.sample(CLASSES[kind], 1 + level)
    words.insert(draw.below(len(words) + 1), draw.choice(CLASSES[other]))
    return {"x": " ".join(words)}


def _table(draw: Stream, level: int) -> Fields:
    keys = draw.sample(LETTERS, 2 + level)
    values = draw.sample("0123456789", 2 + level)
    table = " ".join(f"{k}={v}" for k, v in zip(keys, values, strict=True))
    spot = draw.below(len(keys))
    return {"x": f"{keys[spot]} in {table}", "table": table, "key": keys[spot], "value": values[spot]}


def _inverse_table(draw: Stream, level: int) -> Fields:
    fields = _table(draw, level)
    return {**fields, "x": f"{fields['value']} in {fields['table']}"}


def _chain(draw: Stream, level: int) -> Fields:
    """A table in which one key maps to another, and the key that is two steps from a digit."""
    first, second, *rest = draw.sample(LETTERS, 2 + level)
    pairs = [f"{first}={second}", f"{second}={draw.below(10)}"] + [f"{key}={draw.below(10)}" for key in rest]
    table = " ".join(draw.sample(pairs, len(pairs)))
    return {"x": f"{first} in {table}", "table": table, "key": first}


def _key_list(draw: Stream, level: int) -> Fields:
    letters = draw.sample(LETTERS, 2 + level)
    key = draw.choice(letters[:-1])
    return {"x": f"{key} in {' '.join(letters)}", "key": key, "list": " ".join(letters)}


def _key_or_not(draw: Stream, level: int) -> Fields:
    letters = draw.sample(LETTERS, 3 + level)
    key = draw.choice(letters[:-1]) if draw.below(2) else letters[-1]
    return {"x": f"{key} in {' '.join(letters[:-1])}", "key": key, "list": " ".join(letters[:-1])}


def _repeated_key(draw: Stream, level: int) -> Fields:
    few = draw.sample(LETTERS, 3)
    letters = [draw.choice(few) for _ in range(3 + level)]
    key = draw.choice(few)
    return {"x": f"{key} in {' '.join(letters)}", "key": key, "list": " ".join(letters)}


def _ruled(draw: Stream, level: int) -> Fields:
    """A word and the letters p and q of a rule; p occurs in the word, q does not."""
    letters = draw.sample(LETTERS, 4 + level)
    word = letters[: 2 + level]
    p, q = draw.choice(word), letters[-1]
    return {"x": "".join(word), "p": p, "q": q}


def _progression(draw: Stream, level: int) -> Fields:
    start, step = draw.between(1, (20, 40, 60)[level - 1]), draw.between(1, (5, 9, 12)[level - 1])
    return {"x": " ".join(str(start + i * step) for i in range(4))}


def _countdown(draw: Stream, level: int) -> Fields:
    return {"x": " ".join(reversed(_progression(draw, level)["x"].split()))}


def _letter_run(draw: Stream, level: int) -> Fields:
    step = draw.between(1, 1 + level)
    start = draw.between(step, 25 - 4 * step)  # leaves room for one letter before and one after
    return {"x": " ".join(LETTERS[start + i * step] for i in range(4))}


def _gap(draw: Stream, level: int) -> Fields:
    terms = _progression(draw, level)["x"].split()
    terms[draw.between(1, 2)] = "_"
    return {"x": " ".join(terms)}


def _two_sets(draw: Stream, level: int) -> Fields:
    shared, left, right = draw.between(1, level), draw.between(1, 2), draw.between(1, 2)
    letters = draw.sample(LETTERS, shared + left + right)
    one, two = letters[: shared + left], letters[:shared] + letters[shared + left :]
    return {"x": f"{' '.join(sorted(one))} / {' '.join(sorted(two))}"}


def _day(draw: Stream, level: int) -> Fields:
    return {"x": f"{draw.choice(DAYS)} {draw.between(1, (20, 40, 60)[level - 1])}"}


def _month(draw: Stream, level: int) -> Fields:
    return {"x": f"{draw.choice(MONTHS)} {draw.between(1, (11, 24, 48)[level - 1])}"}


def _clock(draw: Stream, level: int) -> Fields:
    step = (30, 15, 5)[level - 1]
    hour, minute = draw.below(24), step * draw.below(60 // step)
    return {"x": f"{hour}:{minute:02d} {step * draw.between(1, 120 // step)}"}


def _turns(draw: Stream, level: int) -> Fields:
    turns = [draw.choice(("left", "right", "back")) for _ in range(1 + level)]
    return {"x": f"{draw.choice(HEADINGS)} {' '.join(turns)}"}


def _moves(draw: Stream, level: int) -> Fields:
    return {"x": " ".join(draw.choice("NESW") for _ in range(3 + level))}


def _truths(draw: Stream, level: int) -> Fields:
    return {"x": " ".join(draw.choice("TF") for _ in range(draw.between(3 + level, 5 + 2 * level)))}


def _formula(draw: Stream, level: int) -> Fields:
    parts = [draw.choice(("T", "F", "not T", "not F"))]
    for _ in range(2 + level):
        parts += [draw.choice(("and", "or")), draw.choice(("T", "F", "not T", "not F"))]
    return {"x": " ".join(parts)}


def _ranking(draw: Stream, level: int) -> Fields:
    names = draw.sample(NAMES, 3)
    facts = [f"{names[0]}>{names[1]}", f"{names[1]}>{names[2]}"]
    return {"x": " ".join(draw.sample(facts, 2))}


def _brackets(draw: Stream, level: int) -> Fields:
    text, depth, left = "", 0, 2 + level
    while left or depth:
        opens = left and (not depth or draw.below(2))
        text += "(" if opens else ")"
        depth += 1 if opens else -1
        left -= 1 if opens else 0
    return {"x": text + "".join(draw.choice("()") for _ in range(draw.below(2 + level)))}


def _pattern(draw: Stream, level: int) -> Fields:
    unit = draw.sample(LETTERS, draw.between(2, 1 + level) if level > 1 else 2)
    return {"x": "".join((unit * 5)[: 2 * len(unit) + draw.between(0, len(unit) - 1)])}


# maker name -> (the kind of text that it makes, the maker)
MAKERS: dict[str, tuple[str, Callable[[Stream, int], Fields]]] = {
    "word": ("word", _word),
    "doubles": ("word", _doubles),
    "vowelled": ("word", _vowel_or_not),
    "repeating": ("word", _repeat_or_not),
    "ordered": ("list", _ordered_or_not),
    "mirror": ("word", _palindrome_or_not),
    "list": ("list", _list),
    "digits": ("digits", _digits),
    "number": ("number", _number),
    "even": ("number", _even_number),
    "pair": ("pair", _pair),
    "factors": ("pair", _small_pair),
    "multiple": ("pair", _multiple_or_not),
    "story": ("triple", _story),
    "words": ("words", _words),
    "odd_one": ("words", _odd_one),
    "table": ("table", _table),
    "value_table": ("table", _inverse_table),
    "chain": ("table", _chain),
    "key_list": ("keyed", _key_list),
    "key_or_not": ("keyed", _key_or_not),
    "repeated": ("keyed", _repeated_key),
    "rule": ("ruled", _ruled),
    "terms": ("terms", _progression),
    "countdown": ("terms", _countdown),
    "gap": ("gap", _gap),
    "run": ("run", _letter_run),
    "sets": ("sets", _two_sets),
    "day": ("day", _day),
    "month": ("month", _month),
    "clock": ("clock", _clock),
    "turns": ("turns", _turns),
    "moves": ("moves", _moves),
    "truths": ("truths", _truths),
    "formula": ("formula", _formula),
    "ranking": ("ranking", _ranking),
    "brackets": ("brackets", _brackets),
    "pattern": ("pattern", _pattern),
}
