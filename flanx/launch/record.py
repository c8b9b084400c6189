"""The record of a launch, FOLDER/NAME/launch.json: enough to query its state, to follow it and to end it."""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flanx
from flanx import process
from flanx.errors import UserError, nearest
from flanx.files import check_types, read_json, write_atomic

FOLDER, FILE = "out/launches", "launch.json"
MAKING, MADE, LEFT, ENDED = "making", "made", "left behind", "ended"
TYPES = {
    "name": str, "program": str, "identifier": str, "stage": str, "text": str, "command": list[str], "commit": str,
    "topology": str, "version": str, "started": float, "at": float, "process": dict[str, Any],
    "children": list[dict[str, Any]], "status": int | None,
    "questions": list[list[str]], "logs": list[list[str]], "remove": list[list[str]],
}  # fmt: skip


@dataclasses.dataclass
class Record:
    """A launch as its file records it.

    Attributes:
      program: xpk, jobset, tpu-vm, skypilot, slurm or local.
      identifier: the service's name for it.
      stage: MAKING before anything is requested, MADE once hosts may exist, LEFT if they could not be given back,
        ENDED when nothing is left.
      text: the last state in words; status: the exit status of the launch once it has ended.
      process: the one that last wrote the record (`flanx.process`); children: those it started for the hosts.
      questions, logs, remove: commands for its state, its log, and its removal.
    """

    name: str
    program: str
    folder: pathlib.Path
    identifier: str = ""
    stage: str = MAKING
    text: str = ""
    command: Sequence[str] = ()
    commit: str = ""
    topology: str = ""
    version: str = flanx.__version__
    started: float = 0.0
    at: float = 0.0
    process: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    children: Sequence[Mapping[str, Any]] = ()
    status: int | None = None
    questions: Sequence[Sequence[str]] = ()
    logs: Sequence[Sequence[str]] = ()
    remove: Sequence[Sequence[str]] = ()

    def write(self, **changes: Any) -> None:
        """Updates the record and replaces its file."""
        for name, value in changes.items():
            setattr(self, name, value)
        self.at, self.process = time.time(), process.describe(os.getpid())
        values = {key: value for key, value in vars(self).items() if key != "folder"}
        write_atomic(self.folder / FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    @property
    def is_driven(self) -> bool:
        """Whether the process that last wrote it is still running on this machine."""
        is_other = self.pid != os.getpid() and self.stage != ENDED
        return is_other and process.is_running(self.process)

    @property
    def pid(self) -> int:
        """The id of the process that last wrote it."""
        return self.process.get("pid", 0)


def read(folder: pathlib.Path) -> Record:
    """The record in a launch's folder. Raises UserError if it is absent or damaged."""
    values = read_json(folder / FILE)
    if not values:
        raise UserError(f"{folder} has no {FILE}: no launch")
    check_types(folder / FILE, values, TYPES)
    try:
        return Record(folder=folder, **values)
    except TypeError as error:
        raise UserError(
            f"{folder / FILE} is of another version of flanx ({values.get('version', '?')}); use that one"
        ) from error


def find(top: str, name: str) -> Record:
    """The launch with a name. Raises UserError with the nearest name."""
    folder = pathlib.Path(top) / name
    known = names(top)
    if name not in known:
        raise UserError(f"no launch '{name}' in {top}{nearest(name, known)}; `flanx launch list` prints them")
    return read(folder)


def names(top: str) -> list[str]:
    """The names of the launches in a folder."""
    return sorted(path.parent.name for path in pathlib.Path(top).glob(f"*/{FILE}"))
