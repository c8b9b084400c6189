"""What is launched: a flanx command, its name, its code and its target."""

import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence

from flanx.errors import UserError
from flanx.launch.code import Code
from flanx.launch.target import SECRET, TOKEN, Target
from flanx.plan.hardware import Topology

Words = Sequence[str]
CONFIG = "config.gin"  # the operative config among a launch's files


@dataclasses.dataclass(frozen=True)
class Job:
    """One launch.

    Attributes:
      name: of the launch and of what it creates: lower-case letters, digits and hyphens, at most 40.
      words: the arguments after "flanx", the same on every host.
      config: the operative config, shipped as gin text; "" if `words` is the whole command.
      own_files: gin files in `words` that do not ship with flanx.
      model_dir: the folder whose newest checkpoint says whether a restart made progress.
      topology: the chips; None: this machine's, or the target's.
      processes: number of processes of a local launch.
      folder: the local folder for the record, the files and the logs.
      builds: whether the launch builds the image itself.
      environment: environment variables of every host.
      restarts: limit of consecutive restarts after preemptions without a newer checkpoint.
      grace: seconds a run gets to save when asked to stop.
    """

    name: str
    words: Words
    folder: pathlib.Path
    target: Target = dataclasses.field(default_factory=Target)
    topology: Topology | None = None
    spot: bool = False
    processes: int = 1
    config: str = ""
    own_files: Sequence[str] = ()
    model_dir: str = ""
    code: Code = dataclasses.field(default_factory=Code)
    builds: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    restarts: int = 3
    grace: float = 120.0

    def command(self, folder: str = "") -> list[str]:
        """The arguments after "flanx"; given the folder the files are shipped to, it reads the operative config."""
        if not (folder and self.config):
            return list(self.words)
        kept = [
            word for word in self.words[1:] if not word.startswith(("--gin_file=", "--gin.", "--gin_search_paths="))
        ]
        return [self.words[0], f"--gin_file={folder}/{CONFIG}", *kept]

    @property
    def image(self) -> str:
        """The container image or "", tagged with the commit if the target gives no tag and it is not a file."""
        image = self.target.image
        if not image or image.startswith("/") or "@" in image or ":" in image.rpartition("/")[2]:
            return image
        return f"{image}:{self.code.tag}"


def check_name(name: str) -> str:
    """Returns the name. Raises UserError for one that a service would reject."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 40:
        raise UserError(
            f"--name={name}: give lower-case letters, digits and hyphens, a letter first, 40 at most, as flan-t5-xl-1"
        )
    return name


def check_environment(pairs: Sequence[str]) -> dict[str, str]:
    """The variables of "NAME=VALUE" pairs. Raises UserError for a malformed pair or one that looks like a secret."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name) or any(ord(c) < 32 for c in value):
            raise UserError(f"--env={name}: write NAME=VALUE, the value on one line")
        found[name] = value
    refuse_secrets(found, "--env")
    return found


def refuse_secrets(values: Mapping[str, str], where: str) -> None:
    """Raises UserError for a name or value that looks like a secret; the value is not in the message."""
    for name, value in values.items():
        if SECRET.search(name) or TOKEN.search(value):
            raise UserError(
                f"{where}: {name} is or holds what looks like a secret, which would be written into logs, YAML and "
                "records: keep it in a Secret of Kubernetes (environment_from of the target) or on the hosts themselves"
            )


def shown(words: Words) -> str:
    """A command ready to paste; a word is quoted only where a shell would read it differently."""
    return shlex.join(words)


def typed(words: Words) -> str:
    """A flanx command as a person would type it: quotes start after a flag's name, --gin.MODEL_DIR="'out/run'"."""
    return " ".join(map(_quoted, ["flanx", *words]))


def _quoted(word: str) -> str:
    name, equals, value = word.partition("=")
    if not equals or not name.startswith("--"):
        return shlex.quote(word)
    has_quotes = "'" in value and not re.search(r'["$`\\!]', value)
    return f"{name}=" + (f'"{value}"' if has_quotes else shlex.quote(value))


def document(*objects: Mapping[str, object]) -> str:
    """Objects as one YAML stream: a JSON document is YAML."""
    return "".join(f"---\n{json.dumps(each, indent=2)}\n" for each in objects)
