"""Summaries of generations: means over tasks, warnings, groups; earlier suites of the same run are kept."""

import dataclasses
import json
import pathlib
import random
import re

import numpy as np
import pytest

from flanx.errors import UserError
from flanx.evals import answers, metrics, scores
from flanx.evals.generations import Generation
from flanx.evals.spec import Spec
from tests.echo_case import score
from tests.test_marking import generation


def rows() -> list[Generation]:
    """40 items of task "a", a quarter right, and 20 of task "b", half right; one of them without an answer."""
    of_a = [generation(id=f"a{i}", task="a", outputs=["5" if i % 4 == 0 else "6"], ended=[True]) for i in range(40)]
    of_b = [generation(id=f"b{i}", task="b", outputs=["5" if i % 2 == 0 else "6"], ended=[True]) for i in range(20)]
    of_b[1].outputs = ["no idea"]
    return of_a + of_b


SPEC = Spec("s", "gsm8k", groups=(("all", ("a", "b")), ("more", ("a", "c"))))


def test_the_score_is_the_mean_over_tasks_with_warnings_over_items() -> None:
    found = scores.summarize(SPEC, "hash", rows())
    assert (found["tasks"]["a"]["score"], found["tasks"]["b"]["score"], found["score"]) == (25.0, 50.0, 37.5)
    assert found["groups"] == {"all": 37.5} and found["n"] == 60
    assert found["group_intervals"] == {"all": {"low": found["low"], "high": found["high"]}}  # of the same tasks
    assert found["extraction_failed"] == 1 / 60 and not found["flagged"]
    assert found["low"] < 37.5 < found["high"]


def test_every_number_is_the_same_in_any_order_of_the_generations() -> None:
    drawn, wanted = rows(), scores.summarize(SPEC, "hash", rows())
    for seed in range(5):
        random.Random(seed).shuffle(drawn)
        assert scores.summarize(SPEC, "hash", drawn) == wanted


def test_the_interval_of_a_task_is_the_same_whichever_tasks_are_scored_with_it() -> None:
    whole = scores.summarize(SPEC, "hash", rows())
    alone = scores.summarize(SPEC, "hash", [row for row in rows() if row.task == "a"])
    assert alone["tasks"]["a"] == whole["tasks"]["a"]
    assert (alone["low"], alone["high"]) == (whole["tasks"]["a"]["low"], whole["tasks"]["a"]["high"])


def test_the_interval_of_a_group_is_that_of_a_suite_of_its_tasks() -> None:
    spec = dataclasses.replace(SPEC, groups=(("one", ("a",)), ("both", ("a", "b"))))
    more = [generation(id=f"c{i}", task="c", outputs=["5"], ended=[True]) for i in range(3)]  # too few for one
    found = scores.summarize(spec, "hash", [*rows(), *more])["group_intervals"]
    alone, both = (scores.summarize(SPEC, "hash", rows()[:end]) for end in (40, 60))
    assert found == {name: {k: each[k] for k in ("low", "high")} for name, each in (("one", alone), ("both", both))}
    few = dataclasses.replace(SPEC, groups=(("few", ("a", "c")),))
    assert scores.summarize(few, "hash", [*rows(), *more])["group_intervals"] == {"few": {"low": None, "high": None}}


def test_a_group_has_no_interval_where_a_metric_is_no_mean_over_items() -> None:
    """Nor has the suite: BLEU is of all answers together. Of one task it is the task's own."""
    spec = Spec("s", "task", metric="task", groups=(("bleu", ("a", "b")), ("exact", ("b",))))
    made = [generation(id=f"{t}{i}", task=t, kind=kind, targets=["5"], outputs=["5"], ended=[True])
            for t, kind in (("a", "bleu"), ("b", "exact_match")) for i in range(5)]  # fmt: skip
    found = scores.summarize(spec, "hash", made)
    none = {"low": None, "high": None}
    own = {key: found["tasks"]["b"][key] for key in none}
    assert found["group_intervals"] == {"bleu": none, "exact": own} and own["low"] is not None


def test_summary_keeps_finite_numbers(tmp_path: pathlib.Path) -> None:
    scores = score(tmp_path)
    assert np.isfinite([scores["suites"]["gsm8k_zero_shot"][k] for k in ("score", "unknown")]).all()
    assert scores["suites"]["gsm8k_zero_shot"]["low"] is None  # three items


def test_fallbacks_and_loops_are_counted_apart() -> None:
    outputs = ["3 + 2 = 5", "The answer is 5.", "3 + 2 = 5", "So " + "3 + 2 = " * 40]
    drawn = [generation(id=str(i), task="a", outputs=[text], ended=[i != 2]) for i, text in enumerate(outputs)]
    entry = scores.summarize(Spec("s", "gsm8k", cot=True), "hash", drawn)
    assert (entry["score"], entry["read_by_fallback"]) == (50.0, 0.25)  # the third was truncated: no conclusion
    assert (entry["unfinished"], entry["looping"], entry["extraction_failed"]) == (0.25, 0.25, 0.5)
    entry = scores.summarize(Spec("s", "gsm8k", cot=True, fallback="none"), "hash", drawn)
    assert (entry["score"], entry["read_by_fallback"]) == (25.0, 0.0)
    entry = scores.summarize(Spec("s", "gsm8k"), "hash", drawn)  # without rationales there is nothing to announce
    assert entry["read_by_fallback"] == 0.0


