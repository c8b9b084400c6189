"""Where a run's batches come from: T5X's `DatasetConfig` over a token store."""

import dataclasses
from collections.abc import Mapping

from flanx.data import store
from flanx.data import vocabulary as vocabularies
from flanx.data.pipeline import mixture
from flanx.data.pipeline.batches import Batches
from flanx.errors import UserError
from flanx.models import Model


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """Where a run's batches come from.

    Attributes:
      vocabulary: what the store must have been built with: "byte", or the path or URL of a SentencePiece model.
      task_feature_lengths: tokens per packed row, {"inputs": I, "targets": T}.
      batch_size: packed rows per step, over all hosts.
    """

    mixture: mixture.Mixture
    store_dir: str
    vocabulary: str
    task_feature_lengths: Mapping[str, int]
    batch_size: int

    def open(self, model: Model, seed: int) -> Batches:
        """The batches: a pure function of (store, mixture, seed, step). Raises UserError where they do not fit."""
        opened = store.open_store(self.store_dir)
        opened.check_vocabulary(vocabularies.load(self.vocabulary).fingerprint)
        if opened.vocabulary_size > model.vocab_size:
            raise UserError(
                f"the store at {self.store_dir} has {opened.vocabulary_size} pieces ({opened.vocabulary}), the model "
                f"only {model.vocab_size}; set VOCAB_SIZE or build the store with the model's vocabulary"
            )
        lengths = dict(self.task_feature_lengths)
        return Batches(opened, self.mixture, lengths, self.batch_size, seed, packing=model.packing)
