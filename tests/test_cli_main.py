"""The program: its commands, its exit statuses."""

import argparse
import contextlib
import gc
import os
import subprocess
import sys

import pytest

from flanx.cli import gin_flags, main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train"], "no --gin_file given"),
        (["train", "--gin_file=runs/tran.gin"], "did you mean 'runs/train.gin'?"),
        (["recipe", "list", "--gin.SEED=1"], "--gin.SEED=1: this command takes no gin bindings"),
        (["tasks", "list", "--gin.SEED=1"], "takes --gin.DATA_DIR alone"),
        (["tasks", "list", "--gin.DATA_DIR=5"], "a text keeps its quotes"),
        (["tasks", "list", "--gin.DATA_DIR='~nosuchuser/x'"], "there is no home folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, said, capsys):
    assert main.main(arguments) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "flan-t5-xl"], "give a recipe or a gin file as --gin_file=recipes/flan_t5_xl.gin"),
        (["evaluate", "mine/a.gin"], "give a recipe or a gin file as --gin_file=mine/a.gin"),
        (["train", "flan_t5_huge"], "`flanx train --help` lists what it takes"),
        (["recipe", "list", "flan_t5_xl"], "`flanx recipe --help` lists what it takes"),
    ],
)
def test_a_recipe_without_its_flag_is_told_how_it_is_given(arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main.main(arguments)
    assert capsys.readouterr().err.endswith(f"; {said}\n")


def test_the_program_starts_without_jax_or_tensorflow():
    heavy = ("jax", "tensorflow", "gin")
    code = (
        f"import sys, flanx.cli.main; flanx.cli.main.main(['trian']); print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_listing_does_without_locks_and_versions():
    code = (
        "import sys\nfrom flanx.cli import main\nmain.main(['tasks', 'list'])\n"
        "print([name for name in ('filelock', 'importlib.metadata', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]" and "niv2" in done.stdout


def test_collections_begin_when_a_command_has_imported_its_modules(monkeypatch):
    from flanx import bucket, config

    monkeypatch.setattr(gin_flags, "parse_gin", lambda args: None)
    monkeypatch.setattr(main.cluster, "joined", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(bucket, "opened", lambda _: contextlib.nullcontext())
    for name, value in {"text": "", "value": None, "call": None}.items():
        monkeypatch.setattr(config, name, lambda *_, value=value: value)
    gc.disable()
    try:
        main.run_call(main.COMMANDS["infer"], argparse.Namespace())
        assert gc.isenabled() and gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
        gc.enable()


@pytest.mark.parametrize(("command", "status"), [(["tasks", "list", "niv2"], {141}), (["recipe", "list"], {1, 141})])
def test_a_closed_pipe_ends_a_command_quietly(command, status):
    """141 as after SIGPIPE; with some versions of rich its own tables end with 1."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "flanx", *command], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode in status and not done.stderr


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_of_the_table_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main.main([name, "--help"])
    assert ended.value.code == 0
    assert main.COMMANDS[name].summary.split()[0] in capsys.readouterr().out


def test_help_lists_every_command_without_importing_them():
    code = (
        "import sys\nfrom flanx.cli import main\nmain.main([])\n"
        "print([name for name in sys.modules if name.startswith('flanx.cli.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = ("interrupt", "gin_flags", "short_form", "main")
    assert done.stdout.splitlines()[-1] == str([f"flanx.cli.{name}" for name in names])
    assert all(f"\n    {name}" in done.stdout for name in main.COMMANDS)


def test_paths_of_gin_files_mean_what_people_mean(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    assert gin_flags.search_paths("~/a, ~/a,") == f"{tmp_path}/a,{tmp_path}/a" and gin_flags.search_paths("") == ""
    with pytest.raises(argparse.ArgumentTypeError, match="no folder 'nosuch'"):
        gin_flags.search_paths("~/a,nosuch")
