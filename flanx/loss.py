"""Cross-entropy with z-loss, in float32."""

import jax
import jax.numpy as jnp
import numpy as np


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
    vocab_size = logits.shape[-1]
    right, wrong = 1.0 - label_smoothing, label_smoothing / (vocab_size - 1)  # probabilities of the smoothed target
    entropy = -float(right * np.log(right) + (vocab_size - 1) * wrong * np.log(wrong + 1e-20))
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # a comparison, which XLA fuses with the sum: the gradient of an index would be a scatter into an array like logits
    is_target = targets[..., None] == jnp.arange(vocab_size, dtype=targets.dtype).reshape(1, 1, -1)
    loss = log_z - (right - wrong) * jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1) - entropy
    if label_smoothing:
        loss -= wrong * jnp.sum(logits, axis=-1)
    z = z_loss * jnp.square(log_z)
    loss, weights = loss + z, weights.astype(jnp.float32)
    return jnp.sum(loss * weights), jnp.sum(z * weights), jnp.sum(weights)


def correct_tokens(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of the weights [b, t] of tokens whose target has the largest logit of [b, t, v]; float32 [].

    A maximum, which the loss needs too, costs a CPU far less than an argmax.
    """
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum((chosen >= jnp.max(logits, axis=-1)) * weights.astype(jnp.float32))
