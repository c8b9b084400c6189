"""Pieces of a store in the making: what one job writes under `<store>/parts/`, and the parts that pieces make.

A part is one rendering of one (task, style). Jobs write its pieces (shards; one for most tasks):

    <task>/<style>-<rendering>-<shard>of<shards>.tokens     raw tokens, inputs then targets of each example
                                                .lengths    raw uint32 pairs (inputs, targets), one per example
                                                .json       counts and hashes, written last and by rename

A piece without its .json is not there. Examples that ask for the question (inverted) go to a part of their own, the
style with an ending, so that a mixture can weigh them.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

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
    write_atomically(piece.file(folder, "json"), json.dumps({"hash": piece.hash, "halves": facts}), on_disk=False)
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


def write_atomically(file: pathlib.Path, text: str, on_disk: bool = True) -> None:
    """Writes a file so that it is either as before or whole; with `on_disk`, also after a crash of the machine."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("wb") as handle:
        handle.write(text.encode())
        if on_disk:
            sync(handle)
    part.replace(file)


def sync(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())
