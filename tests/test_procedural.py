"""The embedded suite: deterministic, right, split without overlap, short, and complete in its tables."""

import collections
import subprocess
import sys

import pytest

from flanx import procedural
from flanx.data.task.tables import load_tables
from flanx.errors import UserError
from flanx.procedural.draw import MAKERS, Stream

TRAIN = ("suite_text", "suite_number", "suite_world", "suite_cot")
HELD_OUT = (
    "suite_composition", "suite_composition_cot", "suite_frame", "suite_wording", "suite_rule", "suite_family"
)  # fmt: skip
ROWS = [spec for spec in load_tables().values() if spec.collection in TRAIN + HELD_OUT]


def program(spec) -> str:
    return spec.source.removeprefix("suite:")


def rows(*groups: str) -> list:
    return [spec for spec in ROWS if spec.collection in groups]


def operations(spec) -> tuple[str, ...]:
    return procedural.parse(program(spec))[2]


@pytest.mark.parametrize(
    ("name", "answer", "rationale"),
    [
        ("word.1 reverse", "badk", ""),
        ("word.1 drop_first upper", "DAB", "dab"),
        ("list.1 swap_ends", "b d a k", ""),
        ("digits.1 total", "14", "4+1=5; 5+9=14"),
        ("digits.1 only_even largest", "4", "4"),
        ("digits.1 drop_first total", "10", "1 9; 1+9=10"),
        ("pair.2 add double", "74", "10+20=30; 2+5=7; 30+7=37"),
        ("table.1 value plus_one", "10", "9"),
        ("chain.1 two_hops", "7", "k=b; b=7"),
        ("rule.1 replace", "xdab", ""),
        ("story.1 gain_loss", "20", "17+9=26; 26-6=20"),
        ("formula.1 evaluate", "F", "T F F"),
        ("turns.1 heading", "west", "north west south west"),
        ("day.1 days_later", "thu", "10-7=3; mon tue wed thu"),
        ("clock.1 wait", "0:15", ""),
        ("ranking.1 middle", "Ann", ""),
        ("brackets.1 balanced", "no", ""),
        ("pattern.2 two_more", "ab", ""),
        ("gap.1 fill", "6", ""),
        ("number.1 roman", "XLIX", ""),
    ],
)
def test_programs_compute_what_they_say(name: str, answer: str, rationale: str) -> None:
    inputs = {
        "word": "kdab", "list": "k d a b", "digits": "4 1 9", "pair": "12 25", "table": "k in b=7 k=9",
        "chain": "k in b=7 k=b", "rule": "kdab", "story": "17 9 6", "formula": "T and not T or F",
        "turns": "north left left right", "day": "mon 10", "clock": "23:30 45", "ranking": "Ann>Bob Cid>Ann",
        "brackets": "(()))(", "pattern": "abcabcabcc"[:9], "gap": "4 _ 8 10", "number": "49",
    }  # fmt: skip
    maker, _, names = procedural.parse(name)
    values, steps = procedural.run(names, {"x": inputs[maker], "p": "k", "q": "x"})
    assert (values[-1], "; ".join(steps)) == (answer, rationale)


def test_example_is_a_pure_function_of_program_split_and_index() -> None:
    first = list(procedural.examples("word.2 reverse upper", "validation"))
    assert procedural.example("word.2 reverse upper", "validation", 7) == first[7]
    assert first == list(procedural.examples("word.2 reverse upper", "validation"))
    assert len(first) == procedural.SIZES["validation"]
    # Written down once: a change of a generator changes every result that was measured with it.
    golden = [("jxfk", "reverse + capitals", "KFXJ"), ("rxol", "reversed + capitals", "LOXR")]
    assert [(e["x"], e["do"], e["answer"]) for e in first[:2]] == golden


def test_stream_is_even_and_stateless() -> None:
    counts = collections.Counter(Stream("test", i).below(6) for i in range(6000))
    assert all(900 < counts[value] < 1100 for value in range(6))
    assert sorted(Stream("a").sample("abcdef", 6)) == list("abcdef")


