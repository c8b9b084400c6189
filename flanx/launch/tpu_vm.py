"""Cloud TPU VMs through queued resources: gcloud creates the slices, and ssh starts the run on every worker.

Flags: `gcloud compute tpus queued-resources create --help` (Google Cloud SDK) and
cloud.google.com/tpu/docs/queued-resources.
"""

import json
import shlex
from collections.abc import Sequence

from flanx.errors import UserError
from flanx.launch import code, tpu
from flanx.launch.backend import Backend, Check, State, install_script
from flanx.launch.job import Words, shown
from flanx.launch.program import Result

HOME = "/opt/flanx"  # on a TPU VM
# cloud.google.com/python/docs/reference/tpu/latest/google.cloud.tpu_v2alpha1.types.QueuedResourceState.State
STATES = {
    **dict.fromkeys(("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES"), State.WAITING),
    "ACTIVE": State.READY,
    **dict.fromkeys(("SUSPENDING", "SUSPENDED", "DELETING"), State.LOST),
    "FAILED": State.FAILED,
}


class TpuVm(Backend):
    """Queued resources of TPU VMs, one node per slice."""

    tools = ("gcloud",)

    def check(self) -> None:
        """Requires a slice with an accelerator type, and a target that says where."""
        target = self.job.target
        tpu.accelerator_type(self.job.topology)
        target.require("project", "zone", "bucket")
        if self.job.spot and target.reservation:
            raise UserError("--spot and a reservation: choose one (reservation of the target)")
        if "," in self.folder or "=" in self.folder:
            raise UserError(f"--folder: {self.folder} has ',' or '=', which gcloud reads otherwise; give another")

    @property
    def where(self) -> list[str]:
        """The flags for project and zone."""
        return [f"--project={self.job.target.project}", f"--zone={self.job.target.zone}"]

    @property
    def shipped(self) -> str:
        """This launch's folder in the bucket."""
        return f"{self.job.target.bucket.rstrip('/')}/launches/{self.job.name}"

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes, one per slice."""
        slices = self.job.topology.slices if self.job.topology else 1
        return [self.job.name] if slices == 1 else [f"{self.job.name}-{i}" for i in range(slices)]

    def checks(self) -> list[Check]:
        """The bucket exists and the name is free."""
        target = self.job.target
        bucket = "/".join(target.bucket.split("/")[:3])
        describe = ["gcloud", "storage", "buckets", "describe", bucket, "--format=value(name)"]
        return [
            Check(
                [*describe, f"--project={target.project}"],
                f"the bucket {bucket} is not there or not yours: make it (`gcloud storage buckets create {bucket}`) or "
                "ask for roles/storage.objectAdmin on it",
            ),
            Check(self.questions()[0], _taken(self.job.name), free=True),
        ]

    def files(self) -> dict[str, str]:
        """The start-up script, the operative config and the locks."""
        return {**super().files(), **self.locks(), "setup.sh": self.startup_script()}

    def startup_script(self) -> str:
        """What root runs at each boot of a worker: it fetches and installs what was shipped."""
        image = self.job.image
        registry = shlex.quote(image.partition("/")[0])
        install = (
            f"gcloud auth configure-docker --quiet {registry}\ndocker pull --quiet {shlex.quote(image)}\n"
            if image
            else install_script("tpu")
        )
        return (
            "#!/bin/bash\n# Written by `flanx launch tpu-vm`; root runs it at each boot of a TPU VM.\n"
            f"set -eu\nexport HOME=/root\nexec >>/var/log/flanx.log 2>&1\nmkdir -p {HOME}\ncd {HOME}\nrm -f ready\n"
            f"gcloud storage cp {shlex.quote(self.shipped + '/*')} .\n{install}touch ready\n"
        )

    def ship(self) -> list[Words]:
        """Copies the commit's wheel and all files to the bucket."""
        build = [] if self.job.image else code.wheel_commands(self.job.code, self.job.folder / "files")
        return [*build, ["gcloud", "storage", "cp", "--recursive", f"{self.folder}/*", f"{self.shipped}/"]]

    def make(self) -> list[Words]:
        """One queued resource with a node per slice."""
        job, target = self.job, self.job.target
        names = tpu.names(job.topology)
        nodes = [f"--node-id={job.name}"]
        if len(self.nodes) > 1:
            nodes = [f"--node-count={len(self.nodes)}", f"--node-prefix={job.name}"]
        gcloud, tier = ["gcloud"], ["--spot"] if job.spot else []
        if target.reservation == "any":
            tier = ["--reserved"]
        elif target.reservation:  # only gcloud alpha accepts a named reservation
            gcloud, tier = ["gcloud", "alpha"], [f"--reservation={target.reservation}"]
        return [
            [
                *(*gcloud, "compute", "tpus", "queued-resources", "create", job.name, *self.where, *nodes),
                f"--accelerator-type={tpu.accelerator_type(job.topology)}",
                f"--runtime-version={target.runtime or names.runtime}",
                *tier,
                *([f"--service-account={target.service_account}"] if target.service_account else []),
                f"--metadata-from-file=startup-script={self.folder}/setup.sh",
                f"--labels=flanx-launch={job.name}",
                "--quiet",
            ]
        ]

    def questions(self) -> list[Words]:
        """The queued resource, as JSON."""
        words = ["gcloud", "compute", "tpus", "queued-resources", "describe", self.job.name, *self.where]
        return [[*words, "--format=json"]]

    @classmethod
    def state(cls, answers: Sequence[Result], identifier: str = "") -> tuple[State, str]:
        """From the queued resource's state."""
        (answer,) = answers
        if answer.status:
            is_absent = "NOT_FOUND" in answer.err or "not found" in answer.err.lower()
            return (State.ABSENT, "") if is_absent else (State.UNKNOWN, answer.last)
        try:
            found = json.loads(answer.out)["state"]
            word = str(found["state"])
        except (ValueError, KeyError, TypeError):
            return State.UNKNOWN, "gcloud's answer is not a queued resource"
        message = found.get("failedData", {}).get("error", {}).get("message", "")
        return STATES.get(word, State.UNKNOWN), f"{word}: {message}" if message else word

    def _ssh(self, node: str, worker: str, command: str) -> list[str]:
        ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *self.where, f"--worker={worker}", "--quiet"]
        return [*ssh, f"--command={command}"]

    def prepare(self) -> list[Words]:
        """Waits on every worker until its start-up script is done."""
        wait = (
            f"for i in $(seq 240); do test -e {HOME}/ready && exit 0; sleep 5; done; "
            "tail -n 5 /var/log/flanx.log >&2; exit 1"
        )
        return [self._ssh(node, "all", wait) for node in self.nodes]

    def hosts(self, resumed: bool = False) -> dict[str, Words]:
        """The run: the same command on every worker of every node."""
        assert self.job.topology
        workers = range(self.job.topology.hosts_per_slice)
        return {f"{node}-w{w}": self._ssh(node, str(w), self.remote_command()) for node in self.nodes for w in workers}

    def remote_command(self) -> str:
        """The command for a worker's shell, with every argument quoted for it."""
        job = self.job
        if job.image:
            variables = [f"--env={name}={value}" for name, value in job.environment.items()]
            # root: the chips' device files belong to the host
            run = ["sudo", "docker", "run", "--rm", f"--name={job.name}", "--privileged", "--user=root"]
            run += ["--network=host", "--shm-size=16g", f"--volume={HOME}:{HOME}", *variables]
            run += [job.image, "flanx", *job.command(HOME)]
            return f"sudo docker rm --force {job.name} >/dev/null 2>&1; exec {shown(run)}"
        variables = [f"{name}={value}" for name, value in job.environment.items()]
        run = ["env", *variables, f"{HOME}/venv/bin/flanx", *job.command(HOME)]
        return f"echo $$ > /tmp/{job.name}.pid; exec {shown(run)}"

    def halt(self) -> list[Words]:
        """Tells the run to save and exit: cutting the connection leaves it running."""
        name, grace = self.job.name, f"{self.job.grace:.0f}"
        stop = f"sudo docker stop --time={grace} {name} >/dev/null 2>&1 || true"
        if not self.job.image:
            stop = (
                f"pkill -TERM -F /tmp/{name}.pid 2>/dev/null || exit 0; for i in $(seq {grace}); do "
                f"pgrep -F /tmp/{name}.pid >/dev/null || exit 0; sleep 1; done; pkill -KILL -F /tmp/{name}.pid || true"
            )
        return [self._ssh(node, "all", stop) for node in self.nodes]

    def discard(self) -> list[Words]:
        """Deletes the queued resource and its nodes."""
        words = ["gcloud", "compute", "tpus", "queued-resources", "delete", self.job.name, *self.where]
        return [[*words, "--force", "--quiet"]]

    def clean(self) -> list[Words]:
        """Removes what was shipped; the run's own folder stays."""
        return [["gcloud", "storage", "rm", "--recursive", f"{self.shipped}/", "--quiet"]]


def _taken(name: str) -> str:
    return f"the name {name} is taken: give another --name, or end that one with `flanx launch stop {name}`"
