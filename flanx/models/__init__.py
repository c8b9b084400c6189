"""Models behind one small protocol: what training, decoding and planning may ask of a model.

A model is a frozen dataclass of sizes around a linen module. It is independent of optimizer, mesh and data; gin
builds it (`MODEL = @t5.T5()`). Parameters are plain dict trees with T5X's names.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from flanx.models.find_nonfinite import first_nonfinite

__all__ = ["Batch", "Cache", "Model", "Params", "first_nonfinite"]

Params = Any  # nested dicts of float32 arrays, T5X's names
Cache = Any  # a pytree; every leaf has the batch on axis 0
Batch = Mapping[str, jax.Array]  # SeqIO's feature names -> int32 [rows, length]


class Model(Protocol):
    """What a model offers.

    Attributes:
      vocab_size: V, rows of the embedding table and width of the logits, padding included.
      packing: the row format the model expects, "encoder_decoder" or "decoder_only".
    """

    vocab_size: int
    packing: str

    @property
    def shares_prefix(self) -> bool:
        """Whether a prefix shared by several prompts can be read once, through `prefill_after`."""
        ...

    def __hash__(self) -> int:
        """Needed because a model is a static argument of jitted functions."""
        ...

    def init(self, rng: jax.Array) -> Any:
        """New parameters, boxed with their logical axis names; call it under `jit` or `eval_shape`."""
        ...

    def logits(self, params: Params, batch: Batch, dropout_rng: jax.Array | None = None) -> jax.Array:
        """Logits of the next token, float32 [B, T, V]. No dropout if `dropout_rng` is None."""
        ...

    def prefill(self, params: Params, inputs: jax.Array, max_new: int) -> tuple[Cache, jax.Array]:
        """Reads inputs [B, S] (0 pads on the right); returns a cache for `max_new` steps and the first tokens [B]."""
        ...

    def prefill_after(self, params: Params, prefix: Cache, inputs: jax.Array, max_new: int) -> tuple[Cache, jax.Array]:
        """`prefill` of the tokens in `prefix`, a one-row cache with no room for steps, followed by inputs [B, S]."""
        ...

    def decode_step(self, params: Params, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
        """Feeds tokens [B], each row at its own position; returns next-token logits [B, V] and the updated cache."""
        ...

    def outputs(self, params: Params, batch: Batch) -> Mapping[str, Any]:
        """Every module's output on the batch, nested by module name under "__call__", in execution order."""
        ...

    def num_params(self) -> int:
        """Number of parameters, computed from the sizes."""
        ...

    def flops_per_token(self, inputs: int, targets: int) -> float:
        """Training FLOPs (forward and backward, no recomputation) per token of a row of inputs + targets tokens."""
        ...
