"""Operations on tables, sets, dates, directions, truth and rankings."""

from flanx.procedural.draw import DAYS, HEADINGS, MONTHS
from flanx.procedural.operation import Given, Operation, Steps, group, read_parts, read_text


def minutes(time: str) -> int:
    hour, minute = time.split(":")
    return 60 * int(hour) + int(minute)


def clock(total: int) -> str:
    return f"{total // 60 % 24}:{total % 60:02d}"


def headings(start: str, *turns: str) -> list[str]:
    """Every heading, from the first on: north, left, back -> [north, west, east]."""
    result = [start]
    for turn in turns:
        quarter = {"right": 1, "back": 2, "left": 3}[turn]
        result.append(HEADINGS[(HEADINGS.index(result[-1]) + quarter) % 4])
    return result


def truths(x: str) -> list[str]:
    """The truth value after each term of a formula, read left to right: `"T and not F or F"` -> [T, T, T]."""
    result: list[str] = []
    joint, turned = "", False
    for word in x.split():
        if word in ("and", "or"):
            joint = word
        elif word == "not":
            turned = True
        else:
            truth = (word == "T") != turned
            if joint:
                before = result[-1] == "T"
                truth = before and truth if joint == "and" else before or truth
            result.append("T" if truth else "F")
            turned = False
    return result


def ranking(x: str) -> list[str]:
    """Three names, tallest first, from two facts such as `"Ann>Bob Bob>Cid"`."""
    (a, b), (c, d) = (fact.split(">") for fact in x.split())
    return [a, b, d] if b == c else [c, a, b]


def later(names: tuple[str, ...], name: str, count: int) -> str:
    return names[(names.index(name) + count) % len(names)]


def entry(table: list[str], key: str) -> str:
    """The value of `key` in ["b=7", "k=9"]."""
    return next(pair[2:] for pair in table if pair.startswith(key))


def key_of(table: list[str], value: str) -> str:
    return next(pair[0] for pair in table if pair.endswith(value))


def read_keyed(x: str, given: Given) -> tuple:
    key, rest = x.split(" in ")
    return rest.split(), key


def read_sets(x: str, given: Given) -> tuple:
    left, right = x.split("/")
    return set(left.split()), set(right.split())


def read_timed(x: str, given: Given) -> tuple:
    time, wait = x.split()
    return minutes(time), int(wait)


def read_dated(x: str, given: Given) -> tuple:
    name, count = x.split()
    return name, int(count)


OPERATIONS: dict[str, Operation] = {
    **group("table", "number", read_keyed, value=entry),
    **group(
        "table",
        "letter",
        read_keyed,
        key=key_of,
        next_key=lambda t, k: (t * 2)[[p[0] for p in t].index(k) + 1][0],
        top_key=lambda t, k: max(t, key=lambda pair: pair[2:])[0],
        low_key=lambda t, k: min(t, key=lambda p: p[2:])[0],
    ),
    **group(
        "table",
        "text",
        read_keyed,
        two_hops=lambda t, k: entry(t, entry(t, k)),
        without=lambda t, k: [p for p in t if p[0] != k],
    ),
    **group("table", "truth", read_keyed, value_even=lambda t, k: int(entry(t, k)) % 2 == 0),
    **group("keyed", "number", read_keyed, position=lambda v, k: v.index(k) + 1, count_of=lambda v, k: v.count(k)),
    **group("keyed", "letter", read_keyed, after=lambda v, k: v[v.index(k) + 1]),
    **group(
        "keyed",
        "list",
        read_keyed,
        up_to=lambda v, k: v[: v.index(k) + 1],
        from_on=lambda v, k: v[v.index(k) :],
        all_but=lambda v, k: [c for c in v if c != k],
    ),
    **group("keyed", "truth", read_keyed, contains=lambda v, k: k in v),
    **group(
        "sets",
        "list",
        read_sets,
        union=lambda a, b: sorted(a | b),
        common=lambda a, b: sorted(a & b),
        only_left=lambda a, b: sorted(a - b),
        only_right=lambda a, b: sorted(b - a),
    ),
    **group("sets", "number", read_sets, count_common=lambda a, b: len(a & b)),
    **group(
        "day",
        "text",
        read_dated,
        days_later=lambda d, n: later(DAYS, d, n),
        days_before=lambda d, n: later(DAYS, d, -n),
    ),
    **group(
        "month",
        "text",
        read_dated,
        months_later=lambda m, n: later(MONTHS, m, n),
        months_before=lambda m, n: later(MONTHS, m, -n),
    ),
    **group(
        "clock",
        "text",
        read_timed,
        wait=lambda t, n: clock(t + n),
        ago=lambda t, n: clock(t - n),
        on_the_hour=lambda t, n: clock(t // 60 * 60),
        day_part=lambda t, n: ("night", "morning", "afternoon", "evening")[t // 360],
    ),
    **group("turns", "text", read_parts, heading=lambda *v: headings(*v)[-1]),
    **group("turns", "number", read_parts, count_left=lambda *v: v.count("left")),
    **group(
        "moves",
        "text",
        read_parts,
        east=lambda *v: v.count("E") - v.count("W"),
        north=lambda *v: v.count("N") - v.count("S"),
        way_back=lambda *v: ["SWNE"["NESW".index(c)] for c in v[::-1]],
        place=lambda *v: f"{v.count('E') - v.count('W')},{v.count('N') - v.count('S')}",
    ),
    **group(
        "truths",
        "truth",
        read_parts,
        most_true=lambda *v: 2 * v.count("T") > len(v),
        odd_true=lambda *v: v.count("T") % 2 == 1,
    ),
    **group("truths", "text", read_parts, negate=lambda *v: ["TF"[c == "T"] for c in v]),
    **group("formula", "text", read_text, evaluate=lambda x: truths(x)[-1]),
    **group(
        "ranking",
        "text",
        read_text,
        tallest=lambda x: ranking(x)[0],
        shortest=lambda x: ranking(x)[-1],
        middle=lambda x: ranking(x)[1],
        tall_to_short=ranking,
    ),
}


def _hops(x: str, given: Given) -> list[str]:
    table, key = read_keyed(x, given)
    middle = entry(table, key)
    return [f"{key}={middle}", f"{middle}={entry(table, middle)}"]


def _week(x: str, given: Given) -> list[str]:
    name, count = read_dated(x, given)
    rest = count % 7
    return [f"{count}-{count - rest}={rest}", " ".join(later(DAYS, name, i) for i in range(rest + 1))]


# The intermediate steps to write down, for operations that take several steps.
STEPS: dict[str, Steps] = {
    "two_hops": _hops,
    "days_later": _week,
    "heading": lambda x, given: [" ".join(headings(*x.split()))],
    "evaluate": lambda x, given: [" ".join(truths(x))],
    "most_true": lambda x, given: [f"{x.split().count('T')} of {len(x.split())}"],
    "position": lambda x, given: [" ".join(f"{i + 1}{c}" for i, c in enumerate(read_keyed(x, given)[0]))],
}
