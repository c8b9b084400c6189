"""GKE: an xpk workload, or without xpk a JobSet with a Kueue queue, both followed through kubectl.

Fields: kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go; kubernetes-sigs/kueue, apis/kueue/v1beta1; node
labels: cloud.google.com/kubernetes-engine/docs/how-to/tpus; flags: xpk 1.16.0, parser/workload.py.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.errors import UserError
from flanx.launch import tpu
from flanx.launch.backend import Backend, Check, State
from flanx.launch.job import CONFIG, Words, document, shown
from flanx.launch.program import Result

CONTAINER, SLICE = "flanx", "slice"  # names in a JobSet
FILES, BUCKET = "/flanx", "/bucket"  # mounted in a container
RESTARTED = (70, 74, 75, 137, 143)  # exit statuses: another process lost, a save hung, preempted, killed
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
TOGETHER = "--cluster_timeout=900"  # pods start minutes apart, as nodes are created and images pulled
USER = 1000  # the image's user, as whom the bucket is mounted
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
MAX_RESTARTS = "ReachedMaxRestarts"  # jobset, pkg/constants/constants.go
SPOT = {"cloud.google.com/gke-spot": "true"}


class JobSet(Backend):
    """A JobSet: one replicated job per slice, one pod per host."""

    tools: Sequence[str] = ("gcloud", "kubectl")
    keeps_run = True

    def check(self) -> None:
        """Requires a TPU slice, an image and a cluster."""
        tpu.names(self.job.topology)
        self.job.target.require("project", "zone", "cluster", "image")

    @property
    def _kubectl(self) -> list[str]:
        return ["kubectl", f"--namespace={self.job.target.namespace}"]

    def checks(self) -> list[Check]:
        """The image exists, the cluster answers, and the name is free."""
        target = self.job.target
        place = [f"--location={target.zone}", f"--project={target.project}"]
        image = ["gcloud", "artifacts", "docker", "images", "describe", self.job.image, "--format=value(name)"]
        has_registry = self.job.image.partition("/")[0].endswith("-docker.pkg.dev") and not self.job.builds
        return [
            *([Check(image, f"no image {self.job.image}: make it with --build, or name one that is there")]
              if has_registry else []),
            Check(
                ["gcloud", "container", "clusters", "get-credentials", target.cluster, *place],
                f"the cluster {target.cluster} is not in {target.zone} of {target.project}, or not yours: correct the "
                "target, or log in (`gcloud auth login`)",
            ),
            Check(
                self.questions()[0],
                f"the name {self.job.name} is taken: give another --name, or end that one with `flanx launch stop "
                f"{self.job.name}`",
                free=True,
            ),
        ]  # fmt: skip

    def files(self) -> dict[str, str]:
        """The objects as YAML, for this program and for people."""
        queue = {"queue.yaml": document(*self.queue())} if self.queue() else {}
        return {**super().files(), **queue, "jobset.yaml": document(*self.objects())}

    def objects(self) -> list[dict[str, Any]]:
        """What the launch creates and removes: the operative config and the JobSet."""
        meta = {"name": self.job.name, "namespace": self.job.target.namespace}
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {CONFIG: self.job.config}}
        return [*([config] if self.job.config else []), self.jobset()]

    def queue(self) -> list[dict[str, Any]]:
        """Kueue's flavour, cluster queue and local queue for the chips of the target's quota; [] without one."""
        target, topology = self.job.target, self.job.topology
        if not target.quota:
            return []
        if not target.queue:
            raise UserError("quota without queue in the target: name the queue that has the quota")
        api, name = "kueue.x-k8s.io/v1beta1", target.queue
        flavor: dict[str, Any] = {"nodeLabels": self._node_labels()}
        if self.job.spot:
            flavor["tolerations"] = [_tolerates(key, value) for key, value in SPOT.items()]
        resources = [{"name": "google.com/tpu", "nominalQuota": target.quota}]
        group = {"coveredResources": ["google.com/tpu"], "flavors": [{"name": name, "resources": resources}]}
        assert topology
        return [
            {"apiVersion": api, "kind": "ResourceFlavor", "metadata": {"name": name}, "spec": flavor},
            {
                "apiVersion": api,
                "kind": "ClusterQueue",
                "metadata": {"name": name},
                "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
            },
            {
                "apiVersion": api,
                "kind": "LocalQueue",
                "metadata": {"name": name, "namespace": target.namespace},
                "spec": {"clusterQueue": name},
            },
        ]

    def jobset(self) -> dict[str, Any]:
        """The JobSet. An exit status outside RESTARTED fails it at once; any other failure restarts all pods."""
        job, topology = self.job, self.job.topology
        assert topology
        labels = {"kueue.x-k8s.io/queue-name": job.target.queue} if job.target.queue else {}
        pod_failure = {
            "rules": [
                {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": list(RESTARTED)},
                },
            ]
        }
        template = {
            "spec": {
                "parallelism": topology.hosts_per_slice,
                "completions": topology.hosts_per_slice,
                "completionMode": "Indexed",
                "backoffLimit": 0,
                "podFailurePolicy": pod_failure,
                "template": self._pod(),
            }
        }
        rule = {"name": "badInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": job.name,
                "namespace": job.target.namespace,
                "labels": {**labels, "flanx-launch": job.name},
                "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
            },
            "spec": {
                "failurePolicy": {"maxRestarts": job.restarts, "rules": [rule]},
                "ttlSecondsAfterFinished": 24 * 3600,
                "replicatedJobs": [{"name": SLICE, "replicas": topology.slices, "template": template}],
            },
        }

    def _node_labels(self) -> dict[str, str]:
        topology = self.job.topology
        assert topology
        return {
            "cloud.google.com/gke-tpu-accelerator": tpu.names(topology).node,
            "cloud.google.com/gke-tpu-topology": tpu.shape(topology),
            **(SPOT if self.job.spot else {}),
        }

    def _pod(self) -> dict[str, Any]:
        job, topology = self.job, self.job.topology
        assert topology
        volumes: list[dict[str, Any]] = []
        mounts: list[dict[str, Any]] = []
        annotations = {}
        if job.config:
            volumes.append({"name": "config", "configMap": {"name": job.name}})
            mounts.append({"name": "config", "mountPath": FILES})
        if job.target.bucket:
            annotations["gke-gcsfuse/volumes"] = "true"
            attributes = {
                "bucketName": job.target.bucket.split("/")[2],
                "mountOptions": f"implicit-dirs,uid={USER},gid={USER}",
            }
            volumes.append(
                {"name": "bucket", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
            )
            mounts.append({"name": "bucket", "mountPath": BUCKET})
        container: dict[str, Any] = {
            "name": CONTAINER,
            "image": job.image,
            "command": ["flanx", *job.command(FILES), TOGETHER],
            "env": [{"name": name, "value": value} for name, value in job.environment.items()],
            "volumeMounts": mounts,
            "resources": {"limits": {"google.com/tpu": topology.chips_per_host}},
        }
        if job.target.environment_from:
            container["envFrom"] = [{"secretRef": {"name": job.target.environment_from}}]
        spec: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": int(job.grace),
            "hostNetwork": True,
            "dnsPolicy": "ClusterFirstWithHostNet",
            "nodeSelector": self._node_labels(),
            "tolerations": [_tolerates("google.com/tpu", "present")],
            "volumes": volumes,
            "containers": [container],
        }
        if job.spot:
            spec["tolerations"] += [_tolerates(key, value) for key, value in SPOT.items()]
        if job.target.service_account:
            spec["serviceAccountName"] = job.target.service_account
        return {"metadata": {"annotations": annotations}, "spec": spec}

    def make(self) -> list[Words]:
        """Creates the objects, none of which may exist yet; the queue belongs to the cluster, and stays."""
        queue = [["kubectl", "apply", f"--filename={self.folder}/queue.yaml"]] if self.queue() else []
        return [*queue, ["kubectl", "create", f"--filename={self.folder}/jobset.yaml"]]

    def questions(self) -> list[Words]:
        """The JobSet and its pods, as JSON."""
        return [
            [*self._kubectl, "get", "jobset", self.job.name, "--output=json"],
            [*self._kubectl, "get", "pods", f"--selector={JOBSET_LABEL}={self.job.name}", "--output=json"],
        ]

    @classmethod
    def state(cls, answers: Sequence[Result], identifier: str = "") -> tuple[State, str]:
        """From the JobSet's conditions, then from its pods."""
        jobset, pods = answers
        if jobset.status:
            return (State.ABSENT, "") if "NotFound" in jobset.err else (State.UNKNOWN, jobset.last)
        try:
            status = json.loads(jobset.out).get("status", {})
            listed = json.loads(pods.out)["items"] if not pods.status else []
        except (ValueError, KeyError, AttributeError):
            return State.UNKNOWN, "kubectl's answer is not a JobSet"
        for condition in status.get("conditions", []):
            if condition.get("status") == "True" and condition.get("type") in ("Completed", "Failed"):
                end = State.DONE if condition["type"] == "Completed" else State.FAILED
                if condition.get("reason") == MAX_RESTARTS:
                    end = State.LOST
                return end, condition.get("message", condition["type"])
        reasons = [reason for pod in listed for reason in _waiting(pod)]
        if wrong := next((reason for reason in reasons if reason in NO_IMAGE), ""):
            return State.FAILED, f"{wrong}: the image cannot be pulled; make it with --build, or correct the target"
        phases = [pod.get("status", {}).get("phase", "") for pod in listed]
        restarts = f", restart {status['restarts']}" if status.get("restarts") else ""
        if phases and all(phase in ("Running", "Succeeded") for phase in phases):
            return State.READY, f"{len(phases)} pods run{restarts}"
        return State.WAITING, (
            f"{phases.count('Running')} of {len(phases)} pods run" if phases else "queued"
        ) + restarts

    def hosts(self, resumed: bool = False) -> dict[str, Words]:
        """The logs of all pods; kubectl prefixes every line with the pod's name."""
        assert self.job.topology
        words = [*self._kubectl, "logs", f"--selector={JOBSET_LABEL}={self.job.name}", "--follow", "--prefix"]
        tail = "--since=1m" if resumed else "--tail=-1"
        return {"": [*words, f"--max-log-requests={max(self.job.topology.hosts, 5)}", tail]}

    def discard(self) -> list[Words]:
        """Deletes the JobSet with its pods, and the config."""
        kinds = [f"jobset/{self.job.name}", *([f"configmap/{self.job.name}"] if self.job.config else [])]
        return [[*self._kubectl, "delete", "--ignore-not-found", *kinds]]


