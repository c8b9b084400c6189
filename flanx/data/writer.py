"""Writes a token store: parts first, each on its own, then the volumes and, last, the manifest.

A part is one rendering of one (task, style). It is written under `<store>/parts/` as

    <name>.tokens    raw tokens, inputs then targets of each example, one after the other
    <name>.lengths   raw uint32 pairs (inputs, targets), one per example
    <name>.json      counts and hashes, written last and by rename: a part without one is not there

`assemble` copies parts, in a given order, into volumes named after their content, and renames the manifest over the old
one only when all of them are on disk. So a build that dies at any moment leaves the old store or none; a volume whose
parts did not change is kept as it is; and the bytes of a store depend on its content alone, never on the machine, the
number of workers or how often the build was killed.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from flanx.data import store as storage
from flanx.data.vocabulary import Vocabulary
from flanx.errors import UserError

PARTS = "parts"
INPUT_LENGTHS = (256, 512, 1024, 2048)  # lengths whose truncation shares the manifest tells in advance
TARGET_LENGTHS = (64, 128, 256, 512)
BLOCK = 1 << 22  # bytes copied at once

Example = tuple[np.ndarray, np.ndarray]  # (inputs [n], targets [m]), token ids


@dataclasses.dataclass(frozen=True, order=True)
class PartPlan:
    """One part of a store to come: whose it is, and the hash of all that makes it."""

    task: str
    style: str
    rendering: int
    hash: str

    def file(self, folder: pathlib.Path, kind: str) -> pathlib.Path:
        return folder / self.task / f"{self.style}-{self.rendering}.{kind}"


def token_dtype(vocabulary_size: int) -> np.dtype:
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def write_part(folder: pathlib.Path, plan: PartPlan, examples: Iterable[Example], vocabulary: Vocabulary) -> dict:
    """Writes one part, example by example in constant memory, and returns its facts (the content of its .json)."""
    dtype = token_dtype(vocabulary.size)
    plan.file(folder, "json").parent.mkdir(parents=True, exist_ok=True)
    plan.file(folder, "json").unlink(missing_ok=True)
    lengths, unknown, digest = [], 0, hashlib.sha256()
    with plan.file(folder, "tokens").open("wb") as handle:
        for inputs, targets in examples:
            tokens = np.concatenate([inputs, targets])
            unknown += int(np.count_nonzero(tokens == vocabulary.unk_id))
            lengths.append((len(inputs), len(targets)))
            raw = tokens.astype(dtype).tobytes()
            digest.update(raw)
            handle.write(raw)
    pairs = np.asarray(lengths, "<u4").reshape(-1, 2)
    digest.update(pairs.tobytes())
    plan.file(folder, "lengths").write_bytes(pairs.tobytes())
    facts = {"hash": plan.hash, "content": digest.hexdigest()} | _describe(pairs, unknown)
    write_atomically(plan.file(folder, "json"), json.dumps(facts), sync=False)  # `assemble` checks the content
    return facts


def _describe(pairs: np.ndarray, unknown: int) -> dict[str, Any]:
    """Counts of a part with lengths `pairs` [n, 2]; shares of tokens unknown and of examples longer than usual."""
    inputs, targets = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    n, tokens = len(pairs), int(pairs.sum(dtype=np.int64))
    return {
        "examples": n,
        "input_tokens": int(inputs.sum()),
        "target_tokens": int(targets.sum()),
        "unknown": round(unknown / max(tokens, 1), 6),
        "longest": [int(inputs.max(initial=0)), int(targets.max(initial=0))],
        "longer": {
            "inputs": {str(k): round(float((inputs > k).sum()) / max(n, 1), 6) for k in INPUT_LENGTHS},
            "targets": {str(k): round(float((targets > k).sum()) / max(n, 1), 6) for k in TARGET_LENGTHS},
        },
    }


class WrittenPart:
    """A part under `parts/`."""

    def __init__(self, folder: pathlib.Path, plan: PartPlan, facts: dict[str, Any]) -> None:
        self.plan, self.facts, self._folder = plan, facts, folder

    def lengths(self) -> np.ndarray:
        return np.fromfile(self.plan.file(self._folder, "lengths"), "<u4").reshape(-1, 2)

    def tokens(self) -> Iterator[bytes]:
        with self.plan.file(self._folder, "tokens").open("rb") as handle:
            while block := handle.read(BLOCK):
                yield block

    def forget(self) -> None:
        self.plan.file(self._folder, "json").unlink(missing_ok=True)


class StoredPart:
    """A part in a volume of the store as it is."""

    def __init__(self, store: storage.Store, plan: PartPlan, part: storage.Part) -> None:
        self.plan, self._store, self._part = plan, store, part
        self.facts = {key: value for key, value in part.facts.items() if key not in ("volume", "start")}

    def _records(self) -> np.ndarray:
        return self._store.volume(self._part.volume).index[self._part.start : self._part.start + self._part.examples]

    def lengths(self) -> np.ndarray:
        records = self._records()
        return np.stack([records["inputs"], records["targets"]], axis=1)

    def tokens(self) -> Iterator[bytes]:
        tokens = self._store.volume(self._part.volume).tokens
        start = int(self._records()["offset"][0]) if self._part.examples else 0
        stop = start + self.facts["input_tokens"] + self.facts["target_tokens"]
        for at in range(start, stop, BLOCK):
            yield tokens[at : min(at + BLOCK, stop)].tobytes()

    def forget(self) -> None:
        """Nothing to forget: a volume with a wrong hash is never taken parts from."""


AnyPart = WrittenPart | StoredPart


def written(folder: pathlib.Path, plan: PartPlan) -> WrittenPart | None:
    """The part of a plan where it is whole under `folder` and was made by the same hash, else None."""
    try:
        facts = json.loads(plan.file(folder, "json").read_bytes())
    except (OSError, ValueError):
        return None
    return WrittenPart(folder, plan, facts) if facts.get("hash") == plan.hash else None


def stored(store: storage.Store, sound: set[int], plan: PartPlan) -> StoredPart | None:
    """The part of a plan where a `sound` volume of the store holds it, made by the same hash, else None."""
    task = store.tasks.get(plan.task)
    renderings = task.parts.get(plan.style, ()) if task else ()
    part = renderings[plan.rendering] if plan.rendering < len(renderings) else None
    if part is None or part.volume not in sound or part.facts["hash"] != plan.hash:
        return None
    return StoredPart(store, plan, part)


def sound_volumes(store: storage.Store) -> set[int]:
    """Volumes of a store whose files are as they were written (every byte is read)."""
    return {i for i, entry in enumerate(store.manifest["volumes"]) if _is_sound(store.path, entry)}


def _is_sound(folder: pathlib.Path, entry: dict[str, Any]) -> bool:
    files = {kind: folder / f"{entry['name']}.{kind}.npy" for kind in ("tokens", "index")}
    return all(f.is_file() and storage.sha256(f) == entry[f"{kind}_sha256"] for kind, f in files.items())


def assemble(
    store_dir: pathlib.Path,
    tasks: dict[str, dict[str, Any]],
    parts: Sequence[AnyPart],
    missing: dict[str, dict[str, Any]],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Makes the store of the given parts and returns its manifest.

    `tasks`: {name: what mixtures read, with `collection`}; `missing`: {name: {collection, reason, ...}}.
    """
    if not parts:
        raise UserError(f"{store_dir}: no task could be built: nothing to store")
    dtype = token_dtype(vocabulary.size)
    entries: dict[str, dict[str, Any]] = {}
    volumes: list[dict[str, Any]] = []
    ordered = sorted(parts, key=lambda part: (tasks[part.plan.task]["collection"], part.plan))
    for volume, group in enumerate(_by_volume(ordered, tasks, dtype.itemsize)):
        volumes.append(_write_volume(store_dir, tasks[group[0].plan.task]["collection"], group, dtype))
        start = 0
        for part in group:
            entry = entries.setdefault(part.plan.task, {**tasks[part.plan.task], "parts": {}})
            entry["parts"].setdefault(part.plan.style, []).append({"volume": volume, "start": start, **part.facts})
            start += part.facts["examples"]
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
    write_atomically(store_dir / storage.MANIFEST, json.dumps(manifest))
    _remove_unused(store_dir, volumes)
    return manifest


