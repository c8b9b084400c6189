"""The token store: every example of every (task, style, rendering), rendered and tokenized once, read at random.

A store is a folder of

    manifest.json                the contents, written last and by rename: a folder without one is not a store
    <volume>.tokens.npy          tokens of many examples, inputs then targets, concatenated [n_tokens]
    <volume>.index.npy           one record per example: INDEX [n_examples]
    <volume>.checksums.npy       CRC-32 of every BLOCK bytes of the tokens, then of the index: uint32 [n_blocks]

A volume holds tasks of one collection and is closed at VOLUME_BYTES. All files are plain `.npy` arrays (uint16 tokens
if the vocabulary has at most 65,536 ids, else uint32). Tokens and index are memory-mapped: opening reads one JSON file
and the checksums whatever the number of tasks, and any example is one record and one slice away. Examples are stored
untruncated; each side ends with the end-of-sequence id; readers trim. A block is checked against its checksum when it
is first read.

The manifest (JSON):

    format, version           "flanx-store", VERSION
    vocabulary                {spec, extra_ids, size, fingerprint}
    volumes                   [{name, tokens, examples, and of each file: tokens_bytes, tokens_sha256, ...}]
    tasks                     {task: {collection, cap, held_out, cot, inverted, family, licence, ..., parts}}
      parts                   {style: [one per rendering: {volume, start, examples, hash, input_tokens, target_tokens,
                              longest, longer_inputs, longer_targets, unknown, content}]}, all counts of tokens
                              or examples; content is a SHA-256
    missing                   {task: {collection, reason, ...}}: requested, but not built (quarantined, no data file)
    hash                      SHA-256 of the content: equal hashes mean equal examples at the same positions
"""

import dataclasses
import functools
import hashlib
import json
import logging
import mmap
import os
import pathlib
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from flanx import files
from flanx.data.store import cached
from flanx.data.store.cached import KINDS, MANIFEST
from flanx.errors import UserError

FORMAT, VERSION = "flanx-store", 1
MIXTURE = "mixture"  # as the validation set: the tasks that are trained on
VALIDATION = "validation"  # subfolder of a store with the store of its validation splits; its tasks are TASK:SPLIT
VOLUME_BYTES = 1 << 30
BLOCK = 1 << 14  # bytes per checksum: how much more than its own bytes reading one example may check
RESIDENT_BYTES = 192 << 20  # a reader releases mapped pages after reading about this much
INDEX = np.dtype([("offset", "<u8"), ("inputs", "<u4"), ("targets", "<u4")])  # offset of the first input token; lengths


