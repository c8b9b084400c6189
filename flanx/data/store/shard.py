"""Shards of a store under construction: what one job writes under `<store>/parts/`, and the parts they form.

A part is one rendering of one (task, style). Jobs write its shards (one for most tasks):

    <task>/<style>-<rendering>-<index>of<count>.tokens      raw tokens, inputs then targets of each example
                                              .lengths     raw uint32 pairs (inputs, targets), one per example
                                              .json        counts and hashes, written last and by rename

A shard without its .json does not count. The inverted version of a style is a separate style.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flanx.data.vocabulary import Vocabulary
from flanx.errors import UserError
from flanx.files import write_atomic

PARTS = "parts"
INPUT_LENGTHS = (256, 512, 1024, 2048)  # lengths in tokens at which the manifest counts longer examples
TARGET_LENGTHS = (64, 128, 256, 512)
BLOCK = 1 << 22  # bytes per copy
BATCH = 64  # examples tokenized, and written, together

Example = tuple[np.ndarray, np.ndarray]  # inputs [n], targets [m], token ids
Metadata = dict[str, Any]  # of a part: counts and hashes, as in the manifest


@dataclasses.dataclass(frozen=True, order=True)
class Shard:
    """The work of one job: shard `index` of `count` of one rendering of one (task, style), and its content's key."""

    task: str
    style: str
    rendering: int
    index: int
    count: int
    key: str

    def file(self, folder: pathlib.Path, kind: str) -> pathlib.Path:
        return folder / self.task / f"{self.style}-{self.rendering}-{self.index}of{self.count}.{kind}"


def token_dtype(vocabulary_size: int) -> np.dtype:
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def write_shard(folder: pathlib.Path, shard: Shard, examples: Iterable[Example], vocabulary: Vocabulary) -> Metadata:
    """Writes one shard in constant memory and returns its metadata, {examples, content, ...}."""
    shard.file(folder, "json").parent.mkdir(parents=True, exist_ok=True)
    shard.file(folder, "json").unlink(missing_ok=True)
    writer = _Writer(shard.file(folder, "tokens"), vocabulary)
    try:
        stream = iter(examples)
        while batch := list(itertools.islice(stream, BATCH)):
            writer.add(batch)
        metadata = writer.finish(shard.file(folder, "lengths"))
    finally:
        writer.file.close()
    # No fsync: `assemble` checks the content against its hash.
    write_atomic(shard.file(folder, "json"), json.dumps({"hash": shard.key, "part": metadata}), durable=False)
    return metadata


class _Writer:
    """Writes the examples of one shard."""

    def __init__(self, path: pathlib.Path, vocabulary: Vocabulary) -> None:
        self._path = path
        # Named by process id: if a dying build overlaps a new one, both write the same bytes to different files.
        self.file = path.with_name(f"{path.name}.{os.getpid()}.part").open("wb")
        self._dtype, self._size = token_dtype(vocabulary.size), vocabulary.size
        self._unk_id = vocabulary.unk_id
        self._lengths: list[np.ndarray] = []
        self._unknown = 0
        self._digest = hashlib.sha256()

    def add(self, batch: Sequence[Example]) -> None:
        sides = [side for example in batch for side in example]
        lengths = np.array([len(side) for side in sides], "<u4")
        if not lengths.all():
            raise UserError("an example without inputs or without targets")
        tokens = np.concatenate(sides)
        if tokens.min() < 0 or tokens.max() >= self._size:
            raise UserError(f"token {int(tokens.max())} is outside the vocabulary of {self._size} ids")
        self._unknown += int(np.count_nonzero(tokens == self._unk_id))
        self._lengths.append(lengths)
        raw = tokens.astype(self._dtype).tobytes()
        self._digest.update(raw)
        self.file.write(raw)

    def finish(self, lengths_path: pathlib.Path) -> Metadata:
        self.file.close()
        pathlib.Path(self.file.name).replace(self._path)
        pairs = np.concatenate([np.empty(0, "<u4"), *self._lengths]).reshape(-1, 2)
        self._digest.update(pairs.tobytes())
        lengths_path.write_bytes(pairs.tobytes())
        return _count(pairs) | {"unknown": self._unknown, "content": self._digest.hexdigest()}


def _count(pairs: np.ndarray) -> Metadata:
    """Counts from lengths `pairs` [n, 2]: examples, tokens, the longest, how many exceed usual limits."""
    inputs, targets = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)
    return {
        "examples": len(pairs),
        "input_tokens": int(inputs.sum()),
        "target_tokens": int(targets.sum()),
        "longest": [int(inputs.max(initial=0)), int(targets.max(initial=0))],
        "longer_inputs": {str(k): int((inputs > k).sum()) for k in INPUT_LENGTHS},
        "longer_targets": {str(k): int((targets > k).sum()) for k in TARGET_LENGTHS},
    }


def _merge(shards: Sequence[Metadata]) -> Metadata:
    """Combines the metadata of shards into that of their part."""
    first, *rest = shards
    if not rest:
        return dict(first)
    total: Metadata = {key: sum(m[key] for m in shards) for key in ("examples", "input_tokens", "target_tokens")}
    total["longest"] = [max(sides) for sides in zip(*(m["longest"] for m in shards), strict=True)]
    for key in ("longer_inputs", "longer_targets"):
        total[key] = {k: sum(m[key][k] for m in shards) for k in first[key]}
    total["unknown"] = sum(m["unknown"] for m in shards)
    total["content"] = hashlib.sha256("".join(m["content"] for m in shards).encode()).hexdigest()
    return total


class WrittenPart:
    """A part whose shards are under `parts/`."""

    def __init__(self, folder: pathlib.Path, shards: Sequence[Shard], metadata: list[Metadata]) -> None:
        self.task, self.style, self.rendering = shards[0].task, shards[0].style, shards[0].rendering
        self._folder, self._shards = folder, shards
        self._contents = [m["content"] for m in metadata]
        self.metadata: Metadata = {"hash": shards[0].key} | _merge(metadata)

    def lengths(self) -> np.ndarray:
        """u32[n, 2], tokens of inputs and targets."""
        return np.concatenate(
            [np.fromfile(s.file(self._folder, "lengths"), "<u4").reshape(-1, 2) for s in self._shards]
        )

    def tokens(self) -> Iterator[bytes]:
        """The tokens, checked against the hash computed when they were written."""
        for shard, content in zip(self._shards, self._contents, strict=True):
            digest = hashlib.sha256()
            with shard.file(self._folder, "tokens").open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    yield block
            digest.update(shard.file(self._folder, "lengths").read_bytes())
            if digest.hexdigest() != content:
                shard.file(self._folder, "json").unlink()  # so that the next build rewrites it
                raise UserError(
                    f"{shard.file(self._folder, 'tokens')}: changed since it was written; run the build again"
                )


def read_metadata(folder: pathlib.Path, shard: Shard) -> Metadata | None:
    """The metadata of a shard if it is complete under `folder` with the same key, else None."""
    try:
        record = json.loads(shard.file(folder, "json").read_bytes())
    except (OSError, ValueError):
        return None
    return record.get("part") if isinstance(record, dict) and record.get("hash") == shard.key else None


def written_part(folder: pathlib.Path, shards: Sequence[Shard]) -> WrittenPart | None:
    """The part formed by all shards of one rendering of one (task, style); None if one was not written."""
    metadata = [m for shard in shards if (m := read_metadata(folder, shard))]
    return WrittenPart(folder, shards, metadata) if len(metadata) == len(shards) else None
