"""A whole mixture over a token store as one SeqIO task, so that T5X and other SeqIO programs start in seconds.

    import seqio
    from flanx.seqio.store_task import store_mixture

    store_mixture("flan", "out/store", "proportion_b")            # registers the task `flan`
    dataset = seqio.get_dataset("flan", {"inputs": 512, "targets": 128}, "train", feature_converter=...)

The task yields tokenized examples in the order of `flanx.data.pipeline.sampling`: with the same shares as in flanx's
own training, and no repeats within an epoch. Packing is left to the SeqIO feature converter.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flanx.data import vocabulary
from flanx.data.pipeline import sampling
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store import open_store
from flanx.data.task.select import Names
from flanx.errors import UserError
from flanx.seqio.packages import seqio, tf
from flanx.seqio.tasks import trim
from flanx.seqio.vocabularies import to_seqio

BATCH = 512  # examples handed to TensorFlow at a time


class Source(seqio.DataSource):
    """The endless draws of a mixture; a shard takes every n-th one."""

    def __init__(self, store_dir: str, mixture: Mixture, seed: int) -> None:
        super().__init__(splits=("train",))
        self.store_dir, self.mixture, self.seed = store_dir, mixture, seed

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [self.store_dir]

    def num_input_examples(self, split: str) -> int:
        """Number of distinct examples that the mixture draws from."""
        resolved = self.mixture.resolve(open_store(self.store_dir))
        return sum(part.examples for source in resolved.sources for part in source.parts)

    def get_dataset(
        self, split: str = "train", shuffle: bool = True, seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None, **unused: Any,
    ) -> tf.data.Dataset:  # fmt: skip
        """Endless tokenized examples, in the mixture's own order (`seed` of this source), ignoring `shuffle`."""
        shard = shard_info or seqio.ShardInfo(0, 1)
        ragged = {name: tf.RaggedTensorSpec([None, None], tf.int32) for name in ("inputs", "targets")}

        def batches() -> Iterator[dict[str, tf.RaggedTensor]]:
            for rows in self.draws(shard.index, shard.num_shards):
                yield {name: _ragged([row[i] for row in rows]) for i, name in enumerate(ragged)}

        return tf.data.Dataset.from_generator(batches, output_signature=ragged).unbatch()

    def draws(self, index: int, count: int) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """(inputs, targets) of the draws index, index + count, ..., BATCH at a time."""
        store = open_store(self.store_dir)
        sources = self.mixture.resolve(store).arrays(self.seed)
        drawing = sampling.Order(sources, sampling.key(self.seed, "order"))
        at = index
        while True:
            chunk = drawing.chunk_of(at)
            first, last = drawing.drawn(chunk), drawing.drawn(chunk + 1)
            drawn = drawing.chunk(chunk)
            places = np.arange(at - first, last - first, count)
            for some in np.array_split(places, max(1, len(places) // BATCH)):
                yield [store.record(int(drawn.volume[i]), int(drawn.record[i])) for i in some]
                store.touch(4096 * len(some))
            at += count * len(places)


def _ragged(rows: list[np.ndarray]) -> tf.RaggedTensor:
    lengths = [len(row) for row in rows]
    make = tf.RaggedTensor.from_row_lengths  # pyright: ignore[reportAttributeAccessIssue]  (not in TensorFlow's stubs)
    return make(np.concatenate(rows).astype(np.int32), lengths)


def store_mixture(name: str, store_dir: str | os.PathLike[str], mixture: Mixture | Names, seed: int = 0) -> seqio.Task:
    """Registers a mixture over a store as the SeqIO task `name`, and returns it. `mixture`: a Mixture or a name."""
    store = open_store(store_dir)
    asked = mixture if isinstance(mixture, Mixture) else Mixture(mixture)
    if not asked.resolve(store).sources:
        raise UserError(f"mixture '{asked.title}' is empty: nothing to read")
    loaded = vocabulary.load(store.vocabulary, store.manifest["vocabulary"]["extra_ids"])
    store.check_vocabulary(loaded.fingerprint)
    feature = seqio.Feature(to_seqio(loaded), add_eos=False, dtype=tf.int32)
    return seqio.TaskRegistry.add(
        name,
        source=Source(str(store_dir), asked, seed),
        preprocessors=[trim],
        output_features={"inputs": feature, "targets": feature},
    )


def registered(store_dir: str | os.PathLike[str], mixture: Mixture | Names, seed: int = 0) -> str:
    """The name of `store_mixture`'s task, registered once: gin/t5x binds this to MIXTURE_OR_TASK_NAME, which is
    evaluated at every use."""
    asked = mixture if isinstance(mixture, Mixture) else Mixture(mixture)
    name = f"store_{asked.title}_{sampling.key(seed, os.path.abspath(store_dir), repr(asked)):016x}"
    if name not in seqio.TaskRegistry.names():
        store_mixture(name, store_dir, asked, seed)
    return name