def _by_volume(parts: Sequence[AnyPart], tasks: dict[str, dict[str, Any]], itemsize: int) -> Iterator[list[AnyPart]]:
    """Splits parts, sorted by collection, into volumes: one collection each, closed when the next would pass 1 GiB."""
    group: list[AnyPart] = []
    size = 0
    for part in parts:
        nbytes = (part.facts["input_tokens"] + part.facts["target_tokens"]) * itemsize
        other = group and tasks[group[0].plan.task]["collection"] != tasks[part.plan.task]["collection"]
        if group and (other or size + nbytes > storage.VOLUME_BYTES):
            yield group
            group, size = [], 0
        group.append(part)
        size += nbytes
    if group:
        yield group


def _write_volume(store_dir: pathlib.Path, collection: str, group: list[AnyPart], dtype: np.dtype) -> dict[str, Any]:
    """Writes one volume, or keeps the one that is there with the same content; its entry of the manifest."""
    key = "\n".join(
        f"{part.plan.task} {part.plan.style} {part.plan.rendering} {part.facts['content']}" for part in group
    )
    name = f"{collection}-{hashlib.sha256(f'{dtype} {key}'.encode()).hexdigest()[:16]}"
    note = store_dir / f"{name}.json"  # tells the next build, and only it, that this volume was finished
    try:
        entry = json.loads(note.read_bytes())
        if _is_sound(store_dir, entry):
            return entry
    except (OSError, ValueError, KeyError):
        pass
    tokens = sum(part.facts["input_tokens"] + part.facts["target_tokens"] for part in group)
    examples = sum(part.facts["examples"] for part in group)
    entry: dict[str, Any] = {"name": name, "tokens": tokens, "examples": examples}
    entry |= _write_array(
        store_dir / f"{name}.tokens.npy", "tokens", dtype, tokens, (b for p in group for b in p.tokens())
    )
    entry |= _write_array(store_dir / f"{name}.index.npy", "index", storage.INDEX, examples, _records(group))
    write_atomically(note, json.dumps(entry))
    return entry


