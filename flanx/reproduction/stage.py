"""A stage of a road: flanx commands, and what they depend on."""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flanx.errors import UserError
from flanx.launch.job import Words
from flanx.storage import URLS, open_storage


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      commands: the arguments after "flanx"; built when the stage begins, as they may name what an earlier one chose.
      settings: what its result depends on, {name: value}; how it is run (jobs, machines) is not part of that.
      reads: {name: path or URL of a small file}, written by earlier stages, that stands for what the stage reads.
      makes: the folders of its results; they are set aside before it is redone.
      is_resumed: whether its commands resume in a folder left by a stopped attempt; otherwise that is set aside too.
      page: the file for what its commands print, "" for none.
      unknown: (a text, what to do): the stage cannot run while a command still contains the text.
    """

    name: str
    commands: Callable[[], Sequence[Words]]
    settings: Callable[[], Mapping[str, Any]]
    reads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    makes: Sequence[str] = ()
    is_resumed: bool = True
    page: str = ""
    unknown: tuple[str, str] = ("", "")


def digest(path: str) -> str:
    """SHA-256 of a file, or "absent"."""
    folder, _, name = path.rpartition("/")
    content = open_storage(folder or ".").find(name)
    return "absent" if content is None else hashlib.sha256(content).hexdigest()


def set_aside(path: str) -> None:
    """Renames a path to the first of PATH.1, PATH.2, ... that is free. Raises UserError for a URL."""
    if path.startswith(URLS):
        if open_storage(path).children():
            raise UserError(f"{path} holds an earlier result: move or remove it, and run the same command again")
        return
    place = pathlib.Path(path)
    if place.exists():
        names = (place.with_name(f"{place.name}.{number}") for number in itertools.count(1))
        taken = place.rename(next(name for name in names if not name.exists()))
        print(f"{place}: set aside as {taken.name}", flush=True)
