"""What a way of launching has to say: its files, its commands, and how its answers are read. `lifecycle` runs them."""

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
    """A command that changes nothing and has to succeed (or, `free`, to find nothing) before anything is made."""

    words: Words
    repair: str
    free: bool = False


class Backend:
    """One way of launching one job. All commands are lists of words that no local shell reads.

    Attributes:
      tools: programs that it needs.
      keeps_run: whether the service starts the run and restarts it; this program then follows it.
      identifier: what the service calls the job, once it is made.
    """

    tools: Sequence[str] = ()
    keeps_run = False

    def __init__(self, job: Job, identifier: str = "") -> None:
        self.job = job
        self.identifier = identifier or job.name
        self.check()

    def check(self) -> None:
        """Raises UserError for a job that it cannot take, before any program is asked."""

    def checks(self) -> list[Check]:
        """What is asked before anything is made."""
        return []

    def files(self) -> dict[str, str]:
        """Files of the launch's folder, by name."""
        return {CONFIG: self.job.config} if self.job.config else {}

    def ship(self) -> list[Words]:
        """Commands that bring code and files to where hosts find them, once."""
        return []

    def make(self) -> list[Words]:
        """Commands that ask for the hosts; from here on they may be billed."""
        return []

    def made(self, results: Sequence[Result]) -> None:
        """Takes what the commands of `make` answered."""

    def questions(self) -> list[Words]:
        """Commands whose answers give the state."""
        return []

    @classmethod
    def state(cls, answers: Sequence[Result], identifier: str = "") -> tuple[State, str]:
        """The state of what the service calls `identifier`, and its own word or message for it."""
        del answers, identifier
        return State.READY, ""

    def prepare(self) -> list[Words]:
        """Commands that wait until the hosts have what was shipped."""
        return []

    def hosts(self, resumed: bool = False) -> dict[str, Words]:
        """The streamed commands by host: the run itself, or its log where the service keeps it.

        With `resumed` a log continues after its stream was cut.
        """
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Variables of the streamed commands on this machine."""
        return {}

    def halt(self) -> list[Words]:
        """Commands that end the run on its hosts and keep them."""
        return []

    def discard(self) -> list[Words]:
        """Commands that give the hosts back."""
        return []

    def clean(self) -> list[Words]:
        """Commands that remove what was shipped."""
        return []

    @property
    def folder(self) -> str:
        """The folder of the launch's files on this machine."""
        return str(self.job.folder / "files")

    @property
    def accelerator(self) -> str:
        """The build argument of the image, and what is installed besides the lock: cpu, tpu or cuda."""
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
    """Shell lines that make ./venv from the locks and the wheel of the folder they run in.

    uv brings the Python: the hosts' own is often older than flanx takes.
    """
    install = "python3 -m uv pip install --quiet --python venv/bin/python"
    lines = [
        'export UV_PYTHON_INSTALL_DIR="$PWD/python"',  # where others than root may read
        f"python3 -m pip install --quiet --user {UV}",
        "python3 -m uv venv --quiet --clear --python 3.12 venv",
        *(f"{install} --require-hashes -r {name}" for name in code.LOCKS[accelerator]),
        f"{install} --no-deps ./*.whl",
    ]
    return "\n".join(lines) + "\n"
