"""What is launched: a command of flanx, its name, its code and its place."""

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
      name: of the launch and of what it makes: lower-case letters, digits and hyphens, 40 at most.
      words: the command after "flanx", the same on every host.
      config: the operative config, the gin text of which is shipped; "" where the words are all.
      own_files: gin files of the words that are not flanx's own.
      model_dir: the folder whose newest checkpoint says whether a restart made progress.
      topology: the chips; None: this machine's own, or what the target has.
      processes: of a local launch.
      folder: on this machine, for the record, the files and the logs.
      builds: whether the launch builds the image itself.
      environment: variables of every host.
      restarts: after preemptions, in a row and without a newer checkpoint.
      grace: seconds that a run gets to save when it is asked to stop.
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
        """The command after "flanx"; with the folder that the files are shipped to it reads the operative config."""
        if not (folder and self.config):
            return list(self.words)
        kept = [
            word for word in self.words[1:] if not word.startswith(("--gin_file=", "--gin.", "--gin_search_paths="))
        ]
        return [self.words[0], f"--gin_file={folder}/{CONFIG}", *kept]

    @property
    def image(self) -> str:
        """The container image, with the commit as its tag where the target has none and it is not a file, or ""."""
        image = self.target.image
        if not image or image.startswith("/") or "@" in image or ":" in image.rpartition("/")[2]:
            return image
        return f"{image}:{self.code.tag}"


def check_name(name: str) -> str:
    """The name. Raises UserError for one that a service would refuse."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 40:
        raise UserError(
            f"--name={name}: give lower-case letters, digits and hyphens, a letter first, 40 at most, as flan-t5-xl-1"
        )
    return name


def check_environment(pairs: Sequence[str]) -> dict[str, str]:
    """The variables of "NAME=VALUE" pairs. Raises UserError for what is none and for what looks like a secret."""
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
    """A command as a person may paste it; quoted only where a shell would read a word otherwise."""
    return shlex.join(words)


def typed(words: Words) -> str:
    """A command of flanx as a person would type it: quotes follow the name of a flag, --gin.MODEL_DIR="'out/run'"."""
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
