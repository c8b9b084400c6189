"""Answers extracted from what models write: corpora, golden readings of each version, a fuzz, and published outputs."""

import fractions
import hashlib
import json
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanx.evals import answer_text, answers, generations, marking, registry, stops
from flanx.evals.answer_choices import options_of
from flanx.evals.families import bbh, mgsm

FOLDER = pathlib.Path(__file__).with_name("corpus")
CITIES = {"A": "London", "B": "Paris", "C": "Rome", "D": "Oslo"}
DATES = {"A": "01/01/2020", "B": "01/02/2020"}


def cases(name: str = "extraction.tsv") -> list[tuple[str, ...]]:
    """(kind, mode, language, text, answer) of every line of a corpus."""
    rows = []
    for number, line in enumerate((FOLDER / name).read_text(encoding="utf-8").split("\n"), 1):
        if line and not line.startswith("# "):
            cells = line.split("\t")
            assert len(cells) == 5, f"{name}:{number}: {len(cells)} cells"
            rows.append(tuple(cells))
    return rows


def unescaped(text: str) -> str:
    """The text of a cell: a backslash and an n are a line break, two backslashes one."""
    return re.sub(r"\\(n|\\)", lambda match: "\n" if match[1] == "n" else "\\", text)


def test_corpus_is_large_and_names_known_kinds() -> None:
    assert len(cases()) >= 1600
    assert {kind for kind, *_ in cases()} == set(answers.KINDS)
    assert {language for _, _, language, _, _ in cases()} == set(answer_text.languages())


@pytest.mark.parametrize(("name", "options"), [("extraction.tsv", {}), ("extraction_options.tsv", CITIES)])
def test_every_case_of_the_corpus(name: str, options: dict[str, str]) -> None:
    wrong = []
    for kind, mode, language, text, expected in cases(name):
        answer = answers.read(unescaped(text), kind, mode == "cot", language, options).value
        if (answer if answer is not None else "-") != expected:
            wrong.append((kind, mode, language, text, expected, answer))
    assert not wrong, "\n".join(map(str, wrong))


# --- versions --------------------------------------------------------------------------------------------------------


def readings() -> str:
    """A line for every reading of the frozen outputs: what a version of the extractor and the scorer makes of them."""
    lines = []
    for line in (FOLDER / "frozen_outputs.jsonl").read_text(encoding="utf-8").splitlines():
        each = json.loads(line)
        if "passage" in each:
            grade = marking.grade_passage([each["passage"]], each["targets"], each["language"])
            lines.append(f"passage {grade.exact} {grade.f1:.6f}")
        else:
            answer = answers.read(each["text"], each["kind"], each["cot"], each["language"], each["options"])
            lines.append(f"{answer.source} {answer.value}")
    return "\n".join(lines) + "\n"


def test_a_changed_reading_needs_a_new_version() -> None:
    # To change one: raise EXTRACTOR_VERSION or SCORER_VERSION, and add a line with the versions and the new hash here.
    golden = {(2, 1): "6996225ee79ec8f8", (2, 2): "ebf56e918fd681b0"}
    versions = (generations.VERSIONS["extractor"], generations.VERSIONS["scorer"])
    assert versions in golden, f"no golden readings of {versions}; their hash is {sha(readings())}"
    assert sha(readings()) == golden[versions], "a reading changed under the same version: raise the version"
    assert list(golden) == sorted(golden) and len(set(golden.values())) == len(golden)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- robustness ------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=60),
    st.sampled_from(answers.KINDS),
    st.booleans(),
    st.sampled_from(sorted(answer_text.languages())),
)
def test_no_text_makes_it_raise(text: str, kind: str, cot: bool, language: str) -> None:
    for prefix in ("", "The answer is "):
        answer = answers.extract(prefix + text, kind, cot, language)
        assert answer is None or answer
        answers.same(prefix + text, text, kind, cot, language)


NUMBERS = "0123456789.,-/ $%=+^*xek½³\u00a0'(২٣৫๕万"


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=NUMBERS, max_size=40), st.sampled_from(sorted(answer_text.languages())))
def test_a_run_of_digits_is_a_reduced_fraction_or_none(text: str, language: str) -> None:
    found = answers.extract(text, "number", False, language)
    assert found is None or found == str(fractions.Fraction(found))


PIECES = (
    "9",
    "1,",
    "the answer is ",
    "(",
    "a ",
    "Q: 1/",
    "- ",
    "9^",
    "((9)",
    "1 thousand ",
    "is the answer ",
    "A or ",
)


