"""`flanx store show | mix | verify` and what they print; `build` through gin."""

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


def mix(folder: str, *flags: str, **bound: object) -> list[str]:
    """`flanx store mix` of a small setting; `bound` binds gin names."""
    bound = {"TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 32}, "BATCH_SIZE": 8, "TRAIN_STEPS": 40} | bound
    return ["store", "mix", folder, *flags, *(f"--gin.{name}={value!r}" for name, value in bound.items())]


def test_mix_as_table_json_and_plot(folder, tmp_path, capsys):
    image = tmp_path / "mix.png"
    assert main.main(mix(folder, "--tasks", "--plot", str(image), MIXTURE_OR_TASK_NAME="cot")) == 0
    out = capsys.readouterr().out
    assert "missing: cot_9" in out and "60.00%" in out and image.stat().st_size > 5000
    asked = {"MIXTURE_OR_TASK_NAME": "cot", "mixture.Mixture.caps": {"cot": 20}}
    assert main.main(mix(folder, "--json", str(tmp_path / "mix.json"), **asked)) == 0
    table = json.loads((tmp_path / "mix.json").read_text())
    assert table["tasks"]["cot_a"]["share"] == pytest.approx(0.5)
    assert table["examples"] == pytest.approx(40 * 8 * table["examples_per_row"], rel=1e-3)
    assert table["tasks"]["cot_b"]["epochs"] == pytest.approx(table["examples"] / 2 / 20)  # in both styles
    assert 0 <= table["padding"]["first_full"] < table["padding"]["targets"] < 1


def test_mix_reads_the_gin_files_of_a_run(folder, tmp_path, capsys):
    bound = {"STORE_DIR": folder, "BATCH_SIZE": 4, "TRAIN_STEPS": 10, "MIXTURE_OR_TASK_NAME": "muffin"}
    bound |= {"TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 32}}
    files = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/train.gin"]
    gin = [f"--gin.{name}={value!r}" for name, value in bound.items()]
    assert main.main(["store", "mix", *files, *gin, "--json", "-"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["steps"], table["batch_size"], set(table["tasks"])) == (10, 4, {"muffin_c"})


def test_mix_of_a_list_of_names_with_rates(folder, tmp_path):
    asked = {"MIXTURE_OR_TASK_NAME": [("cot_a", 0.3), ("muffin", 0.7)]}
    assert main.main(mix(folder, "--json", str(tmp_path / "mix.json"), **asked)) == 0
    table = json.loads((tmp_path / "mix.json").read_text())
    assert {name: task["share"] for name, task in table["tasks"].items()} == {"cot_a": 0.3, "muffin_c": 0.7}


def test_verify(folder, capsys):
    assert main.main(["store", "verify", folder]) == 0
    assert "intact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["show", "/nowhere"], "/nowhere: no such store"),
        (["verify", "/nowhere"], "/nowhere: no such store"),
        (["mix", "FOLDER"], "gin macro 'MIXTURE_OR_TASK_NAME' has no value"),
        (["mix", "--gin.MIXTURE_OR_TASK_NAME='cot'"], "gin macro 'STORE_DIR' has no value"),
        (["mix", "FOLDER", "--gin.MIXTURE_OR_TASK_NAME='muffi'"], "did you mean 'muffin'"),
        (["mix", "FOLDER", "--gin.MIXTURE_OR_TASK_NAME='cot'", "--gin.COT_RATIO=2"], "COT_RATIO is 2"),
        (["mix", "FOLDER", "--gin.MIXTURE_OR_TASK_NAME='cot'", "--gin.NUM_TASKS=4"], "NUM_TASKS 4: the store"),
        (
            ["build", "--gin.STORE_DIR='/x'", "--gin.VOCABULARY='byte'", "--gin.MIXTURE_OR_TASK_NAME='no_such'"],
            "no_such",
        ),
        (["build", "--gin.STORE_DIR='/x'"], "VOCABULARY"),
    ],
)
def test_bad_input_is_a_few_lines_and_status_2(folder, asked, message, capsys):
    assert main.main(["store", *(folder if a == "FOLDER" else a for a in asked)]) == 2
    err = capsys.readouterr().err
    assert message in err and 1 <= err.count("\n") <= 5 and "Traceback" not in err