@dataclasses.dataclass(frozen=True)
class Part:
    """One rendering of one (task, style): `examples` records of a volume from record `start` on."""

    volume: int
    start: int
    examples: int
    metadata: dict[str, Any]  # the manifest's entry: hash, token counts, shares


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a store."""

    name: str
    collection: str
    metadata: dict[str, Any]  # the manifest's entry, which mixtures read
    parts: dict[str, tuple[Part, ...]]  # style -> its renderings

    @property
    def examples(self) -> int:
        """Examples of the data set: those of the style that has most, counted once however often they are rendered."""
        return max((renderings[0].examples for renderings in self.parts.values()), default=0)


def checksums(array: np.ndarray) -> np.ndarray:
    """CRC-32 of every BLOCK bytes of an array, the last of which may be shorter: uint32 [n_blocks]."""
    view = array.view(np.uint8).data
    return np.array([zlib.crc32(view[at : at + BLOCK]) for at in range(0, len(view), BLOCK)], "<u4")


class Volume:
    """The memory-mapped files of one volume.

    Attributes:
      unchecked: for "tokens" and "index", whether `check` still has blocks to compare.
    """

    def __init__(self, folder: pathlib.Path, entry: dict[str, Any]) -> None:
        self._stem = folder / entry["name"]
        try:
            self._tokens_map = np.load(f"{self._stem}.tokens.npy", mmap_mode="r")
            self._index_map = np.load(f"{self._stem}.index.npy", mmap_mode="r")
        except (ValueError, EOFError, OSError, SyntaxError, TypeError) as error:
            raise UserError(
                f"{self._stem}.*.npy: a file is damaged or missing ({type(error).__name__}); run `flanx store build` "
                "again, which keeps what is intact, or copy the files again"
            ) from error
        self.tokens = np.asarray(self._tokens_map)  # a plain array over the same pages: slicing costs half
        self.index = np.asarray(self._index_map)
        self._blocks: dict[str, tuple[memoryview, np.ndarray, np.ndarray]] = {}  # bytes, checksums, whether to compare
        if files.verifying and "checksums_bytes" in entry:
            sums, at = np.load(f"{self._stem}.checksums.npy"), 0
            for kind, array in (("tokens", self.tokens), ("index", self.index)):
                own = sums[at : at - (-array.nbytes // BLOCK)]
                self._blocks[kind] = array.view(np.uint8).data, own, np.ones(len(own), bool)
                at += len(own)
        self.unchecked = {kind: kind in self._blocks for kind in ("tokens", "index")}

    def check(self, kind: str, first: np.ndarray, last: np.ndarray) -> None:
        """Checks the blocks containing elements first to last - 1 against their checksums, each block once.

        Both are i64[n]. Raises UserError for a block that has changed since it was written.
        """
        data, sums, todo = self._blocks[kind]
        size = len(data) // max(len(getattr(self, kind)), 1)
        begin, end = first * size // BLOCK, (last * size - 1) // BLOCK
        longest = int((end - begin).max(initial=0))
        blocks = np.concatenate([np.minimum(begin + step, end) for step in range(longest + 1)])
        for block in np.unique(blocks[todo[blocks]]).tolist():
            at = block * BLOCK
            if zlib.crc32(data[at : at + BLOCK]) != sums[block]:
                raise UserError(
                    f"{self._stem}.{kind}.npy: bytes {at:,} to {min(at + BLOCK, len(data)) - 1:,} of its array have "
                    "changed since they were written: the store is damaged; run `flanx store build` again, which keeps "
                    "what is intact, or copy the file again"
                )
            todo[block] = False
        self.unchecked[kind] = bool(todo.any())

    def release(self) -> None:
        """Releases the mapped pages; they stay in the page cache and are remapped when touched."""
        for mapped in (self._tokens_map, self._index_map):
            if isinstance(mapped, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # numpy has no public accessor


class Store:
    """An open store. Volumes are mapped when first read; safe to share between threads."""

    def __init__(self, path: pathlib.Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.hash: str = manifest["hash"]
        self.vocabulary: str = manifest["vocabulary"]["spec"]
        self.vocabulary_size: int = manifest["vocabulary"]["size"]
        self.vocabulary_fingerprint: str = manifest["vocabulary"]["fingerprint"]
        self.missing: dict[str, dict[str, Any]] = manifest["missing"]
        self._volumes: dict[int, Volume] = {}
        self._lock = threading.Lock()
        self._touched = 0

    @functools.cached_property
    def tasks(self) -> dict[str, Task]:
        tasks: dict[str, Task] = {}
        for name, metadata in self.manifest["tasks"].items():
            parts = {
                style: tuple(Part(entry["volume"], entry["start"], entry["examples"], entry) for entry in renderings)
                for style, renderings in metadata["parts"].items()
            }
            tasks[name] = Task(name, metadata["collection"], metadata, parts)
        return tasks

    def collections(self) -> dict[str, list[str]]:
        """Task names by collection, in the manifest's order."""
        names: dict[str, list[str]] = {}
        for task in self.tasks.values():
            names.setdefault(task.collection, []).append(task.name)
        return names

    def volume(self, number: int) -> Volume:
        volume = self._volumes.get(number)
        if volume is None:
            with self._lock:
                volume = self._volumes.setdefault(number, Volume(self.path, self.manifest["volumes"][number]))
        return volume

    def check(self, kind: str, volumes: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
        """`Volume.check` for elements of several volumes: i64[n] each. Call it before reading them."""
        for number in np.unique(volumes).tolist():
            if (volume := self.volume(number)).unchecked[kind]:
                own = volumes == number
                volume.check(kind, first[own], last[own])

    def touch(self, nbytes: int) -> None:
        """Readers report the bytes they read, so that mapped pages never fill a training host's memory."""
        self._touched += nbytes
        if self._touched > RESIDENT_BYTES:
            self._touched = 0
            for volume in list(self._volumes.values()):
                volume.release()

    def example(self, part: Part, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of example `number` of a part, untrimmed, int32."""
        return self.record(part.volume, part.start + number)

    def record(self, number: int, record: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of a record of a volume's index, untrimmed, int32."""
        volume, at = self.volume(number), np.array([record])
        if volume.unchecked["index"]:
            volume.check("index", at, at + 1)
        offset, inputs, targets = (int(v) for v in volume.index[record])
        last = offset + inputs + targets
        if volume.unchecked["tokens"]:
            volume.check("tokens", np.array([offset]), np.array([last]))
        tokens = volume.tokens[offset:last].astype(np.int32)
        return tokens[:inputs], tokens[inputs:]

    def check_vocabulary(self, fingerprint: str) -> None:
        """Raises UserError for a vocabulary that this store was not built with."""
        own = self.vocabulary_fingerprint
        if own != fingerprint:
            raise UserError(
                f"{self.path}: built with vocabulary '{self.vocabulary}' ({own[:40]}), not {fingerprint[:40]};"
                " set VOCABULARY to the store's or build another store"
            )


def open_store(path: str | os.PathLike[str]) -> Store:
    """Opens a store, checking the manifest and every file's size; `verify` also reads every byte.

    A store in a bucket (gs://..., s3://...) is first copied into the local cache (`flanx.data.store.cached`).
    """
    if "://" in str(path):
        path = cached.fetch(str(path))
    folder = pathlib.Path(path).expanduser()
    manifest = read_manifest(folder)
    for volume in manifest["volumes"]:
        for kind, file in volume_files(folder, volume).items():
            size = file.stat().st_size if file.is_file() else -1
            is_small = kind == "checksums" and files.verifying  # the others are checked block by block
            if size != volume[f"{kind}_bytes"]:
                problem = "is missing" if size < 0 else f"has {size:,} bytes, not {volume[f'{kind}_bytes']:,}"
            elif is_small and sha256(file) != volume[f"{kind}_sha256"]:
                problem = "content changed since it was built (SHA-256 differs)"
            else:
                continue
            raise UserError(f"{file}: {problem}: the store is damaged; build it again with `flanx store build`")
        if "checksums_bytes" not in volume:
            _say_old(str(folder))
    return Store(folder, manifest)


@functools.cache
def _say_old(folder: str) -> None:
    """Notes once per store that an earlier version built it."""
    logging.getLogger("flanx").warning(
        "note: the store %s is of an earlier version: it has no checksums (`flanx store verify` finds damage), and "
        "inverted examples may have taken rows from plain ones; `flanx store build` builds it again", folder,
    )  # fmt: skip


def volume_files(folder: pathlib.Path, volume: dict[str, Any]) -> dict[str, pathlib.Path]:
    """The files of a manifest's volume, by kind; a store built by an earlier version has no checksums."""
    return {kind: folder / f"{volume['name']}.{kind}.npy" for kind in KINDS if f"{kind}_bytes" in volume}


def verify(path: str | os.PathLike[str], report: Callable[[str, int], None] = lambda file, size: None) -> Store:
    """Opens a store and checks the SHA-256 of every file; calls `report(file, bytes)` after each."""
    store = open_store(path)
    for volume in store.manifest["volumes"]:
        for kind, file in volume_files(store.path, volume).items():
            if sha256(file) != volume[f"{kind}_sha256"]:
                raise UserError(f"{file}: content changed since it was built (SHA-256 differs); build the store again")
            report(file.name, volume[f"{kind}_bytes"])
    return store


def sha256(file: pathlib.Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def content_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its `hash`: every count, every file's hash, everything a mixture reads."""
    body = {key: value for key, value in manifest.items() if key != "hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a store folder, checked to be complete, unchanged and of this version."""
    file = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"{folder}: no such store: build it with `flanx store build`")
    if not file.is_file():
        raise UserError(
            f"{folder}: no {MANIFEST}: not a store, or one whose build did not finish: give a store's folder, or "
            "run its build again"
        )
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); build the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{file}: not the manifest of a flanx store")
    if manifest.get("version") != VERSION:
        raise UserError(f"{file}: store format {manifest.get('version')}, this flanx reads {VERSION}; build it again")
    if manifest.get("hash") != content_hash(manifest):
        raise UserError(f"{file}: content changed since it was built (hash differs); build the store again")
    return manifest
