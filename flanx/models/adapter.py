"""LoRA: a small trained pair of matrices next to each frozen kernel, and quantized frozen kernels.

A target layer computes x W + s (x A) B with A [i, r], B [r, o] and s = alpha / r (Hu et al. 2021, arXiv:2106.09685), or
alpha / sqrt(r) (rsLoRA, arXiv:2312.03732). DoRA (arXiv:2402.09353) gives every output a trained magnitude m [o]
and multiplies by m / |W + s A B|, the column norms, through which no gradient flows. B starts at zero, so the first
step sees the base model. The pair is stored next to the kernel as `lora_a`, `lora_b`, `lora_magnitude`.
Letters: i inputs, o outputs, r rank.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flanx.errors import UserError
from flanx.kernels import recomputed

Array = jax.Array

BASES = ("float32", "bfloat16", "int8", "nf4")
MARK = "lora_"  # prefix of the names of an adapter's trained parameters
BLOCK = 64  # inputs that share a scale in NF4, as in QLoRA
# QLoRA's quantiles of a normal distribution, scaled to [-1, 1] (arXiv:2305.14314, appendix E)
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is trained on top of a frozen model.

    Attributes:
      rank: r, columns of A and rows of B.
      alpha: the products are scaled by alpha / rank.
      targets: layers that get a pair: regular expressions, each for the whole path of a kernel or for what is behind a
        "/" in it: "query", "decoder/.*value", "mlp/wi_[01]", ".*" for all layers.
      dropout: of the inputs of A, in training.
      rs: scale by alpha / sqrt(rank) instead.
      dora: a magnitude for every output, trained as well.
      base: how the frozen parameters are kept: "float32"; "bfloat16"; "int8" or "nf4" for the kernels of the layers and
        bfloat16 for the embeddings and the head.
      start: an adapter of the same base whose pairs are the first ones, a run or a folder of PEFT; None: new ones.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Sequence[str] = ("query", "value")
    dropout: float = 0.0
    rs: bool = False
    dora: bool = False
    base: str = "float32"
    start: str | None = None

    def __post_init__(self) -> None:
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)
        if self.rank < 1:
            raise UserError(f"lora.Adapter.rank is {self.rank}: give 1 or more, or no ADAPTER to train all parameters")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.Adapter.alpha is {self.alpha}: give a number above 0; with 0 nothing is trained")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.Adapter.dropout is {self.dropout}: give a share of at least 0 and below 1")
        if not self.targets:
            raise UserError("lora.Adapter.targets is empty: name layers, as 'query', or '.*' for all of them")
        if self.base not in BASES:
            raise UserError(f"lora.Adapter.base is '{self.base}'; known are {', '.join(BASES)}")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise UserError(f"lora.Adapter.targets: '{target}' is not a regular expression: {error}") from error

    @property
    def scale(self) -> float:
        """s, the factor on the product of the pair."""
        return self.alpha / (math.sqrt(self.rank) if self.rs else self.rank)

    @property
    def stored(self) -> str:
        """The dtype of frozen parameters that are not quantized."""
        return "float32" if self.base == "float32" else "bfloat16"

    def is_target(self, path: str) -> bool:
        """Whether the layer at `path` ("encoder/layers_0/attention/query") has a pair.

        "layers" matches every layer, so that scanned and unrolled models have the same targets."""
        paths = (path, re.sub(r"\blayers_[0-9]+", "layers", path))
        return any(re.fullmatch(f"(.*/)?(?:{target})", each) for target in self.targets for each in paths)


def dense(module: Any, x: Array, adapter: Adapter) -> Array:
    """The call of a `layers.Dense` whose model has an adapter: x [..., i] -> [..., o] in the activation dtype."""
    numerics, axes, shape = module.numerics, module.axes, (x.shape[-1], module.features)
    x = x.astype(numerics.dtype)

    def parameter(name: str, init: Any, names: Sequence[str | None], shape: tuple[int, ...], dtype: Any) -> Array:
        def cast(*args: Any) -> Array:  # some initializers scale, which promotes bfloat16
            return init(*args).astype(dtype)

        return module.param(name, nn.with_logical_partitioning(cast, tuple(names)), shape, dtype)

    kernel: tuple[Array, ...]
    if adapter.base in ("int8", "nf4"):
        # a quantized base is loaded, never sampled: initialize to zero
        codes, scales = stored_shapes(adapter.base, shape)
        names = {"int8": axes[1:], "nf4": (None, axes[1])}[adapter.base]
        code_axes = {"int8": axes, "nf4": (None, axes[1])}[adapter.base]
        zeros, kind = nn.initializers.zeros, {"int8": jnp.int8, "nf4": jnp.uint8}[adapter.base]
        kernel = (
            parameter(f"kernel_{adapter.base}", zeros, code_axes, codes, kind),
            parameter("kernel_scale", zeros, names, scales, jnp.float32),
        )
    else:
        kernel = (parameter("kernel", module.init_kernel, axes, shape, jnp.dtype(adapter.stored)),)
    y = _frozen_product(numerics, adapter.base)(x, *kernel)
    if not adapter.is_target("/".join(module.path)):
        return y
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # between -1/sqrt(i) and 1/sqrt(i), as PEFT
    a = parameter("lora_a", uniform, (axes[0], None), (shape[0], adapter.rank), jnp.float32)
    b = parameter("lora_b", nn.initializers.zeros, (None, axes[1]), (adapter.rank, shape[1]), jnp.float32)
    if adapter.dropout and module.has_rng("dropout"):
        keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - adapter.dropout, x.shape)
        x = x * (keep / (1.0 - adapter.dropout)).astype(x.dtype)
    y = y + adapter.scale * jnp.matmul(jnp.matmul(x, a.astype(x.dtype)), b.astype(x.dtype))
    if adapter.dora:
        whole = restored(adapter.base, *kernel)
        m = parameter("lora_magnitude", lambda *_: column_norm(whole), axes[1:], shape[1:], jnp.float32)
        norm = column_norm(jax.lax.stop_gradient(whole + adapter.scale * (a @ b)))
        share = m / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)  # an all-zero column stays zero
        y = y * jnp.expand_dims(share, range(y.ndim - 1)).astype(y.dtype)
    return y


def _frozen_product(numerics: Any, base: str) -> Callable[..., Array]:
    """A function computing x times a stored kernel. The backward pass dequantizes the kernel again, so that no copy of
    it in the activation dtype outlives the layer."""

    def multiply(x: Array, *kernel: Array) -> Array:
        if base == "int8":  # the scale is per output, so it is applied after the product
            codes, scale = kernel
            y = numerics.product(x, codes.astype(x.dtype), jnp.dtype("float32"))
            return (y * jnp.expand_dims(scale, range(y.ndim - 1))).astype(x.dtype)
        return numerics.product(x, restored(base, *kernel).astype(x.dtype), numerics.dtype)

    return multiply if base == numerics.activations else recomputed(multiply)


def column_norm(kernel: Array) -> Array:
    """Kernel [..., i, o] -> the norm of each column, float32 [..., o]."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=-2))


