"""The error for a user's mistake, with the nearest known name, and the notice of a preemption."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: a message of one to five lines that says what is wrong, where, and how to fix it; exit status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the known name closest to `name`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


class Preempted(Exception):
    """The run was asked to stop and has saved its state: exit status 75; the same command resumes it."""
