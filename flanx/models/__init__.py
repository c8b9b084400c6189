"""Models behind one small protocol: what training, decoding and planning may ask of a model.

A model is a frozen dataclass of sizes around a linen module. It knows no optimizer, no mesh and no data; gin builds it
(`MODEL = @t5.T5()`). Parameters are plain dict trees with T5X's names.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from flanx.models.find_nonfinite import first_nonfinite

__all__ = ["Batch", "Cache", "Model", "Params", "first_nonfinite"]

Params = Any  # nested dicts of float32 arrays, T5X's names
Cache = Any  # a pytree whose every leaf has the batch on axis 0
Batch = Mapping[str, jax.Array]  # SeqIO's feature names -> int32 [rows, length]


class Model(Protocol):
    """What a model offers.

    Attributes:
      vocab_size: V, rows of the embedding table and width of the logits, padding included.
      packing: the rows that the model takes, "encoder_decoder" or "decoder_only".
    """

    vocab_size: int
    packing: str

    @property
    def shares_prefix(self) -> bool:
        """Whether `prefill_after` may read the beginning that prompts have in common once."""
        ...

    def __hash__(self) -> int:
        """A model is a static argument of jitted functions."""
        ...

    def init(self, rng: jax.Array) -> Any:
        """New parameters, boxed with their logical axis names; call it under `jit` or `eval_shape`."""
        ...

    def logits(self, params: Params, batch: Batch, dropout_rng: jax.Array | None = None) -> jax.Array:
        """Logits of the next token, float32 [B, T, V]. No dropout where `dropout_rng` is None."""
        ...

    def prefill(self, params: Params, inputs: jax.Array, max_new: int) -> tuple[Cache, jax.Array]:
        """Reads inputs [B, S] (0 pads on the right): a cache for `max_new` steps, and the first step's tokens [B]."""
        ...

    def prefill_after(self, params: Params, prefix: Cache, inputs: jax.Array, max_new: int) -> tuple[Cache, jax.Array]:
        """`prefill` of the tokens in `prefix`, a cache of one row for no step, followed by inputs [B, S]."""
        ...

    def decode_step(self, params: Params, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
        """Takes tokens [B] at each row's own position: logits of the next token [B, V], and the cache after it."""
        ...

    def outputs(self, params: Params, batch: Batch) -> Mapping[str, Any]:
        """Every module's output on the batch, nested by module name under "__call__", in the order of the program."""
        ...

    def num_params(self) -> int:
        """Number of parameters, from the sizes alone."""
        ...

    def flops_per_token(self, inputs: int, targets: int) -> float:
        """Training FLOPs (forward and backward, nothing recomputed) per token of a row of inputs + targets tokens."""
        ...
