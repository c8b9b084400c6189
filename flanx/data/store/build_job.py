"""One job of a store build: one shard of one rendering of one (task, style), from its rows to its files on disk.

A task from the tables is rendered and tokenized in Python, by the functions that its SeqIO task calls: the same tokens
without TensorFlow's start-up and graphs. Only a user's own SeqIO task needs those. Jobs are passed as JSON, so that any
runner can transport them.
"""

import dataclasses
import functools
import hashlib
import heapq
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from flanx.data import vocabulary
from flanx.data.store.format import sha256
from flanx.data.store.shard import BATCH, Example, Metadata, Shard, read_metadata, write_shard
from flanx.data.task import sources, spec, tables
from flanx.data.task.render import render_rows
from flanx.data.task.select import hash_of

# The version of everything that turns a row into tokens: readers, field operations, rendering, generators, tokenizing.
# Increment it when the same row and templates would give different text or tokens; tests/golden/rendering.json then
# gets an entry for it, and every store is rebuilt.
RENDERING_VERSION = 2
REPORTED = 1024  # examples between progress reports


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
      folder: where shards are written.
      imports: modules that register the user's own SeqIO tasks.
      limit: maximum number of examples of the split, a fixed random subset; 0: all.
    """

    shard: Shard
    folder: str
    vocabulary: str
    extra_ids: int
    data_dir: str | None = None
    max_bad_rows: int = sources.MAX_BAD_ROWS
    imports: tuple[str, ...] = ()
    limit: int = 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        fields = json.loads(text)
        return cls(**fields | {"shard": Shard(**fields["shard"]), "imports": tuple(fields["imports"])})


def run(job: Job, report: Callable[[int], None] = lambda examples: None) -> Metadata:
    """Runs one job, unless its shard is complete, and returns the shard's metadata.

    `report` is called with the number of examples written since the previous call.
    """
    folder = pathlib.Path(job.folder)
    metadata = read_metadata(folder, job.shard)
    if metadata is None:
        loaded = vocabulary.load(job.vocabulary, job.extra_ids)
        stream = examples(job, loaded)
        if job.limit:
            drawn = heapq.nsmallest(job.limit, enumerate(stream), key=lambda each: hash_of(job.shard.task, each[0]))
            stream = (example for _, example in sorted(drawn, key=lambda each: each[0]))
        metadata = write_shard(folder, job.shard, _reported(stream, report), loaded)
    return metadata


def _reported(stream: Iterator[Example], report: Callable[[int], None]) -> Iterator[Example]:
    count = 0
    for example in stream:
        yield example
        count += 1
        if count == REPORTED:
            report(count)
            count = 0
    report(count)


def examples(job: Job, loaded: vocabulary.Vocabulary) -> Iterator[Example]:
    """The examples of a job's task, or of a split for TASK:SPLIT, in original order, neither shuffled nor trimmed."""
    shard, (task, _, split) = job.shard, job.shard.task.partition(":")
    row, split = tables.load_tables().get(task), split or "train"
    if row is None:
        from flanx.seqio import user_tasks  # noqa: PLC0415  (imports TensorFlow, not needed for tasks of the tables)

        yield from user_tasks.examples(task, job.imports, loaded, shard.index, shard.count, split)
        return
    rendered = render_rows(
        row, shard.style, split, job.data_dir, shard.rendering, loaded.count, job.max_bad_rows,
        shard=(shard.index, shard.count),
    )  # fmt: skip
    while batch := list(itertools.islice(rendered, BATCH)):
        sequences = iter(loaded.sequences([text for each in batch for text in (each.inputs, each.targets)]))
        yield from zip(sequences, sequences, strict=True)


# ---- the key of a shard ----------------------------------------------------------------------------------------------

# Keys of a row that do not affect examples: a new cap or licence does not make shards stale.
_NOT_TEXT = {
    "location", "role", "collection", "group", "category", "held_out", "cot", "cap", "metrics", "num_examples",
    "styles", "licence", "access", "bytes", "note", "url",
}  # fmt: skip


def shard_key(row: spec.TaskSpec, style: str, rendering: int, fingerprint: str, source_hash: str) -> str:
    """SHA-256 of everything that determines one rendering of a task: the rendering version, the task's row and
    templates, the prompt style, the vocabulary's fingerprint and the source files."""
    loaded = tables.load()
    fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name not in _NOT_TEXT}
    named = (*row.templates, *row.inversions, *row.few, *row.noopt, *row.worked)
    blocks = {name: loaded.blocks[name] for name in named}
    parts = [RENDERING_VERSION, fields, blocks, loaded.style, style, rendering, fingerprint, source_hash]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A canonical JSON form, the same in every process: sets sorted, dataclasses as their field values in order."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    raise TypeError(f"{value!r} has no stable form to hash")


def hash_source(row: spec.TaskSpec, data_dir: str | None, split: str = "train") -> str:
    """SHA-256 of the files that a task reads for a split, or of the source's name if it reads no local files."""
    row = sources.of_split(row, split)
    hashes = [
        f"{path.name} {_hash_file(path, path.stat().st_mtime_ns)}" for path in sources.files(row, split, data_dir)
    ]
    return hashlib.sha256("\n".join([row.source, *hashes]).encode()).hexdigest()


@functools.lru_cache(maxsize=1 << 14)
def _hash_file(path: pathlib.Path, changed: int) -> str:
    """`changed`: the file's modification time, so that an edit within one session is not hidden by the cache."""
    del changed
    return sha256(path)
