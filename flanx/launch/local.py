"""This machine: the processes of a run side by side, to try a multi-host command before renting hosts."""

import os
import socket
import sys
from collections.abc import Mapping

from flanx.coordination import PORT_OFFSET
from flanx.errors import UserError
from flanx.launch.backend import Backend
from flanx.launch.job import Words

PROGRAM = (sys.executable, "-m", "flanx")


class Local(Backend):
    """Processes that find each other on the loopback address."""

    def check(self) -> None:
        """Rejects a topology or spot hosts: the chips are this machine's."""
        if self.job.topology is not None or self.job.spot:
            raise UserError(
                "local: this machine has the chips that it has; --topology and --spot belong to other programs"
            )

    def hosts(self, resumed: bool = False) -> dict[str, Words]:
        """The run: the same command with each process's id."""
        command = [*PROGRAM, *self.job.command(self.folder)]
        if self.job.processes == 1:
            return {"0": command}
        shared = [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={self.job.processes}"]
        return {str(i): [*command, *shared, f"--process_id={i}"] for i in range(self.job.processes)}

    def environment(self) -> Mapping[str, str]:
        """CPU devices, unless the environment names another platform."""
        return {
            "PYTHONUNBUFFERED": "1",
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            **self.job.environment,
        }


def free_port() -> int:
    """A port that is free now, as is the roll call's port above it."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + PORT_OFFSET))
            except (OSError, OverflowError):
                continue
            return port
