"""`flanx suites`: which there are, and what a model reads of one."""

import json
import pathlib

import pytest

from flanx.cli.main import main

TABLE = '[capitals]\nsource = "jsonl:rows.jsonl"\nprompt = "Q: Capital of {country}?\\nA:"\nanswer = "city"\n'


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    suites = tmp_path / "mine" / "suites"
    suites.mkdir(parents=True)
    (suites / "own.toml").write_text(TABLE)
    (suites / "rows.jsonl").write_text(json.dumps({"country": "Peru", "city": "Lima"}) + "\n")
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path / "mine"))
    return suites


def test_list_says_where_each_is_defined(folder: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["suites", "list"]) == 0
    printed = capsys.readouterr().out
    assert f"{folder / 'own.toml'}:1" in printed and "tasks/suites/gsm8k.toml:" in printed and "bbh_cot" in printed
    assert main(["suites", "list", "cap*"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["suite", "capitals"]
    assert main(["suites", "list", "capitls"]) == 2
    assert "no evaluation suite 'capitls'; did you mean 'capitals'" in capsys.readouterr().err


def test_show_prints_prompts_and_right_answers(folder: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["suites", "show", "capitals"]) == 0
    printed = capsys.readouterr().out
    assert "capitals: 1 items, hash " in printed and "Q: Capital of Peru?\nA:\n--- right: Lima\n" in printed
    assert main(["suites", "show", "mmlu_test_lm_eval[astronomy]", "--data_dir", "sample", "--n", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("--- right:") == 2 and "of [' A', ' B', ' C', ' D']" in printed
    (folder / "rows.jsonl").write_text('{"country": "Peru"}\n')
    assert main(["suites", "show", "capitals"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "own.toml:4: answer names 'city', which " in error
