"""Commands without a gin file: what they print, typed, is what they do."""

import argparse
import json
import pathlib
import shlex
from typing import Any

import pytest

from flanx import files
from flanx.cli import main, short_form
from flanx.errors import UserError
from tests.hub_case import write_model


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The working folder, with a model in `small` and prompts."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "small")
    (tmp_path / "p.txt").write_text('abc\nit\'s "so" $x\n')
    return tmp_path


def expanded(command: str, *words: str) -> argparse.Namespace:
    """What a command line with flags stands for."""
    parser = main.Parser()
    short_form.add_arguments(parser, command)
    args = parser.parse_args(words, argparse.Namespace(gin_file=[], bindings=[]))
    short_form.expand(command, args)
    return args


def test_the_line_printed_is_what_is_done(folder, monkeypatch, capsys):
    seen: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr(main, "run_call", lambda _, args: seen.append((args.gin_file, args.bindings)) or 0)
    for words in (
        ["infer", "--checkpoint", "small", "--prompts", "p's $a.txt", "--output", "out.jsonl", "--temperature", "0.7"],
        ["evaluate", "--checkpoint", "small", "--suites", "suite_rule[:1]", "bbh_cot", "--data_dir", "sample"],
    ):
        assert main.main(words) == 0
        line = capsys.readouterr().out.removeprefix("this is: flanx ")
        assert main.main(shlex.split(line)) == 0
        assert capsys.readouterr().out == ""
    assert seen[0] == seen[1] and seen[2] == seen[3]
    bound = dict(each.split("=", 1) for each in seen[0][1])
    assert bound["INFER_OUTPUT_DIR"] == "'out.jsonl.flanx'" and bound["TEMPERATURE"] == "0.7"
    assert {bound[name] for name in ("MODEL", "CHECKPOINT_PATH", "VOCABULARY")} == {"'small'"}
    bound = dict(each.split("=", 1) for each in seen[2][1])
    assert bound["SUITES"] == "['suite_rule[:1]', 'bbh_cot']" and bound["OUTPUT_DIR"] == "'out/small/scores'"


def test_a_run_gives_its_lengths_and_a_hub_name_its_prefix(folder, monkeypatch):
    record: dict[str, Any] = {"data": {"lengths": {"inputs": 32, "targets": 16}, "store": {"vocabulary": "byte"}}}
    (folder / "small" / "run.json").write_text(json.dumps(record))
    args = expanded("infer", "--checkpoint", "small", "--prompts", "p.txt", "--output", "out")
    assert "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 16}" in args.bindings
    assert "INFER_OUTPUT_DIR='out'" in args.bindings and not any("INFER_OUTPUT_FILE" in each for each in args.bindings)
    monkeypatch.setattr("flanx.data.vocabulary.named_in", lambda path: ("byte", None))
    args = expanded("evaluate", "--checkpoint", "org/small@v1", "--suites", "bbh_cot")
    assert "MODEL='hf:org/small@v1'" in args.bindings and "OUTPUT_DIR='out/small/scores'" in args.bindings


def test_scores_of_two_runs_do_not_share_a_folder(folder):
    for name in ("out/a/run", "out/b/run", "b/small"):
        write_model(folder / name)
    args = expanded("evaluate", "--checkpoint", "out/a/run", "--suites", "bbh_cot")
    assert "OUTPUT_DIR='out/a/scores'" in args.bindings
    args = expanded("evaluate", "--checkpoint", "out/b/run", "--suites", "bbh_cot")
    assert "OUTPUT_DIR='out/b/scores'" in args.bindings
    kept = folder / "out" / "small" / "scores" / "scores.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"suites": {}, "run": {"checkpoint": "small"}}))
    assert "OUTPUT_DIR='out/small/scores'" in expanded("evaluate", "--checkpoint", "./small", "--suites", "x").bindings
    with pytest.raises(UserError, match="out/small/scores has the scores of small: give those of b/small a folder"):
        expanded("evaluate", "--checkpoint", "b/small", "--suites", "bbh_cot")
    with pytest.raises(UserError, match="out/small/scores has the scores of small"):
        expanded("evaluate", "--checkpoint", "b/small", "--suites", "bbh_cot", "--output", "out/small/scores")


def test_what_is_missing_is_named(folder):
    with pytest.raises(UserError, match="--checkpoint, --output is missing: add it, or leave out --prompts"):
        expanded("infer", "--prompts", "p.txt")
    with pytest.raises(UserError, match="--suites is missing"):
        expanded("evaluate", "--checkpoint", "small")
    with pytest.raises(UserError, match="checkpoint none: no such folder, or nothing in it; a name of the hub is hf:"):
        expanded("infer", "--checkpoint", "none", "--prompts", "p.txt", "--output", "out")
    (folder / "ft" / "run").mkdir(parents=True)
    (folder / "ft" / "finetune.json").touch()
    with pytest.raises(UserError, match=r"no checkpoint in .*; the run of `flanx finetune` is .*ft/run"):
        expanded("infer", "--checkpoint", "ft", "--prompts", "p.txt", "--output", "out")
    (folder / "small" / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="small has no vocabulary that flanx reads: add --vocabulary byte"):
        expanded("infer", "--checkpoint", "small", "--prompts", "p.txt", "--output", "out")


def test_answers_without_a_gin_file_go_into_the_file_and_are_resumed(folder, capsys):
    words = ["infer", "--checkpoint", "small", "--prompts", "p.txt", "--output", "a/out.jsonl"]
    words += ["--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 4}"]
    assert main.main(words) == 0, capsys.readouterr().err
    rows = files.read_jsonl(folder / "a" / "out.jsonl")
    assert [row["inputs"] for row in rows] == ["abc", 'it\'s "so" $x']
    assert main.main(words) == 0 and "0 prompts" in capsys.readouterr().out
