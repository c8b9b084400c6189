"""The objects of a launch on GKE, against the published schemas."""

import copy
import pathlib
from typing import Any

import pytest

from flanx.errors import UserError
from flanx.launch import code, job, kubernetes, target
from flanx.plan import hardware
from tests import kubernetes_schema

PLACE = target.Target(
    project="p-1", zone="us-west4-a", cluster="c-1", image="us-docker.pkg.dev/p/r/f", queue="q-1", quota=64,
    bucket="gs://b-1/sub", service_account="flanx", environment_from="tokens",
)  # fmt: skip


def jobset(topology: str = "2x v5e:4x4", spot: bool = True, **more: Any) -> kubernetes.JobSet:
    return kubernetes.JobSet(
        job.Job(
            *("run-1", ["train", "--gin_file=a.gin"], pathlib.Path("f"), PLACE, hardware.parse(topology), spot),
            config="SEED = 1\n",
            environment={"A": "it's $(x)"},
            code=code.Code("0123456789abcdef"),
            **more,
        )
    )


@pytest.mark.parametrize("topology", ["v4:2x2x1", "2x v5e:4x4", "v5p:4x4x4", "v6e:2x4"])
@pytest.mark.parametrize("spot", [False, True])
def test_all_objects_have_the_published_fields(topology, spot):
    objects = [*jobset(topology, spot).queue(), *jobset(topology, spot).objects()]
    assert [each["kind"] for each in objects] == ["ResourceFlavor", "ClusterQueue", "LocalQueue", "ConfigMap", "JobSet"]
    for each in objects:
        kubernetes_schema.check(each)


def test_the_schema_finds_what_is_wrong():
    good = jobset().jobset()
    for change, message in (
        (lambda x: x["spec"].update(replicas=1), "JobSet.spec.replicas: no such field"),
        (lambda x: x["spec"]["replicatedJobs"][0].pop("name"), "no ..name!"),
        (lambda x: x["metadata"].update(name="A b"), "'A b' does not match"),
        (lambda x: x["spec"]["failurePolicy"].update(maxRestarts="3"), "'3' is not an instance of int"),
    ):
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(AssertionError, match=message):
            kubernetes_schema.check(bad)


def test_a_pod_per_host_and_a_job_per_slice():
    made = jobset("2x v5e:4x4").jobset()
    (slices,) = made["spec"]["replicatedJobs"]
    pods = slices["template"]["spec"]
    assert (slices["replicas"], pods["parallelism"], pods["completions"]) == (2, 4, 4)
    spec = pods["template"]["spec"]
    assert spec["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert spot in spec["tolerations"] and spot not in jobset(spot=False)._pod()["spec"]["tolerations"]
    container = spec["containers"][0]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["flanx", "train", "--gin_file=/flanx/config.gin", "--cluster_timeout=900"]
    assert container["image"] == "us-docker.pkg.dev/p/r/f:0123456789ab"
    assert container["env"] == [{"name": "A", "value": "it's $(x)"}]
    assert container["envFrom"] == [{"secretRef": {"name": "tokens"}}]


def test_only_preemptions_restart_it():
    policy = jobset(restarts=5).jobset()["spec"]
    assert policy["failurePolicy"]["maxRestarts"] == 5
    rules = policy["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onPodConditions"] and rules[0]["action"] == "Count"
    assert rules[1]["action"] == "FailJob" and set(rules[1]["onExitCodes"]["values"]) >= {70, 74, 75}
    assert rules[1]["onExitCodes"]["operator"] == "NotIn"


def test_what_it_does_not_take():
    with pytest.raises(UserError, match="h100:8 is not a TPU"):
        jobset("h100:8")
    with pytest.raises(UserError, match="xpk ships no file"):
        kubernetes.Xpk(job.Job(*("a", [], pathlib.Path(), PLACE, hardware.parse("v5e:4x4")), own_files=["my.gin"]))
