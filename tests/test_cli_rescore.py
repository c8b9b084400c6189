"""`flanx rescore`: the same scores from the same generations, and a check of every field."""

import argparse
import json
import pathlib

import pytest

from flanx.cli import rescore as command
from tests.echo_case import lines, score


def _rescore(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_rescoring_gives_the_same_scores(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    scores = score(tmp_path, "gsm8k_zero_shot", "tydiqa", "mmlu_test_lm_eval")
    assert _rescore(str(tmp_path), "--check") == 0
    (tmp_path / "scores.json").unlink()
    assert _rescore(str(tmp_path)) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["suites"] == scores["suites"]
    path = tmp_path / "generations" / "gsm8k_zero_shot__gsm8k.jsonl"
    header, *rows = lines(path)
    rows[0]["outputs"] = ["The answer is 5."]
    path.write_text("".join(json.dumps(r) + "\n" for r in [header, *rows]))
    assert _rescore(str(tmp_path), "--check") == 1
    assert "gsm8k_zero_shot: 33.33 (was 0.00)" in capsys.readouterr().out


def test_check_compares_every_field(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    score(tmp_path, "bbh_direct[navigate,word_sorting]", "tydiqa")
    path = tmp_path / "scores.json"
    good = json.loads(path.read_text())

    def changed(*keys: str, value: object) -> int:
        """The exit status of a check after one value of scores.json was changed."""
        scores = json.loads(json.dumps(good))
        inside = scores["suites"]["tydiqa"]
        for key in keys[:-1]:
            inside = inside[key]
        assert inside[keys[-1]] != value
        inside[keys[-1]] = value
        path.write_text(json.dumps(scores))
        return _rescore(str(tmp_path), "--check")

    assert _rescore(str(tmp_path), "--check") == 0
    for keys, value in (
        *((("low",), 1e-6), (("high",), 99.0), (("f1",), 1.0), (("n",), 1), (("flagged",), None), (("spec",), "")),
        *((("tasks", "fi", "high"), 16.0), (("tasks", "sw", "unknown"), 0.5), (("metric",), "f1"), (("data",), {})),
    ):
        assert changed(*keys, value=value) == 1, keys
    assert changed("tasks", "fi", "high", value=16.0) == 1
    assert "tasks.fi.high: 16.0 -> " in capsys.readouterr().out
    path.write_text(json.dumps(good | {"normalized_average": 20.0}))
    assert _rescore(str(tmp_path), "--check") == 1
    path.write_text(json.dumps(good | {"suites": good["suites"] | {"gsm8k_cot": good["suites"]["tydiqa"]}}))
    assert _rescore(str(tmp_path), "--check") == 1
    path.unlink()
    assert _rescore(str(tmp_path), "--check") == 1
    assert not path.exists()  # a check writes nothing


def test_a_key_that_an_older_file_lacks_is_no_difference_and_is_added(tmp_path: pathlib.Path) -> None:
    groups = score(tmp_path, "suite_composition[:4]")["suites"]["suite_composition[:4]"]["group_intervals"]
    name = next(iter(groups))
    path = tmp_path / "scores.json"
    older = json.loads(path.read_text())
    del older["suites"]["suite_composition[:4]"]["group_intervals"]
    path.write_text(json.dumps(older))
    assert _rescore(str(tmp_path), "--check") == 0 and json.loads(path.read_text()) == older
    assert _rescore(str(tmp_path)) == 0
    kept = json.loads(path.read_text())
    assert kept["suites"]["suite_composition[:4]"]["group_intervals"] == groups
    kept["suites"]["suite_composition[:4]"]["group_intervals"][name]["low"] = 12.5
    path.write_text(json.dumps(kept))
    assert _rescore(str(tmp_path), "--check") == 1
