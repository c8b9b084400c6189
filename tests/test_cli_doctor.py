"""`flanx doctor`: fails where jax runs on another platform than the machine or the user says."""

import argparse
import contextlib
import json
import pathlib
import sys
import types

import pytest

from flanx.cli import doctor, main
from tests import run_case


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


def test_gin_files_that_are_wrong_are_a_finding_among_the_others(capsys):
    for wrong, named in ((["--gin.BATCH_SIZ=8"], "BATCH_SIZ"), (["--gin_file=none.gin"], "none.gin")):
        found = findings(capsys, *LORA, *wrong, status=1)
        assert found["gin files"]["state"] == "bad" and named in found["gin files"]["seen"]
        assert "python" in found and "memory of the run" not in found


def test_the_memory_and_disk_that_are_free_are_held_against_the_run(capsys, monkeypatch, tmp_path: pathlib.Path):
    bound = {"MODEL_DIR": str(tmp_path / "new" / "run"), "TRAIN_STEPS": 10, "MIXTURE_OR_TASK_NAME": "own"}
    bound |= {"STORE_DIR": "s", "VOCABULARY": "byte", "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 32}}
    run = ["--gin_file=models/t5_1_1/tiny.gin", "--gin_file=runs/train.gin", "--gin.BATCH_SIZE=8"]
    run += [f"--gin.{name}={value!r}" for name, value in bound.items()]
    kept = ["--gin.checkpoint.SaveCheckpointConfig.keep=2", "--gin.checkpoint.SaveCheckpointConfig.keep_period=5"]
    found = findings(capsys, *run, *kept)
    assert found["free memory"]["state"] == found["free disk"]["state"] == "ok"
    assert f"5 checkpoints in {tmp_path} take" in found["free disk"]["seen"]
    monkeypatch.setattr(doctor, "_free_memory", lambda: 1e3)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=7e9 if path == "." else 1))
    found = findings(capsys, *run, status=1)
    assert found["free memory"]["state"] == found["free disk"]["state"] == "bad"
    assert found["free disk"]["seen"].endswith("of 0.0 GB: make room")


def of(name: str, version: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(metadata={"Name": name}, version=version)


def told(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], requires: dict[str, list[str]]) -> dict[str, str]:
    """{subject: "state: seen"} of the libraries of accelerators."""
    every = [of(name, version) for name, version in installed.items()]
    monkeypatch.setattr(doctor.importlib.metadata, "distributions", lambda: every)
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: requires.get(name))
    return {each.subject: f"{each.state}: {each.seen}" for each in doctor.libraries()}


def test_libraries_of_accelerators_are_those_that_jax_requires(monkeypatch, tmp_path: pathlib.Path):
    requires = {
        "jax": [
            "jaxlib<=0.10.2,>=0.10.0",
            'jaxlib==0.10.1; extra == "minimum-jaxlib"',
            "numpy>=99",
            'libtpu==0.0.40.*; extra == "tpu"',
        ],
        "jax-cuda13-plugin": ['nvidia-cudnn-cu13<10,>=9.12; extra == "with-cuda"'],
    }
    installed = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.40.1", "numpy": "2.0"}
    assert told(monkeypatch, installed, requires) == {"libraries": "ok: libtpu 0.0.40.1"}
    monkeypatch.setattr(doctor, "TPU_DEVICES", (str(tmp_path / "accel*"),))
    assert told(monkeypatch, installed | {"libtpu": "0.0.39"}, requires)["libtpu"].startswith("note: 0.0.39, but jax")
    (tmp_path / "accel0").touch()
    found = told(monkeypatch, installed | {"libtpu": "0.0.39", "jaxlib": "0.9"}, requires)
    assert found["libtpu"].startswith("bad: 0.0.39, but jax 0.10.2 requires libtpu==0.0.40.*; pip install ")
    assert found["jaxlib"].startswith("bad: 0.9, but jax 0.10.2")
    cuda = installed | {"jax-cuda13-plugin": "0.10.2", "nvidia-cudnn-cu13": "9.1"}
    driver = tmp_path / "version"
    monkeypatch.setattr(doctor, "DRIVER_FILE", str(driver))
    assert "requires nvidia-cudnn-cu13<10,>=9.12" in told(monkeypatch, cuda, requires)["nvidia-cudnn-cu13"]
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (x)\n")
    found = told(monkeypatch, cuda | {"jax-cuda12-plugin": "0.10.2"}, requires)
    assert found["NVIDIA driver"].startswith("bad: 570, but CUDA 13 takes 580") and "12 and 13" in found["CUDA"]
    driver.write_text(driver.read_text().replace("570.86", "580.65"))
    assert "NVIDIA driver" not in told(monkeypatch, cuda, requires)


