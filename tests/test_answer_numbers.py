"""Numbers in digits, words and sums, in eleven languages; most cases are in corpus/extraction.tsv."""

import pytest

from flanx.evals import answer_numbers
from flanx.evals.answer_text import NOTHING, UNCLEAR, Reading, plain

# Number words of 0 to 99 and beyond, by num2words 0.5.14 where it has the language.
WORDS = {
    "bn": {12: "বারো", 21: "একুশ", 48: "আটচল্লিশ", 99: "নিরানব্বই", 12345: "বারো হাজার তিনশত পঁয়তাল্লিশ", 100000: "এক লাখ"},
    "de": {21: "einundzwanzig", 48: "achtundvierzig", 125: "einhundertfünfundzwanzig", 10**6: "eine Million"},
    "en": {12: "twelve", 21: "twenty-one", 125: "one hundred and twenty-five", 2300: "two thousand three hundred"},
    "es": {12: "doce", 21: "veintiuno", 48: "cuarenta y ocho", 2345: "dos mil trescientos cuarenta y cinco"},
    "fr": {71: "soixante et onze", 99: "quatre-vingt-dix-neuf", 2345: "deux mille trois cent quarante-cinq"},
    "ja": {12: "十二", 99: "九十九", 2345: "二千三百四十五", 12345: "一万二千三百四十五", 10**6: "百万"},
    "ru": {12: "двенадцать", 48: "сорок восемь", 125: "сто двадцать пять", 2345: "две тысячи триста сорок пять"},
    "sw": {12: "kumi na mbili", 2345: "elfu mbili mia tatu arobaini na tano", 12000: "elfu kumi na mbili"},
    "te": {12: "పన్నెండు", 48: "నలభై ఎనిమిది", 125: "ఒకటి వందల ఇరవై అయిదు", 2345: "రెండు వేయి మూడు వందల నలభై అయిదు"},
    "th": {12: "สิบสอง", 21: "ยี่สิบเอ็ด", 125: "หนึ่งร้อยยี่สิบห้า", 12345: "หนึ่งหมื่นสองพันสามร้อยสี่สิบห้า"},
    "zh": {12: "十二", 21: "二十一", 250: "两百五十", 1005: "一千零五", 12345: "一万二千三百四十五"},
}  # fmt: skip


@pytest.mark.parametrize("language", sorted(WORDS))
def test_number_words(language: str) -> None:
    read = {text: answer_numbers.number(plain(text), language).answer for text in WORDS[language].values()}
    assert read == {text: str(value) for value, text in WORDS[language].items()}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18 = 9 * 2", "18"),
        ("9 * 2 = 18", "18"),
        ("9 eggs * 2 dollars = 18 dollars", "18"),
        ("x = 18", "18"),
        ("5-2", "3"),
        ("2 + 3 * (4 - 1)", "11"),
        ("2^10", "1024"),
        ("1e-2", "1/100"),
        ("1 1/2", "3/2"),
        ("2 million 500 thousand", "2500000"),
        ("18 (not 16)", "18"),
        ("She earns 18 from 9 eggs", "18"),
    ],
)
def test_sums_and_forms(text: str, value: str) -> None:
    assert answer_numbers.number(text, "en") == Reading(value)


def test_what_is_no_number() -> None:
    for text in ("2x", "A4", "3:40", "01/02/2020", "1.2.3", "5/0", "9" * 50, "", "COVID-19"):
        assert answer_numbers.number(text, "en") == NOTHING, text
    assert answer_numbers.number("16 or 18", "en") == UNCLEAR
    assert answer_numbers.number("between 16 and 18", "en") == UNCLEAR


def test_commas_and_points_by_language() -> None:
    values = {language: answer_numbers.number("12,345", language).answer for language in ("en", "de", "es", "fr", "ru")}
    assert values == {"en": "12345"} | dict.fromkeys(("de", "es", "fr", "ru"), "2469/200")
    values = {language: answer_numbers.number("12.345", language).answer for language in ("en", "zh", "de", "ru")}
    assert values == {"en": "2469/200", "zh": "2469/200", "de": "12345", "ru": "12345"}
    assert answer_numbers.number("0.125", "de").answer == answer_numbers.number("0,125", "en").answer == "1/8"


def test_closing_statements() -> None:
    assert answer_numbers.equation("3 + 9 = 12", "en") == Reading("12")
    assert answer_numbers.equation("Tom has 3 + 9 = 12", "en") == NOTHING
    assert answer_numbers.equation("3 + 9 =", "en") == NOTHING
    text = "She makes 9 * 2 = $18 every day at the market. She makes $18 every day."
    assert answer_numbers.repeated(text, "en") == Reading("18")
    assert answer_numbers.repeated(text[:-1], "en") == NOTHING  # cut
    assert answer_numbers.repeated("He sold 9 * 2 = 18. Jo has 18 hens.", "en") == NOTHING  # another statement
    assert answer_numbers.repeated("She makes 9 * 2 = 18 a day.", "en") == NOTHING
