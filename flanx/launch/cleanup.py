"""Releases what a launch created, and reports what could not be released."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Sequence

from flanx import process
from flanx.errors import UserError
from flanx.launch.job import Words, shown
from flanx.launch.program import run, say
from flanx.launch.record import ENDED, LEFT, Record

# what removal commands print when there is nothing to remove: gcloud, gcloud storage, kubectl, scancel, sky
GONE = re.compile(
    r"not[ _]?found|no such|matched no objects|does not exist|invalid job id|no managed job", re.IGNORECASE
)


def give_back(record: Record, commands: Sequence[Words]) -> None:
    """Runs the removal commands; prints and records those that failed or were interrupted."""
    left = [list(words) for words in commands]
    try:
        for words in list(left):
            result = run(words)
            if result.status and not GONE.search(result.err):
                say(f"{words[0]}: {result.last}")
            else:
                left.remove(words)
    finally:
        record.write(stage=LEFT if left else ENDED, remove=left)
        if left:
            listed = "\n".join(f"  {shown(words)}" for words in left)
            say(f"{record.name} LEFT BEHIND what may be billed; remove it with `flanx launch stop`, or with\n{listed}")


def stop(record: Record, limit: float) -> None:
    """Ends a launch through its driver process, or else ends what that left running and runs the removal commands.

    Raises UserError if something is left, or if the process is still alive after `limit` seconds.
    """
    if record.is_driven:
        os.kill(record.pid, signal.SIGTERM)
        over = time.monotonic() + limit
        while record.is_driven:
            if time.monotonic() > over:
                raise UserError(
                    f"{record.name}: its process {record.pid} has not ended in {limit:.0f} s; look at its output"
                )
            time.sleep(0.2)
        return
    _end_children(record, limit)
    give_back(record, record.remove)
    if record.remove:
        raise UserError(f"{record.name}: {len(record.remove)} commands failed; see above, and try again")


def _end_children(record: Record, limit: float) -> None:
    """Ends the host processes of a driver that was killed; each is the leader of its own session."""
    over = time.monotonic() + limit
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in filter(process.is_running, record.children):
            say(f"{record.name}: ends process {child['pid']}, which outlived its launcher")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child["pid"], number)
        while any(map(process.is_running, record.children)) and time.monotonic() < over:
            time.sleep(0.2)
