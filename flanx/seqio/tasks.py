"""Tasks of the tables as SeqIO tasks: `make_task` for one, `register_all` for all of them under their names.

Registration only reads the tables. Rows are rendered in Python and passed to TensorFlow in batches; SeqIO's own
vocabulary tokenizes them, with EOS at the end of both features.
"""

import functools
import gc
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from flanx.data import vocabulary as vocabularies
from flanx.data.task import select
from flanx.data.task.render import Rendered, render_rows
from flanx.data.task.sources import MAX_BAD_ROWS, missing
from flanx.data.task.spec import INVERTED, TaskSpec
from flanx.data.task.tables import Tables, load, load_mixtures
from flanx.data.vocabulary import EOS_ID
from flanx.errors import UserError
from flanx.evals.task_metrics import METRICS
from flanx.seqio.packages import seqio, tf
from flanx.seqio.vocabularies import to_seqio

T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
_log = logging.getLogger("flanx")
BATCH = 256  # rendered rows passed to TensorFlow at a time: one Python call per batch, not per row


class Source(seqio.DataSource):
    """The rendered rows of one task in one style, in source order; supports any number of shards."""

    def __init__(
        self, spec: TaskSpec, style: str, vocabulary: Any, rendering: int, data_dir: Any, max_bad_rows: int,
    ) -> None:  # fmt: skip
        splits = [split for split in spec.splits if split == "train" or not style.endswith(INVERTED)]
        sizes: Any = {split: spec.num_examples if split == "train" else None for split in splits}
        super().__init__(splits, num_input_examples=sizes)
        self.spec, self.style, self.vocabulary = spec, style, vocabulary
        self.rendering, self.data_dir, self.max_bad_rows = rendering, data_dir, max_bad_rows

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [f"{self.spec.name}_{self.style}-{split}"]

    def missing(self, split: str) -> str | None:
        """One line on the first absent file of a split, or None."""
        return missing(self.spec, self.data_dir, split)

    def count(self, text: str) -> int:
        """Number of tokens of a text, for pruning few-shot prompts."""
        return len(self.vocabulary.encode(text))

    def batches(self, split: str, shard: seqio.ShardInfo) -> Iterator[dict[str, list]]:
        """Rendered examples of one shard, as columns."""
        rows = render_rows(
            self.spec, self.style, split, self.data_dir, self.rendering, self.count, self.max_bad_rows,
            shard=(shard.index, shard.num_shards),
        )  # fmt: skip
        empty = True
        while batch := list(itertools.islice(rows, BATCH)):
            empty = False
            yield {name: [getattr(row, key) for row in batch] for name, key, _ in _COLUMNS}
        if empty:  # SeqIO would silently end a whole mixture at the first draw from it
            raise UserError(
                f"task {self.spec.name}: no example of style {self.style} in shard {shard.index + 1} of "
                f"{shard.num_shards} of '{split}'; leave it out of the mixture, or use fewer shards"
            )

    def is_empty(self, split: str) -> bool:
        """Whether the split has no examples in this style."""
        rows = render_rows(self.spec, self.style, split, self.data_dir, self.rendering, self.count, self.max_bad_rows)
        return next(rows, None) is None

    def get_dataset(
        self, split: str = "train", shuffle: bool = True, seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None, **unused: Any,
    ) -> tf.data.Dataset:  # fmt: skip
        """The examples as texts, in fixed order; the task's shuffle buffer shuffles them."""
        if split not in self.splits:
            raise UserError(f"task {self.spec.name} has no split '{split}' (it has {', '.join(self.splits)})")
        if not self.spec.source.startswith("tfds:") and (line := self.missing(split)):
            raise UserError(line)
        shard = shard_info or seqio.ShardInfo(index=0, num_shards=1)
        signature = {name: tf.TensorSpec([None], kind) for name, _, kind in _COLUMNS}
        data = tf.data.Dataset.from_generator(lambda: self.batches(split, shard), output_signature=signature)
        return data.unbatch()


_COLUMNS = (  # dataset key, attribute of Rendered, type
    ("inputs", "inputs", tf.string),
    ("targets", "targets", tf.string),
    *((f.name, f.name, tf.int32 if f.type is int else tf.string) for f in fields(Rendered)[2:]),
)


