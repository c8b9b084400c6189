"""`flanx explain`: the value that holds, the lines that set it, what it means."""

import json

import pytest

from flanx.cli import main

RUN = ["explain", "--gin_file=runs/train.gin", "--gin_file=mixtures/suite.gin", "--gin_file=models/t5_1_1/tiny.gin"]


def explain(capsys: pytest.CaptureFixture, *more: str) -> dict[str, dict]:
    """What the command prints as JSON."""
    assert main.main([*RUN, "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_macro_tells_who_set_it_and_who_uses_it(capsys):
    found = explain(capsys, "--gin.BATCH_SIZE=8", "BATCH_SIZE")["BATCH_SIZE"]
    assert found["value"] == "8"
    assert [place.rpartition("gin/")[2].partition(":")[0] for place, _ in found["locations"]] == [
        "runs/train.gin",
        "the command line",
    ]
    assert [use.rpartition(".")[2] for use in found["uses"]] == ["batch_size"]
    assert found["meaning"] == "packed rows; Table 22 of the paper"


def test_a_parameter_resolves_its_macro_and_brings_type_and_meaning(capsys):
    found = explain(capsys, "--gin.LEARNING_RATE=0.25", "adafactor.learning_rate")["optim.adafactor.learning_rate"]
    assert (found["value"], found["locations"][-1][1]) == ("0.25", "%LEARNING_RATE")
    assert "rate" in found["meaning"] and "float" in found["annotation"]


def test_a_function_shows_its_defaults_too(capsys):
    found = explain(capsys, "optim.adafactor")
    assert found["optim.adafactor.decay_rate"]["value"] == "0.8"
    assert found["optim.adafactor.decay_rate"]["locations"] == []


def test_without_a_name_every_line_that_is_set_is_listed(capsys):
    assert main.main(RUN) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("STORE_DIR"))
    assert row.split()[1] == "unset" and row.split()[2].startswith("runs/train.gin:")
    assert "optim.adafactor.decay_rate" not in out


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    assert main.main([*RUN, "BATCHSIZE"]) == 2
    assert "did you mean 'BATCH_SIZE'?" in capsys.readouterr().err
