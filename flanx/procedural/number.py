"""Operations on numbers, digits and stories."""

from collections.abc import Callable

from flanx.procedural.operation import Given, Operation, Steps, group, read_number_list, read_numbers, read_parts, split

TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", *TEENS.split()]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ROMAN = {90: "XC", 50: "L", 40: "XL", 10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"}


def number_word(n: int) -> str:
    """12 -> twelve, 42 -> forty two; up to 99."""
    if n < 20:
        return ONES[n]
    return TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")


def roman(n: int) -> str:
    text = ""
    for value, sign in ROMAN.items():
        text += sign * (n // value)
        n %= value
    return text


OPERATIONS: dict[str, Operation] = {
    **group(
        "number",
        "number",
        read_numbers,
        double=lambda n: 2 * n,
        half=lambda n: n // 2,
        plus_one=lambda n: n + 1,
        minus_one=lambda n: n - 1,
        plus_ten=lambda n: n + 10,
        minus_ten=lambda n: n - 10,
        triple=lambda n: 3 * n,
        last_digit=lambda n: n % 10,
        round_ten=lambda n: (n + 5) // 10 * 10,
        turn_digits=lambda n: int(str(n)[::-1]),
        digit_sum=lambda n: sum(map(int, str(n))),
    ),
    **group(
        "number",
        "truth",
        read_numbers,
        even=lambda n: n % 2 == 0,
        over_fifty=lambda n: n > 50,
        by_five=lambda n: n % 5 == 0,
        by_three=lambda n: n % 3 == 0,
    ),
    **group("number", "text", read_numbers, in_words=number_word, roman=roman),
    **group(
        "pair",
        "number",
        read_numbers,
        add=lambda a, b: a + b,
        difference=lambda a, b: abs(a - b),
        larger=max,
        smaller=min,
        multiply=lambda a, b: a * b,
        remainder=lambda a, b: a % b,
        quotient=lambda a, b: a // b,
    ),
    **group(
        "pair",
        "truth",
        read_numbers,
        is_first_larger=lambda a, b: a > b,
        same_parity=lambda a, b: (a - b) % 2 == 0,
        divides=lambda a, b: a % b == 0,
        within_ten=lambda a, b: abs(a - b) <= 10,
    ),
    **group(
        "digits",
        "number",
        read_number_list,
        total=sum,
        largest=max,
        smallest=min,
        spread=lambda v: max(v) - min(v),
        count_even=lambda v: sum(n % 2 == 0 for n in v),
        outer_sum=lambda v: v[0] + v[-1],
    ),
    **group(
        "digits",
        "digits",
        read_number_list,
        only_even=lambda v: [n for n in v if n % 2 == 0],
        only_odd=lambda v: [n for n in v if n % 2],
        add_one=lambda v: [n + 1 for n in v],
        over_four=lambda v: [n for n in v if n > 4],
        evens_first=lambda v: sorted(v, key=lambda n: n % 2),
    ),
    **group(
        "triple",
        "number",
        read_numbers,
        gain=lambda a, b, c: a + b,
        loss=lambda a, b, c: a - b,
        gain_loss=lambda a, b, c: a + b - c,
        loss_loss=lambda a, b, c: a - b - c,
        groups=lambda a, b, c: b * c,
        groups_gain=lambda a, b, c: a + b * c,
        gain_gain=lambda a, b, c: a + b + c,
        how_many_more=lambda a, b, c: a - c,
    ),
    **group(
        "terms",
        "number",
        read_numbers,
        next_term=lambda *v: 2 * v[-1] - v[-2],
        step=lambda *v: abs(v[1] - v[0]),
        term_before=lambda *v: 2 * v[0] - v[1],
    ),
    **group(
        "gap",
        "number",
        read_parts,
        fill=lambda *v: (int(v[0]) + int(v[2])) // 2 if v[1] == "_" else (int(v[1]) + int(v[3])) // 2,
    ),
}


def _running(x: str, given: Given) -> list[str]:
    """Running sums from left to right: `"4 1 9"` -> 4+1=5, 5+9=14; a number is read digit by digit."""
    numbers = [int(n) for n in split(x)]
    sums = [sum(numbers[: i + 1]) for i in range(len(numbers))]
    return [f"{before}+{n}={after}" for before, n, after in zip(sums, numbers[1:], sums[1:], strict=False)]


def _by_digits(x: str, given: Given) -> list[str]:
    a, b = map(int, x.split())
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return [f"{a // 10 * 10}+{b // 10 * 10}={tens}", f"{a % 10}+{b % 10}={ones}", f"{tens}+{ones}={a + b}"]


def _two_sums(first: Callable[[int, int, int], tuple], then: Callable[[int, int, int], tuple]) -> Callable:
    """Steps of a story: each function returns (left, sign, right)."""

    def steps(x: str, given: Given) -> list[str]:
        numbers = list(map(int, x.split()))
        result = []
        for left, sign, right in (first(*numbers), then(*numbers)):
            value = {"+": left + right, "-": left - right, "*": left * right}[sign]
            result.append(f"{left}{sign}{right}={value}")
        return result

    return steps


def _next_term(x: str, given: Given) -> list[str]:
    a, b, *_, last = map(int, x.split())
    return [f"step {b - a}", f"{last}{b - a:+d}={last + b - a}"]


# The intermediate steps to write down, for operations that take several steps.
STEPS: dict[str, Steps] = {
    "total": _running,
    "digit_sum": _running,
    "add": _by_digits,
    "gain_loss": _two_sums(lambda a, b, c: (a, "+", b), lambda a, b, c: (a + b, "-", c)),
    "loss_loss": _two_sums(lambda a, b, c: (a, "-", b), lambda a, b, c: (a - b, "-", c)),
    "gain_gain": _two_sums(lambda a, b, c: (a, "+", b), lambda a, b, c: (a + b, "+", c)),
    "groups_gain": _two_sums(lambda a, b, c: (b, "*", c), lambda a, b, c: (a, "+", b * c)),
    "next_term": _next_term,
}
