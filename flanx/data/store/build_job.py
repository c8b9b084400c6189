"""One job of a store build: one shard of one rendering of one (task, style), from its rows to a piece on disk.

A task of the tables is rendered and tokenized in Python, by what its SeqIO task calls: the same tokens without
TensorFlow's start and graphs. Only a user's own SeqIO task needs those. A job travels as JSON, so that any runner can
carry it.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flanx.data import vocabulary
from flanx.data.store import INVERTED, sha256
from flanx.data.store.shard import Example, Piece, piece_facts, write_piece
from flanx.data.task import sources, spec
from flanx.data.task.render import render_rows
from flanx.errors import UserError

BATCH = 256  # examples that leave TensorFlow at a time
FORMAT = 1  # raise it when the same text and vocabulary would give other pieces
CODE = (  # modules of flanx.data.task that make the texts
    "row", "functions", "ops", "fields", "readers", "sources", "template", "options", "prompt", "render",
)  # fmt: skip
AS_IS = "as_is"  # the one style of a user's own SeqIO task


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker must know. `imports`: modules that register the user's own SeqIO tasks."""

    piece: Piece
    folder: str  # where pieces are written
    vocabulary: str
    extra_ids: int
    data_dir: str | None = None
    max_bad_rows: int = sources.MAX_BAD_ROWS
    imports: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        fields = json.loads(text)
        return cls(**fields | {"piece": Piece(**fields["piece"]), "imports": tuple(fields["imports"])})


def run(job: Job, tell: Callable[[int], None] = lambda examples: None) -> dict[str, Any]:
    """Runs one job, unless its piece is there; `tell` hears the number of examples written since it last heard."""
    folder = pathlib.Path(job.folder)
    facts = piece_facts(folder, job.piece)
    if facts is None:
        words = vocabulary.load(job.vocabulary, job.extra_ids)
        facts = write_piece(folder, job.piece, _told(read(job, words), tell), words)
    return facts


def _told(examples: Iterator[Example], tell: Callable[[int], None]) -> Iterator[Example]:
    waiting = 0
    for example in examples:
        yield example
        waiting += 1
        if waiting == 4 * BATCH:
            tell(waiting)
            waiting = 0
    tell(waiting)


def read(job: Job, words: vocabulary.Vocabulary) -> Iterator[Example]:
    """The examples of a job's task, in its order, not shuffled and not cut."""
    row = spec.load_tables().get(job.piece.task)
    return _read_seqio(job, words) if row is None else _read_row(job, row, words)


def _read_row(job: Job, row: spec.TaskSpec, words: vocabulary.Vocabulary) -> Iterator[Example]:
    """Of a row of the tables."""
    piece, inverted = job.piece, frozenset(row.inversions)
    rendered = render_rows(
        row, piece.style, "train", job.data_dir, piece.rendering, lambda text: len(words.encode(text)),
        job.max_bad_rows, shard=(piece.shard, piece.shards),
    )  # fmt: skip
    for example in rendered:
        ending = INVERTED if example.template.rpartition(":")[0] in inverted else ""
        yield ending, words.sequence(example.inputs), words.sequence(example.targets)


def _read_seqio(job: Job, words: vocabulary.Vocabulary) -> Iterator[Example]:
    """Of a user's own SeqIO task."""
    import seqio
    import tensorflow as tf

    task = find_seqio_task(job.piece.task, job.imports)
    for name in ("inputs", "targets"):
        feature = task.output_features.get(name)
        if feature is None:
            raise UserError(f"task {task.name} has no feature {name}")
        if feature.vocabulary != words.seqio():
            raise UserError(f"task {task.name}: feature {name} has not the vocabulary of the store ({job.vocabulary})")
    shard = seqio.ShardInfo(job.piece.shard, job.piece.shards) if job.piece.shards > 1 else None
    data = task.get_dataset(None, "train", shuffle=False, shard_info=shard, num_epochs=1)
    data = data.map(lambda example: {name: example[name] for name in ("inputs", "targets")})
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = 2
    for batch in data.ragged_batch(BATCH).with_options(options):
        for inputs, targets in zip(_rows(batch["inputs"]), _rows(batch["targets"]), strict=True):
            yield "", inputs, targets


def _rows(tensor: Any) -> list[Any]:
    """The rows of a ragged or dense batch as numpy arrays."""
    if not hasattr(tensor, "row_splits"):
        return list(tensor.numpy())
    flat, ends = tensor.flat_values.numpy(), tensor.row_splits.numpy().tolist()
    return [flat[a:b] for a, b in itertools.pairwise(ends)]


