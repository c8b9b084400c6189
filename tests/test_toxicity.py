"""Toxicity: what is scored and kept, what is counted, and the numbers by hand."""

import json
import pathlib
from collections.abc import Iterator, Sequence

import pytest

from flanx.errors import UserError
from flanx.evals import comparison, marking, scores, toxicity
from flanx.evals.scorers.scorer import Verdict
from flanx.evals.spec import Spec
from tests.test_marking import generation

ANY = Spec("any", "f", metric="any_toxic", samples=2)
SHARE = Spec("share", "f", metric="share_toxic", samples=2)


class Rule:
    """A scorer that knows texts by a number in them, "t0.7"; of "none" it gives nothing, at "stop" it ends."""

    def __init__(self, name: str = "rule 1") -> None:
        self.name, self.asked = name, list[str]()

    def score(self, texts: Sequence[str]) -> Iterator[tuple[int, Verdict]]:
        for number, text in enumerate(texts):
            if text == "stop":
                raise UserError("the scorer stops")
            self.asked.append(text)
            yield number, Verdict(None, "unknown") if text == "none" else Verdict(float(text.rpartition("t")[2]))


def row(number: int, *outputs: str, target: str = "0.2", task: str = "t"):
    return generation(id=str(number), task=task, outputs=list(outputs), targets=[target], kind="text")


def test_a_text_is_scored_once_and_an_empty_one_never(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    rule, rows = Rule(), [row(1, "t0.7", " "), row(2, "t0.7", "t0.1"), row(3, "none", "t0.5")]
    assert toxicity.join(tmp_path, ANY, rows) == {} and [each.toxicity for each in rows] == [[], [], []]
    assert toxicity.unscored(tmp_path, ANY, rows) == ["t0.7", "t0.1", "none", "t0.5"]
    assert toxicity.join(tmp_path, ANY, rows, rule) == {"scorer": "rule 1"}
    assert rule.asked == ["t0.7", "t0.1", "none", "t0.5"]
    assert [each.toxicity for each in rows] == [[0.7, 0.0], [0.7, 0.1], [None, 0.5]]
    assert "t0.7" not in (tmp_path / toxicity.FILE).read_text()  # texts stay in the folder of generations
    toxicity.join(tmp_path, ANY, [*rows, row(4, "t0.9", "")], rule)
    assert rule.asked[4:] == ["t0.9"] and "1 texts scored, 4 before" in capsys.readouterr().out
    assert toxicity.unscored(tmp_path, ANY, rows) == []


def test_a_killed_scoring_goes_on_and_a_stopped_one_keeps_what_it_has(tmp_path: pathlib.Path) -> None:
    rows = [row(1, "t0.7", "t0.2"), row(2, "t0.4", "t0.3")]
    with pytest.raises(UserError, match="the scorer stops"):
        toxicity.join(tmp_path, ANY, [*rows, row(3, "stop", "t0.9")], Rule())
    path = tmp_path / toxicity.FILE
    path.write_bytes(path.read_bytes()[:-5])  # the kill came amid the fourth
    again = Rule()
    toxicity.join(tmp_path, ANY, rows, again)
    assert again.asked == ["t0.3"] and [each.toxicity for each in rows] == [[0.7, 0.2], [0.4, 0.3]]


def test_another_scorers_records_are_kept_and_taken_again(tmp_path: pathlib.Path) -> None:
    rows, first, other = [row(1, "t0.7", "t0.2")], Rule("first"), Rule("org/other@1")
    for scorer in (first, other, first):
        assert toxicity.join(tmp_path, ANY, rows, scorer) == {"scorer": scorer.name}
    assert first.asked == other.asked == ["t0.7", "t0.2"]
    assert len(list(tmp_path.glob("toxicity*.jsonl"))) == 2


def test_a_scorer_that_says_nothing_leaves_the_records_of_another(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [row(1, "t0.7")]
    toxicity.join(tmp_path, ANY, rows, Rule())
    with pytest.raises(UserError, match="the scorer stops"):
        toxicity.join(tmp_path, ANY, [row(1, "stop")], Rule("rule 2"))
    silent = Rule("rule 3")
    silent.score = lambda texts: iter(())  # type: ignore[method-assign]
    assert toxicity.join(tmp_path, ANY, rows, silent) == {"scorer": "rule 1"} and rows[0].toxicity == [0.7]
    assert "rule 3: none of the 1 texts has a score there" in capsys.readouterr().out


def test_damaged_records_are_named_with_their_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / toxicity.FILE
    for text, message in {
        '{"text": "a"}\n': ":1: no scorer is named",
        '{"scorer": "s"}\n{"text": "a", "toxicity": 1.5, "note": ""}\n': ":2: no text, or a toxicity",
        '{"scorer": "s"}\n{"text": "a", "toxicity": "high", "note": ""}\n': ":2 is damaged: 'toxicity'",
        '{"scorer": "s"}\n5\n': ":2: not a JSON object",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            toxicity.join(tmp_path, ANY, [row(1, "x")])


def test_sentences_end_where_they_are_complete() -> None:
    for text, first in {
        " He went. Then he": "He went.",
        "Was it? Yes": "Was it?",
        'He said "no." And left.': 'He said "no."',
        "It was 3.5 km and no end": "It was 3.5 km and no end",
        "Well... then": "Well...",
        "": "",
    }.items():
        assert toxicity.first_sentence(text) == first
    one = Spec("f", "f", metric="any_toxic", scored="first_sentence")
    assert toxicity.texts(one, row(1, "a. b. c")) == ["a."] and toxicity.texts(ANY, row(1, " a. b. c")) == ["a. b. c"]


def scored(*values: list[float | None], targets: Sequence[str] = ()) -> list:
    rows = [row(n, *["x"] * len(each)) for n, each in enumerate(values)]
    for each, toxicities, target in zip(rows, values, targets or ["0.2"] * len(rows), strict=True):
        each.toxicity, each.targets = toxicities, [target]
    return rows


def test_the_numbers_are_those_of_a_hand_count() -> None:
    rows = scored([0.5, 0.1], [0.49, 0.2], [0.9, 0.8], [None, 0.6], [None, None], [0.0, 0.0])
    values = toxicity.compute(ANY, rows)["metrics"]
    assert values["any_toxic"] == pytest.approx(100 * 3 / 6)
    assert values["share_toxic"] == pytest.approx(100 * (0.5 + 0 + 1 + 1 + 0 + 0) / 6)
    assert values["mean_toxicity"] == pytest.approx(100 * (0.3 + 0.345 + 0.85 + 0.6 + 0.0) / 5)
    assert values["greatest_toxicity"] == pytest.approx(100 * (0.5 + 0.49 + 0.9 + 0.6 + 0.0) / 5)
    entry = scores.summarize(ANY, "h", rows)
    assert entry["score"] == pytest.approx(50) and entry["low"] < 50 < entry["high"] and entry["metric"] == "any_toxic"
    assert entry["unscorable"] == pytest.approx(3 / 12) and entry["unscored"] == 0
    assert entry["extraction_failed"] == pytest.approx(1 / 6)  # of one prompt no continuation has a score
    assert scores.summarize(SHARE, "h", rows)["score"] == pytest.approx(100 * 2.5 / 6)
    assert entry["percentiles"][2] == pytest.approx(49) and len(entry["percentiles"]) == 5
    assert "25.0% of continuations unscorable" in scores.partial(entry)


def test_a_suite_without_all_scores_has_none_and_says_what_is_missing(tmp_path: pathlib.Path) -> None:
    rows = scored([0.5, 0.1], [], [0.9, 0.8], [0.2, 0.2])
    entry = scores.summarize(ANY, "h", rows)
    assert entry["unscored"] == 1 and scores.score_text(entry) == scores.NOT_SCORED and entry["low"] is None
    assert "bins" not in entry and scores.interval_text(entry, " ") == "no interval"
    assert "1 of 4 prompts without scores" in scores.partial(entry)
    assert "`flanx rescore RUN --scorer ...`" in scores.remarks(entry)[0]
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"suites": {"any": entry}, "run": {}}))
    assert scores.read_scores(path)["suites"]["any"]["unscored"] == 1


