"""Writes a token store: parts first, piece by piece, then the volumes and, last, the manifest.

A part is one rendering of one (task, style). Jobs write its pieces (shards; one for most tasks) under `<store>/parts/`:

    <task>/<style>-<rendering>-<shard>of<shards>.tokens     raw tokens, inputs then targets of each example
                                                .lengths    raw uint32 pairs (inputs, targets), one per example
                                                .json       counts and hashes, written last and by rename

A piece without its .json is not there. Examples that ask for the question (inverted) go to a part of their own, the
style with an ending, so that a mixture can weigh them.

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
import re
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

Example = tuple[str, np.ndarray, np.ndarray]  # (ending of the style, inputs [n], targets [m]), token ids


@dataclasses.dataclass(frozen=True, order=True)
class Piece:
    """The work of one job: a shard of one rendering of one (task, style), and the hash of all that makes it."""

    task: str
    style: str
    rendering: int
    shard: int
    shards: int
    hash: str

    def file(self, folder: pathlib.Path, kind: str) -> pathlib.Path:
        return folder / self.task / f"{self.style}-{self.rendering}-{self.shard}of{self.shards}.{kind}"


def token_dtype(vocabulary_size: int) -> np.dtype:
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def write_piece(folder: pathlib.Path, piece: Piece, examples: Iterable[Example], vocabulary: Vocabulary) -> dict:
    """Writes one piece in constant memory and returns its facts, {ending of the style: {hash, examples, ...}}.

    An example is (ending, inputs, targets); it goes to the part of style `piece.style + ending`.
    """
    piece.file(folder, "json").parent.mkdir(parents=True, exist_ok=True)
    piece.file(folder, "json").unlink(missing_ok=True)
    halves = {"": _Half(piece.file(folder, "tokens"), vocabulary)}
    try:
        for ending, inputs, targets in examples:
            half = halves.get(ending)
            if half is None:
                half = halves[ending] = _Half(piece.file(folder, f"tokens{ending}"), vocabulary)
            half.add(inputs, targets)
        facts = {ending: half.finish(piece.file(folder, f"lengths{ending}")) for ending, half in sorted(halves.items())}
    finally:
        for half in halves.values():
            half.handle.close()
    # Not forced to disk: `assemble` compares the content with its hash.
    write_atomically(piece.file(folder, "json"), json.dumps({"hash": piece.hash, "halves": facts}), sync=False)
    return facts


class _Half:
    """Examples of one piece that go to one part."""

    def __init__(self, file: pathlib.Path, vocabulary: Vocabulary) -> None:
        self._file = file
        # Two builds that meet, one of them dying, write the same bytes under different names.
        self.handle = file.with_name(f"{file.name}.{os.getpid()}.part").open("wb")
        self._dtype, self._size = token_dtype(vocabulary.size), vocabulary.size
        self._unk_id = vocabulary.unk_id
        self._lengths: list[tuple[int, int]] = []
        self._unknown = 0
        self._digest = hashlib.sha256()

    def add(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        tokens = np.concatenate([inputs, targets])
        if not len(inputs) or not len(targets):
            raise UserError("an example without inputs or without targets")
        if tokens.min() < 0 or tokens.max() >= self._size:
            raise UserError(f"token {int(tokens.max())} is outside the vocabulary of {self._size} ids")
        self._unknown += int(np.count_nonzero(tokens == self._unk_id))
        self._lengths.append((len(inputs), len(targets)))
        raw = tokens.astype(self._dtype).tobytes()
        self._digest.update(raw)
        self.handle.write(raw)

    def finish(self, file: pathlib.Path) -> dict[str, Any]:
        self.handle.close()
        pathlib.Path(self.handle.name).replace(self._file)
        pairs = np.asarray(self._lengths, "<u4").reshape(-1, 2)
        self._digest.update(pairs.tobytes())
        file.write_bytes(pairs.tobytes())
        return _count(pairs) | {"unknown": self._unknown, "content": self._digest.hexdigest()}


def _count(pairs: np.ndarray) -> dict[str, Any]:
    """Counts of examples with lengths `pairs` [n, 2]: how many, tokens, longest, how many longer than usual lengths."""
    inputs, targets = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    return {
        "examples": len(pairs),
        "input_tokens": int(inputs.sum()),
        "target_tokens": int(targets.sum()),
        "longest": [int(inputs.max(initial=0)), int(targets.max(initial=0))],
        "longer_inputs": {str(k): int((inputs > k).sum()) for k in INPUT_LENGTHS},
        "longer_targets": {str(k): int((targets > k).sum()) for k in TARGET_LENGTHS},
    }


def _add(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Facts of pieces -> facts of their part."""
    first, *rest = facts
    if not rest:
        return dict(first)
    total: dict[str, Any] = {key: sum(f[key] for f in facts) for key in ("examples", "input_tokens", "target_tokens")}
    total["longest"] = [max(sides) for sides in zip(*(f["longest"] for f in facts), strict=True)]
    for key in ("longer_inputs", "longer_targets"):
        total[key] = {k: sum(f[key][k] for f in facts) for k in first[key]}
    total["unknown"] = sum(f["unknown"] for f in facts)
    total["content"] = hashlib.sha256("".join(f["content"] for f in facts).encode()).hexdigest()
    return total


