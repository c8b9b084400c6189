"""The run to plan: the parts of a training run that determine its step and its cost, read from gin."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from flanx import config
from flanx.data.pipeline.batches import DatasetConfig
from flanx.errors import UserError
from flanx.models import Model
from flanx.partition import Partitioner
from flanx.train_step import Trainer

DEFAULTS = "runs/plan.gin"  # read before the given files, so that a model's gin file is enough
TRAIN = "flanx.train.train"  # by name: `flanx.train` imports this package to resolve NUM_PARTITIONS = "auto"


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A training run without its data.

    Attributes:
      lengths: tokens per packed row, {"inputs": I, "targets": T}.
      train_steps: steps of the run, to compute its hours.
      partitioner: the run's own layout.
    """

    trainer: Trainer
    batch_size: int
    lengths: Mapping[str, int]
    train_steps: int = 0
    partitioner: Partitioner = dataclasses.field(default_factory=Partitioner)

    @property
    def model(self) -> Model:
        """The trainer's model."""
        return self.trainer.model

    @property
    def tokens_per_step(self) -> int:
        """Positions of a batch, inputs and targets."""
        return self.batch_size * (self.lengths["inputs"] + self.lengths["targets"])

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs of a step: forward and backward, without recomputation."""
        per_token = self.model.flops_per_token(self.lengths["inputs"], self.lengths["targets"])
        return per_token * self.tokens_per_step

    def scanned(self) -> "PlannedRun":
        """The same run with scanned layers: the same figures from a program the size of one layer."""
        if not getattr(self.model, "scan_layers", True):
            return self.with_model(scan_layers=True)
        return self

    def with_model(self, **sizes: Any) -> "PlannedRun":
        """The same run with other model sizes."""
        trainer = dataclasses.replace(self.trainer, model=dataclasses.replace(cast(Any, self.model), **sizes))
        return dataclasses.replace(self, trainer=trainer)

    def batch(self, partitioner: Partitioner | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """The abstract batch, sharded as `partitioner` does; each array is (batch_size, length), int32."""
        sharding = partitioner.batch_sharding() if partitioner else None
        inputs, targets = self.lengths["inputs"], self.lengths["targets"]
        if self.model.packing == "encoder_decoder":
            widths = dict.fromkeys(("encoder_input_tokens", "encoder_segment_ids", "encoder_positions"), inputs)
        else:
            widths, targets = {"decoder_causal_attention": inputs + targets}, inputs + targets
        names = ("target_tokens", "input_tokens", "loss_weights", "segment_ids", "positions")
        widths |= {f"decoder_{name}": targets for name in names}
        return {
            name: jax.ShapeDtypeStruct((self.batch_size, width), jnp.int32, sharding=sharding)
            for name, width in widths.items()
        }


def read(gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = ()) -> PlannedRun:
    """The run that gin files and bindings describe; a model's gin file is enough."""
    config.parse([DEFAULTS, *gin_files], bindings, search_paths, whole=False)  # no store or folder is needed
    lengths = dict(config.parameter(DatasetConfig, "task_feature_lengths"))
    if set(lengths) != {"inputs", "targets"}:
        raise UserError(f"TASK_FEATURE_LENGTHS = {lengths}: give 'inputs' and 'targets'")
    return PlannedRun(
        trainer=config.parameter(TRAIN, "trainer"),
        batch_size=config.parameter(DatasetConfig, "batch_size"),
        lengths=lengths,
        train_steps=config.parameter(TRAIN, "train_steps"),
        partitioner=config.parameter(TRAIN, "partitioner"),
    )
