"""A folder in a bucket that a command writes to: a local copy, which is uploaded while it is being written.

A command works on the copy (`flanx.files.local_folder` of the URL) as on any folder, with the file system's rename,
append and lock. Uploads are ordered so that a reader, or a run restarted elsewhere, finds complete files or none:

- one process writes at a time (`flanx.lease`), and every write is conditional on the object being as this process knows
  it, so that a process that has lost the lease can change nothing;
- files are replaced as a whole; those that grow (JSONL, TensorBoard's events) are appended to as parts,
  NAME.parts/<series>.<offset>, and become NAME at the end. The newest series with a part 0 is the file;
- a checkpoint is sent once Orbax has given its folder the final name: every process sends its own files, then the first
  one the checksums of all, and `_CHECKPOINT_METADATA` last: a folder without it is not a checkpoint;
- done.json, scores.json, a store's manifest.json and the records of its parts follow all other files;
- `.flanx.index` names the files, in case a listing is stale.

At the start all files are copied, but of the checkpoints only the newest; the others are copied on demand.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
import threading
import zlib
from collections.abc import Callable
from typing import Any

from flanx import files, lease
from flanx.errors import UserError
from flanx.files import CHECKSUMS
from flanx.lease import Lease
from flanx.storage import ABSENT, COPY_S, LEAST_SPEED, Storage, Unreachable, is_file_name, patiently

PERIOD_S = 10.0  # seconds between checks for changes
AT_ONCE = 4  # objects sent or copied concurrently
ANSWER_S = 30.0  # time limit per object, plus the time for its bytes at LEAST_SPEED
MOST_PARTS = 64  # of a series, before the whole file is sent again
STEP = re.compile(r"(?:.*/)?checkpoints/checkpoint_\d+")
MARKER = "_CHECKPOINT_METADATA"  # Orbax's file in a step's folder, sent last
INDEX = ".flanx.index"
_OURS = re.compile(r"(.*/)?(\.flanx\.[^/]*|([^/]*\.)?lock|[^/]*\.\d+\.part)|.*orbax-checkpoint-tmp.*")  # not sent
_PART = re.compile(r"(.+)\.parts/(\d+)\.(\d+)")
_GROWS = re.compile(r".*(\.jsonl|\.part|/events\.out\.tfevents\.[^/]*)")
_LEFT = re.compile(rf"{STEP.pattern}|damaged/")  # not copied from the bucket along with the other files
_LATE = re.compile(r"(.*/)?(done\.json|scores\.json|manifest\.json|parts/.*\.json)")
_OF_RUN = ("run.json", "config.gin")  # while they are there, another run refuses the folder
_BIG = re.compile(r".*\.(npy|tokens)")  # of stores: up to VOLUME bytes
VOLUME = 1 << 30


@dataclasses.dataclass
class Sent:
    """The state of a file in the bucket: its size and checksum, the stamp of the file when sent, and the series and
    number of its parts; 0 for a file that was sent whole."""

    size: int
    crc: int
    stamp: tuple[int, int]
    series: int = 0
    parts: int = 0


class Mirror:
    """One process's local copy of a folder in a bucket.

    Attributes:
      url: the folder; path: its local copy; lease: the right to write there, held by a writing run's first process.
    """

    def __init__(
        self, folder: Storage, path: pathlib.Path, process: int = 0, processes: int = 1, writes: bool = True
    ) -> None:
        self.url, self.path, self.folder = str(folder), path, folder
        self._process, self._processes = process, processes
        self._generations: dict[str, bytes] = {}  # of objects that this process has read or written
        self._sent: dict[str, Sent] = {}
        self._parts: dict[str, set[str]] = {}  # the objects of appended files
        self._steps: set[str] = set()  # the checkpoints that are complete in the bucket
        self._stubs: set[str] = set()  # those of which the copy has only the folder
        self._own: dict[str, dict[str, list[int]]] = {}  # of checkpoints: this process's files, [bytes, CRC-32]
        self._index: set[str] = set()
        self._mutex, self._ended = threading.RLock(), threading.Event()
        self.lease = Lease(folder, self._end) if process == 0 and writes else None

    # ---- from the bucket ---------------------------------------------------------------------------------------------

    def pull(self, checkpoints: bool = True) -> None:
        """Copies all files, and with `checkpoints` the newest checkpoint of each run. Deletes nothing locally."""
        self._index = set(filter(is_file_name, _parsed(self._get(INDEX))))
        names = self.folder.keys() | self._index
        for name in names:
            if found := _PART.fullmatch(name):
                self._parts.setdefault(found[1], set()).add(name)
        whole = {n for n in names if not (_PART.fullmatch(n) or _OURS.fullmatch(n) or _LEFT.match(n))}
        self._each(self._take, whole | set(self._parts))
        if checkpoints:
            self._pull_steps(names)

    def _pull_steps(self, names: set[str]) -> None:
        for step in sorted({found[0] for name in names if (found := STEP.match(name))} - self._steps):
            if (marker := self._get(f"{step}/{MARKER}")) is not None:
                files.write_atomic(self.path / step / MARKER, marker, durable=False)
                self._steps.add(step)
                self._stubs.add(step)
            elif self.lease:  # a killed process left it
                (self.folder / step).clear()
        for home in {_number(step)[0] for step in self._steps}:
            self.complete(self.path / max((s for s in self._steps if _number(s)[0] == home), key=_number))

    def _take(self, name: str) -> bool:
        """Copies a file, which may be in parts; returns whether it exists."""
        found: dict[int, dict[int, str]] = {}
        for part in self._parts.get(name, ()):
            _, series, offset = _PART.fullmatch(part).groups()  # type: ignore[union-attr]  # only names that match
            found.setdefault(int(series), {})[int(offset)] = part
        content, number, count = None, max(found, default=0), 0
        for series in sorted(found, reverse=True):
            for offset, part in sorted(found[series].items()):
                data = self._get(part) if offset == len(content or b"") else None
                if data is None:
                    break
                content, number, count = (content or b"") + data, series, count + 1
            if content is not None:
                break
        if content is None:
            content = self._get(name, VOLUME if _BIG.fullmatch(name) else 0)
        if content is not None:
            files.write_atomic(self.path / name, content, durable=False)
            self._sent[name] = Sent(len(content), zlib.crc32(content), _stamp(self.path / name), number, count)
        return content is not None

    def complete(self, folder: str | os.PathLike) -> None:
        """Copies the files of a checkpoint of which there is only the folder; `files.verify_checksums` names missing
        ones."""
        step = pathlib.Path(folder).relative_to(self.path).as_posix()
        with self._mutex:
            if step not in self._stubs:
                return
            record = self._get(f"{step}/{CHECKSUMS}")
            sizes = _parsed(record) or {name: (0, 0) for name in (self.folder / step).keys()}  # noqa: SIM118

            def take(name: str) -> None:
                if (content := self._get(f"{step}/{name}", sizes[name][0])) is not None:
                    files.write_atomic(self.path / step / name, content, durable=False)

            self._each(take, set(filter(is_file_name, sizes)) - {MARKER})
            if record:
                files.write_atomic(self.path / step / CHECKSUMS, record, durable=False)
            self._stubs.discard(step)

    def _each(self, act: Callable[[str], object], names: set[str]) -> None:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(act, sorted(names)))

    def _get(self, name: str, size: int = 0) -> bytes | None:
        content, self._generations[name] = self.folder.get(name, ANSWER_S + size / LEAST_SPEED)
        return content

    # ---- to the bucket -----------------------------------------------------------------------------------------------

    def push(self) -> bool:
        """Sends what has changed; returns whether the checkpoints of all processes are complete. Raises UserError."""
        with self._mutex:
            steps = self._walk()[0]  # before the files: those that a checkpoint needs exist when it does
            if self._process == 0:
                self.publish(late=False)
            is_whole = all([self._send_step(step) for step in sorted(steps - self._steps, key=_number)])
            if self._process == 0 and is_whole:
                for step in (self._steps | set(self._own)) - steps:
                    self._drop_step(step)
                self.publish()
            return is_whole

    def publish(self, late: bool = True) -> None:
        """Sends changed files and deletes removed ones, except checkpoints."""
        with self._mutex:
            names = self._walk()[1]
            changed = [n for n in names if n not in self._sent or self._sent[n].stamp != _stamp(self.path / n)]
            for name in sorted(changed, key=lambda name: (bool(_LATE.fullmatch(name)), name)):
                if late or not _LATE.fullmatch(name):
                    self._send(name)
            for name in set(self._sent) - names:
                self._drop_parts(name, set())
                self._remove(name)
                del self._sent[name]
            known = {part for parts in self._parts.values() for part in parts} | {f"{s}/{MARKER}" for s in self._steps}
            if (index := set(self._sent) | known) != self._index:
                self._put(INDEX, json.dumps(sorted(index), indent=0).encode())
                self._index = index

    def give_back(self) -> None:
        """Sends only what a reader changed or created in its copy: another process may be writing there."""
        for name in sorted(self._walk()[1]):
            if name not in self._sent or self._sent[name].stamp != _stamp(self.path / name):
                self._put(name, (self.path / name).read_bytes())

    def _walk(self) -> tuple[set[str], set[str]]:
        """The finished checkpoints and the other files in the copy."""
        steps, names = set(), set()
        for root, folders, found in os.walk(self.path):  # skips what is deleted meanwhile
            at = "" if root == str(self.path) else f"{pathlib.Path(root).relative_to(self.path).as_posix()}/"
            steps |= {f"{at}{name}" for name in folders if STEP.fullmatch(f"{at}{name}")}
            folders[:] = [n for n in folders if f"{at}{n}" not in steps and not _OURS.fullmatch(f"{at}{n}/")]
            names |= {f"{at}{name}" for name in found if not _OURS.fullmatch(f"{at}{name}")}
        return steps, names

    def _send(self, name: str) -> None:
        path, before = self.path / name, self._sent.get(name)
        stamp = _stamp(path)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        if not _GROWS.fullmatch(name):
            self._put(name, content)
            self._sent[name] = Sent(len(content), zlib.crc32(content), stamp)
            return
        if not name.startswith("tensorboard/"):
            content = content[: content.rfind(b"\n") + 1]
        continues = (
            before is not None and 0 < before.parts < MOST_PARTS and zlib.crc32(content[: before.size]) == before.crc
        )
        if before is not None and continues and len(content) > before.size:
            part = _part(name, before.series, before.size)
            self._put(part, content[before.size :])
            self._parts[name].add(part)
            before = dataclasses.replace(before, parts=before.parts + 1)
        elif before is None or not continues:
            old = self._parts.get(name, set())
            series = 1 + max((int(_PART.fullmatch(part)[2]) for part in old), default=0)  # type: ignore[index]
            self._put(_part(name, series, 0), content)
            self._drop_parts(name, {_part(name, series, 0)})
            before = Sent(0, 0, stamp, series, 1)
        self._sent[name] = dataclasses.replace(before, size=len(content), crc=zlib.crc32(content), stamp=stamp)

    def _drop_parts(self, name: str, kept: set[str]) -> None:
        """Deletes parts, the first of a series before the others: without it the series does not count."""
        for part in sorted(self._parts.get(name, set()) - kept):
            self._remove(part)
        if kept:
            self._parts[name] = kept
        else:
            self._parts.pop(name, None)

    def _send_step(self, step: str) -> bool:
        """Sends this process's part of a checkpoint; returns whether the checkpoint is complete."""
        folder = self.path / step
        if step not in self._own:
            if self._process == 0 and self._get(f"{step}/{MARKER}") is not None:
                self._remove(f"{step}/{MARKER}")  # from a run that lost the lease: it is written again
            sums: dict[str, list[int]] = {}

            def send(name: str) -> None:
                content = (folder / name).read_bytes()
                sums[name] = [len(content), zlib.crc32(content)]
                if name != MARKER:
                    self._put(f"{step}/{name}", content)

            paths = [path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS]
            self._each(send, {path.relative_to(folder).as_posix() for path in paths})
            self._own[step] = sums
            if self._process:
                self._put(f"{step}/.flanx.part_{self._process}", json.dumps(sums).encode())
        if self._process:
            return True
        every = dict(self._own[step])
        for process in range(1, self._processes):
            if (part := self._get(f"{step}/.flanx.part_{process}")) is None:
                return False
            every |= {name: each for name, each in json.loads(part).items() if name not in every}
        self._put(f"{step}/{CHECKSUMS}", json.dumps(every, indent=0).encode() + b"\n")
        self._put(f"{step}/{MARKER}", (folder / MARKER).read_bytes())
        self._steps.add(step)
        for process in range(1, self._processes):
            self._remove(f"{step}/.flanx.part_{process}")
        return True

    def _drop_step(self, step: str) -> None:
        self._remove(f"{step}/{MARKER}")
        (self.folder / step).clear()
        self._steps.discard(step)
        self._stubs.discard(step)
        self._own.pop(step, None)

    def _put(self, name: str, content: bytes) -> None:
        """Writes an object that is as this process knows it, or was changed by a process without the lease."""
        for _ in range(4):
            expected = self._generations.get(name, ABSENT)
            limit = ANSWER_S + len(content) / LEAST_SPEED
            if (written := self.folder.put(name, content, expected, limit)) is not None:
                self._generations[name] = written
                return
            if self.lease:
                self.lease.confirm()
            if self._get(name, len(content)) == content:  # an earlier try succeeded, but its answer was lost
                return
        raise Unreachable(f"{self.url}/{name} changes while it is written; does another program write there?")

    def _remove(self, name: str) -> None:
        self.folder.remove(name)
        self._generations.pop(name, None)

    # ---- one file, between several writers ---------------------------------------------------------------------------

    def fetch(self, path: pathlib.Path) -> bool:
        """Copies a file again; returns whether it exists."""
        return patiently(lambda: self._take(path.relative_to(self.path).as_posix()))

    def offer(self, path: pathlib.Path, content: bytes) -> bool:
        """Replaces a file if it is still as `fetch` found it."""
        name = path.relative_to(self.path).as_posix()
        expected = self._generations.get(name, ABSENT)
        if (written := patiently(lambda: self.folder.put(name, content, expected, ANSWER_S))) is None:
            return False
        self._generations[name] = written
        files.write_atomic(path, content, durable=False)
        self._sent[name] = Sent(len(content), zlib.crc32(content), _stamp(path))
        return True

    def refresh(self) -> None:
        """Sends what was created here, and copies what others created."""
        patiently(self.give_back)
        patiently(lambda: self.pull(checkpoints=False))

    def move(self, source: pathlib.Path, target: pathlib.Path) -> None:
        """Renames a folder of the copy, here and in the bucket, checkpoints included.

        All of it is copied before anything is deleted; what makes it a finished or resumable run is deleted first, so
        that a kill in between leaves the old folder, or one that counts as another run's. The lease is not moved."""
        old, new = (path.relative_to(self.path).as_posix() for path in (source, target))
        names = {name for name in (self.folder / old).keys() if name != lease.NAME}  # noqa: SIM118  (a method of ours)

        def copy(name: str) -> None:
            content, _ = patiently(lambda: self.folder.get(f"{old}/{name}", COPY_S))
            if content is not None:
                limit = ANSWER_S + len(content) / LEAST_SPEED
                patiently(lambda: self.folder.put(f"{new}/{name}", content, ABSENT, limit))

        self._each(copy, names)
        for name in sorted(names, key=_removed):
            patiently(lambda name=name: self._remove(f"{old}/{name}"))  # type: ignore[misc]
        source.rename(target)
        self._parts = {name: parts for name, parts in self._parts.items() if not name.startswith(f"{old}/")}
        for name in [name for name in self._sent if name.startswith(f"{old}/")]:
            self._sent[f"{new}{name.removeprefix(old)}"] = self._sent.pop(name)

    # ---- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Sends changes every PERIOD_S seconds from now on."""
        threading.Thread(target=self._run, name="flanx-mirror", daemon=True).start()

    def _run(self) -> None:
        is_silent = False
        while not self._ended.wait(PERIOD_S):
            try:
                self.push()
                is_silent = False
            except Unreachable as error:
                if not is_silent:
                    print(f"note: {error}; what is written until then is sent later", file=sys.stderr, flush=True)
                is_silent = True
            except (UserError, OSError) as error:
                if not self._ended.is_set():
                    self._end(error)

    def _end(self, error: Exception) -> None:
        """Ends the process: nothing it would still do could be saved."""
        print(f"flanx: {error}; what was not sent is kept in {self.path}", file=sys.stderr, flush=True)
        os._exit(2)

    def flush(self) -> None:
        """Sends the rest and waits for other processes' parts. UserError: no answer within `storage.PATIENCE_S`."""

        def send() -> None:
            if not self.push():
                raise Unreachable(f"{self.url}: not all processes have sent their part of the last checkpoint")

        try:
            patiently(send)
        except Unreachable as error:
            raise UserError(f"{error}; what was not sent is kept in {self.path}") from error

    def settle(self) -> None:
        """Sends the rest, like `flush`, joins the parts of appended files, and stops."""
        self._ended.set()
        self.flush()
        if self._process:
            return
        with self._mutex:
            for name, sent in [(name, sent) for name, sent in self._sent.items() if sent.series]:
                content = (self.path / name).read_bytes()
                self._put(name, content)
                self._drop_parts(name, set())
                self._sent[name] = Sent(len(content), zlib.crc32(content), sent.stamp)
            self.publish()


def _part(name: str, series: int, offset: int) -> str:
    return f"{name}.parts/{series:06}.{offset:015}"


def _removed(name: str) -> tuple[int, str]:
    """The order in which the files of a run are deleted."""
    return 0 if _LATE.fullmatch(name) else 1 if name.endswith(MARKER) else 3 if name in _OF_RUN else 2, name


def _parsed(content: bytes | None) -> Any:
    """The content of JSON; None for a damaged file, which `files.verify_checksums` names."""
    with contextlib.suppress(ValueError):
        return json.loads(content or b"[]")
    return []


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return 0, -1


def _number(step: str) -> tuple[str, int]:
    """The run of a checkpoint, and its step."""
    home, _, number = step.rpartition("_")
    return home, int(number)