@pytest.mark.parametrize("size", [20_000])
def test_runaway_text_is_read_in_time_and_has_no_short_answer(size: int) -> None:
    for piece in PIECES:
        read = {kind: answers.extract(piece * (size // len(piece)), kind, True) for kind in answers.KINDS}
        assert not {kind: read[kind] for kind in ("letter", "number", "yes_no", "pronoun") if read[kind]}, piece


@pytest.mark.parametrize("language", sorted(answer_text.languages()))
@pytest.mark.parametrize("value", [0, 7, 1234, 114200])
def test_every_written_number_reads_back(language: str, value: int) -> None:
    assert answers.extract(str(value), "number", False, language) == str(value)
    written = f"{value:,}"
    if answer_text.languages()[language].get("decimal") == ",":
        written = written.replace(",", ".")
    assert answers.extract(written, "number", False, language) == str(value)
    assert answers.extract("-" + written, "number", False, language) == str(-value)
    assert answers.extract(f"{value:,}".replace(",", " "), "number", False, language) == str(value)
    assert answers.extract(f"{value:,}".replace(",", "\u202f"), "number", False, language) == str(value)


# --- rules -----------------------------------------------------------------------------------------------------------


def test_same_distinguishes_wrong_from_unreadable() -> None:
    assert answers.same("The answer is (B).", "(B)", "letter") is True
    assert answers.same("The answer is (C).", "(B)", "letter") is False
    assert answers.same("I do not know", "(B)", "letter") is None
    assert answers.same("Monsters, Inc", "Monsters, Inc", "letter") is True  # BBH: a few gold answers are free text
    assert answers.same("So the answer is Monsters, Inc.", "Monsters, Inc", "letter", cot=True) is True
    assert answers.same("The answer is 70000", "70,000", "number") is True
    assert answers.same("Die Antwort lautet 114.200.", "114,200", "number", True, "de") is True  # golds are English
    assert answers.same("Die Antwort lautet 114,200.", "114,200", "number", True, "de") is True  # as it stands there
    assert answers.same("Die Antwort lautet 114,200.", "114200", "number", True, "de") is False  # 114.2
    assert answers.same("0.75", "3/4", "number") is True
    assert answers.same("OLLEH", "olleh", "exact") is False
    assert answers.same("rev; up. Answer: OLLEH", "OLLEH", "final", cot=True) is True
    assert answers.same("rev; up. Answer: olleh", "OLLEH", "final", cot=True) is False
    assert answers.same("OLLEH", "OLLEH", "final", cot=True) is None


def test_a_rationale_counts_by_its_announcement_or_by_a_fallback_that_is_named() -> None:
    assert answers.read("So it is large. So the answer is (B).", "letter", True) == ("B", answers.ANNOUNCED)
    assert answers.read("So it is large. Therefore (B).", "letter", True) == ("B", answers.FALLBACK)
    assert answers.read("So it is large. Therefore (B).", "letter", True, fallback=False).value is None
    assert answers.read("So the sarcastic option is (B).", "letter", True).value is None
    assert answers.read("So he has 35 - 2 = 33 balls now.", "number", True).value is None
    assert answers.read("So the answer is (A) or (B).", "letter", True).value is None
    assert answers.read("So the answer is (A). So the answer is", "letter", True).value == "A"  # cut in a repetition


def test_outputs_that_loop() -> None:
    assert answers.loops("and False = not False " * 30)
    assert answers.loops("Let us see. " + "(8 + 1) = " * 40 + "(8 +")
    assert answers.loops("? " * 40)
    assert not answers.loops("The answer is 18. The answer is 18.")
    assert not answers.loops(" ".join(map(str, range(200))))
    assert not answers.loops("")


# --- truncated rationales --------------------------------------------------------------------------------------------

CUTS = range(10, 101, 10)  # per cent of what precedes the announcement
OWN = [  # (kind, language, rationale up to its announcement, gold answer)
    (
        "number",
        "en",
        "Tom has 3 boxes of 4 pens, so 3 * 4 = 12 pens. So he has 12 - 2 = 10 pens now.",
        "10",
    ),
    ("number", "de", "Am Anfang sind 3 Autos da. Also sind es jetzt 3 + 2 = 5 Autos.", "5"),
    ("number", "ja", "最初に3台の車がありました。今は3+2=5台の車があります。", "5"),
    ("letter", "en", "(A) says that it is easy. (B) says that it is hard. So the ironic one is (B).", "(B)"),
    ("letter", "en", 'Option (A): "big red car". 2 < 5, so (A) is right. Option (B): "red big car".', "(B)"),
    (
        "yes_no",
        "en",
        "He walks 2 steps. He turns round and walks 2 steps. He is where he started.",
        "Yes",
    ),
    ("true_false", "en", "Z = not True and A. A = False. Z = False and False = False.", "False"),
    ("validity", "en", "By (1), it holds for all. So the argument holds and the reasoning is valid there.", "valid"),
]


def credit(kind: str, language: str, rationale: str, gold: str, options: dict[str, str]) -> list[bool]:
    """Whether a rationale is credited when it is cut at each of CUTS."""
    rationale = rationale.rstrip()
    texts = [rationale[: len(rationale) * cut // 100] for cut in CUTS]
    return [answers.same(text, gold, kind, True, language, options) is True for text in texts]


def test_truncated_rationales_are_not_credited() -> None:
    for kind, language, rationale, gold in OWN:
        assert not any(credit(kind, language, rationale, gold, {})), rationale


def test_truncated_rationales_of_gsm8k_and_mgsm_are_credited_below_2_percent(data_dir: pathlib.Path) -> None:
    lines = (data_dir / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line)["answer"].split("#### ") for line in lines]
    gsm8k = [credit("number", "en", rationale, gold.strip(), {}) for rationale, gold in pairs]
    native = []
    for language in mgsm.LANGUAGES:
        for _, rationale, gold in mgsm.exemplars(data_dir, language):
            announced = answer_text.announcements(answer_text.plain(rationale))[-1]
            native.append(credit("number", language, answer_text.plain(rationale)[: announced.start], gold, {}))
    assert len(gsm8k) == 1319 and len(native) == 88
    for suite in (gsm8k, native):
        assert all(sum(column) < 0.02 * len(suite) for column in zip(*suite, strict=True))


# --- published and judged outputs ------------------------------------------------------------------------------------


def codex(folder: pathlib.Path) -> Iterator[tuple[str, str, list[dict[str, Any]], float]]:
    """(mode, task, outputs with their gold answers, the authors' accuracy in percent) of each of the 54 cells."""
    golds: dict[str, list[str]] = {}
    for mode in ("cot", "direct"):  # the direct files hold no gold answers; their items are the same
        for path in sorted((folder / f"code-davinci-002-{mode}").glob("*-255000.json")):
            task = path.name.partition("_few_shot")[0]
            outputs = json.loads(path.read_text(encoding="utf-8"))["outputs"]
            golds.setdefault(task, [output["target"] for output in outputs])
            metrics = path.with_name(path.stem + "_eval_metrics.jsonl").read_text(encoding="utf-8").splitlines()
            merged = [output | {"target": gold} for output, gold in zip(outputs, golds[task], strict=True)]
            yield mode, task, merged, json.loads(metrics[0])["accuracy"]


def test_codex_scores_what_the_authors_scored(bbh_outputs: pathlib.Path) -> None:
    different, cells = [], 0
    for mode, task, outputs, accuracy in codex(bbh_outputs):
        verdicts = []
        for output in outputs:
            options = options_of(output["input"]) if bbh.KIND[task] == "letter" else {}
            text = stops.until_stop(output["prediction"], ("\n\nQ:",))
            verdicts.append(answers.same(text, output["target"], bbh.KIND[task], mode == "cot", "en", options) is True)
        score = 100 * sum(verdicts) / len(verdicts)
        cells += 1
        if abs(score - accuracy) > 0.01:
            different.append((mode, task, round(score, 1), round(accuracy, 1)))
    assert cells == 54 and not different


def test_truncated_rationales_of_codex_are_credited_below_2_percent(bbh_outputs: pathlib.Path) -> None:
    for mode, task, outputs, _ in codex(bbh_outputs):
        credits = []
        for output in outputs if mode == "cot" else ():
            rationale, announced, _ = output["prediction"].partition("So the answer is")
            if announced:
                options = options_of(output["input"]) if bbh.KIND[task] == "letter" else {}
                credits.append(credit(bbh.KIND[task], "en", rationale, output["target"], options))
        for cut, column in zip(CUTS, zip(*credits, strict=True), strict=False):
            assert sum(column) < 0.02 * len(credits), (task, cut, sum(column), len(credits))


def test_outputs_are_read_as_a_person_reads_them(cases_dir: pathlib.Path) -> None:
    rows = [json.loads(line) for line in (cases_dir / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    wrong: Counter[bool] = Counter()
    for row in rows:
        spec, task = registry.resolve(row["suite"]), row["task"]
        kind = bbh.KIND[task] if spec.family == "bbh" else "letter" if spec.family == "mmlu" else "number"
        options = CITIES if spec.family == "mmlu" else DATES if task == "date_understanding" else {}
        text, language = stops.until_stop(row["out"], spec.stop), task if spec.family == "mgsm" else "en"
        verdict = answers.same(text, row["gold"], kind, spec.cot, language, options) is True
        wrong[bool(row["human"])] += verdict != bool(row["human"])
    assert wrong[True] == 0, "an answer that a person reads as right is lost"
    assert sum(wrong.values()) <= 0.01 * len(rows)
