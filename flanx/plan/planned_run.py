"""What a plan is about: the parts of a training recipe that the step and its cost depend on, read from gin."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flanx import config, train
from flanx.data.dataset import DatasetConfig
from flanx.errors import UserError
from flanx.models import Model
from flanx.partition import Partitioner
from flanx.train_step import Trainer

DEFAULTS = "runs/plan.gin"  # read before the files given, which may then be a model's alone


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run without its data.

    Attributes:
      lengths: tokens per packed row, {"inputs": I, "targets": T}.
      train_steps: steps of the run, for its hours.
      partitioner: the recipe's own layout.
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
        """Model FLOPs of a step: forward and backward, nothing recomputed."""
        per_token = self.model.flops_per_token(self.lengths["inputs"], self.lengths["targets"])
        return per_token * self.tokens_per_step

    def scanned(self) -> "Recipe":
        """The same recipe over scanned layers, whose program is as long as one layer; the numbers are the same."""
        if not getattr(self.model, "scan_layers", True):
            return self.with_model(scan_layers=True)
        return self

    def with_model(self, **sizes: Any) -> "Recipe":
        """The same recipe over a model of other sizes."""
        trainer = dataclasses.replace(self.trainer, model=dataclasses.replace(self.model, **sizes))
        return dataclasses.replace(self, trainer=trainer)

    def batch(self, partitioner: Partitioner | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """The abstract batch, placed where `partitioner` has it."""
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


def read(gin_files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str] = ()) -> Recipe:
    """The recipe that gin files and bindings describe: a whole run's, or a model's file alone."""
    config.parse([DEFAULTS, *gin_files], bindings, search_paths, whole=False)  # no store or folder is needed

    lengths = dict(config.parameter(DatasetConfig, "task_feature_lengths"))
    if set(lengths) != {"inputs", "targets"}:
        raise UserError(f"TASK_FEATURE_LENGTHS = {lengths}: give 'inputs' and 'targets'")
    return Recipe(
        trainer=config.parameter(train.train, "trainer"),
        batch_size=config.parameter(DatasetConfig, "batch_size"),
        lengths=lengths,
        train_steps=config.parameter(train.train, "train_steps"),
        partitioner=config.parameter(train.train, "partitioner"),
    )
