"""`flanx doctor`: fails where jax runs on another platform than the machine or the user says."""

import json
import pathlib

import pytest

from flanx.cli import doctor, main


def findings(capsys: pytest.CaptureFixture, *flags: str, status: int = 0) -> dict[str, dict[str, str]]:
    """What the command prints as JSON, by subject."""
    assert main.main(["doctor", "--json", *flags]) == status
    return {finding["subject"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_a_machine_that_runs_these_tests_is_well(capsys):
    found = findings(capsys, "--expect=cpu", "--vocabulary=byte")
    assert found["jax"]["state"] == found["matrix product"]["state"] == "ok"
    assert "(cpu)" in found["devices"]["seen"]
    assert "259 pieces" in found["vocabulary"]["seen"]


def test_another_platform_than_the_expected_is_bad(capsys):
    found = findings(capsys, "--expect=tpu", status=1)
    assert found["devices"]["state"] == "bad" and "not tpu" in found["devices"]["seen"]


def test_an_accelerator_that_jax_does_not_use_is_bad(capsys, monkeypatch, tmp_path: pathlib.Path):
    monkeypatch.setattr(doctor, "SIGNS", {"gpu": ((str(tmp_path),), ())})
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = findings(capsys, status=1)
    assert "not gpu: pip install 'jax[cuda" in found["devices"]["seen"]


def test_too_few_devices_an_old_package_a_missing_store(capsys, monkeypatch, tmp_path: pathlib.Path):
    monkeypatch.setattr(
        doctor.importlib.metadata, "requires", lambda _: ["numpy>=99.0", "not-there>=1.0", "x; extra == 'y'"]
    )
    (tmp_path / "empty").mkdir()
    found = findings(capsys, "--devices=4096", f"--store_dir={tmp_path}", f"--data_dir={tmp_path / 'empty'}", status=1)
    bad = {subject for subject, finding in found.items() if finding["state"] == "bad"}
    assert bad == {"numpy", "not-there", "devices", "store", "data"}
    assert "pip install 'numpy>=99.0'" in found["numpy"]["seen"]


def test_an_old_package_of_an_extra_is_a_note(capsys, monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: ["numpy>=99.0; extra == 'tpu-plan'"])
    found = findings(capsys)
    assert found["numpy"]["state"] == "note" and "for the extra 'tpu-plan'" in found["numpy"]["seen"]


@pytest.mark.parametrize("given", ["--data_dir=nosuch", "--store_dir=nosuch", "--vocabulary=nosuch"])
def test_a_given_path_that_is_not_there_is_bad_input(given, capsys):
    assert main.main(["doctor", given]) == 2
    assert f"{given}: no such" in capsys.readouterr().err


LORA = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/lora.gin", "--gin.BATCH_SIZE=8"]


def test_the_memory_of_a_run_is_told_with_what_it_trains(capsys, monkeypatch):
    found = findings(capsys, *LORA)["memory of the run"]
    assert found["state"] == "ok" and "optimizer 0.000" in found["seen"] and "; trains 12,288 of " in found["seen"]
    monkeypatch.setattr(doctor, "_memory", lambda device, count: 1e6)
    found = findings(capsys, *LORA, status=1)["memory of the run"]
    assert found["state"] == "bad" and "of 0.001 GB a device" in found["seen"] and "`flanx plan`" in found["seen"]
    found = findings(capsys, *LORA, "--gin.NUM_PARTITIONS=3", status=1)["memory of the run"]
    assert "8 rows do not divide over 8 devices with NUM_PARTITIONS 3" in found["seen"]