def _checked(group: list[AnyPart]) -> Iterator[bytes]:
    """The parts' tokens, compared with the hash that was taken when they were made."""
    for part in group:
        digest = hashlib.sha256()
        for block in part.tokens():
            digest.update(block)
            yield block
        digest.update(part.lengths().astype("<u4").tobytes())
        if digest.hexdigest() != part.facts["content"]:
            part.forget()
            raise UserError(f"{part.plan.task} ({part.plan.style}): changed on disk since it was made; build again")


def _records(group: list[AnyPart]) -> Iterator[bytes]:
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
    """Writes a one-dimensional .npy file from raw blocks; its size and SHA-256 as manifest fields."""
    with file.open("wb") as handle:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(handle, header)
        body = handle.tell()
        for block in blocks:
            handle.write(block)
        size = handle.tell()
        _sync(handle)
    if size - body != count * dtype.itemsize:
        raise UserError(f"{file}: {size - body:,} bytes came for {count:,} records: a part changed while it was read")
    return {f"{kind}_bytes": size, f"{kind}_sha256": storage.sha256(file)}


def write_store(
    store_dir: str | os.PathLike[str],
    tasks: dict[str, dict[str, Any]],
    examples: dict[tuple[str, str], Sequence[Iterable[Example]]],
    vocabulary: Vocabulary,
    missing: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Writes a whole small store from examples in hand: {(task, style): [the examples of each rendering]}."""
    folder = pathlib.Path(store_dir)
    parts: list[AnyPart] = []
    for (task, style), renderings in examples.items():
        for rendering, stream in enumerate(renderings):
            plan = PartPlan(task, style, rendering, "by hand")
            parts.append(WrittenPart(folder / PARTS, plan, write_part(folder / PARTS, plan, stream, vocabulary)))
    manifest = assemble(folder, tasks, parts, missing or {}, vocabulary)
    shutil.rmtree(folder / PARTS)
    return manifest


def write_atomically(file: pathlib.Path, text: str, sync: bool = True) -> None:
    """Writes a file so that it is either as before or whole; with `sync`, also after a crash of the machine."""
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as handle:
        handle.write(text.encode())
        if sync:
            _sync(handle)
    part.replace(file)


def _sync(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())


def _remove_unused(store_dir: pathlib.Path, volumes: list[dict[str, Any]]) -> None:
    """Removes volumes that the manifest does not name: of an older build, or of one that was killed."""
    used = {volume["name"] for volume in volumes}
    for file in store_dir.iterdir():
        if (file.name.endswith((".tokens.npy", ".index.npy")) and file.name.rsplit(".", 2)[0] not in used) or (
            file.suffix == ".json" and file.name != storage.MANIFEST and file.stem not in used
        ):
            file.unlink()