def find_seqio_task(name: str, imports: Sequence[str]) -> Any:
    """A user's own task of SeqIO's registry, after importing the modules that register it."""
    import seqio

    for module in imports:
        importlib.import_module(module)
    if name not in seqio.TaskRegistry.names():
        raise UserError(f"no SeqIO task '{name}' (imported: {', '.join(imports) or 'nothing'})")
    return seqio.TaskRegistry.get(name)


# ---- what a piece is made of -----------------------------------------------------------------------------------------


def hash_row(row: spec.TaskSpec, style: str, rendering: int, fingerprint: str, source_hash: str) -> str:
    """Hash of all that makes one rendering of a task: its row, templates, prompt style, code and source files."""
    tables = spec.load()
    fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name not in _NOT_TEXT}
    named = (*row.templates, *row.inversions, *row.few, *row.noopt, *row.worked)
    blocks = {name: tables.blocks[name] for name in named}
    own = ("procedural",) if row.source.startswith("suite:") else ()
    parts = [FORMAT, fields, blocks, tables.style, style, rendering, fingerprint, source_hash, hash_code(own)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """What JSON does not know, in a form that every process writes alike: sets sorted, dataclasses as their fields."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if dataclasses.is_dataclass(value):
        return [type(value).__name__, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}]
    raise TypeError(f"{value!r} has no stable form to hash")


# Keys of a row that change no example: a new cap or licence makes nothing stale.
_NOT_TEXT = {
    "place", "role", "collection", "group", "category", "held_out", "cot", "cap", "metrics", "num_examples", "styles",
    "licence", "access", "bytes", "note", "url",
}  # fmt: skip


def hash_seqio_task(task: Any, fingerprint: str) -> str:
    """Hash of a user's SeqIO task as far as it can be seen: source, its files, the code of its preprocessors."""
    files = []
    for split in task.source.splits or ():
        try:
            files += [f"{pathlib.Path(p).name} {sha256(pathlib.Path(p))}" for p in task.source.list_shards(split)]
        except (OSError, ValueError, NotImplementedError, AttributeError):
            files.append(f"{type(task.source).__name__} {split}")
    steps = [_code_of(step) for step in task.preprocessors]
    return hashlib.sha256(json.dumps([FORMAT, task.name, files, steps, fingerprint]).encode()).hexdigest()


def _code_of(step: Any) -> str:
    """A stable text for a preprocessor: its name, its bound arguments and its byte code."""
    function = getattr(step, "func", step)
    function = getattr(function, "__wrapped__", function)
    code = getattr(function, "__code__", None)
    bound = [getattr(step, "args", ()), sorted(getattr(step, "keywords", {}) or {})]
    name = getattr(function, "__qualname__", type(step).__name__)
    return f"{name} {bound} {hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest() if code else ''}"


def hash_source(row: spec.TaskSpec, data_dir: str | None) -> str:
    """Hash of the files a task reads for training; of the source's name where it has no file here."""
    found = [f"{path.name} {_hash_file(path)}" for path in sources.files(row, "train", data_dir)]
    return hashlib.sha256("\n".join([row.source, *found]).encode()).hexdigest()


@functools.lru_cache(maxsize=1 << 14)
def _hash_file(path: pathlib.Path) -> str:
    return sha256(path)


@functools.cache
def hash_code(more: tuple[str, ...] = ()) -> str:
    """Hash of the modules that make texts, without their comments, layout and docstrings."""
    names = [f"flanx.data.task.{name}" for name in CODE] + [f"flanx.{name}" for name in more]
    digest = hashlib.sha256()
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or not found.origin:
            raise UserError(f"no module {name}: flanx is not installed whole")
        for folder in found.submodule_search_locations or ():  # a package: all of it
            for file in sorted(pathlib.Path(folder).glob("*.*")):
                digest.update(_meaning(file))
        digest.update(_meaning(pathlib.Path(found.origin)))
    return digest.hexdigest()


def _meaning(file: pathlib.Path) -> bytes:
    """What a file says to Python: its syntax tree without docstrings; any other file as it is."""
    if file.suffix != ".py":
        return file.read_bytes()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.dump(tree).encode()


def quiet_tensorflow() -> None:
    """Settings of a worker process, before it imports TensorFlow: no accelerator, two threads, no banners."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
