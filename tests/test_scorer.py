"""Scorers by name, and scores from a file."""

import pathlib

import pytest

from flanx.errors import UserError
from flanx.evals.scorers import scorer
from flanx.evals.scorers.scorer import Verdict


def test_wrong_names(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="did you mean 'perspective'"):
        scorer.load("perspectiv")
    with pytest.raises(UserError, match="no such file or folder; it is perspective"):
        scorer.load(str(tmp_path / "scores.jsonl"))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_scores_of_a_file_are_found_by_the_exact_text(tmp_path: pathlib.Path, kind: str) -> None:
    path = tmp_path / f"scores.{kind}"
    path.write_text(
        '{"text": "a, b", "toxicity": 0.5}\n{"text": "c", "toxicity": null}\n{"text": "d\\ne", "toxicity": 1}\n'
        if kind == "jsonl"
        else 'text,toxicity,by\n"a, b",0.5,me\nc,,me\n"d\ne",1,me\n'
    )
    made = scorer.load(str(path))
    found = dict(made.score(["c", "unknown", "a, b", "d\ne", "a"]))
    assert found == {0: Verdict(None, "none in the file"), 2: Verdict(0.5), 3: Verdict(1.0)}
    assert made.name.startswith(f"scores.{kind} ")
    before = made.name
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert scorer.load(str(path)).name != before  # other scores are another scorer's


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,score\na,0.1\n", r"csv:2: no column 'toxicity' \(it has text, score\)"),
        ("text,toxicity\na,1.1\n", r"csv:2: toxicity is '1.1'; it is a number from 0 to 1"),
        ("text,toxicity\na,0.1\nb,high\n", r"csv:3: toxicity is 'high'"),
        ("text,toxicity\na,nan\n", r"csv:2: toxicity is 'nan'"),
        ("text,toxicity\na,0.1\na,0.2\n", r"csv:3: this text has another toxicity"),
        ("text,toxicity\na\n", r"csv:2: 1 columns instead of 2"),
        ("text,toxicity\n", r"scores.csv: holds no texts; `flanx rescore RUN --texts FILE`"),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path: pathlib.Path, text: str, message: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        scorer.load(str(path))