def test_splits_share_no_input_across_all_tasks() -> None:
    seen = {split: set() for split in procedural.SIZES}
    for spec in ROWS:
        for split in procedural.SIZES if not spec.held_out else ("validation", "test"):
            seen[split].update(procedural.example(program(spec), split, i)["x"] for i in range(12))
    assert min(map(len, seen.values())) > 500
    assert not seen["train"] & (seen["validation"] | seen["test"])
    assert not seen["validation"] & seen["test"]


def test_tables_hold_what_was_promised() -> None:
    training = rows("suite_text", "suite_number", "suite_world")
    families = {spec.category for spec in training}
    assert len(training) >= 200 and len(families) >= 20
    assert len({spec.category for spec in rows("suite_cot")}) >= 9 and len(rows("suite_composition_cot")) >= 9
    assert all(spec.num_examples == procedural.SIZES["train"] for spec in training)
    for group in HELD_OUT:
        assert len(rows(group)) >= 6 and all(spec.held_out for spec in rows(group))
    assert not {spec.category for spec in rows("suite_family")} & families


def test_held_out_kinds_are_what_they_claim() -> None:
    training = rows(*TRAIN)
    programs = {program(spec) for spec in training}
    singles = {operations(spec) for spec in training}
    for spec in rows("suite_composition", "suite_composition_cot"):
        assert program(spec) not in programs, spec.name
        first, then = operations(spec)
        assert (first, then) not in singles, spec.name  # not on another kind of input either
        assert all(any(name in seen for seen in singles) for name in (first, then)), spec.name
    for group, template in (("suite_frame", "suite_frame"), ("suite_wording", "suite_new")):
        for spec in rows(group):
            assert program(spec) in programs and spec.templates == (template,), spec.name
    for spec in rows("suite_rule"):
        assert operations(spec)[0] not in {name for seen in singles for name in seen}, spec.name
    assert not any({"suite_new", "suite_frame"} & set(spec.templates) for spec in training)


def test_every_composition_of_words_has_its_twin_in_training() -> None:
    pairs = {program(spec) for spec in rows("suite_text") if len(operations(spec)) == 2}
    assert len(pairs) > 100 and pairs <= {program(spec) for spec in rows("suite_cot")}


def test_texts_are_short_and_answers_vary() -> None:
    for spec in ROWS:
        found = [procedural.example(program(spec), "test", i) for i in range(40)]
        answers = collections.Counter(example["answer"] for example in found)
        assert all(value for e in found for key, value in e.items() if key != "rationale"), spec.name
        assert max(answers.values()) < 36, (spec.name, answers.most_common(1))
        assert max(len(e["x"]) + max(len(e["do"]), len(e["new"])) for e in found) < 88, spec.name
        assert max(len(e["answer"]) for e in found) < 24, spec.name
        if spec.cot:
            assert all(e["rationale"] for e in found), spec.name
            assert max(len(e["rationale"]) + len(". Answer: ") + len(e["answer"]) for e in found) < 64, spec.name


def test_every_operation_has_its_words() -> None:
    words = procedural.wordings()
    assert set(words) == set(procedural.OPERATIONS)
    assert set(procedural.STEPS) <= set(procedural.OPERATIONS)
    for name, word in words.items():
        assert len(set(word["says"])) == 3, name
        assert word["unseen"] not in word["says"], name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrd.1 reverse", "unknown input 'wrd'; did you mean 'word'"),
        ("word.1 revers", "unknown operation 'revers'; did you mean 'reverse'"),
        ("word.9 reverse", "level '9'"),
        ("word.1", "0 operations"),
        ("word.1 total", "'total' takes digits, but gets word"),
        ("word.1 dots reverse", "'reverse' takes items, but gets text"),
    ],
)
def test_wrong_programs_are_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=r"^suite program") as error:
        procedural.parse(name)
    assert message in str(error.value)


def test_unknown_split_is_named() -> None:
    with pytest.raises(UserError, match="unknown split 'tset'; did you mean 'test'"):
        procedural.examples("word.1 reverse", "tset")


def test_import_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, flanx.procedural; print([m for m in ('numpy', 'jax', 'tensorflow', 'seqio') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_maker_is_used() -> None:
    assert set(MAKERS) == {procedural.parse(program(spec))[0] for spec in ROWS}