class Xpk(JobSet):
    """The same through xpk, which creates the JobSet in its cluster's queue."""

    tools = ("gcloud", "kubectl", "xpk")

    def check(self) -> None:
        """As for a JobSet; gin files must be in the image, as xpk ships none."""
        super().check()
        if self.job.own_files:
            raise UserError(
                f"{self.job.own_files[0]}: xpk ships no file, and the image has flanx's own: give --without_xpk (a "
                "JobSet with the whole config), or copy the file into the image"
            )

    def files(self) -> dict[str, str]:
        """The operative config, for the record."""
        return Backend.files(self)

    def make(self) -> list[Words]:
        """`xpk workload create`."""
        job, target, topology = self.job, self.job.target, self.job.topology
        assert topology
        variables = [f"--env={name}={value}" for name, value in job.environment.items()]
        return [
            [
                *("xpk", "workload", "create", f"--workload={job.name}", *self._xpk_place),
                f"--tpu-type={tpu.accelerator_type(topology)}",
                f"--num-slices={topology.slices}",
                f"--docker-image={job.image}",
                f"--max-restarts={job.restarts}",
                f"--restart-on-exit-codes={','.join(map(str, RESTARTED))}",
                f"--termination-grace-period-seconds={job.grace:.0f}",
                *(["--spot"] if job.spot else []),
                *([f"--reservation={target.reservation}"] if target.reservation else []),
                *variables,
                f"--command={shown(['flanx', *job.command(), TOGETHER])}",
            ]
        ]

    @property
    def _xpk_place(self) -> list[str]:
        target = self.job.target
        return [f"--cluster={target.cluster}", f"--project={target.project}", f"--zone={target.zone}"]

    def discard(self) -> list[Words]:
        """`xpk workload delete`."""
        return [["xpk", "workload", "delete", f"--workload={self.job.name}", *self._xpk_place, "--force"]]


def _tolerates(key: str, value: str) -> dict[str, str]:
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}


def _waiting(pod: Mapping[str, Any]) -> list[str]:
    """The reasons why a pod's containers are waiting."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    return [each.get("state", {}).get("waiting", {}).get("reason", "") for each in statuses]