def test_the_options_of_a_letter_come_from_the_prompt() -> None:
    prompt = "Q: Which?\n(A) x (B) y (C) z (D) w\nA: (B)\n\nQ: Capital?\n(A) London (B) Paris (C) Rome (D) Oslo\nA:"
    change = {"prompt": prompt, "targets": ["(B)"], "kind": "letter", "task": "a"}
    drawn = [generation(id=text, outputs=[text], **change) for text in ("Paris", "London", "y", "(E)")]
    entry = scores.summarize(Spec("s", "mmlu"), "hash", drawn)
    assert (entry["score"], entry["extraction_failed"]) == (25.0, 0.5)


def test_scores_name_their_versions_and_an_average_never_mixes_them() -> None:
    versions = {"extractor": answers.EXTRACTOR_VERSION, "scorer": metrics.SCORER_VERSION}
    assert scores.summarize(SPEC, "hash", rows())["versions"] == versions
    tasks = {task: {"score": 50.0} for task in metrics.BBH_BOUNDS}
    suites = {name: {"score": 50.0, "tasks": tasks, "versions": versions} for name in metrics.HEADLINE}
    assert scores.headline(suites) is not None
    suites["mgsm_cot"] = suites["mgsm_cot"] | {"versions": versions | {"extractor": 1}}
    assert scores.headline(suites) is None


def test_a_score_is_flagged_where_more_than_a_twentieth_has_no_answer() -> None:
    for failed, flagged in ((3, False), (4, True)):
        drawn = [generation(id=str(i), task="a", outputs=["5"], ended=[True]) for i in range(60)]
        for row in drawn[:failed]:
            row.outputs = ["no idea"]
        entry = scores.summarize(Spec("s", "gsm8k"), "hash", drawn)
        assert (entry["extraction_failed"], entry["flagged"]) == (failed / 60, flagged)


def test_a_subject_with_fewer_exemplars_dropped_none() -> None:
    spec = Spec("s", "gsm8k", shots=5)
    drawn = [generation(id=str(i), outputs=["5"], ended=[True], shots=4, shots_available=4 + i) for i in range(2)]
    assert scores.summarize(spec, "hash", drawn)["shots_dropped"] == 0.5
    assert scores.summarize(spec, "hash", [generation(outputs=["5"], shots=4)])["shots_dropped"] == 1.0  # as before


def test_outputs_that_never_end_or_repeat_themselves_flag_a_score() -> None:
    loop = "so " * 40
    for output, end, flag in (("5", True, ""), ("5", False, "10% never ended"), (f"5. {loop}", True, "10% end in a")):
        drawn = [generation(id=str(i), task="a", outputs=["5"], ended=[True]) for i in range(10)]
        drawn[0].outputs, drawn[0].ended = [output], [end]
        entry = scores.summarize(Spec("s", "gsm8k"), "hash", drawn)
        assert entry["flagged"] == bool(flag) and ", ".join(scores.flags(entry)).startswith(flag)
    beam = generation(outputs=["5 Q: and more"], ended=[False])  # a beam search does not end at a stop text
    assert not scores.summarize(Spec("s", "gsm8k", stop=("Q:",)), "hash", [beam])["flagged"]
    samples = generation(outputs=["5"] * 40, ended=[False] + [True] * 39)
    assert scores.summarize(Spec("s", "gsm8k", samples=40), "hash", [samples])["unfinished"] == 1 / 40


def test_what_a_vocabulary_cannot_write_has_no_score_unless_it_is_forced() -> None:
    drawn = [generation(id=str(i), task="a", outputs=["5"], ended=[True]) for i in range(8)]
    for row in drawn[:2]:
        row.prompt_unknown = 1  # of 4 tokens: 2 of 32
    entry = scores.summarize(Spec("s", "gsm8k"), "hash", drawn)
    assert scores.score_text(entry) == "n/a (vocabulary)" and "6.2% of prompt tokens unknown" in scores.partial(entry)
    assert scores.score_text(scores.forced(entry)) == "100.0"
    assert scores.partial(scores.forced(entry))[0] == "1 of 1 tasks not in the vocabulary"
    drawn[0].prompt_unknown = 0
    assert scores.score_text(scores.summarize(Spec("s", "gsm8k"), "hash", drawn)) == "100.0"


def test_scores_of_different_versions_are_named() -> None:
    now = scores.summarize(SPEC, "hash", rows())
    assert scores.version_note({"a": now, "b": now}) == []
    old = {k: value for k, value in now.items() if k != "versions"}
    (note,) = scores.version_note({"a": now, "b": old, "c": old, "d": old, "e": old})
    assert f"extractor {answers.EXTRACTOR_VERSION}, scorer {metrics.SCORER_VERSION}: a;" in note
    assert note.endswith("versions not recorded: b, c, d and 1 more.")


WHOLE = {"score": 1.5, "low": 0.5, "high": 2.5, "n": 8, "extraction_failed": 0.0, "flagged": False}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"suites": []}, "'suites' is"),
        ({"suites": {"a": 5}}, "'suites' is"),
        ({"suites": {"a": {}}}, "'a' has no score"),
        ({"suites": {"a": WHOLE | {"score": "9"}}}, "'score' is '9', it takes a number"),
        ({"suites": {"a": WHOLE | {"high": None}}}, "'a' has no whole interval"),
        ({"suites": {"a": WHOLE | {"n": float("nan")}}}, "'n' is nan"),
        ({"suites": {"a": WHOLE | {"tasks": {"t": {}}}}}, "task 't' has no score"),
        ({"step": 1}, "it has no 'suites'"),
    ],
)
def test_damaged_scores_are_named(tmp_path, damage, said):
    path = tmp_path / "scores.json"
    assert scores.read_scores(path) == {}
    path.write_text(json.dumps({"suites": {"a": WHOLE}}))
    assert scores.read_scores(path)["suites"]["a"]["n"] == 8
    path.write_text(json.dumps(damage))
    with pytest.raises(UserError, match=re.escape(said)):
        scores.read_scores(path)
