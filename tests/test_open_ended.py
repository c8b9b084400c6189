"""The open-ended suite: the paper's layout in our own words, and an evaluation of it from prompt to kept sample."""

import collections

import pytest

from flanx import evaluate
from flanx.compare import candidate
from flanx.errors import UserError
from flanx.evals import registry, rescore, sample_choice
from flanx.evals.families import open_ended
from tests.echo_case import lines, score

SUITE = registry.load("open_ended", "")


def test_the_layout_is_the_papers():
    counts = collections.Counter(item.task for item in SUITE.items)
    assert len(SUITE.items) == 190 and counts[open_ended.FEW_SHOT] == 30
    assert [counts[kind] for kind in open_ended.KINDS] == [20] * 5
    triggered = {kind: counts[kind] for kind in counts if kind.endswith("_cot")}
    assert triggered == dict.fromkeys(("complex_reasoning_cot", "planning_cot", "explanation_cot"), 20)
    spec = SUITE.spec
    assert (spec.temperature, spec.samples, spec.top_k, spec.top_p) == (0.7, 5, 0, 1.0)
    assert {name: len(tasks) for name, tasks in spec.groups} == {"zero_shot": 5, "cot_trigger": 3, "few_shot": 1}


def test_parts_are_of_the_suites_tasks_alone():
    found = open_ended.parts(open_ended.tasks(SUITE.spec))
    assert [task + "_cot" for task in found["without_trigger"]] == [*found["cot_trigger"]] and len(found) == 3
    assert {*open_ended.parts(["planning", "creativity", "few_shot"])} == set()
    assert open_ended.parts([*open_ended.tasks(SUITE.spec), "my task"]) == {} == open_ended.parts(["gsm8k"])
    assert {*open_ended.parts(open_ended.KINDS)} == {"zero_shot", "without_trigger"}


def test_the_prompts_are_whole_and_distinct():
    prompts = [item.prompt() for item in SUITE.items]
    assert len({*prompts}) == 190
    assert all(text == text.strip() and "{" not in text and len(text) > 60 for text in prompts)
    assert all(text.isascii() for text in prompts)  # every vocabulary writes them
    by_id = {item.id: item.prompt() for item in SUITE.items}
    for name, text in by_id.items():
        if "_cot-" in name:
            assert text == f"{by_id[name.replace('_cot', '')]}\nLet's think step by step."
    shots = [item for item in SUITE.items if item.task == open_ended.FEW_SHOT]
    for item in shots:  # the query has the form of its exemplars, and an answer ends where the next one would begin
        labels = {shot.partition(":")[0] for shot in item.shots}
        assert len(item.shots) >= 2 and labels == {item.query.partition(":")[0]}
        assert item.query.endswith(":") and all(shot.endswith(f"\n{SUITE.spec.stop[0]}\n") for shot in item.shots)


def test_an_evaluation_keeps_all_samples_with_their_log_probabilities(tmp_path):
    entry = score(tmp_path, "open_ended[planning,few_shot,:2]", lengths={"inputs": 700, "targets": 40}, scale=0.5)
    found = entry["suites"]["open_ended[planning,few_shot,:2]"]
    assert (found["metric"], found["n"], found["samples"]) == ("answered", 4, 5)
    assert {*found["metrics"]} == {"words", "left_out"}
    paths = sorted((tmp_path / "generations").glob("*.jsonl"))
    rows = [row for path in paths for row in lines(path)[1:]]
    assert [len(row["outputs"]) for row in rows] == [len(row["option_scores"]) for row in rows] == [5] * 4
    assert all(number < 0 for row in rows for number in row["option_scores"])
    kept = [row["outputs"][sample_choice.choose(row["option_scores"])] for row in rows]
    answers = [each.text for each in candidate.read("run", tmp_path).answers.values()]
    stop = SUITE.spec.stop[0]
    assert answers == [text.partition(stop)[0].strip() for text in kept]
    assert rescore.rescore(tmp_path)[0]["open_ended[planning,few_shot,:2]"]["score"] == found["score"]


def test_an_empty_or_unfinished_sample_is_no_answer(tmp_path):
    from flanx.evals import marking

    def grade(text, ended=True):
        row = marking.Generation(
            *("i", "planning", "p", [""], "exact", "en", 0, False, 1, 0, 0, 0),
            **{"outputs": ["x", text], "ended": [True, ended], "option_scores": [-9.0, -8.0]},
        )
        return marking.grade(SUITE.spec, row)

    assert grade("First, buy bread.").exact == 1 and grade("First, buy bread.").answer == "First, buy bread."
    assert (grade("  ").exact, grade("  ").failed) == (0, True)
    assert grade("First, buy", ended=False).exact == 0
    assert grade("and so on " * 40).exact == 0
    for method in ("likelihood", "sc8", "beam4"):
        with pytest.raises(UserError, match=rf"leave '.{method}' out"):
            registry.resolve(f"open_ended+{method}")
    assert evaluate.suite_names(["open_ended", "gsm8k_cot"], 8, 0) == ["open_ended", "gsm8k_cot+sc8"]
