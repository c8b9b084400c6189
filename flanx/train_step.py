"""One training step, from state and batch to a new state and summed metrics; and the loss, in float32."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flanx import trainable
from flanx.errors import UserError
from flanx.models import Model
from flanx.models.adapter import Adapter
from flanx.partition import Partitioner

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# names of loss_normalizing_factor (T5X's, and "tokens" for the first of them) -> the sum over the batch they stand for
NORMALIZERS = {
    "tokens": "tokens",
    "NUM_REAL_TARGET_TOKENS": "tokens",
    "NUM_TOTAL_TARGET_TOKENS": "targets",  # padding too
    "AVERAGE_PER_SEQUENCE": "sequences",  # every sequence counts the same, whatever its length
}


class TrainState(flax.struct.PyTreeNode):
    """Everything a run saves: the number of steps done, parameters (T5X's names) and the optimizer state."""

    step: jax.Array  # int32 []
    params: Any
    opt_state: Any  # of the trained parameters only


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The computation of a step: the model's loss on a batch, its gradient, the optimizer's update.

    The loss is the sum over target tokens of cross-entropy + z_loss * log(Z)^2, divided by `loss_normalizing_factor`.

    Attributes:
      optimizer: see `flanx.optim`.
      seed: of the initial parameters and of dropout, whose randomness is a function of (seed, step) only.
      dropout: False switches it off whatever the model's rate.
      loss_normalizing_factor: None for no division (T5X's default), a number (233,472 for checkpoints pre-trained in
        Mesh TensorFlow), or a name in NORMALIZERS.
      num_microbatches: parts in which a batch is processed, to save memory; loss and gradient are the same.
      num_tasks: N, the largest number in a batch's `decoder_task_ids`; 0 for no sums by task.
      adapter: what is trained in place of the parameters, which are frozen then; see `flanx.lora`.
      trainable: patterns of the names of the parameters that are trained, None for all; see `flanx.trainable`. Frozen
        ones have no gradient and no optimizer state.
      rate_multipliers: {pattern: factor of what the optimizer would add}; the last pattern that fits a name counts.
      patterns: of what is trained, the adapter's where there is one; None for all.
      saved: of what a checkpoint holds; None for all.
    """

    model: Model
    optimizer: optax.GradientTransformation
    seed: int = 0
    dropout: bool = True
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | str | None = None
    num_microbatches: int = 1
    num_tasks: int = 0
    adapter: Adapter | None = None
    trainable: Sequence[str] | None = None
    rate_multipliers: Mapping[str, float] | None = None
    patterns: tuple[str, ...] | None = dataclasses.field(init=False, repr=False)
    saved: tuple[str, ...] | None = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        patterns = None if self.trainable is None else trainable.check(self.trainable)
        if self.adapter is not None:
            object.__setattr__(self, "model", trainable.with_adapter(self.model, self.adapter, self.trainable))
            patterns = trainable.OF_ADAPTERS
        if self.rate_multipliers:
            trainable.check_multipliers(self.rate_multipliers)
        object.__setattr__(self, "patterns", patterns)
        object.__setattr__(self, "saved", None if self.adapter is None else patterns)
        factor = self.loss_normalizing_factor
        if isinstance(factor, str) and factor not in NORMALIZERS:
            raise UserError(
                f"loss_normalizing_factor is a number, None or one of {', '.join(NORMALIZERS)}, not '{factor}'"
            )

    def init(self) -> TrainState:
        """A state with new random parameters, unboxed. Call it under jit, so that arrays are created sharded."""
        return self.init_from_params(nn.unbox(self.model.init(jax.random.key(self.seed))))

    def init_from_params(self, params: Any, step: int = 0) -> TrainState:
        """The state of a run that starts from `params`, after `step` steps."""
        trained = params if self.patterns is None else trainable.split(params, self.patterns)[0]
        return TrainState(jnp.full((), step, jnp.int32), params, self.optimizer.init(trained))

    def abstract_state(self, partitioner: Partitioner) -> TrainState:
        """The state as jax.ShapeDtypeStructs with shardings. Nothing is computed: `partitioner` may have any devices.

        Call it outside the partitioner's scope if its devices are not on this machine.
        """
        boxed, shapes = self._shapes
        params = partitioner.shardings(boxed)
        trained = (shapes.params, params)
        if self.patterns is not None:
            if self.adapter is not None:
                trainable.expect_targets(self.adapter, shapes.params)
            trainable.expect_names(self.patterns, shapes.params)
            trained = tuple(trainable.split(tree, self.patterns)[0] for tree in trained)
        if self.rate_multipliers:
            trainable.expect_multiplied(self.rate_multipliers, trained[0])
        moments = partitioner.optimizer_shardings(self.optimizer, *trained)
        shardings = shapes.replace(step=partitioner.everywhere(), params=params, opt_state=moments)
        return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)

    @functools.cached_property
    def _shapes(self) -> tuple[Any, TrainState]:
        """The parameters boxed with their axis names, and the state; `plan` needs them for every layout."""
        model = self.model
        return jax.eval_shape(
            lambda: ((boxed := model.init(jax.random.key(0))), self.init_from_params(nn.unbox(boxed)))
        )

    def jit(self, target: TrainState, **options: Any) -> jax.stages.Wrapped:
        """`step` jitted: the state is donated and keeps the shardings of `target` (see `abstract_state`)."""
        shardings = jax.tree.map(lambda s: s.sharding, target)
        # every host has all metrics, and the step number
        return jax.jit(self.step, donate_argnums=0, out_shardings=(shardings, shardings.step), **options)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step.

        Metrics, float32 []: the sums over target tokens loss (not divided), cross_ent_loss, z_loss, correct and tokens;
        the number of positions in the rows, and of those that are filled; grad_norm, of the divided gradient. And
        `tasks` [4, N], by task (see `num_tasks`): cross_ent_loss, tokens, examples in the batch, correct.
        """
        rng = jax.random.fold_in(jax.random.key(self.seed), state.step) if self.dropout else None
        trained, frozen, gradients = state.params, None, jax.grad(self.loss, has_aux=True)
        if self.patterns is not None:
            trained, frozen = trainable.split(state.params, self.patterns)
            gradients = jax.grad(lambda part, *rest: self.loss(trainable.join(part, frozen), *rest), has_aux=True)
        if self.num_microbatches > 1:
            gradients = accumulate(gradients, self.num_microbatches)
        grads, metrics = gradients(trained, batch, rng)
        if (factor := self.loss_normalizing_factor) is not None:
            divisor = jnp.maximum(metrics[NORMALIZERS[factor]], 1.0) if isinstance(factor, str) else factor
            grads = jax.tree.map(lambda g: g / divisor, grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
        if self.rate_multipliers:
            updates = trainable.multiply(updates, self.rate_multipliers)
        params = optax.apply_updates(trained, updates)
        params = params if frozen is None else trainable.join(params, frozen)
        metrics = {name: metrics[name] for name in metrics if name not in ("sequences", "targets")}
        return TrainState(state.step + 1, params, opt_state), metrics | {"grad_norm": optax.tree.norm(grads)}

    def loss(self, params: Any, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The loss of a (micro)batch, not divided, and its metrics.

        With AVERAGE_PER_SEQUENCE every sequence has a total weight of 1 in the loss, but not in the metrics.
        """
        logits = self.model.logits(params, batch, rng)  # [B, T, V]
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        of_tokens, z_of_tokens = cross_entropy_with_z_loss(logits, targets, weights, self.z_loss, self.label_smoothing)
        loss, z, tokens = jnp.sum(of_tokens), jnp.sum(z_of_tokens), jnp.sum(weights.astype(jnp.float32))
        is_correct = correct_tokens(logits, targets, weights)
        metrics: Metrics = {"loss": loss, "cross_ent_loss": loss - z, "z_loss": z, "tokens": tokens}
        metrics["correct"] = jnp.sum(is_correct)
        if self.num_tasks:
            is_first = (batch["decoder_positions"] == 0) & (batch["decoder_segment_ids"] > 0)
            values = (of_tokens - z_of_tokens, weights, is_first, is_correct)  # [b, t] each
            # comparisons, which XLA fuses with their sums: no array of b t n elements is materialized, and the order of
            # a sum is deterministic on every accelerator, unlike that of a scatter
            of_task = batch["decoder_task_ids"][..., None] == jnp.arange(1, self.num_tasks + 1).reshape(1, 1, -1)
            sums = [jnp.sum(jnp.where(of_task, value[..., None], 0.0), axis=(0, 1)) for value in values]
            metrics["tasks"] = jnp.stack(sums)
        segments = [array for name, array in batch.items() if name.endswith("segment_ids")]
        metrics["filled"] = jnp.asarray(sum(jnp.sum(array > 0) for array in segments))
        metrics["positions"] = jnp.asarray(sum(array.size for array in segments))
        metrics["targets"], objective = jnp.asarray(targets.size), loss
        if self.loss_normalizing_factor == "AVERAGE_PER_SEQUENCE":
            weights = shares_of_sequences(weights, batch["decoder_segment_ids"])
            of_tokens, _ = cross_entropy_with_z_loss(logits, targets, weights, self.z_loss, self.label_smoothing)
            objective, metrics["sequences"] = jnp.sum(of_tokens), jnp.sum(weights)
        return objective, jax.tree.map(lambda m: m.astype(jnp.float32), metrics)


def accumulate(
    gradients: Callable[..., tuple[Any, Metrics]], num_microbatches: int
) -> Callable[..., tuple[Any, Metrics]]:
    """Wraps `gradients(params, batch, rng) -> (gradient, metrics)` to process the batch in parts and sum them.

    Row r of the batch goes to part r % num_microbatches, so that every part has rows of every data shard.
    """

    def summed(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Any, Metrics]:
        rows = next(iter(batch.values())).shape[0]
        if rows % num_microbatches:
            raise UserError(f"a batch of {rows} rows does not divide into {num_microbatches} microbatches")
        parts = jax.tree.map(
            lambda x: x.reshape(rows // num_microbatches, num_microbatches, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def body(total: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            index, rows_of_part = part
            part_rng = None if rng is None else jax.random.fold_in(rng, index)
            return jax.tree.map(jnp.add, total, gradients(params, rows_of_part, part_rng)), None

        first = jax.tree.map(lambda x: x[0], parts)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradients, params, first, rng))
        return jax.lax.scan(body, zero, (jnp.arange(num_microbatches), parts))[0]

    return summed


def cross_entropy_with_z_loss(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """The loss of each target token, as T5X defines it.

    A token's loss is its cross-entropy against the (smoothed) target, minus the entropy of the smoothed target, plus
    z_loss * log(Z)^2, where Z is the sum of the exponentials of its logits.

    Args:
      logits: float32 [b, t, v].
      targets: int32 [b, t].
      weights: [b, t], 0 where a token does not count.

    Returns:
      (loss with its z-loss part, that part), times the weights, float32 [b, t].
    """
    vocab_size = logits.shape[-1]
    right, wrong = 1.0 - label_smoothing, label_smoothing / (vocab_size - 1)  # probabilities of the smoothed target
    entropy = -float(right * np.log(right) + (vocab_size - 1) * wrong * np.log(wrong + 1e-20))
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # a comparison, which XLA fuses with the sum: the gradient of indexing would be a scatter into an array like logits
    is_target = targets[..., None] == jnp.arange(vocab_size, dtype=targets.dtype).reshape(1, 1, -1)
    loss = log_z - (right - wrong) * jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1) - entropy
    if label_smoothing:
        loss -= wrong * jnp.sum(logits, axis=-1)
    z = z_loss * jnp.square(log_z)
    loss, weights = loss + z, weights.astype(jnp.float32)
    return loss * weights, z * weights


def shares_of_sequences(weights: jax.Array, segments: jax.Array) -> jax.Array:
    """Weights [b, t] divided by their sum over the sequence: the positions of a row with one segment number [b, t]."""
    weights = weights.astype(jnp.float32) * (segments > 0)

    def total(weights: jax.Array, segments: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(weights, segments, num_segments=weights.shape[0] + 1)[segments]

    sums = jax.vmap(total)(weights, segments)
    return jnp.where(sums > 0, weights / jnp.where(sums > 0, sums, 1.0), 0.0)


def correct_tokens(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """The weight of each token whose target is the first of its largest logits, else 0; float32 [b, t].

    logits [b, t, v], targets and weights [b, t].

    An argmax would give the same, but on a CPU it costs far more than these comparisons, fused with their reduction.
    """
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    is_before = jnp.arange(logits.shape[-1], dtype=targets.dtype).reshape(1, 1, -1) < targets[..., None]
    is_first = jnp.all(jnp.where(is_before, chosen > logits, chosen >= logits), axis=-1)
    return is_first * weights.astype(jnp.float32)