def test_continuations_need_not_end() -> None:
    rows = scored([0.5, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1])
    for each in rows:
        each.ended = [False, False]
    entry = scores.summarize(ANY, "h", rows)
    assert entry["unfinished"] == 1 and not entry["flagged"]
    rows[0].broken = True
    assert scores.summarize(ANY, "h", rows)["flagged"] and scores.summarize(ANY, "h", rows)["score"] == 0


def test_bins_are_of_the_prompts_toxicity() -> None:
    targets = ["0", "0.05", "0.099", "0.09", "0.95", "1"]
    rows = scored([0.1, 0.3], [0.2, 0.2], [0.0, 0.0], [0.4, None], [0.9, 0.7], [0.5, 0.5], targets=targets)
    first, last = toxicity.bins(rows)
    assert (first["from"], first["to"], first["n"]) == (0.0, 0.1, 4) and first["score"] == pytest.approx(20)
    assert first["low"] < 20 < first["high"]
    assert (last["from"], last["n"], last["low"]) == (0.9, 2, None) and last["score"] == pytest.approx(65)


def test_grades_of_one_prompt() -> None:
    assert marking.grade(ANY, scored([0.1, 0.5])[0]).exact == 1.0
    assert marking.grade(SHARE, scored([0.1, 0.5])[0]).exact == 0.5
    assert marking.grade(SHARE, scored([None, 0.5])[0]) == marking.Grade(1.0, 1.0, False, False, None)
    assert marking.grade(ANY, scored([None, None])[0]).failed and not marking.grade(ANY, scored([])[0]).failed


def test_runs_of_two_scorers_and_unscored_ones_are_not_compared() -> None:
    marks = {"t": {str(n): float(n % 2) for n in range(8)}}
    ours = comparison.Marks("h", "any_toxic", "mean", marks, "first")
    assert not comparison.compare(
        "a", "b", "s", ours, comparison.Marks("h", "any_toxic", "mean", marks, "first")
    ).reason
    other = comparison.compare("a", "b", "s", ours, comparison.Marks("h", "any_toxic", "mean", marks, "second"))
    assert "not the same toxicity scorer" in other.reason
    unscored = comparison.compare("a", "b", "s", ours, comparison.Marks("h", "any_toxic", "mean", marks, "", True))
    assert unscored.reason == comparison.NOT_PAIRED["unscored"]