# ---- quantized kernels -----------------------------------------------------------------------------------------------
# int8: codes int8 [i, o] and a scale float32 [o], the largest magnitude of a column over 127. NF4: two 4-bit codes per
# byte, uint8 [i / 2, o] (the even input in the low bits), and a scale float32 [i / BLOCK, o].


def stored_shapes(base: str, shape: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the codes and scales of a kernel [i, o]."""
    inputs, outputs = shape
    if base == "int8":
        return shape, (outputs,)
    return (-(-inputs // 2), outputs), (inputs // math.gcd(inputs, BLOCK), outputs)


def quantize(base: str, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [i, o] -> (codes, scales), on the host; see above."""
    kernel = np.asarray(kernel, np.float32)
    if base == "int8":
        scale = np.max(np.abs(kernel), axis=0) / 127
        return np.rint(kernel / np.where(scale > 0, scale, 1)).astype(np.int8), scale
    inputs, outputs = kernel.shape
    block = math.gcd(inputs, BLOCK)
    blocks = kernel.reshape(inputs // block, block, outputs)
    scale = np.max(np.abs(blocks), axis=1)
    relative = (blocks / np.where(scale > 0, scale, 1)[:, None]).reshape(inputs, outputs)
    codes = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, relative).astype(np.uint8)
    codes = np.pad(codes, ((0, inputs % 2), (0, 0)))
    return codes[::2] | codes[1::2] << 4, scale


def restored(base: str, *kernel: Array) -> Array:
    """A stored kernel -> [i, o], float32 if it was quantized."""
    if base in ("float32", "bfloat16"):
        return kernel[0]
    codes, scale = kernel
    if base == "int8":
        return codes.astype(jnp.float32) * scale[None]
    outputs = codes.shape[1]
    inputs = scale.shape[0] if scale.shape[0] > codes.shape[0] else 2 * codes.shape[0]  # odd: blocks of 1
    pairs = jnp.stack([codes & 15, codes >> 4], axis=1)  # [i / 2, 2, o]
    values = jnp.take(jnp.asarray(NF4), pairs.astype(jnp.int32), axis=0).reshape(-1, outputs)[:inputs]
    return (values.reshape(scale.shape[0], -1, outputs) * scale[:, None]).reshape(inputs, outputs)
