"""The error of a user's mistake, with the nearest known name, and the news of a preemption."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that names the thing, the place and the repair. Every door prints it and exits with 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the known name closest to `name`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


class Preempted(Exception):
    """The run was asked to stop and has saved its state; the door exits with 75, and the same command goes on."""
