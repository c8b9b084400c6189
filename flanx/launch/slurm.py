"""SLURM: one job, one task per node, the run under srun; it requeues itself when it is preempted.

Options: sbatch(1), srun(1), squeue(1), sacct(1); containers: NVIDIA/pyxis.
"""

import sys
from collections.abc import Sequence

from flanx.errors import UserError
from flanx.launch.backend import Backend, Check, State
from flanx.launch.job import Words, shown
from flanx.launch.program import Result

# slurm.schedmd.com/squeue.html, JOB STATE CODES
STATES = {
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "SUSPENDED", "PREEMPTED"),
        State.WAITING,
    ),
    **dict.fromkeys(("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT"), State.READY),
    "COMPLETED": State.DONE,
    **dict.fromkeys(
        ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"),
        State.FAILED,
    ),
}


class Slurm(Backend):
    """A batch job; its log is on the disk that all nodes share."""

    tools = ("sbatch", "squeue", "scancel")
    keeps_run = True

    def check(self) -> None:
        """Requires GPUs, or a number of nodes."""
        topology = self.job.topology
        if topology is not None and topology.chip.is_tpu:
            raise UserError(f"{topology.name}: SLURM has GPUs: --topology=h100:16, or --processes=N for N nodes")

    def checks(self) -> list[Check]:
        """No job with this name is in the queue."""
        name = self.job.name
        repair = f"the name {name} is taken: give another --name, or end that one with `flanx launch stop {name}`"
        return [Check(["squeue", "--me", "--noheader", f"--name={name}", "--format=%i"], repair, free=True)]

    def files(self) -> dict[str, str]:
        """The batch script. Every argument in it is quoted for its shell."""
        job = self.job
        exports = "".join(f"export {shown([f'{name}={value}'])}\n" for name, value in job.environment.items())
        image, container = job.target.image, list[str]()
        if image:
            mounts = ",".join(filter(None, (str(job.folder.resolve()), job.target.mounts)))
            container = [f"--container-image={image}", f"--container-mounts={mounts}"]
        program = ["flanx"] if image else [sys.executable, "-m", "flanx"]
        folder = str((job.folder / "files").resolve())
        run = ["srun", "--kill-on-bad-exit=1", "--label", *container, *program, *job.command(folder)]
        saved = shown([f"{job.model_dir or folder}/checkpoints"])
        script = (
            "#!/bin/bash\n# Written by `flanx launch slurm`; its options are on sbatch's command line.\n"
            f"set -uo pipefail\n{exports}"
            f"newest() {{ ls {saved} 2>/dev/null | sed -n 's/^checkpoint_\\([0-9]*\\)$/\\1/p' | sort -n | tail -n 1 | "
            "grep . || echo 0; }\n"
            f"progress={shown([f'{folder}/progress'])} # the newest checkpoint, ends in a row without a newer one\n"
            '[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || echo "$(newest) 0" >"$progress"\n'
            f"{shown(run)}\nstatus=$?\n"
            "case $status in\n"
            "  70 | 74 | 75 | 137 | 143) # a node lost, a save hung, time up: it resumes\n"
            '    read -r before stalled <"$progress"\n'
            "    after=$(newest)\n"
            '    if [ "$after" -gt "$before" ]; then stalled=0; else stalled=$((stalled + 1)); fi\n'
            '    echo "$after $stalled" >"$progress"\n'
            f'    [ "$stalled" -le {job.restarts} ] && scontrol requeue "$SLURM_JOB_ID" ;;\n'
            'esac\nexit "$status"\n'
        )
        return {**super().files(), "job.sbatch": script}

    @property
    def log(self) -> str:
        """The job's output, to which every attempt appends. SLURM expands % in a path."""
        return str((self.job.folder / "run.log").resolve())

    def make(self) -> list[Words]:
        """`sbatch`, which prints the job's number."""
        job, target, topology = self.job, self.job.target, self.job.topology
        nodes = topology.hosts if topology else job.processes
        return [
            [
                *("sbatch", "--parsable", f"--job-name={job.name}", f"--nodes={nodes}", "--ntasks-per-node=1"),
                *([f"--gpus-per-node={topology.chips_per_host}", "--exclusive"] if topology else []),
                *([f"--partition={target.partition}"] if target.partition else []),
                *([f"--account={target.account}"] if target.account else []),
                f"--time={target.time}",
                f"--signal=TERM@{int(job.grace) + 60}",
                *("--requeue", "--open-mode=append", f"--output={self.log.replace('%', '%%')}"),
                f"{self.folder}/job.sbatch",
            ]
        ]

    def made(self, results: Sequence[Result]) -> None:
        """Reads the job's number; with several clusters it is NUMBER;CLUSTER."""
        self.identifier = results[-1].out.strip().partition(";")[0]
        if not self.identifier.isdigit():
            raise UserError(f"sbatch printed no job number ({results[-1].last}); look with `squeue --me`")

    def questions(self) -> list[Words]:
        """The queue, and the accounting records for a job that has left it."""
        sacct = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={self.identifier}", "--format=State"]
        return [["squeue", "--noheader", f"--jobs={self.identifier}", "--format=%T"], sacct]

    @classmethod
    def state(cls, answers: Sequence[Result], identifier: str = "") -> tuple[State, str]:
        """From the queue, or from the accounting records once the job has left it."""
        queue, accounts = answers
        words = (queue.out if not queue.status else "").split() or accounts.out.split()
        if not words:
            return State.UNKNOWN, (queue if queue.status else accounts).last
        return STATES.get(words[0].rstrip("+"), State.UNKNOWN), words[0]

    def hosts(self, resumed: bool = False) -> dict[str, Words]:
        """The job's log; srun prefixes every line with the task's number."""
        return {"": ["tail", "-n", "0" if resumed else "+1", "-F", self.log]}

    def discard(self) -> list[Words]:
        """Cancels the job, queued or running."""
        return [["scancel", self.identifier]] if self.identifier.isdigit() else []
