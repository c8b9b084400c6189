"""What a launch backend provides: its files, its commands, and how their output is read. `lifecycle` runs them."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence

from flanx.errors import UserError
from flanx.launch import code
from flanx.launch.job import CONFIG, Job, Words
from flanx.launch.program import Result

UV = "uv==0.13.9"


class State(enum.Enum):
    """The state of a launch."""

    ABSENT = "not there"
    WAITING = "waiting"
    READY = "running"
    LOST = "preempted"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "no answer"


@dataclasses.dataclass(frozen=True)
class Check:
    """A read-only command that must succeed (or, with `free`, find nothing) before anything is created."""

    words: Words
    repair: str
    free: bool = False


class Backend:
    """One way of launching one job. All commands are argument lists, never parsed by a local shell.

    Attributes:
      tools: programs that it needs.
      keeps_run: whether the service starts and restarts the run, so that this program only follows it.
      identifier: the service's name for the job, once it is created.
    """

    tools: Sequence[str] = ()
    keeps_run = False

    def __init__(self, job: Job, identifier: str = "") -> None:
        self.job = job
        self.identifier = identifier or job.name
        self.check()

    def check(self) -> None:
        """Raises UserError for a job that it cannot launch, before any program is called."""

    def checks(self) -> list[Check]:
        """What is checked before anything is created."""
        return []

    def files(self) -> dict[str, str]:
        """Files in the launch's folder, by name."""
        return {CONFIG: self.job.config} if self.job.config else {}

    def ship(self) -> list[Words]:
        """Commands that copy code and files to where the hosts find them, once."""
        return []

    def make(self) -> list[Words]:
        """Commands that request the hosts; from here on they may be billed."""
        return []

    def made(self, results: Sequence[Result]) -> None:
        """Receives the results of the commands of `make`."""

    def questions(self) -> list[Words]:
        """Commands whose output gives the state."""
        return []

    @classmethod
    def state(cls, answers: Sequence[Result], identifier: str = "") -> tuple[State, str]:
        """The state of the service's job `identifier`, and the service's own word or message for it."""
        del answers, identifier
        return State.READY, ""

    def prepare(self) -> list[Words]:
        """Commands that wait until the hosts have received what was shipped."""
        return []

    def hosts(self, resumed: bool = False) -> dict[str, Words]:
        """The streamed commands by host: the run itself, or its log where the service keeps it.

        With `resumed`, a log continues after its stream was cut.
        """
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Environment variables of the streamed commands on this machine."""
        return {}

    def halt(self) -> list[Words]:
        """Commands that end the run but keep its hosts."""
        return []

    def discard(self) -> list[Words]:
        """Commands that release the hosts."""
        return []

    def clean(self) -> list[Words]:
        """Commands that remove what was shipped."""
        return []

    @property
    def folder(self) -> str:
        """The local folder of the launch's files."""
        return str(self.job.folder / "files")

    @property
    def accelerator(self) -> str:
        """The image's build argument, which also selects the lock files: cpu, tpu or cuda."""
        topology = self.job.topology
        return "cpu" if topology is None else "tpu" if topology.chip.is_tpu else "cuda"

    def locks(self) -> dict[str, str]:
        """The lock files that a wheel is installed from; {} for an image, which has its own."""
        if self.job.image:
            return {}
        names = code.LOCKS[self.accelerator]
        missing = [name for name in names if not (code.ROOT / name).is_file()]
        if missing:
            raise UserError(f"no {missing[0]} next to flanx: ship from a checkout, or set an image in the target")
        return {name: (code.ROOT / name).read_text(encoding="utf-8") for name in names}


def install_script(accelerator: str) -> str:
    """Shell lines that create ./venv from the lock files and the wheel in the folder they run in.

    uv provides the Python: the hosts' own is often too old for flanx.
    """
    install = "python3 -m uv pip install --quiet --python venv/bin/python"
    lines = [
        'export UV_PYTHON_INSTALL_DIR="$PWD/python"',  # readable by users other than root
        f"python3 -m pip install --quiet --user {UV}",
        "python3 -m uv venv --quiet --clear --python 3.12 venv",
        *(f"{install} --require-hashes -r {name}" for name in code.LOCKS[accelerator]),
        f"{install} --no-deps ./*.whl",
    ]
    return "\n".join(lines) + "\n"
