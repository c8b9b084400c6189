"""The fields that a launch writes, with their types, as the published schemas have them, and a check against them.

Sources: kubernetes-sigs/jobset, config/components/crd and api/jobset/v1alpha2/jobset_types.go (0336a8f);
kubernetes-sigs/kueue, apis/kueue/v1beta1 (clusterqueue_types.go, localqueue_types.go, resourceflavor_types.go);
kubernetes API reference 1.32: Job batch/v1, PodSpec and ConfigMap core/v1. "!" marks a required field.
"""

import re
from typing import Any

NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"  # RFC 1123
TEXTS = {"*": str}
META = {"name!": NAME, "namespace": NAME, "labels": TEXTS, "annotations": TEXTS}
TOLERATION = {"key": str, "operator": "Exists|Equal", "value": str, "effect": "NoSchedule|PreferNoSchedule|NoExecute"}
CONTAINER = {
    "name!": NAME,
    "image!": str,
    "command": [str],
    "args": [str],
    "env": [{"name!": r"[-._a-zA-Z][-._a-zA-Z0-9]*", "value": str}],
    "envFrom": [{"secretRef": {"name!": NAME}}],
    "volumeMounts": [{"name!": NAME, "mountPath!": "/.*"}],
    "resources": {"limits": {"*": int}, "requests": {"*": int}},
}
VOLUME = {
    "name!": NAME,
    "configMap": {"name!": NAME},
    "csi": {"driver!": str, "readOnly": bool, "volumeAttributes": TEXTS},
}
POD = {
    "restartPolicy": "Always|OnFailure|Never",
    "terminationGracePeriodSeconds": int,
    "hostNetwork": bool,
    "dnsPolicy": "ClusterFirst|ClusterFirstWithHostNet|Default|None",
    "nodeSelector": TEXTS,
    "tolerations": [TOLERATION],
    "serviceAccountName": str,
    "volumes": [VOLUME],
    "containers!": [CONTAINER],
}
ON_EXIT = {"containerName": str, "operator!": "In|NotIn", "values!": [int]}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": "Indexed|NonIndexed",
    "backoffLimit": int,
    "podFailurePolicy": {
        "rules!": [
            {
                "action!": "FailJob|FailIndex|Ignore|Count",
                "onExitCodes": ON_EXIT,
                "onPodConditions": [{"type!": str, "status!": "True|False|Unknown"}],
            }
        ]
    },
    "template!": {"metadata": {"annotations": TEXTS, "labels": TEXTS}, "spec!": POD},
}
JOBSET = {
    "failurePolicy": {
        "maxRestarts": int,
        "rules": [
            {
                "name!": r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
                "action!": "FailJobSet|RestartJobSet|RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": [
                    "BackoffLimitExceeded|DeadlineExceeded|FailedIndexes|MaxFailedIndexesExceeded|PodFailurePolicy"
                ],
            }
        ],
    },
    "ttlSecondsAfterFinished": int,
    "replicatedJobs": [{"name!": NAME, "replicas": int, "template!": {"spec!": JOB}}],
}
FLAVOR = {"nodeLabels": TEXTS, "tolerations": [TOLERATION]}
GROUP = {
    "coveredResources!": [str],
    "flavors!": [{"name!": NAME, "resources!": [{"name!": str, "nominalQuota!": int}]}],
}
SPECS = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): {"spec": JOBSET},
    ("kueue.x-k8s.io/v1beta1", "ResourceFlavor"): {"spec": FLAVOR},
    ("kueue.x-k8s.io/v1beta1", "ClusterQueue"): {"spec": {"namespaceSelector": {}, "resourceGroups": [GROUP]}},
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): {"spec": {"clusterQueue": NAME}},
    ("v1", "ConfigMap"): {"data": TEXTS},
}


def check(thing: dict[str, Any]) -> None:
    """Raises AssertionError naming the field of an object that the schema does not have or has otherwise."""
    spec = SPECS[thing["apiVersion"], thing["kind"]]
    _check({"apiVersion!": str, "kind!": str, "metadata!": META, **spec}, thing, thing["kind"])


def _check(schema: Any, value: Any, where: str) -> None:
    if isinstance(schema, str):
        assert isinstance(value, str) and re.fullmatch(schema, value), f"{where}: {value!r} does not match {schema}"
    elif isinstance(schema, list):
        assert isinstance(value, list), f"{where}: no list"
        for i, item in enumerate(value):
            _check(schema[0], item, f"{where}[{i}]")
    elif isinstance(schema, dict):
        assert isinstance(value, dict), f"{where}: no object"
        fields = {name.rstrip("!"): kind for name, kind in schema.items()}
        for name, item in value.items():
            assert name in fields or "*" in fields, f"{where}.{name}: no such field"
            _check(fields.get(name, fields.get("*")), item, f"{where}.{name}")
        missing = [name for name in schema if name.endswith("!") and name[:-1] not in value]
        assert not missing, f"{where}: no {missing}"
    else:
        assert type(value) is schema, f"{where}: {value!r} is not an instance of {schema.__name__}"
