"""One training step: state and batch in, new state and sums of metrics out."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from flanx.errors import UserError
from flanx.loss import correct_tokens, cross_entropy_with_z_loss
from flanx.models import Model
from flanx.partition import Partitioner

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Gradients = Callable[[Any, Batch, jax.Array | None], tuple[Any, Metrics]]


class TrainState(flax.struct.PyTreeNode):
    """All that a run must save: the number of steps done, parameters (T5X's names) and optimizer state."""

    step: jax.Array  # int32 []
    params: Any
    opt_state: Any


def init_state(model: Model, optimizer: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """A fresh state, unboxed. Call it under jit in the partitioner's scope, so that arrays are born where they live."""
    params = nn.unbox(model.init(rng))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract_state(model: Model, optimizer: optax.GradientTransformation, partitioner: Partitioner) -> TrainState:
    """The state as jax.ShapeDtypeStructs with shardings. Nothing is computed, so `partitioner` may be of any devices.

    Call it outside the partitioner's scope where its devices are not of this machine.
    """
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0)))
    params = partitioner.shardings(boxed)
    moments = partitioner.optimizer_shardings(optimizer, shapes.params, params)
    shardings = TrainState(partitioner.everywhere(), params, moments)
    return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)


def jit_train_step(step: Callable[..., Any], target: TrainState, **options: Any) -> Callable[..., Any]:
    """`step` jitted: the state is donated and stays where `target` (see `abstract_state`) has it."""
    shardings = jax.tree.map(lambda s: s.sharding, target)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), **options)


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    seed: int = 0,
    dropout: bool = True,
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
    loss_normalizing_factor: float | str | None = None,
    num_microbatches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step function, to be jitted.

    The loss is the sum over target tokens of cross-entropy + z_loss * log(Z)^2, divided by `loss_normalizing_factor`:
    None for no division (T5X's default), a number (233,472 for checkpoints pre-trained in Mesh TensorFlow), or
    "tokens" for the number of target tokens of the batch. Dropout's randomness is a function of (seed, step) alone.

    Metrics are sums over target tokens, float32 []: loss (without division), cross_ent_loss, z_loss, correct, tokens;
    and grad_norm, the norm of the divided gradient.
    """
    if isinstance(loss_normalizing_factor, str) and loss_normalizing_factor != "tokens":
        raise UserError(f"loss_normalizing_factor is a number, None or 'tokens', not '{loss_normalizing_factor}'")

    def loss_fn(params: Any, batch: Batch, rng: jax.Array | None) -> tuple[jax.Array, Metrics]:
        logits = model.logits(params, batch, rng)  # [B, T, V]
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        loss, z, tokens = cross_entropy_with_z_loss(logits, targets, weights, z_loss, label_smoothing)
        correct = correct_tokens(logits, targets, weights)
        metrics = {"loss": loss, "cross_ent_loss": loss - z, "z_loss": z, "correct": correct, "tokens": tokens}
        return loss, jax.tree.map(lambda m: m.astype(jnp.float32), metrics)

    gradients = accumulate(jax.grad(loss_fn, has_aux=True), num_microbatches)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step) if dropout else None
        grads, metrics = gradients(state.params, batch, rng)
        if loss_normalizing_factor is not None:
            divisor = (
                jnp.maximum(metrics["tokens"], 1.0) if loss_normalizing_factor == "tokens" else loss_normalizing_factor
            )
            grads = jax.tree.map(lambda g: g / divisor, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics | {"grad_norm": optax.tree.norm(grads)}

    return train_step


def accumulate(
    gradients: Callable[..., tuple[Any, Metrics]], num_microbatches: int
) -> Callable[..., tuple[Any, Metrics]]:
    """Wraps `gradients(params, batch, rng) -> (gradient, metrics)` to work through the batch in parts and sum.

    Row r of the batch goes to part r % num_microbatches, so that every part keeps the rows of every data shard.
    """
    if num_microbatches == 1:
        return gradients

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
