"""Assembles a token store from parts: the volumes and, last, the manifest.

Parts come from shards that jobs wrote (see `shard`), or from the existing store. `assemble` copies them, in a fixed
order, into volumes named after their content, and replaces the manifest by rename only once all of them are on disk. So
a build that dies at any moment leaves the old store or none; a volume whose parts did not change is kept as it is; and
the bytes of a store depend only on its content, never on the machine, the number of workers or how often the build was
killed.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flanx.data.store import format as storage
from flanx.data.store.shard import BLOCK, PARTS, Shard, WrittenPart, token_dtype, write_shard
from flanx.data.vocabulary import Vocabulary
from flanx.errors import UserError
from flanx.files import open_atomic, write_atomic


class StoredPart:
    """A part in an intact volume of the existing store."""

    def __init__(self, store: storage.Store, task: str, style: str, rendering: int) -> None:
        self.task, self.style, self.rendering = task, style, rendering
        part = store.tasks[task].parts[style][rendering]
        self.metadata: dict[str, Any] = {
            key: value for key, value in part.metadata.items() if key not in ("volume", "start")
        }
        self._volume, self._number = store.volume, part.volume
        self._range = slice(part.start, part.start + part.examples)

    def lengths(self) -> np.ndarray:
        records = self._volume(self._number).index[self._range]
        return np.stack([records["inputs"], records["targets"]], axis=1)

    def tokens(self) -> Iterator[bytes]:
        volume = self._volume(self._number)
        start = int(volume.index["offset"][self._range.start]) if self.metadata["examples"] else 0
        stop = start + _tokens(self)
        for at in range(start, stop, BLOCK):
            yield volume.tokens[at : min(at + BLOCK, stop)].tobytes()


Part = WrittenPart | StoredPart


def stored_part(
    store: storage.Store, intact: set[int], task: str, style: str, rendering: int, key: str
) -> StoredPart | None:
    """One rendering of one (task, style), if an intact volume of a store holds it under the same key."""
    renderings = store.tasks[task].parts.get(style, ()) if task in store.tasks else ()
    if rendering >= len(renderings):
        return None
    part = renderings[rendering]
    is_same = part.volume in intact and part.metadata["hash"] == key
    return StoredPart(store, task, style, rendering) if is_same else None


def intact_volumes(store: storage.Store) -> set[int]:
    """Volumes of a store whose files are unchanged since they were written (every byte is read)."""
    return {i for i, entry in enumerate(store.manifest["volumes"]) if _is_intact(store.path, entry)}


def _is_intact(folder: pathlib.Path, entry: dict[str, Any]) -> bool:
    files = storage.volume_files(folder, entry)
    return all(f.is_file() and storage.sha256(f) == entry[f"{kind}_sha256"] for kind, f in files.items())


def assemble(
    store_dir: pathlib.Path,
    tasks: dict[str, dict[str, Any]],
    parts: Sequence[Part],
    missing: dict[str, dict[str, Any]],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Writes a store from the given parts and returns its manifest.

    `tasks`: {name: metadata that mixtures read, with `collection`}; `missing`: {name: {collection, reason, ...}}.
    """
    if not parts:
        raise UserError(f"{store_dir}: no task could be built, so there is nothing to store")
    dtype = token_dtype(vocabulary.size)
    entries: dict[str, dict[str, Any]] = {}
    volumes: list[dict[str, Any]] = []
    ordered = sorted(parts, key=lambda part: (tasks[part.task]["collection"], part.task, part.style, part.rendering))
    for volume, group in enumerate(_by_volume(ordered, tasks, dtype.itemsize)):
        volumes.append(_write_volume(store_dir, tasks[group[0].task]["collection"], group, dtype))
        start = 0
        for part in group:
            entry = entries.setdefault(part.task, {**tasks[part.task], "parts": {}})
            entry["parts"].setdefault(part.style, []).append({"volume": volume, "start": start, **part.metadata})
            start += part.metadata["examples"]
    keys = ("spec", "extra_ids", "size", "fingerprint")
    manifest = {
        "format": storage.FORMAT,
        "version": storage.VERSION,
        "vocabulary": {key: getattr(vocabulary, key) for key in keys},
        "volumes": volumes,
        "tasks": dict(sorted(entries.items())),
        "missing": dict(sorted(missing.items())),
    }
    manifest["hash"] = storage.content_hash(manifest)
    write_atomic(store_dir / storage.MANIFEST, json.dumps(manifest))
    _remove_unused(store_dir, volumes)
    return manifest


