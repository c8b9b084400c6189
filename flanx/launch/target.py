"""The table of targets, launch/targets.toml: where a launch goes. Only names of places, no secrets."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from flanx.errors import UserError, nearest
from flanx.files import read_toml

FILE = "launch/targets.toml"
SECRET = re.compile(r"(^|_)(token|secret|passw\w*|credentials?|\w*key)s?($|_)", re.IGNORECASE)  # in a name
# what tokens of Hugging Face, GitHub, AWS and Google look like, and the header of a private key
TOKEN = re.compile(r"\bhf_\w{20,}|\bgh[pousr]_\w{20,}|\bAKIA[A-Z0-9]{12,}|\bya29\.|\bAIza[\w-]{30,}|-----BEGIN")


@dataclasses.dataclass(frozen=True)
class Target:
    """A place to launch on; each program uses the keys that it knows.

    Attributes:
      project, zone: of Google Cloud.
      cluster, namespace: of Kubernetes; xpk uses the cluster's name, kubectl the context it resolves to.
      queue: Kueue's LocalQueue; quota: chips of a queue that the launch creates if the cluster has none.
      service_account: an account that may read and write the bucket.
      bucket: gs://NAME for what a launch ships; under Kubernetes it is mounted at /bucket.
      image: a container image; without a tag, the commit's is used.
      environment_from: a Kubernetes Secret whose entries become environment variables.
      runtime: software version of a TPU VM; by default the chip's usual one.
      reservation: resource name of a Google Cloud reservation; "any": the project's own.
      partition, account, time: of SLURM; mounts: comma-separated folders of the nodes, visible in its containers.
      infra: of SkyPilot, e.g. "gcp/us-central2".
    """

    name: str = ""
    project: str = ""
    zone: str = ""
    cluster: str = ""
    namespace: str = "default"
    queue: str = ""
    quota: int = 0
    service_account: str = ""
    bucket: str = ""
    image: str = ""
    environment_from: str = ""
    runtime: str = ""
    reservation: str = ""
    partition: str = ""
    account: str = ""
    time: str = "24:00:00"
    mounts: str = ""
    infra: str = ""

    def require(self, *names: str) -> None:
        """Raises UserError for keys that the launch needs and the target lacks."""
        missing = [name for name in names if not getattr(self, name)]
        if missing:
            where = f"[{self.name}] of {FILE}" if self.name else f"{FILE} (--target=NAME chooses a table)"
            raise UserError(
                f"no {' and no '.join(missing)}: set {', '.join(missing)} in {where}, or give "
                + ", ".join(f"--{name}=..." for name in missing)
            )


KEYS = [field.name for field in dataclasses.fields(Target) if field.name != "name"]
# what a value may be: it becomes a command-line argument, a name in YAML or a line of a batch script
PATTERNS: Mapping[str, str] = {
    **dict.fromkeys(KEYS, r"[A-Za-z0-9/][\w.:@/-]*"),
    "bucket": r"gs://[a-z0-9][a-z0-9._-]+(/[\w./-]*)?",
    "cluster": r"[a-z]([-a-z0-9]*[a-z0-9])?",
    "mounts": r"/[\w./:,-]*",
    "namespace": r"[a-z0-9]([-a-z0-9]*[a-z0-9])?",
    "project": r"([a-z0-9.-]+:)?[a-z][-a-z0-9]*",
    "zone": r"[a-z]+-[a-z]+\d+(-[a-z])?",
}


def read(path: str, name: str, given: Mapping[str, Any]) -> Target:
    """The target `name` of the table in the file `path`, with its values overridden by `given`.

    Without a name: the file's only table, or none. Raises UserError for a key that looks like a secret, an unknown key
    or an invalid value.
    """
    tables = _tables(pathlib.Path(path))
    if name and not pathlib.Path(path).exists():
        raise UserError(f"no target '{name}': there is no file {path} here; name the table of targets, --targets FILE")
    if name and name not in tables:
        raise UserError(f"no target '{name}' in {path}{nearest(name, tables)} (it has: {', '.join(tables) or 'none'})")
    if not name and len(tables) == 1:
        name = next(iter(tables))
    values = {**tables.get(name, {}), **{key: value for key, value in given.items() if value is not None}}
    where = f"{path}: [{name}]" if name else "the command line"
    for key, value in values.items():
        _check(where, key, value)
    return Target(name=name, **values)


def _tables(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    tables = read_toml(path)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{path}: '{name}' is in no table; write [NAME] above it")
    return tables


def _check(where: str, key: str, value: Any) -> None:
    if SECRET.search(key) or TOKEN.search(str(value)):
        raise UserError(
            f"{where}: '{key}' looks like a secret, and this file is shared and copied: remove it; keep it in a Secret "
            "of Kubernetes (environment_from), in Secret Manager, or in your environment"
        )
    if key not in KEYS:
        raise UserError(f"{where}: no key '{key}'{nearest(key, KEYS)} (known: {', '.join(KEYS)})")
    if key == "quota":
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{where}: quota = {value!r}: give chips, a whole number")
    elif not isinstance(value, str) or not re.fullmatch(PATTERNS[key], value):
        raise UserError(f"{where}: {key} = {value!r} is not a valid {key}: it must look like {PATTERNS[key]}")