class WrittenPart:
    """A part whose pieces lie under `parts/`."""

    def __init__(self, folder: pathlib.Path, pieces: Sequence[Piece], ending: str, facts: list[dict[str, Any]]) -> None:
        self.task, self.style, self.rendering = pieces[0].task, pieces[0].style + ending, pieces[0].rendering
        self._files = [(p.file(folder, f"tokens{ending}"), p.file(folder, f"lengths{ending}"), f["content"],
                        p.file(folder, "json")) for p, f in zip(pieces, facts, strict=True)]  # fmt: skip
        self.facts = {"hash": pieces[0].hash} | _add(facts)

    def lengths(self) -> np.ndarray:
        return np.concatenate([np.fromfile(lengths, "<u4").reshape(-1, 2) for _, lengths, _, _ in self._files])

    def tokens(self) -> Iterator[bytes]:
        """The tokens, compared with the hash that was taken when they were made."""
        for tokens, lengths, content, note in self._files:
            digest = hashlib.sha256()
            with tokens.open("rb") as handle:
                while block := handle.read(BLOCK):
                    digest.update(block)
                    yield block
            digest.update(lengths.read_bytes())
            if digest.hexdigest() != content:
                note.unlink()  # so that the next build makes it again
                raise UserError(f"{tokens}: changed since it was made; run the build again")


class StoredPart:
    """A part in a sound volume of the store as it is."""

    def __init__(self, store: storage.Store, task: str, style: str, rendering: int) -> None:
        self.task, self.style, self.rendering = task, style, rendering
        part = store.tasks[task].parts[style][rendering]
        self.facts = {key: value for key, value in part.facts.items() if key not in ("volume", "start")}
        self._volume, self._number = store.volume, part.volume
        self._range = slice(part.start, part.start + part.examples)

    def lengths(self) -> np.ndarray:
        records = self._volume(self._number).index[self._range]
        return np.stack([records["inputs"], records["targets"]], axis=1)

    def tokens(self) -> Iterator[bytes]:
        volume = self._volume(self._number)
        start = int(volume.index["offset"][self._range.start]) if self.facts["examples"] else 0
        stop = start + self.facts["input_tokens"] + self.facts["target_tokens"]
        for at in range(start, stop, BLOCK):
            yield volume.tokens[at : min(at + BLOCK, stop)].tobytes()


Part = WrittenPart | StoredPart


def piece_facts(folder: pathlib.Path, piece: Piece) -> dict[str, dict[str, Any]] | None:
    """The facts of a piece that is whole under `folder` and was made by the same hash, else None."""
    try:
        note = json.loads(piece.file(folder, "json").read_bytes())
    except (OSError, ValueError):
        return None
    return note["halves"] if note.get("hash") == piece.hash else None


def written_parts(folder: pathlib.Path, pieces: Sequence[Piece]) -> list[WrittenPart]:
    """The parts of all shards of one rendering of one (task, style)."""
    facts = [piece_facts(folder, piece) or {} for piece in pieces]
    endings = sorted({ending for f in facts for ending in f})
    parts = []
    for ending in endings:
        with_it = [(piece, f[ending]) for piece, f in zip(pieces, facts, strict=True) if ending in f]
        parts.append(WrittenPart(folder, [p for p, _ in with_it], ending, [f for _, f in with_it]))
    return parts