def _by_volume(parts: Sequence[Part], tasks: dict[str, dict[str, Any]], itemsize: int) -> Iterator[list[Part]]:
    """Splits parts, sorted by collection, into volumes: one collection each, closed when the next would pass 1 GiB."""
    group: list[Part] = []
    size = 0
    for part in parts:
        nbytes = _tokens(part) * itemsize
        other = group and tasks[group[0].task]["collection"] != tasks[part.task]["collection"]
        if group and (other or size + nbytes > storage.VOLUME_BYTES):
            yield group
            group, size = [], 0
        group.append(part)
        size += nbytes
    if group:
        yield group


def _tokens(part: Part) -> int:
    return part.metadata["input_tokens"] + part.metadata["target_tokens"]


def _write_volume(store_dir: pathlib.Path, collection: str, group: list[Part], dtype: np.dtype) -> dict[str, Any]:
    """Writes one volume, or keeps an intact one of the same content; returns its entry of the manifest."""
    key = "\n".join(f"{part.task} {part.style} {part.rendering} {part.metadata['content']}" for part in group)
    name = f"{collection}-{hashlib.sha256(f'{dtype} {key}'.encode()).hexdigest()[:16]}"
    finished = store_dir / f"{name}.json"  # read only by the next build: marks this volume as complete
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(finished.read_bytes())
        if "checksums_bytes" in kept and _is_intact(store_dir, kept):
            return kept
    tokens = sum(_tokens(part) for part in group)
    examples = sum(part.metadata["examples"] for part in group)
    entry: dict[str, Any] = {"name": name, "tokens": tokens, "examples": examples}
    entry |= _write_array(
        store_dir / f"{name}.tokens.npy", "tokens", dtype, tokens, (b for p in group for b in p.tokens())
    )
    entry |= _write_array(store_dir / f"{name}.index.npy", "index", storage.INDEX, examples, _records(group))
    arrays = [np.load(store_dir / f"{name}.{kind}.npy", mmap_mode="r") for kind in ("tokens", "index")]
    sums = np.concatenate([storage.checksums(np.asarray(array)) for array in arrays])
    entry |= _write_array(store_dir / f"{name}.checksums.npy", "checksums", sums.dtype, len(sums), [sums.tobytes()])
    write_atomic(finished, json.dumps(entry))
    return entry


def _records(group: list[Part]) -> Iterator[bytes]:
    offset = 0
    for part in group:
        pairs = part.lengths()
        records = np.empty(len(pairs), storage.INDEX)
        sizes = pairs.sum(axis=1, dtype=np.uint64)
        records["offset"] = offset + np.cumsum(sizes) - sizes
        records["inputs"], records["targets"] = pairs[:, 0], pairs[:, 1]
        offset += int(sizes.sum())
        yield records.tobytes()


def _write_array(file: pathlib.Path, kind: str, dtype: np.dtype, count: int, blocks: Iterable[bytes]) -> dict[str, Any]:
    """Writes a one-dimensional .npy file from raw blocks; returns its size and SHA-256 as manifest fields."""
    with open_atomic(file) as handle:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(handle, header)
        body = handle.tell()
        for block in blocks:
            handle.write(block)
        size = handle.tell()
        if size - body != count * dtype.itemsize:
            raise UserError(f"{file}: {size - body:,} bytes for {count:,} records: a part changed while it was read")
    return {f"{kind}_bytes": size, f"{kind}_sha256": storage.sha256(file)}


def write_store(
    store_dir: str | os.PathLike[str],
    tasks: dict[str, dict[str, Any]],
    examples: dict[tuple[str, str], Sequence[Iterable[tuple[np.ndarray, np.ndarray]]]],
    vocabulary: Vocabulary,
    missing: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Writes a small store from examples in memory: {(task, style): [the examples of each rendering]}."""
    folder = pathlib.Path(store_dir)
    parts: list[Part] = []
    for (task, style), renderings in examples.items():
        for rendering, stream in enumerate(renderings):
            shard = Shard(task, style, rendering, 0, 1, "by hand")
            parts.append(WrittenPart(folder / PARTS, [shard], [write_shard(folder / PARTS, shard, stream, vocabulary)]))
    manifest = assemble(folder, tasks, parts, missing or {}, vocabulary)
    shutil.rmtree(folder / PARTS)
    return manifest


def _remove_unused(store_dir: pathlib.Path, volumes: list[dict[str, Any]]) -> None:
    """Removes volumes that the manifest does not name, left by an older or a killed build."""
    used = {volume["name"] for volume in volumes}
    for file in store_dir.iterdir():
        if re.fullmatch(r".+\.\d+\.part", file.name):  # left by a build that died: the lock rules out a running one
            file.unlink()
            continue
        name = re.fullmatch(r"(.+-[0-9a-f]{16})\.((?:tokens|index|checksums)\.npy|json)", file.name)
        if name and name[1] not in used:
            file.unlink()
