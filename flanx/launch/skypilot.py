"""SkyPilot: a managed job, which finds machines in any cloud and restarts after preemptions.

Fields: docs.skypilot.co/en/latest/reference/yaml-spec.html; flags: SkyPilot 0.14.1, `sky jobs launch --help`.
"""

import json
from collections.abc import Sequence
from typing import Any

from flanx.errors import UserError
from flanx.launch import code, tpu
from flanx.launch.backend import Backend, State, install_script
from flanx.launch.job import Words, document, shown
from flanx.launch.program import Result

HOME = "/tmp/flanx"  # on a host
PORT = 8476  # of process 0, the one JAX uses on TPUs
GPUS = {"a100-40": "A100", "a100": "A100-80GB", "h100": "H100", "h200": "H200", "b200": "B200"}
# sky/jobs/state.py: ManagedJobStatus
STATES = {
    **dict.fromkeys(("PENDING", "SUBMITTED", "STARTING", "RECOVERING"), State.WAITING),
    **dict.fromkeys(("RUNNING", "WINDING_DOWN"), State.READY),
    "SUCCEEDED": State.DONE,
    **dict.fromkeys(("CANCELLING", "CANCELLED"), State.FAILED),
    **dict.fromkeys(
        ("FAILED", "FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE", "FAILED_CONTROLLER"), State.FAILED
    ),
}


class SkyPilot(Backend):
    """A managed job of SkyPilot."""

    tools = ("sky",)
    keeps_run = True

    def check(self) -> None:
        """Requires a single slice, or GPUs."""
        topology = self.job.topology
        if topology is None:
            raise UserError("no --topology: give the chips, as --topology=v6e:2x4 or h100:8")
        if topology.slices > 1:
            raise UserError(f"{topology.name}: SkyPilot cannot join slices: take one slice, or xpk or tpu-vm")
        if topology.chip.is_tpu:
            tpu.accelerator_type(topology)

    def files(self) -> dict[str, str]:
        """The task, the operative config and the locks."""
        return {**super().files(), **self.locks(), "task.yaml": document(self.task())}

    def task(self) -> dict[str, Any]:
        """The task: its machines, the files copied to them, the setup of flanx, and the command of every host."""
        job, topology = self.job, self.job.topology
        assert topology
        resources: dict[str, Any] = {
            "use_spot": job.spot,
            "job_recovery": {"max_restarts_on_errors": job.restarts, "recover_on_exit_codes": [70, 74, 75]},
        }
        if topology.chip.is_tpu:
            resources["accelerators"] = f"tpu-{tpu.accelerator_type(topology)}"
            runtime = job.target.runtime or tpu.names(topology).runtime
            resources["accelerator_args"] = {"runtime_version": runtime}
        else:
            resources["accelerators"] = f"{GPUS[topology.chip.family]}:{topology.chips_per_host}"
        if job.target.infra:
            resources["infra"] = job.target.infra
        if job.image:
            resources["image_id"] = f"docker:{job.image}"
        program = ["flanx"] if job.image else [f"{HOME}/venv/bin/flanx"]
        join = (
            'if [ "${SKYPILOT_NUM_NODES:-1}" -gt 1 ]; then\n'
            f'  export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}"\n'
            '  export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"\nfi\n'
        )
        return {
            "name": job.name,
            "num_nodes": 1 if topology.chip.is_tpu else topology.hosts,
            "resources": resources,
            "envs": dict(job.environment),
            "file_mounts": {HOME: self.folder},
            "setup": f"set -eu\ncd {HOME}\n" + ("" if job.image else install_script(self.accelerator)),
            "run": ("" if topology.chip.is_tpu else join) + f"exec {shown([*program, *job.command(HOME)])}\n",
        }

    def ship(self) -> list[Words]:
        """The wheel, next to the files that SkyPilot copies."""
        return [] if self.job.image else list(code.wheel_commands(self.job.code, self.job.folder / "files"))

    def make(self) -> list[Words]:
        """`sky jobs launch`, which returns once the job is submitted."""
        words = ["sky", "jobs", "launch", f"--name={self.job.name}", "--detach-run", "--yes"]
        return [[*words, f"{self.folder}/task.yaml"]]

    def questions(self) -> list[Words]:
        """The queue, as JSON."""
        return [["sky", "jobs", "queue", "--all", "--output=json"]]

    @classmethod
    def state(cls, answers: Sequence[Result], identifier: str = "") -> tuple[State, str]:
        """From the newest job with this name."""
        (queue,) = answers
        if queue.status:
            return State.UNKNOWN, queue.last
        try:
            found = json.loads(queue.out)
            jobs = found if isinstance(found, list) else found["jobs"]
            own = [job for job in jobs if job["job_name"] == identifier]
            if not own:
                return State.ABSENT, ""
            word = str(max(own, key=lambda job: job["job_id"])["status"]).rpartition(".")[2]
        except (ValueError, KeyError, TypeError):
            return State.UNKNOWN, "sky's answer is not a queue"
        return STATES.get(word, State.UNKNOWN), word

    def hosts(self, resumed: bool = False) -> dict[str, Words]:
        """The log; SkyPilot prefixes every line with the host."""
        tail = ["--tail=10"] if resumed else []
        return {"": ["sky", "jobs", "logs", f"--name={self.job.name}", "--follow", *tail]}

    def discard(self) -> list[Words]:
        """Cancels the job, which releases its machines."""
        return [["sky", "jobs", "cancel", f"--name={self.job.name}", "--yes"]]
