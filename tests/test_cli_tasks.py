"""`flanx tasks list` and `show`, as a user types them."""

import json
import os
import subprocess
import sys
import time

import pytest

from flanx.cli.main import main


def test_list_counts_the_collections(capsys):
    assert main(["tasks", "list", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["collections"] == {"cot": 9, "muffin": 80, "t0_sf": 193, "niv2": 1554}
    assert said["total"] == 1836
    assert {k: said["held_out"][k] for k in ("mmlu", "bbh", "tydiqa", "mgsm")} == {
        "mmlu": 57,
        "bbh": 27,
        "tydiqa": 8,
        "mgsm": 10,
    }
    assert len({task["name"] for task in said["tasks"]}) == len(said["tasks"]) >= 1836
    assert main(["tasks", "list"]) == 0
    assert "1,836" in capsys.readouterr().out
    assert main(["tasks", "list", "cot_*"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_list_takes_less_than_a_second_and_no_tensorflow():
    code = (
        "import sys, time; start = time.process_time(); "
        "from flanx.cli.main import main; main(['tasks', 'list', '--json']);"
        "print(time.process_time() - start, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *modules = done.stderr.split()
    assert float(seconds) < 1
    assert not {"tensorflow", "seqio", "jax"} & set(modules)


def test_show_prints_what_the_model_sees_in_less_than_five_seconds(data_dir, capsys):
    start = time.process_time()
    assert main(["tasks", "show", "cot_gsm8k", "--style", "fsopt", "--n", "2", "--data_dir", str(data_dir)]) == 0
    assert time.process_time() - start < 5
    out = capsys.readouterr().out
    assert out.count("cot_gsm8k  fsopt  cot_") == 2 and "tokens, 0.0% unknown of 2048)" in out
    assert main(["tasks", "show", "cot_gsm8k_zsopt", "--n", "1", "--json", "--data_dir", str(data_dir)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["style"], row["row"]) == ("zsopt", "train:0")
    assert row["inputs_size"]["tokens"] == len(row["inputs"].encode()) + 1
    one = ["tasks", "show", "cot_gsm8k", "--n", "1", "--gin.DATA_DIR='" + str(data_dir) + "'"]
    for template in ("cot_math:3", "3"):
        assert main([*one, "--template", template]) == 0
        assert "cot_math:3" in capsys.readouterr().out
    assert main([*one, "--style", "fsopt", "--shots", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shots"] == 2
    assert main([*one, "--template", "nli:3"]) == 2
    assert "no example of style zsopt in split train with template nli:3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["show", "cot_gsm9k"], "no task 'cot_gsm9k'; did you mean 'cot_gsm8k'"),
        (["show", "cot_gsm8k", "--style", "zsnoopt", "--data_dir", "/nowhere"], "has no style 'zsnoopt'"),
        (["show", "cot_gsm8k", "--split", "test", "--data_dir", "/nowhere"], "has no split 'test' (it has train)"),
        (["show", "cot_gsm8k", "--data_dir", "/nowhere"], "no file /nowhere/cot/gsm8k_train.tsv"),
        (["show", "cot_gsm8k"], "name it by --data_dir or --gin.DATA_DIR, as the command takes it, or in"),
        (["show", "cot_gsm8k", "--gin.DATA_DIR=data"], "a text keeps its quotes"),
        (["show", "cot_gsm8k", "--vocabulary", "/nowhere/x.model", "--data_dir", "/nowhere"], "/nowhere/x.model"),
        (["list", "nothing_*"], "no mixture, collection or task 'nothing_*'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(command, message, capsys, monkeypatch):
    monkeypatch.delenv("FLANX_DATA_DIR", raising=False)
    assert main(["tasks", *command]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_colours_only_for_a_terminal(capsys, monkeypatch, data_dir):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["tasks", "show", "cot_gsm8k", "--n", "1", "--data_dir", str(data_dir)])
    assert "\x1b[32m" in capsys.readouterr().out
    monkeypatch.setitem(os.environ, "NO_COLOR", "1")
    main(["tasks", "show", "cot_gsm8k", "--n", "1", "--data_dir", str(data_dir)])
    assert "\x1b[" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "given", [["--n", "-1"], ["--n", "0"], ["--skip", "-3"], ["--shots", "0"], ["--rendering", "x"]]
)
def test_a_count_that_is_none_is_named(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["tasks", "show", "cot_gsm8k", *given])
    assert f"argument {given[0]}: '{given[1]}'; it takes a whole number" in capsys.readouterr().err


def test_show_says_at_once_that_data_are_absent_and_how_to_get_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert main(["tasks", "show", "muffin_rte"]) == 2
    assert "no prepared super_glue/rte" in (said := capsys.readouterr().err) and "flanx tasks fetch muffin_rte" in said
    assert main(["tasks", "show", "cot_qed", "--data_dir", str(tmp_path)]) == 2
    assert "qed_train.tsv; run: flanx tasks fetch cot_qed" in capsys.readouterr().err
