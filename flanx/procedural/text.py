"""Operations on words, lists, brackets and patterns."""

from flanx.procedural.draw import CLASSES, LETTERS
from flanx.procedural.operation import (
    NOTHING,
    Operation,
    Steps,
    group,
    items,
    read_letters,
    read_parts,
    read_ruled,
    read_text,
    split,
)

VOWELS = "aeiou"


def swap(v: list[str], i: int, j: int) -> list[str]:
    v = list(v)
    v[i], v[j] = v[j], v[i]
    return v


def shift(x: str, by: int) -> str:
    return "".join(LETTERS[(LETTERS.index(c) + by) % 26] for c in x)


def class_of(word: str) -> str:
    return next(name for name, words in CLASSES.items() if word in words)


def odd_one(*words: str) -> str:
    classes = [class_of(word) for word in words]
    return next(word for word, name in zip(words, classes, strict=True) if classes.count(name) == 1)


def depths(x: str) -> list[int]:
    """How many brackets are open after each character; negative if one closes that was never opened."""
    steps = [1 if sign == "(" else -1 for sign in x]
    return [sum(steps[: i + 1]) for i in range(len(steps))]


def period(x: str) -> int:
    return next(n for n in range(1, len(x) + 1) if all(x[i] == x[i % n] for i in range(len(x))))


OPERATIONS: dict[str, Operation] = {
    **items(
        upper=lambda v: [c.upper() for c in v],
        reverse=lambda v: v[::-1],
        drop_first=lambda v: v[1:],
        drop_last=lambda v: v[:-1],
        first_two=lambda v: v[:2],
        last_two=lambda v: v[-2:],
        ends=lambda v: [v[0], v[-1]],
        swap_ends=lambda v: swap(v, 0, -1),
        swap_first=lambda v: swap(v, 0, 1),
        swap_last=lambda v: swap(v, -2, -1),
        to_end=lambda v: v[1:] + v[:1],
        to_front=lambda v: v[-1:] + v[:-1],
        double_each=lambda v: [c for c in v for _ in range(2)],
        double_first=lambda v: v[:1] + v,
        double_last=lambda v: v + v[-1:],
        every_other=lambda v: v[::2],
        sort=sorted,
        sort_down=lambda v: sorted(v, reverse=True),
        twice=lambda v: v + v,
        unique=lambda v: list(dict.fromkeys(v)),
        no_vowels=lambda v: [c for c in v if c not in VOWELS],
    ),
    **group(
        "items",
        "letter",
        read_letters,
        first=lambda v: v[0],
        last=lambda v: v[-1],
        second=lambda v: v[1],
        third=lambda v: v[2],
        lowest=min,
        highest=max,
    ),
    **group(
        "items",
        "number",
        read_letters,
        count=len,
        count_vowels=lambda v: sum(c in VOWELS for c in v),
        count_different=lambda v: len(set(v)),
        most_often=lambda v: max(map(v.count, v)),
    ),
    **group(
        "items",
        "truth",
        read_letters,
        vowel_first=lambda v: v[0] in VOWELS,
        palindrome=lambda v: v == v[::-1],
        in_order=lambda v: v == sorted(v),
        has_vowel=lambda v: bool(set(v) & set(VOWELS)),
        has_repeat=lambda v: len(set(v)) < len(v),
        is_long=lambda v: len(v) > 4,
    ),
    **group(
        "word",
        "text",
        read_text,
        hyphens="-".join,
        spell=" ".join,
        dots=".".join,
        slashes="/".join,
        plus_signs="+".join,
    ),
    **group(
        "text",
        "text",
        read_text,
        brackets="({})".format,
        quotes='"{}"'.format,
        stars="*{}*".format,
        shout="{}!".format,
        ask="{}?".format,
    ),
    **group(
        "word",
        "word",
        read_text,
        next_letters=lambda x: shift(x, 1),
        letters_before=lambda x: shift(x, -1),
        two_on=lambda x: shift(x, 2),
        opposite=lambda x: "".join(LETTERS[25 - LETTERS.index(c)] for c in x),
    ),
    **group("word", "digits", read_text, letter_numbers=lambda x: [LETTERS.index(c) + 1 for c in x]),
    **group(
        "words",
        "text",
        read_parts,
        odd_one=odd_one,
        class_of=lambda *v: class_of(v[0]),
        initials=lambda *v: "".join(word[0] for word in v),
        longest=lambda *v: max(v, key=len),
        first_word=lambda *v: v[0],
        last_word=lambda *v: v[-1],
    ),
    **group(
        "words",
        "words",
        read_parts,
        by_alphabet=lambda *v: sorted(v),
        by_length=lambda *v: sorted(v, key=len),
        by_last_letter=lambda *v: sorted(v, key=lambda word: word[-1]),
        turn_words=lambda *v: list(v[::-1]),
    ),
    **group("words", "truth", read_parts, alphabetical=lambda *v: list(v) == sorted(v)),
    **group(
        "ruled",
        "word",
        read_ruled,
        replace=lambda x, p, q: x.replace(p, q),
        remove=lambda x, p, q: x.replace(p, ""),
        double_it=lambda x, p, q: x.replace(p, p + p),
        put_first=lambda x, p, q: q + x,
        put_last=lambda x, p, q: x + q,
        put_after=lambda x, p, q: x.replace(p, p + q),
        put_before=lambda x, p, q: x.replace(p, q + p),
        to_front_it=lambda x, p, q: p + x.replace(p, ""),
        both_sides=lambda x, p, q: q + x + q,
        cut_at=lambda x, p, q: x[: x.index(p)],
        replace_first=lambda x, p, q: q + x[1:],
        replace_last=lambda x, p, q: x[:-1] + q,
        replace_rest=lambda x, p, q: "".join(c if c == p else q for c in x),
        to_end_it=lambda x, p, q: x.replace(p, "") + p,
        from_it=lambda x, p, q: x[x.index(p) :],
        between=lambda x, p, q: q.join(x),
        replace_double=lambda x, p, q: x.replace(p, q + q),
        if_first=lambda x, p, q: q if x[0] == p else x,
        around=lambda x, p, q: x.replace(p, q + p + q),
    ),
    **group(
        "run",
        "letter",
        read_text,
        next_letter=lambda x: shift(x[-1], LETTERS.index(x[-1]) - LETTERS.index(x[-3])),
        letter_before=lambda x: LETTERS[max(0, 2 * LETTERS.index(x[0]) - LETTERS.index(x[2]))],
    ),
    **group("brackets", "truth", read_text, balanced=lambda x: min(depths(x)) >= 0 and depths(x)[-1] == 0),
    **group("brackets", "number", read_text, deepest=lambda x: max(0, *depths(x)), opened=lambda x: x.count("(")),
    **group(
        "pattern",
        "text",
        read_text,
        goes_on=lambda x: x[len(x) % period(x)],
        unit=lambda x: x[: period(x)],
        two_more=lambda x: "".join(x[(len(x) + i) % period(x)] for i in range(2)),
    ),
    **group("pattern", "number", read_text, unit_length=period),
}

# The intermediate steps to write down, for operations that take several steps.
STEPS: dict[str, Steps] = {
    "deepest": lambda x, given: [" ".join(map(str, depths(x)))],
    "count_vowels": lambda x, given: [" ".join(c for c in split(x) if c in VOWELS) or NOTHING],
}
