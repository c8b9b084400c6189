"""Cross-entropy with z-loss, in float32, without a one-hot copy of the targets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _per_token(
    logits: jax.Array, targets: jax.Array, z_loss: float, label_smoothing: float
) -> tuple[jax.Array, jax.Array]:
    return _forward(logits, targets, z_loss, label_smoothing)[0]


def _confidences(vocab_size: int, label_smoothing: float) -> tuple[float, float, float]:
    """Probability of the right and of each wrong piece, and the entropy of that distribution."""
    right, wrong = 1.0 - label_smoothing, label_smoothing / (vocab_size - 1)
    entropy = -(right * np.log(right) + (vocab_size - 1) * wrong * np.log(wrong + 1e-20))
    return right, wrong, float(entropy)


def _forward(logits, targets, z_loss, label_smoothing):
    right, wrong, entropy = _confidences(logits.shape[-1], label_smoothing)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_z - (right - wrong) * chosen - entropy
    if label_smoothing:
        loss -= wrong * jnp.sum(logits, axis=-1)
    z = z_loss * jnp.square(log_z)
    return (loss + z, z), (logits, targets, log_z)


def _backward(z_loss, label_smoothing, residual, gradients):
    logits, targets, log_z = residual
    right, wrong, _ = _confidences(logits.shape[-1], label_smoothing)
    of_loss, of_z = gradients
    scale = of_loss + 2.0 * z_loss * log_z * (of_loss + of_z)
    probability = jnp.exp(logits - log_z[..., None])
    is_target = targets[..., None] == jnp.arange(logits.shape[-1], dtype=targets.dtype).reshape(1, 1, -1)
    share = jnp.where(is_target, np.float32(right), np.float32(wrong))
    return scale[..., None] * probability - of_loss[..., None] * share, None


_per_token.defvjp(_forward, _backward)


def cross_entropy_with_z_loss(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The summed loss of a batch, as T5X defines it.

    A token costs its cross-entropy against the (smoothed) target, less the entropy of the smoothed target, plus
    z_loss * log(Z)^2, Z being the sum of the exponentials of its logits.

    Args:
      logits: float32 [b, t, v].
      targets: int32 [b, t].
      weights: [b, t], 0 where a token does not count.

    Returns:
      (loss with its z-loss part, that part, sum of weights), float32 [].
    """
    weights = weights.astype(jnp.float32)
    loss, z = _per_token(logits, targets, z_loss, label_smoothing)
    return jnp.sum(loss * weights), jnp.sum(z * weights), jnp.sum(weights)


def correct_tokens(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of the weights [b, t] of tokens whose target has the largest logit of [b, t, v]; float32 [].

    A maximum, which the loss needs too, costs a CPU far less than an argmax.
    """
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum((chosen >= jnp.max(logits, axis=-1)) * weights.astype(jnp.float32))
