"""Stages in sequence: each is done once, and then has a mark that records its settings and inputs.

A stage without a mark runs. Its commands resume on their own what they had begun, so that a road killed anywhere
resumes with the same command. A stage whose settings or inputs have changed since its mark is reported, not silently
redone.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flanx
from flanx.errors import Preempted, UserError, nearest
from flanx.files import check_types, read_json, write_atomic
from flanx.launch.job import Words, typed
from flanx.process import preempted, stops_deferred
from flanx.reproduction.stage import Stage, digest, set_aside
from flanx.sweep.state import inheritable_lock

PROGRAM = (sys.executable, "-m", "flanx")
BETWEEN = "stopped between two stages; the same command resumes there"
PREEMPTED = 75  # the exit status of a command that was stopped and saved its state
MARKS = "stages"  # the folder of the marks
PAGE_LINES = 30  # the last lines of a page, which are shown
TYPES = {"settings": dict[str, str], "inputs": dict[str, str], "commands": list[str], "seconds": float, "at": str}


class Road:
    """Stages in order, and the folder with their marks.

    Args:
      environment: environment variables of the commands, in addition to this process's own.
    """

    def __init__(
        self, folder: pathlib.Path, stages: Sequence[Stage], environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.stages, self.environment = folder, stages, environment or {}
        self._lock: int = -1

    def mark(self, stage: Stage) -> dict[str, Any]:
        """The record of a stage that is done; {} for one that is not."""
        path = self.folder / MARKS / f"{stage.name}.json"
        mark = check_types(path, read_json(path), TYPES)
        if mark and not TYPES.keys() <= mark.keys():
            raise UserError(f"{path} is damaged: no {min(TYPES.keys() - mark.keys())}; remove it to do the stage again")
        return mark

    def changes(self, stage: Stage) -> list[str]:
        """The differences between a stage's mark and what it would be now; [] for a stage that is not done."""
        mark = self.mark(stage)
        if not mark:
            return []
        old, new = mark["settings"], _texts(stage.settings())
        lines = [
            f"{name} was {_brief(old.get(name))}, now {_brief(new.get(name))}"
            for name in {**new, **old}
            if old.get(name) != new.get(name)
        ]
        for name, path in stage.reads.items():
            if digest(path) != mark["inputs"].get(name):
                lines.append(f"{name} ({path}) is not the one that it read")
        return lines

    def run(self, skipped: Sequence[str] = (), redo: str = "", keep: bool = False) -> int:
        """Runs every stage that is not done; returns the exit status of the first command that fails, else 0.

        Args:
          skipped: names of stages to skip.
          redo: redo this stage and all later ones; their results are set aside.
          keep: count a stage that was done with other settings or inputs as done.

        Raises:
          UserError: for an unknown stage name, and for stages that were done with other settings or inputs.
          Preempted: after SIGTERM or Ctrl-C, once the running command has ended.
        """
        self.check(skipped, redo)
        (self.folder / MARKS).mkdir(parents=True, exist_ok=True)
        with (
            inheritable_lock(self.folder / "reproduce.lock") as lock,
            preempted(BETWEEN),
        ):
            if lock is None:
                raise UserError(
                    f"{self.folder}: another `flanx reproduce`, or a command of one that was killed, is at work there"
                )
            self._lock = lock
            if redo:
                self._forget(redo, skipped)
            for stage in self.stages:
                if not keep and stage.name not in skipped:
                    self._refuse(stage)
            for number, stage in enumerate(self.stages, 1):
                title = f"[{number}/{len(self.stages)}] {stage.name}"
                if stage.name in skipped:
                    print(f"{title}: skipped", flush=True)
                elif mark := self.mark(stage):
                    if changed := self.changes(stage):
                        if not keep:
                            self._refuse(stage)
                        print(f"{title}: kept, though {'; '.join(changed)}", flush=True)
                    else:
                        print(f"{title}: done before ({mark['at']}, {mark['seconds']:.0f} s)", flush=True)
                elif status := self._do(stage, title):
                    return status
        return 0

    def check(self, skipped: Sequence[str] = (), redo: str = "") -> None:
        """Raises UserError for an unknown stage name, and for a stage that is both skipped and redone."""
        names = [stage.name for stage in self.stages]
        for flag, name in [("skip", each) for each in skipped] + [("redo", redo)] * bool(redo):
            if name not in names:
                raise UserError(f"--{flag}={name}: no such stage{nearest(name, names)} (they are {', '.join(names)})")
        if redo in skipped:
            raise UserError(f"--skip={redo} and --redo={redo} exclude each other: give one of them")

    def describe(self, skipped: Sequence[str] = ()) -> Iterator[str]:
        """What `run` would do, as lines."""
        for number, stage in enumerate(self.stages, 1):
            changed = self.changes(stage)
            state = "skipped" if stage.name in skipped else "done" if self.mark(stage) else "to do"
            yield f"[{number}/{len(self.stages)}] {stage.name}: {state}{', but ' * bool(changed)}{'; '.join(changed)}"
            yield from (f"  {typed(words)}" for words in stage.commands())

    def _refuse(self, stage: Stage) -> None:
        if changed := self.changes(stage):
            listed = "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")
            raise UserError(
                f"{stage.name} is done with other settings or inputs: {listed}\n"
                f"give the old ones again; or --redo={stage.name} to do it and what follows anew (results are set "
                "aside); or --keep to take it as it is; or another --folder"
            )

    def _forget(self, redo: str, skipped: Sequence[str]) -> None:
        names = [stage.name for stage in self.stages]
        later = [stage for stage in self.stages[names.index(redo) :] if stage.name not in skipped]
        for stage in reversed(later):  # a kill in between leaves no later mark without an earlier one
            for path in stage.makes:  # also if it was stopped half-way: it must be redone, not resumed
                set_aside(path)
            # last: without the mark the results would be resumed, like those of a stopped stage
            (self.folder / MARKS / f"{stage.name}.json").unlink(missing_ok=True)

    def _do(self, stage: Stage, title: str) -> int:
        """Runs the commands of a stage and writes its mark."""
        began, commands = time.monotonic(), list(stage.commands())
        missing, repair = stage.unknown
        if missing and any(missing in word for words in commands for word in words):
            raise UserError(f"{stage.name}: {repair}")
        inputs = {name: digest(path) for name, path in stage.reads.items()}
        if not stage.is_resumed:
            for path in stage.makes:
                set_aside(path)
        printed = []
        for words in commands:
            print(f"{title}: {typed(words)}", flush=True)
            status, text = self._call(words, bool(stage.page))
            if status == PREEMPTED:
                raise Preempted(f"stopped in the stage {stage.name}; the same command resumes there")
            if status:
                print(text, end="")
                said = f"exit status {status}" if status > 0 else f"signal {-status}"
                print(f"{title}: failed ({said}); the same command resumes here", file=sys.stderr, flush=True)
                return max(status, 1)
            printed.append(text)
        if stage.page:
            page = "\n".join(printed)
            write_atomic(pathlib.Path(stage.page), page)
            lines = page.rstrip("\n").split("\n")
            print(
                "\n".join(
                    [f"({len(lines) - PAGE_LINES} lines before)"] * (len(lines) > PAGE_LINES) + lines[-PAGE_LINES:]
                )
            )
            print(f"written: {stage.page}", flush=True)
        mark = {
            "settings": _texts(stage.settings()),
            "inputs": inputs,
            "commands": [typed(words) for words in commands],
            "seconds": round(time.monotonic() - began, 1),
            "at": time.strftime("%Y-%m-%d %H:%M"),
            "flanx": flanx.__version__,
        }
        write_atomic(self.folder / MARKS / f"{stage.name}.json", json.dumps(mark, indent=1) + "\n")
        return 0

    def _call(self, words: Words, is_read: bool) -> tuple[int, str]:
        """(exit status, standard output if it is read) of a flanx command.

        It runs in its own session, so that Ctrl-C reaches it only once, from here; it keeps the lock if this process
        is killed and it is not.
        """
        out = self.folder / MARKS / "output.txt"  # no pipe: it would break a command that outlives this process
        with open(out, "w") if is_read else contextlib.nullcontext() as file:
            process = None
            try:
                with stops_deferred():
                    process = subprocess.Popen(
                        [*PROGRAM, *words],
                        stdout=file,
                        env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environment},
                        pass_fds=[self._lock],
                        start_new_session=True,
                    )
                status = process.wait()
            except KeyboardInterrupt:
                if process:
                    with contextlib.suppress(ProcessLookupError):
                        process.terminate()
                    process.wait()
                status = PREEMPTED
        return status, out.read_text(encoding="utf-8", errors="replace") if is_read else ""


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}


def _brief(value: str | None) -> str:
    text = "not set" if value is None else value
    return text if len(text) < 60 else f"{text[:57]}..."