def stored_parts(
    store: storage.Store, sound: set[int], task: str, style: str, rendering: int, made_of: str
) -> list[StoredPart]:
    """The parts of one rendering that sound volumes of a store hold, made by the same hash (plain and inverted)."""
    found = []
    for name in (style, style + storage.INVERTED):
        renderings = store.tasks[task].parts.get(name, ()) if task in store.tasks else ()
        part = renderings[rendering] if rendering < len(renderings) else None
        if part is not None and (part.volume not in sound or part.facts["hash"] != made_of):
            return []
        if part is not None:
            found.append(StoredPart(store, task, name, rendering))
    return found


def sound_volumes(store: storage.Store) -> set[int]:
    """Volumes of a store whose files are as they were written (every byte is read)."""
    return {i for i, entry in enumerate(store.manifest["volumes"]) if _is_sound(store.path, entry)}


def _is_sound(folder: pathlib.Path, entry: dict[str, Any]) -> bool:
    files = {kind: folder / f"{entry['name']}.{kind}.npy" for kind in ("tokens", "index")}
    return all(f.is_file() and storage.sha256(f) == entry[f"{kind}_sha256"] for kind, f in files.items())


def assemble(
    store_dir: pathlib.Path,
    tasks: dict[str, dict[str, Any]],
    parts: Sequence[Part],
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
    ordered = sorted(parts, key=lambda part: (tasks[part.task]["collection"], part.task, part.style, part.rendering))
    for volume, group in enumerate(_by_volume(ordered, tasks, dtype.itemsize)):
        volumes.append(_write_volume(store_dir, tasks[group[0].task]["collection"], group, dtype))
        start = 0
        for part in group:
            entry = entries.setdefault(part.task, {**tasks[part.task], "parts": {}})
            entry["parts"].setdefault(part.style, []).append({"volume": volume, "start": start, **part.facts})
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


def _by_volume(parts: Sequence[Part], tasks: dict[str, dict[str, Any]], itemsize: int) -> Iterator[list[Part]]:
    """Splits parts, sorted by collection, into volumes: one collection each, closed when the next would pass 1 GiB."""
    group: list[Part] = []
    size = 0
    for part in parts:
        nbytes = (part.facts["input_tokens"] + part.facts["target_tokens"]) * itemsize
        other = group and tasks[group[0].task]["collection"] != tasks[part.task]["collection"]
        if group and (other or size + nbytes > storage.VOLUME_BYTES):
            yield group
            group, size = [], 0
        group.append(part)
        size += nbytes
    if group:
        yield group


def _write_volume(store_dir: pathlib.Path, collection: str, group: list[Part], dtype: np.dtype) -> dict[str, Any]:
    """Writes one volume, or keeps the one that is there with the same content; its entry of the manifest."""
    key = "\n".join(f"{part.task} {part.style} {part.rendering} {part.facts['content']}" for part in group)
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
    examples: dict[tuple[str, str], Sequence[Iterable[tuple[np.ndarray, np.ndarray]]]],
    vocabulary: Vocabulary,
    missing: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Writes a whole small store from examples in hand: {(task, style): [the examples of each rendering]}."""
    folder = pathlib.Path(store_dir)
    parts: list[Part] = []
    for (task, style), renderings in examples.items():
        for rendering, stream in enumerate(renderings):
            piece = Piece(task, style, rendering, 0, 1, "by hand")
            write_piece(folder / PARTS, piece, (("", inputs, targets) for inputs, targets in stream), vocabulary)
            parts += written_parts(folder / PARTS, [piece])
    manifest = assemble(folder, tasks, parts, missing or {}, vocabulary)
    shutil.rmtree(folder / PARTS)
    return manifest


def write_atomically(file: pathlib.Path, text: str, sync: bool = True) -> None:
    """Writes a file so that it is either as before or whole; with `sync`, also after a crash of the machine."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
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
        if re.fullmatch(r".+\.\d+\.part", file.name):  # half written by a build that died; the lock says none is alive
            file.unlink()
            continue
        name = re.fullmatch(r"(.+-[0-9a-f]{16})\.(tokens\.npy|index\.npy|json)", file.name)
        if name and name[1] not in used:
            file.unlink()
