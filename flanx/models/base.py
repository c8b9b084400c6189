"""What every model built on a linen module shares: the part of `flanx.models.Model` that knows no architecture."""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flanx.models.layers import REMAT_POLICIES, Array, Dropout, Numerics, check_name, unstack

ATTENTION = ("auto", "exact", "fused")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinenModel:
    """A base for frozen dataclasses of sizes; they make a module and name the features of a batch that it takes.

    The module's methods are a call on the features, which gives logits [b, t, v], and `step`.

    Attributes:
      dropout_rate: of embeddings, attention, MLP and residuals, where logits are asked for with a dropout rng.
      dtype: of activations, "float32" or "bfloat16"; see `Numerics` for what stays float32.
      remat: what the backward pass recomputes, a name in `layers.REMAT_POLICIES`.
      scan_layers: one loop over stacked layers instead of one program text per layer: compiles faster, same numbers.
      attention: "auto", "exact" or "fused"; see `attention.attend`.
      kernels: "plain", which every transformation of jax takes, or "tuned", those of `flanx.kernels`: faster on a CPU,
        gradients in reverse mode alone. The numbers are the same, so it is left out of a run's identity (`repr`).
    """

    dropout_rate: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "auto"
    kernels: str = dataclasses.field(default="plain", repr=False)

    features: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        check_name("remat", self.remat, tuple(REMAT_POLICIES))
        check_name("attention", self.attention, ATTENTION)
        Numerics(self.dtype, self.kernels)

    @functools.cached_property
    def module(self) -> Any:
        """The linen module whose parameters these are."""
        raise NotImplementedError

    @property
    def numerics(self) -> Numerics:
        """Which number has which type, and which kernels compute it."""
        return Numerics(self.dtype, self.kernels)

    def init(self, rng: jax.Array) -> Any:
        """New parameters, boxed with logical axis names; call it under `jit` or `eval_shape`."""
        return self.module.init(rng, *[jnp.ones((1, 1), jnp.int32)] * len(self.features))["params"]

    def logits(self, params: Any, batch: Any, dropout_rng: jax.Array | None = None) -> Array:
        """Teacher-forced logits of (packed) rows, float32 [b, t, v]; dropout where a rng is given."""
        rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
        return self.module.apply({"params": params}, *self._inputs(batch), rngs=rngs)

    def outputs(self, params: Any, batch: Any) -> Any:
        """Every module's output, nested by module name, without dropout: for the search for the first bad layer."""

        def is_wanted(module: nn.Module, method: str) -> bool:
            return method == "__call__" and not isinstance(module, Dropout)

        module, variables = self.unrolled(params)
        _, captured = module.apply(
            variables, *self._inputs(batch), capture_intermediates=is_wanted, mutable=["intermediates"]
        )
        return captured["intermediates"]

    def decode_step(self, params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
        """Logits float32 [b, v] after tokens int32 [b], each row at its own position, and the cache after them."""
        module, variables = self.unrolled(params)
        return module.apply(variables, cache, tokens, method="step")

    def unrolled(self, params: Any) -> tuple[Any, dict[str, Any]]:
        """The module without scan and its variables: what decoding and the search for bad layers run."""
        if not self.scan_layers:
            return self.module, {"params": params}
        return dataclasses.replace(self, scan_layers=False).module, {"params": unstack(params)}

    def _inputs(self, batch: Any) -> list[Array]:
        return [batch[name] for name in self.features]
