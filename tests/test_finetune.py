"""`flanx finetune`: the commands that it prints and runs."""

import json
import os
import pathlib

import pytest

from flanx.cli import main
from flanx.convert import flanx_format
from flanx.files import read_json, read_jsonl
from flanx.storage import open_storage
from tests.hub_case import write_model


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The working folder, with a model in `small` and a file of 40 sums."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLANX_TABLES", "")
    write_model(tmp_path / "small")
    rows = [{"q": f"what is {n} + 1?", "a": str(n + 1)} for n in range(40)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


WORDS = ["finetune", "--checkpoint", "small", "--data", "my.jsonl", "--inputs", "q", "--targets", "a", "--steps", "2",
         "--inputs_length", "64", "--targets_length", "16", "--output", "out/ft"]  # fmt: skip


def test_the_commands_are_printed_in_order_and_a_failure_ends_them(folder, monkeypatch, capsys):
    done: list[list[str]] = []
    own = main.main

    def record(words: list[str]) -> int:
        done.append(words)
        return own(words) if words[0] == "tasks" else 1 if words[0] == "train" else 0

    monkeypatch.setattr(main, "main", record)
    assert own(WORDS) == 1
    assert [words[0] for words in done] == ["tasks", "store", "train"]
    printed = ("flanx tasks add", "flanx store build", "flanx train", "export")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(printed)]
    assert said[0] == "flanx tasks add my.jsonl --inputs=q --targets=a --output=out/ft/task"
    assert f"export FLANX_TABLES={folder}/out/ft/task" in said
    assert "--gin.MIXTURE_OR_TASK_NAME=\"'own_my'\"" in said[-1] and "--gin.TRAIN_STEPS=2" in said[-1]
    assert os.environ["FLANX_TABLES"] == f"{folder}/out/ft/task"
    assert "lora" not in said[-1]
    done.clear()
    own([*WORDS, "--lora", "16"])
    assert {"--gin_file=runs/lora.gin", "--gin.LORA_RANK=16"} <= {*done[-1]}
    done.clear()
    own(WORDS)
    assert [words[0] for words in done] == ["store", "train"]  # the task is there
    assert own(["a" if word == "q" else word for word in WORDS]) == 2
    assert "out/ft was made with inputs 'q', now it is 'a': give another --output" in capsys.readouterr().err


def test_an_adapter_and_gin_files_are_of_the_training_and_a_share_kept_apart_is_scored(folder, monkeypatch, capsys):
    done: list[list[str]] = []
    own = main.main

    def record(words: list[str]) -> int:
        done.append(words)
        return own(words) if words[0] == "tasks" else 0

    monkeypatch.setattr(main, "main", record)
    (folder / "more.gin").write_text("SEED = 1\n")
    assert own([*WORDS, "--lora", "4", "--gin_file=more.gin", "--validation_share=0.1"]) == 0
    given = [[word for word in words if word.startswith("--gin_file")] for words in done[1:]]
    assert given == [["--gin_file=runs/store.gin"],
                     ["--gin_file=runs/train.gin", "--gin_file=runs/lora.gin", "--gin_file=more.gin"]]  # fmt: skip
    assert "--gin.LORA_RANK=4" in done[2]
    scored = "score it: flanx evaluate --checkpoint out/ft/run --suites own_my:validation --output out/ft/scores"
    assert scored in capsys.readouterr().out.splitlines()


def test_wrong_data_leave_nothing(folder, capsys):
    assert main.main([word if word != "q" else "question" for word in WORDS]) == 2
    assert "no column 'question'" in capsys.readouterr().err
    assert not (folder / "out" / "ft" / "task").exists() and not (folder / "out" / "ft" / "run").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--gin_file=nosuch.gin"], "nosuch.gin"),
        (["--gin.LEARNING_RATE=-1"], "LEARNING_RATE"),
        (["--gin.NOSUCH=1"], "NOSUCH"),
        (["--dtype=float99"], "float99"),
    ],
)
def test_what_training_would_refuse_is_refused_before_a_task_is_made(folder, capsys, more, said):
    assert main.main([*WORDS, *more]) == 2
    assert said in capsys.readouterr().err and not (folder / "out").exists()


def test_data_that_changed_are_not_taken_for_those_of_the_task(folder, monkeypatch, capsys):
    own = main.main
    monkeypatch.setattr(main, "main", lambda words: own(words) if words[0] == "tasks" else 0)
    assert own(WORDS) == 0 and own(WORDS) == 0
    with open("my.jsonl", "a") as file:
        file.write('{"q": "what is 9 + 9?", "a": "18"}\n')
    assert own(WORDS) == 2
    assert "out/ft was made with sha256 " in capsys.readouterr().err
    record = read_json(folder / "out" / "ft" / "finetune.json")
    (folder / "out" / "ft" / "finetune.json").write_text(json.dumps({k: v for k, v in record.items() if k != "sha256"}))
    assert own(WORDS) == 0  # of an earlier version


