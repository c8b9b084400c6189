"""The lock on a folder in a bucket: names its writer, and is kept alive by conditional writes.

`.flanx.lease` names the holder. It is created on the condition that it does not exist, renewed every RENEW_S seconds on
the condition that it is as this process wrote it, and taken over when its generation has not changed for LEASE_S
seconds by the waiting process's clock, so that no two clocks are compared. A process that lost it finds out at the next
renewal, or at the first write that finds a generation other than its own (`Lease.confirm`).
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from flanx import process
from flanx.errors import UserError
from flanx.storage import ABSENT, Storage, Unreachable

NAME = ".flanx.lease"
_seen: dict[str, tuple[bytes, float]] = {}  # by folder: a generation of the lease, and when it was first seen
RENEW_S, LEASE_S = 5.0, 20.0  # seconds between renewals, and without one before another process may take the folder


class LeaseLost(UserError):
    """Another process took over the folder while this one did not renew its lease."""


class Lease:
    """The right to write to a folder. `acquire` it, and `release` it at the end.

    on_lost: called, in a thread, with the error when another process has taken it over.
    """

    def __init__(self, folder: Storage, on_lost: Callable[[UserError], None]) -> None:
        self._folder, self._on_lost = folder, on_lost
        self._record: dict[str, Any] = {"token": secrets.token_hex(8), "beat": 0, **process.describe(os.getpid())}
        self._generation = ABSENT
        self._mutex, self._ended = threading.Lock(), threading.Event()

    def acquire(self) -> None:
        """Takes the folder, and keeps it from then on. Raises UserError if another process has it, which shows when it
        renews, or if the bucket is missing or not writable."""
        content, generation = self._folder.get(NAME)
        (self._folder / NAME).keys()  # a read cannot tell a missing bucket from a missing file
        if content is not None:
            generation = self._wait_out(content, generation)
        if not self._take(generation):
            raise self._busy(self._folder.get(NAME)[0])

    def try_acquire(self) -> bool:
        """Takes the folder if it is free; does not wait for a renewal: a later call sees it (`is_alive`)."""
        _, generation = self._folder.get(NAME)
        return not is_alive(self._folder) and self._take(generation)

    def _take(self, generation: bytes) -> bool:
        written = self._folder.put(NAME, self._content(), generation)
        if written is not None:
            self._generation = written
            threading.Thread(target=self._renew, name="flanx-lease", daemon=True).start()
        return written is not None

    def _wait_out(self, content: bytes, generation: bytes) -> bytes:
        """The generation of a lease whose holder is gone, or ABSENT if it was released. Raises UserError if it is
        renewed meanwhile."""
        if not _is_gone(_read(content)):
            print(f"{self._folder}: waits up to {LEASE_S:.0f} s for a sign of life of {_named(content)}", flush=True)
            ends = time.monotonic() + LEASE_S
            while time.monotonic() < ends:
                time.sleep(min(1.0, LEASE_S / 10))
                found, now = self._folder.get(NAME)
                if found is None:
                    return ABSENT
                if now != generation:
                    raise self._busy(found)
        return generation

    def _busy(self, content: bytes | None) -> UserError:
        return UserError(
            f"{self._folder}: another flanx command is writing there ({_named(content)}); wait for it, or give another "
            "folder"
        )

    def _content(self) -> bytes:
        return json.dumps(self._record).encode()

    def confirm(self) -> None:
        """Renews the lease. Raises LeaseLost if another process has it, Unreachable if that cannot be determined."""
        with self._mutex:
            self._record["beat"] += 1  # S3 distinguishes objects by their content
            written = self._folder.put(NAME, self._content(), self._generation)
            if written is None:
                content, generation = self._folder.get(NAME)
                if content is None or _read(content).get("token") != self._record["token"]:
                    raise LeaseLost(
                        f"{self._folder}: {_named(content)} took it over, as this process gave no sign of life for "
                        f"{LEASE_S:.0f} s; what it did since then is not kept, and it ends"
                    )
                self._record["beat"] += 1  # an earlier renewal succeeded, but its answer was lost
                written = self._folder.put(NAME, self._content(), generation)
            self._generation = written or self._generation

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self.confirm()
            except Unreachable:
                continue
            except UserError as error:
                if not self._ended.is_set():
                    self._on_lost(error)
                return

    def release(self) -> None:
        """Releases the folder."""
        self._ended.set()
        with self._mutex, contextlib.suppress(UserError):  # it expires by itself
            content, _ = self._folder.get(NAME)
            if content is not None and _read(content).get("token") == self._record["token"]:
                self._folder.remove(NAME)


def is_alive(folder: Storage) -> bool:
    """Whether a folder has a holder that renews its lease, as far as this process has seen since its first call."""
    content, generation = folder.get(NAME)
    if content is None or _is_gone(_read(content)):
        return False
    if str(folder) not in _seen or _seen[str(folder)][0] != generation:
        _seen[str(folder)] = generation, time.monotonic()
    return time.monotonic() - _seen[str(folder)][1] < LEASE_S


def _is_gone(record: dict[str, Any]) -> bool:
    """Whether the holder is a process of this machine that has ended."""
    return process.is_here(record) and not process.is_running(record)


def _read(content: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(content)
        return found if isinstance(found, dict) else {}
    return {}


def _named(content: bytes | None) -> str:
    record = _read(content or b"")
    return f"process {record.get('pid', '?')} on {record.get('host', 'another machine')}"
