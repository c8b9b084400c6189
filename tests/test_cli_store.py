"""`flanx store show | mix | verify` and what they say; `build` through gin."""

import json

import pytest

from flanx.cli import main
from tests import store_maker

BUILD = ["--gin.STORE_DIR='/tmp/no_store'", "--gin.VOCABULARY='byte'"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    missing = {"cot_9": {"collection": "cot", "reason": "no file nine.tsv"}}
    sizes = {"cot/cot_a": 30, "cot/cot_b": 20, "muffin/muffin_c": 50}
    made = store_maker.make(tmp_path_factory.mktemp("store"), sizes, ("zsopt", "fsopt"), missing=missing)
    return str(made.path)


def test_show(folder, capsys):
    assert main.main(["store", "show", folder, "--tasks"]) == 0
    out = capsys.readouterr().out
    assert "missing: task cot_9: no file nine.tsv" in out
    line = next(line for line in out.splitlines() if line.startswith("cot "))
    assert line.split()[1:4] == ["2", "50", "100"]  # tasks, examples, rendered in two styles
    assert main.main(["store", "show", folder, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"]["muffin_c"]["examples"] == 50 and found["missing"] == {"cot_9": "no file nine.tsv"}


def test_mix_as_table_json_and_picture(folder, tmp_path, capsys):
    asked = ["store", "mix", folder, "--mixture", "cot", "--lengths", "64,32", "--batch_size", "8", "--steps", "40"]
    picture = tmp_path / "mix.png"
    assert main.main([*asked, "--tasks", "--picture", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "missing: cot_9" in out and "60.00%" in out and picture.stat().st_size > 5000
    assert main.main([*asked, "--caps", "cot=20", "--json", str(tmp_path / "mix.json")]) == 0
    table = json.loads((tmp_path / "mix.json").read_text())
    assert table["tasks"]["cot_a"]["share"] == pytest.approx(0.5)
    assert table["examples"] == pytest.approx(40 * 8 * table["examples_per_row"], rel=1e-3)
    assert table["tasks"]["cot_b"]["epochs"] == pytest.approx(table["examples"] / 4 / 20)
    assert 0 <= table["padding"]["first_full"] < table["padding"]["targets"] < 1


def test_mix_reads_a_runs_gin_files(folder, tmp_path, capsys):
    (tmp_path / "run.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from flanx.data.pipeline import mixture\n"
        "from flanx.data.pipeline import batches\n"
        f"STORE_DIR = '{folder}'\nMIXTURE_OR_TASK_NAME = 'muffin'\n"
        "TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 32}\nBATCH_SIZE = 4\nTRAIN_STEPS = 10\n"
        "mixture.Mixture.name = %MIXTURE_OR_TASK_NAME\n"
        "batches.Batches:\n  store = %STORE_DIR\n  lengths = %TASK_FEATURE_LENGTHS\n  batch_size = %BATCH_SIZE\n"
        "  seed = %TRAIN_STEPS\n"
    )
    assert main.main(["store", "mix", "--gin_file", str(tmp_path / "run.gin"), "--json", "-"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["steps"], table["batch_size"], set(table["tasks"])) == (10, 4, {"muffin_c"})


def test_verify(folder, capsys):
    assert main.main(["store", "verify", folder]) == 0
    assert "sound" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["show", "/nowhere"], "/nowhere: no such store"),
        (["verify", "/nowhere"], "/nowhere: no such store"),
        (["mix", "FOLDER"], "name a mixture"),
        (["mix", "--mixture", "cot"], "name a store"),
        (["mix", "FOLDER", "--mixture", "muffi"], "did you mean 'muffin'"),
        (["mix", "FOLDER", "--mixture", "cot", "--rates", "cot:3"], "--rates cot:3: give name=number"),
        (["mix", "FOLDER", "--mixture", "cot", "--lengths", "64"], "--lengths 64: give inputs,targets"),
        (["mix", "FOLDER", "--mixture", "cot", "--cot_ratio", "2"], "COT_RATIO 2.0"),
        (["mix", "FOLDER", "--mixture", "cot", "--num_tasks", "4"], "NUM_TASKS 4: the store"),
        (
            ["build", "--gin.STORE_DIR='/x'", "--gin.VOCABULARY='byte'", "--gin.MIXTURE_OR_TASK_NAME='no_such'"],
            "no_such",
        ),
        (["build", "--gin.STORE_DIR='/x'"], "VOCABULARY"),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder, asked, message, capsys):
    assert main.main(["store", *(folder if a == "FOLDER" else a for a in asked)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and "Traceback" not in err