@pytest.mark.parametrize(("times", "state"), [((100.0, 100.1, 99.9), "ok"), ((100.0, 160.0, 100.1), "bad")])
def test_clocks_of_hosts_are_compared(monkeypatch, times, state):
    every = [{"host": f"h{i}", "time": str(time)} for i, time in enumerate(times)]
    monkeypatch.setattr(doctor.cluster, "locate", lambda args: object())
    monkeypatch.setattr(doctor.cluster, "joined", lambda args, text: contextlib.nullcontext())
    monkeypatch.setattr(doctor.cluster, "gather", lambda facts: every)
    hosts, clocks = doctor.hosts(argparse.Namespace())
    assert hosts.seen == "3 processes agree: h0, h1, h2" and clocks.state == state
    assert clocks.seen == ("process 1 (h1) is 60 s ahead: set it by NTP" if state == "bad" else
                           "they differ by 0.20 s at most")  # fmt: skip


def test_a_host_that_is_missing_is_bad(capsys):
    alone = [f"--coordinator_address=127.0.0.1:{run_case.free_port()}", "--num_processes=2", "--process_id=0"]
    found = findings(capsys, *alone, "--cluster_timeout=1", status=1)["hosts"]
    assert found["state"] == "bad" and "process 1 (of 2) did not start within 1 s" in found["seen"]


def test_a_file_system_whose_clock_is_off_is_bad(capsys, monkeypatch, tmp_path: pathlib.Path):
    monkeypatch.chdir(tmp_path)
    assert findings(capsys)["clock"]["state"] == "ok"
    now = doctor.time.time
    monkeypatch.setattr(doctor, "time", types.SimpleNamespace(time=lambda: now() + 90))
    assert "90 s behind this machine's" in findings(capsys, status=1)["clock"]["seen"]


def test_the_token_of_the_hub_is_told_and_not_shown(capsys, monkeypatch, tmp_path: pathlib.Path):
    pytest.importorskip("huggingface_hub", reason="of the extra hf")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    assert findings(capsys)["hub token"] == {"subject": "hub token", "state": "ok", "seen": "there is one"}
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert findings(capsys)["hub token"]["state"] == "note"


def test_a_folder_that_runs_write_to_is_tried(capsys, tmp_path: pathlib.Path):
    found = findings(capsys, f"--model_dir={tmp_path}")
    assert found[f"rename, {tmp_path}"]["state"] == "ok" and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    found = findings(capsys, f"--model_dir={tmp_path / 'file'}", status=1)
    assert found[f"write, {tmp_path / 'file'}"]["state"] == "bad"


@pytest.mark.slow
def test_hosts_that_agree_and_hosts_that_do_not(monkeypatch):
    command = [sys.executable, "-m", "flanx", "doctor", "--json"]
    ended = run_case.finish(run_case.launch_many([command] * 2), timeout=120)
    for status, said in ended:
        found = {each["subject"]: each for each in json.loads(said[said.index("[\n") :])}
        assert status == 0 and "2 processes agree" in found["hosts"]["seen"], said
        assert found["clocks"]["state"] == "ok"


def test_a_full_disk_is_a_finding_and_no_end(monkeypatch):
    def fail(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", fail)
    assert [finding.subject for finding in doctor.machine()] == ["machine", "disk", "this folder"]
