"""Appendix C's suites from the evaluation to the report: kept apart, read later, counted and not quoted."""

import json
import pathlib

import pytest

from flanx.cli.main import main
from flanx.evals import generations, responsible, scores
from flanx.evals.table5 import Line
from tests.echo_case import lines, score

PROMPTS = "real_toxicity_prompts[:4]"
SUITES = (PROMPTS, "identity_terms[baseline_people,gender_women,gender_men,:2]", "civil_comments_10_shot")
LENGTHS = {"inputs": 2400, "targets": 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An evaluation without a scorer."""
    folder = tmp_path_factory.mktemp("responsible")
    score(folder, *SUITES, lengths=LENGTHS, batch_size=200)
    return folder


def give(run: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A file of scores for every continuation of the evaluation: the length of a text says which."""
    path = folder / "texts.jsonl"
    assert main(["rescore", str(run), "--texts", str(path)]) == 0
    rows = lines(path)
    assert rows and all(row["toxicity"] is None and row["text"] for row in rows)
    path.write_text("".join(json.dumps(row | {"toxicity": len(row["text"]) / 20}) + "\n" for row in rows))
    return path


def test_harmful_texts_lie_apart_with_a_warning(run: pathlib.Path) -> None:
    assert not (run / "generations").exists()
    paths = generations.paths(run)
    assert len(paths) == 6 and {path.parent.name for path in paths} == {"generations_harmful"}
    for path in paths:
        assert lines(path)[0]["warning"] == generations.HARMFUL
    rows = [row for path in paths if "real_toxicity" in path.name for row in lines(path)[1:]]
    assert len(rows) == 8 and all(len(row["outputs"]) == 25 for row in rows)
    assert any(len(set(row["outputs"])) > 1 for row in rows)  # drawn, not greedy


def test_without_a_scorer_generations_are_kept_and_the_report_says_what_is_missing(run, capsys) -> None:
    suites = scores.read_scores(run / "scores.json")["suites"]
    for name in SUITES[:2]:
        assert scores.not_available(suites[name]) == scores.NOT_SCORED and suites[name]["unscored"] == suites[name]["n"]
    assert main(["report", f"{run}=Flan-T5-XXL"]) == 0
    printed = capsys.readouterr().out
    assert "n/a (toxicity not scored) | 6 |" in printed and "8 of 8 prompts without scores" in printed
    assert "| 86.7 |" in printed  # Table 7's value beside our AUC


def test_a_later_scorer_finishes_and_texts_are_shown_only_where_asked(run, tmp_path, capsys) -> None:
    path = give(run, tmp_path)
    assert main(["rescore", str(run), "--scorer", str(path)]) == 0
    assert f"{PROMPTS}: " in capsys.readouterr().out
    entry = scores.read_scores(run / "scores.json")["suites"][PROMPTS]
    assert entry["scorer"].startswith("texts.jsonl ") and not entry["unscored"] and entry["bins"]
    assert main(["rescore", str(run), "--check"]) == 0
    assert main(["rescore", str(run), "--texts", str(tmp_path / "none.jsonl")]) == 0
    assert (tmp_path / "none.jsonl").read_text() == ""
    capsys.readouterr()
    (row,) = [row for row in lines(generations.paths(run)[-1])[1:2]]
    said = next(text.strip() for text in row["outputs"] if text.strip())
    assert main(["report", f"{run}=Flan-T5-XXL"]) == 0
    quiet = capsys.readouterr().out
    assert "## Responsible AI" in quiet and ">>>" not in quiet and row["prompt"] not in quiet
    assert main(["report", str(run), "--show_text", "2"]) == 0
    loud = capsys.readouterr().out
    assert loud.count(">>>") == 4 and "they may offend" in loud and said


def test_identity_groups_are_held_against_one_another(run, tmp_path) -> None:
    assert (
        main(["rescore", str(run), "--scorer", str(give(run, tmp_path))]) == 0
        if not (run / "toxicity.jsonl").exists()
        else True
    )
    line = Line.read(str(run))
    tasks = line.scores["suites"][SUITES[1]]["tasks"]
    (block,) = [block for block in responsible.blocks([line]) if block.title == "Identity terms"]
    (cells,) = block.rows
    found = dict(zip(block.head, cells, strict=True))
    shares = {name: tasks[name]["score"] for name in ("gender_women", "gender_men")}
    assert found["worst group"].startswith(max(shares, key=lambda name: shares[name])) or len({*shares.values()}) == 1
    assert float(found["between"]) == pytest.approx(abs(shares["gender_women"] - shares["gender_men"]), abs=0.05)
    assert found["baseline"].startswith(f"{tasks['baseline_people']['score']:.1f}") and found["groups"] == "2"


def test_a_scorer_while_evaluating_and_wrong_flags(run, tmp_path, capsys) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "x", "toxicity": 0.5}\n')
    assert main(["rescore", str(run), "--check", "--scorer", str(path)]) == 2
    assert "--check writes nothing" in capsys.readouterr().err
    assert main(["rescore", str(run), "--texts", "t", "--scorer", str(path)]) == 2
    assert main(["suites", "show", PROMPTS, "--data_dir", "sample"]) == 0
    quiet = capsys.readouterr().out
    assert "toxic: 4 items" in quiet and "--show_text" in quiet and "shop" not in quiet
    assert main(["suites", "show", PROMPTS, "--data_dir", "sample", "--show_text"]) == 0
    assert "--- toxic, 4 items" in capsys.readouterr().out
    result = score(tmp_path / "out", "real_toxicity_prompts[toxic,:2]", lengths=LENGTHS, scorer=str(path), seed=1)
    assert result["suites"]["real_toxicity_prompts[toxic,:2]"]["unscored"] == 2  # the file knows none of its texts
    assert "none of the 2 texts has a score there" in capsys.readouterr().out
