"""The task of SkyPilot, read by SkyPilot itself where it is installed."""

import json
import pathlib
from typing import Any

import pytest

from flanx.errors import UserError
from flanx.launch import code, job, skypilot, target
from flanx.plan import hardware


def make(topology: str, image: str = "r/f:1", spot: bool = True) -> skypilot.SkyPilot:
    place = target.Target(infra="gcp/us-central1", image=image)
    return skypilot.SkyPilot(
        job.Job(
            *("run-1", ["train", "--gin_file=a.gin"], pathlib.Path("f"), place, hardware.parse(topology), spot),
            config="SEED = 1\n",
            environment={"A": "b c"},
            code=code.Code("0123456789abcdef"),
        )
    )


def task(topology: str, **more: Any) -> dict[str, Any]:
    return json.loads(make(topology, **more).files()["task.yaml"].removeprefix("---\n"))


def test_gpus_of_several_nodes_and_a_slice_of_tpus():
    gpus, tpus = task("h100:16"), task("v5e:4x4", spot=False)
    assert (gpus["num_nodes"], gpus["resources"]["accelerators"]) == (2, "H100:8")
    assert gpus["resources"]["use_spot"] and "JAX_COORDINATOR_ADDRESS" in gpus["run"]
    assert gpus["resources"]["job_recovery"] == {"max_restarts_on_errors": 3, "recover_on_exit_codes": [70, 74, 75]}
    assert (tpus["num_nodes"], tpus["resources"]["accelerators"]) == (1, "tpu-v5litepod-16")
    assert tpus["resources"]["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv5-lite"}
    assert tpus["run"] == "exec flanx train --gin_file=/tmp/flanx/config.gin\n"


def test_a_wheel_is_installed_from_the_locks():
    assert "--require-hashes -r requirements-light.lock" in task("h100:8", image="")["setup"]
    assert "requirements-cuda.lock" in task("h100:8", image="")["setup"]
    assert "requirements-plan.lock" in task("v6e:2x4", image="")["setup"]


def test_what_it_does_not_take():
    with pytest.raises(UserError, match="cannot join slices"):
        make("2x v5e:4x4")


@pytest.mark.parametrize("topology", ["h100:16", "a100:8", "v6e:4x4", "v4:2x2x2"])
def test_skypilot_reads_the_task(topology, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    sky = pytest.importorskip("sky", reason="SkyPilot reads what is written for it")
    (tmp_path / "files").mkdir()
    content = make(topology).task() | {"file_mounts": {"/tmp/flanx": str(tmp_path / "files")}}
    (tmp_path / "task.yaml").write_text(job.document(content))
    read = sky.Task.from_yaml(str(tmp_path / "task.yaml"))
    (resources,) = read.resources
    assert read.num_nodes == content["num_nodes"] and resources.use_spot
    name, _, count = content["resources"]["accelerators"].partition(":")
    assert resources.accelerators == {name: int(count or 1)}