def _tokenize(data: tf.data.Dataset, output_features: dict[str, Any]) -> tf.data.Dataset:
    """Tokens with EOS under `inputs` and `targets`, the texts under `*_pretokenized`."""

    def encode(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        out = dict(example)
        for name, feature in output_features.items():
            ids = tf.cast(feature.vocabulary.encode_tf(example[name]), feature.dtype)
            out[name] = tf.concat([ids, tf.constant([feature.vocabulary.eos_id], feature.dtype)], 0)
            out[f"{name}_pretokenized"] = example[name]
        return out

    return data.map(encode, num_parallel_calls=tf.data.AUTOTUNE)


@seqio.map_over_dataset
def trim(example: Mapping[str, Any], sequence_length: Mapping[str, int | None] | None) -> Mapping[str, Any]:
    """Trims each side to its length, keeping EOS as the last token, as flanx's own reader does. (SeqIO's own trimming,
    which is then a no-op, would drop EOS.)"""
    trimmed = dict(example)
    for name in ("inputs", "targets"):
        if length := (sequence_length or {}).get(name):
            tokens = example[name]
            end = tf.cast(tf.size(tokens) > length, tf.int32)  # 1 if anything is trimmed
            trimmed[name] = tf.concat([tokens[: length - end], tf.fill([end], tf.cast(EOS_ID, tokens.dtype))], 0)
    return trimmed


def make_task(
    spec: TaskSpec, style: str, vocabulary: Any = None, rendering: int = 0,
    data_dir: str | os.PathLike | None = None, max_bad_rows: int = MAX_BAD_ROWS,
) -> seqio.Task:  # fmt: skip
    """One (task, prompt style) as an unregistered SeqIO task; `zsopt_inverted` is a style too.

    `vocabulary` is a flanx or a SeqIO vocabulary; None: FLANX_VOCABULARY, else T5's.
    Each value of `rendering` draws different templates and exemplars.
    Its examples have int32 `inputs` and `targets` that end with EOS,
    `inputs_pretokenized`, `targets_pretokenized`, and task, dataset, template, style, shots, row. A missing file raises
    a UserError when the data is requested, never here.
    """
    if style not in spec.versions:
        raise UserError(f"task {spec.name} has no style '{style}' (it has {', '.join(spec.versions)})")
    vocabulary = default_vocabulary() if vocabulary is None else vocabulary
    return seqio.Task(
        f"{spec.name}_{style}",
        source=Source(spec, style, vocabulary, rendering, data_dir, max_bad_rows),
        output_features=_features(vocabulary),
        preprocessors=[_tokenize, trim],
        postprocess_fn=_as_text,
        metric_fns=[METRICS[name] for name in spec.metrics],
    )


def _as_text(text: Any, **unused: Any) -> str:
    """Decoded predictions unchanged; a target as its original text (tokenization may have lost some of it)."""
    example = unused.get("example")
    if unused.get("is_target") and example is not None and "targets_pretokenized" in example:
        text = example["targets_pretokenized"]
    return text.decode("utf-8") if isinstance(text, bytes) else str(text)


def _features(vocabulary: Any) -> dict[str, Any]:
    tokens = vocabulary if isinstance(vocabulary, seqio.Vocabulary) else to_seqio(vocabulary)
    return {name: seqio.Feature(tokens, add_eos=True) for name in ("inputs", "targets")}


@functools.cache
def default_vocabulary() -> Any:
    """FLANX_VOCABULARY ("byte", as in a store, or a SentencePiece model), else the public T5 one; opened lazily."""
    named = os.environ.get("FLANX_VOCABULARY", T5_VOCABULARY)
    is_ours = named == "byte" or vocabularies.LINE_BREAK in named
    return to_seqio(vocabularies.load(named)) if is_ours else seqio.SentencePieceVocabulary(named)


LIVE_PAIRS = 400  # above this many (task, style) pairs tf.data needs minutes and gigabytes before the first example


class Mixture(seqio.Mixture):
    """A mixture that leaves out tasks with missing files and styles without examples, with a warning for each; the rest
    keeps the requested shares.

    `reshare(missing, empty)` returns the rates of the (task, style) pairs given the missing tasks ({task: reason}) and
    the empty pairs; without it each pair keeps its own rate.
    """

    reshare: Callable[[dict[str, str], set[tuple[str, str]]], dict[tuple[str, str], float]] | None = None

    def get_dataset(self, sequence_length: Any, split: str = "train", *args: Any, **kwargs: Any) -> tf.data.Dataset:
        """As in SeqIO; raises UserError if no task has its data."""
        if len(self.tasks) > LIVE_PAIRS:
            _log.warning(
                "mixture %s reads %d (task, style) pairs live, which takes tf.data minutes and gigabytes; build a "
                "store and name it: flanx.seqio.store_task.store_mixture('mine', STORE_DIR, '%s') starts in seconds",
                self.name, len(self.tasks), self.name,
            )  # fmt: skip
        sources = {task.name: task.source for task in self.tasks if isinstance(task.source, Source)}
        absent, missing, empty = self._absent(sources, split)
        if not absent:
            return super().get_dataset(sequence_length, split, *args, **kwargs)
        lines = sorted({*absent.values()} - {""})
        for line in lines:
            _log.warning("mixture %s leaves out %s", self.name, line)
        rates = self.reshare(missing, empty) if self.reshare and len(absent) < len(self.tasks) else None
        left = []
        for task in self.tasks:
            rate = self.get_rate(task)
            if rates is not None and (own := sources.get(task.name)) is not None:
                rate = rates.get((own.spec.name, own.style))
            if task.name not in absent and rate:
                left.append((task, rate))
        if not left:
            raise UserError(f"mixture {self.name}: no task has its data; the first: {lines[0]}")
        return seqio.Mixture(self.name, left).get_dataset(sequence_length, split, *args, **kwargs)

    def _absent(
        self, sources: Mapping[str, Source], split: str
    ) -> tuple[dict[str, str], dict[str, str], set[tuple[str, str]]]:
        """{SeqIO task left out: why, "" where by design}, {task: reason} without data, (task, style) without rows."""
        absent: dict[str, str] = {}
        missing: dict[str, str] = {}
        empty: set[tuple[str, str]] = set()
        for name, source in sources.items():
            pair = (source.spec.name, source.style)
            if split not in source.splits and source.style.endswith(INVERTED):
                absent[name] = ""  # only training data is inverted
                empty.add(pair)
            elif split not in source.splits:
                absent[name] = missing[source.spec.name] = f"task {source.spec.name}: no split '{split}'"
            elif line := source.missing(split):
                absent[name] = missing[source.spec.name] = line
            elif split == "train" and len(self.tasks) <= LIVE_PAIRS and source.is_empty(split):
                absent[name] = f"task {source.spec.name}: no example of style {source.style}"
                empty.add(pair)
        return absent, missing, empty


def shares(name: str, tasks: select.Tasks) -> dict[tuple[str, str], float]:
    """What a mixture of mixtures.toml, a collection or a group draws: (task, style) -> share of all draws.

    A collection that is entirely held out is for evaluation, and the only kind that draws held-out tasks."""
    held_out = [task["held_out"] for task in tasks.values() if name in (task["collection"], task["group"])]
    asked = select.MixtureSpec(name, allow_missing=True)
    selection = select.resolve(asked, tasks, load_mixtures(), evaluation=bool(held_out) and all(held_out))
    for one, reason in selection.missing.items():
        _log.warning("mixture %s: %s %s", name, one, reason)
    return {(share.task, share.style): share.weight for share in selection.shares}


def register_all() -> None:
    """Adds every task of the tables: `{task}_{style}` to SeqIO's tasks, `{task}` (its styles, evenly, with the inverted
    version at the default rate) to its mixtures; and the mixtures of mixtures.toml, the collections and their groups.
    Existing registrations are kept; a second call adds nothing.
    """
    collecting = gc.isenabled()
    gc.disable()  # with TensorFlow loaded, a full collection costs more than all of this
    try:
        _register(load())
    finally:
        if collecting:
            gc.enable()


def _register(tables: Tables) -> None:
    known = seqio.MixtureRegistry.names()
    tasks = select.of_tables(tables.tasks)
    for spec in tables.tasks.values():
        if spec.name not in known:
            styled = {style: make_task(spec, style) for style in spec.versions}
            for task in styled.values():
                seqio.TaskRegistry.add_provider(task.name, task)
            parts = select.divide_task(spec.name, tasks[spec.name])
            seqio.MixtureRegistry.add_provider(
                spec.name, Mixture(spec.name, [(styled[style], part) for style, part in parts.items()])
            )
    collections = dict.fromkeys(
        home for spec in tables.tasks.values() for home in (spec.collection, spec.group) if home
    )
    for name in dict.fromkeys([*load_mixtures(), *collections]):
        if name not in known:
            mixture = Mixture(
                name,
                [(seqio.TaskRegistry.get(f"{t}_{style}"), share) for (t, style), share in shares(name, tasks).items()],
            )
            mixture.reshare = functools.partial(_reshared, name, tasks)
            seqio.MixtureRegistry.add_provider(name, mixture)


def _reshared(
    name: str, tasks: select.Tasks, missing: dict[str, str], empty: set[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    """The rates of a mixture of the tables over the available data."""
    there = {}
    for task, facts in tasks.items():
        styles = {style: 0 if (task, style) in empty else count for style, count in facts["styles"].items()}
        there[task] = {**facts, "styles": styles} | ({"missing": missing[task]} if task in missing else {})
    return shares(name, there)