@pytest.mark.slow
def test_a_checkpoint_learns_and_answers_without_a_gin_file(folder, capsys):
    assert main.main(WORDS) == 0, capsys.readouterr().err
    assert read_json(folder / "out" / "ft" / "run" / "run.json")["initial_checkpoint_path"] == "small"
    assert main.main(WORDS) == 0 and "already done" in capsys.readouterr().out
    (folder / "p.txt").write_text("what is 3 + 1?\n")
    assert main.main(["infer", "--checkpoint", "out/ft/run", "--prompts", "p.txt", "--output", "a.jsonl"]) == 0
    assert "'inputs': 64" in capsys.readouterr().out and len(read_jsonl(folder / "a.jsonl")) == 1
    words = ["evaluate", "--checkpoint", "out/ft/run", "--suites", "own_my:train[:2]"]
    assert main.main(words) == 0, capsys.readouterr().err
    assert read_json(folder / "out" / "ft" / "scores" / "scores.json")["suites"].keys() == {"own_my:train[:2]"}


@pytest.mark.slow
def test_an_adapter_of_a_file_is_taken_by_every_command(folder, capsys):
    def said(*words: str, status: int = 0) -> str:
        assert main.main([*words]) == status, capsys.readouterr().err
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    assert "trains 384 of " in said(*WORDS, "--lora", "2")
    run = folder / "out" / "ft" / "run"
    assert read_json(run / "run.json")["adapter"]["rank"] == 2
    held = flanx_format.read(open_storage(run), optimizer=False)
    assert len(held) > 1 and all("/lora_" in name or name == "state/step" for name in held)
    (folder / "p.txt").write_text("what is 3 + 1?\n")
    said("infer", "--checkpoint", "out/ft/run", "--prompts", "p.txt", "--output", "a.jsonl")
    said("evaluate", "--checkpoint", "out/ft/run", "--suites", "own_my:train[:2]")
    scores = read_json(folder / "out" / "ft" / "scores" / "scores.json")
    assert scores["suites"].keys() == {"own_my:train[:2]"} and scores["run"]["step"] == 2
    said("report", "out/ft/run")
    assert "loss" in (run / "report.md").read_text()
    said("convert", "out/ft/run", "out/hf", "--to", "hf", "--scores", "out/ft/scores")
    said("convert", "out/ft/run", "out/peft", "--to", "peft", "--with-base", "--scores", "out/ft/scores")
    assert "| `adapter.rank` | `2` |" in (folder / "out" / "peft" / "README.md").read_text()
    assert "own_my:train[:2]" in (folder / "out" / "peft" / "README.md").read_text()
    assert "files go to hf:org/mine" in said("push", "out/hf", "hf:org/mine")
    answers = [(folder / "a.jsonl").read_text()]
    for number, place in enumerate(("out/hf", "out/peft")):
        words = ["infer", "--checkpoint", place, "--prompts", "p.txt", "--output", f"a{number}.jsonl"]
        said(*words, "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16}")
        answers.append((folder / f"a{number}.jsonl").read_text())
    assert answers[0] == answers[1] == answers[2]
    on = [*WORDS[:-1], "out/more", "--lora", "2", "--gin.LORA_START='out/peft'"]
    assert "trains 384 of " in said(*on)
    assert read_json(folder / "out/more/run/run.json")["adapter"]["start"] == "out/peft"
    (folder / "small").rename(folder / "moved")
    for words in (["infer", "--prompts", "p.txt", "--output", "b.jsonl"], ["evaluate", "--suites", "suite_rule[:1]"]):
        err = said(words[0], "--checkpoint", "out/ft/run", *words[1:], status=2)
        assert "the base of the adapter" in err and "no folder" in err and err.count("\n") == 1
    write_model(folder / "small", seed=1)
    err = said("convert", "out/ft/run", "out/x", "--to", "hf", status=2)
    assert "is an adapter of another base: small has fingerprint" in err and err.count("\n") == 1


def test_what_to_ask_it_then_can_be_typed_where_the_folder_has_spaces(folder, monkeypatch, capsys):
    own = main.main
    monkeypatch.setattr(main, "main", lambda words: own(words) if words[0] == "tasks" else 0)
    assert own([*WORDS[:-1], "out/my ft"]) == 0
    assert "ask it: flanx infer --checkpoint 'out/my ft/run' --prompts" in capsys.readouterr().out
