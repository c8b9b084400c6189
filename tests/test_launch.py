"""The launchers of launch/, with stand-ins for the programs of the cluster."""

import os
import subprocess

import pytest

from tests import run_case


def test_the_launcher_of_gke_fills_in_the_jobset_and_waits_for_its_end(tmp_path):
    """With a stand-in for kubectl: the points arguments come through to the byte, and the end's kind is the status."""
    yaml = pytest.importorskip("yaml", reason="reads what the script hands to kubectl")
    fake = tmp_path / "kubectl"
    end = f"if [ -e {tmp_path}/second ]; then echo $END; else touch {tmp_path}/second; fi"
    fake.write_text(f"#!/bin/sh\ncase $1 in apply) cat > {tmp_path}/applied.yaml;; get) {end};; esac\n")
    fake.chmod(0o755)
    words = ["train", "--gin_file=runs/train.gin", "--gin.MODEL_DIR='/bucket/a b'", '--gin.L={"inputs": 3}']
    env = {**os.environ, "KUBECTL": str(fake), "PERIOD": "0.05"}
    for end, status in (("Completed", 0), ("Failed", 1)):
        command = [str(run_case.ROOT / "launch" / "gke_point.sh"), "flanx-8b-9", *words]
        assert subprocess.run(command, env=env | {"END": end}, capture_output=True, check=False).returncode == status
        (tmp_path / "second").unlink()
    applied = yaml.safe_load((tmp_path / "applied.yaml").read_text())
    container = applied["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert applied["metadata"]["name"] == "flanx-8b-9"
    assert container["command"] == ["flanx", *words, "--cluster_timeout=900"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
