"""Layers of every model: dense, norm, dropout, embedding, MLP, as T5X has them; stacks of layers.

Letters of shapes and einsum strings: b rows, l/q/k lengths (any, query, key), m emb_dim, h heads, g key-value heads
(h, or 1 for multi-query), d head_dim, f mlp_dim, v vocabulary, n relative-position buckets.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from flanx import kernels as tuned
from flanx.errors import UserError, nearest

Array = jax.Array
Init = Callable[..., Array]

NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
TRUNCATED = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": nn.gelu,  # the tanh form, as T5 1.1 was trained
    "linear": lambda x: x,
    "relu": nn.relu,
    "silu": nn.silu,
}
PRODUCT = "product"  # JAX's policies do not see a product inside a tuned kernel's own gradient rule, so it has a name
_KEEP_PRODUCTS = jax.checkpoint_policies.save_only_these_names(PRODUCT)
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,  # keep everything
    "minimal": _KEEP_PRODUCTS,  # keep products with weights
    "dots": jax.checkpoint_policies.save_from_both_policies(  # keep attention scores as well
        jax.checkpoint_policies.dots_saveable, _KEEP_PRODUCTS
    ),
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the input of every layer
}


@dataclasses.dataclass(frozen=True)
class Numerics:
    """Which number has which type, and which kernels compute it.

    Parameters and sums are float32, activations of the type `activations`. Softmax, norms, relative position bias,
    logits and loss are float32 whatever the activations are; the optimizer sees only float32 parameters and gradients.

    Attributes:
      kernels: "plain", or "tuned" for those of `flanx.kernels`.
    """

    activations: str = "float32"
    kernels: str = "plain"

    def __post_init__(self) -> None:
        if self.activations in ("float16", "fp16", "half"):
            raise UserError(
                "dtype = 'float16': T5's MLP outputs reach about 120,000 and float16 ends at 65,504; use 'bfloat16'"
            )
        check_name("dtype", self.activations, ("float32", "bfloat16"))
        check_name("kernels", self.kernels, tuned.KERNELS)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations."""
        return jnp.dtype(self.activations)

    def product(self, x: Array, kernel: Array, out_dtype: jnp.dtype) -> Array:
        """`product`, or the tuned kernel of that name."""
        if self.kernels == "tuned":
            return tuned.product(x, kernel, out_dtype)
        return product(x, kernel, out_dtype)


def check_name(field: str, name: str, known: Sequence[str]) -> None:
    """Raises UserError where a model's field has an unknown value."""
    if name not in known:
        raise UserError(f"{field} = '{name}': known are {', '.join(known)}{nearest(name, known)}")


def parameter(module: nn.Module, name: str, init: Init, axes: tuple[str, ...], shape: Sequence[int]) -> Array:
    """A float32 parameter whose axes have logical names."""
    boxed: Any = nn.with_logical_partitioning(init, axes)  # `param` unboxes what the initializer boxes
    return module.param(name, boxed, tuple(shape), jnp.float32)


def constrain(x: Array, axes: Sequence[str]) -> Array:
    """`x` sharded as the rules in force say; unchanged outside of a partitioner's scope.

    Raises UserError for an axis without a rule, which linen would silently leave unsplit.
    """
    known = {name for name, _ in nn.get_logical_axis_rules()}
    for axis in axes if known else ():
        if axis not in known:
            raise UserError(f"no partitioning rule for axis '{axis}' of an activation {axes}{nearest(axis, known)}")
    return with_logical_constraint(x, tuple(axes))


def product(x: Array, kernel: Array, out_dtype: jnp.dtype) -> Array:
    """x [..., i] times kernel [i, o], in the type of x, as [..., o] of type `out_dtype`; sums are float32 inside."""
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=out_dtype)


class Dense(nn.Module):
    """A product with `kernel` [in, features], no bias."""

    features: int
    axes: tuple[str, str]
    numerics: Numerics
    init_kernel: Init = TRUNCATED

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., features]."""
        kernel = parameter(self, "kernel", self.init_kernel, self.axes, (x.shape[-1], self.features))
        dtype = self.numerics.dtype
        return checkpoint_name(self.numerics.product(x.astype(dtype), kernel, dtype), PRODUCT)


class Head(nn.Module):
    """A product with `kernel` [m, v] into float32 logits."""

    vocab_size: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [b, l, m] -> float32 [b, l, v]."""
        kernel = parameter(self, "kernel", TRUNCATED, ("embed", "vocab"), (x.shape[-1], self.vocab_size))
        return self.numerics.product(x, kernel, jnp.dtype("float32"))


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, and a scale: T5's layer norm, in float32."""

    numerics: Numerics
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., m] -> [..., m]."""
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt(jnp.mean(lax.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * jnp.expand_dims(scale, range(x.ndim - 1))).astype(self.numerics.dtype)


class Dropout(nn.Module):
    """Dropout, on where `apply` is given a "dropout" rng; one mask is shared along `shared` axes.

    T5X shares it along the length of a row [b, l, m] nearly everywhere.
    """

    rate: float
    shared: tuple[int, ...] = (-2,)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Any shape, unchanged; kept values are divided by the probability of being kept."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        shape = [1 if i - x.ndim in self.shared else n for i, n in enumerate(x.shape)]
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, shape)
        return x * (keep / (1.0 - self.rate)).astype(x.dtype)


def look_up(table: Array, tokens: Array) -> Array:
    """Rows of `table` [v, m] at `tokens` [b, l] -> [b, l, m]: a gather, or on a TPU a product with one-hot tokens.

    The gradient is a scatter-add, or on a TPU the transposed product, which a table split over devices needs.
    """
    return lax.platform_dependent(
        table,
        tokens,
        tpu=lambda t, i: jax.nn.one_hot(i, t.shape[0], dtype=t.dtype) @ t,
        default=lambda t, i: jnp.take(t, i, axis=0, mode="clip"),
    )


class Embed(nn.Module):
    """The table of token embeddings, [v, m]; as a tied head it also gives the logits."""

    vocab_size: int
    emb_dim: int
    numerics: Numerics

    def setup(self) -> None:
        init = nn.initializers.normal(1.0)
        self.embedding = parameter(self, "embedding", init, ("vocab", "embed"), (self.vocab_size, self.emb_dim))

    def __call__(self, tokens: Array) -> Array:
        """tokens int32 [b, l] -> [b, l, m]."""
        return look_up(self.embedding.astype(self.numerics.dtype), tokens)

    def attend(self, x: Array) -> Array:
        """x [b, l, m] -> float32 logits [b, l, v], scaled by 1/sqrt(m)."""
        logits = self.numerics.product(x, self.embedding.T, jnp.dtype("float32"))
        return logits / np.sqrt(self.emb_dim).astype(np.float32)


class MLP(nn.Module):
    """T5's MLP: one product per activation (`wi`, or `wi_0`, `wi_1`, ...), multiplied together, and `wo`."""

    mlp_dim: int
    emb_dim: int
    activations: tuple[str, ...]
    dropout_rate: float
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[b, l, m] -> [b, l, m]."""
        names = ["wi"] if len(self.activations) == 1 else [f"wi_{i}" for i in range(len(self.activations))]
        hidden: Any = 1
        for name, activation in zip(names, self.activations, strict=True):
            part = Dense(self.mlp_dim, ("embed", "mlp"), self.numerics, name=name)(x)
            hidden = hidden * ACTIVATIONS[activation](part)
        hidden = Dropout(self.dropout_rate)(hidden)
        hidden = constrain(hidden, ("batch", "length", "mlp"))
        return Dense(self.emb_dim, ("mlp", "embed"), self.numerics, name="wo")(hidden)


def stack_layers(layer: type[nn.Module], config: Any, num_layers: int) -> list[nn.Module]:
    """Makes the layers `layers_0`, ... of a stack, or the one scanned `layers`, from a class that takes `config`.

    A layer's call is (x, *same for every layer) -> (x, None). It is wrapped in the policy `config.remat`. With
    `config.scan_layers` the parameters of all layers are stacked on axis 0 under the logical name "layers", and the
    list has one module, which runs them all.
    """
    scan = config.scan_layers
    if config.remat != "none":
        layer = nn.remat(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=not scan)
    if not scan:
        return [layer(config) for _ in range(num_layers)]
    looped = nn.scan(
        layer,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  flax annotates an int
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return [looped(config, name="layers")]


def unstack(params: Any) -> Any:
    """Parameters of a scanned model as those of the unrolled one: each `layers` [n, ...] becomes `layers_0`, ..."""
    tree: dict[str, Any] = {}
    for key, value in params.items():
        if key == "layers":
            count = jax.tree.leaves(value)[0].shape[0]
            tree |= {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], value) for i in range(count)}
        else:
            tree[key] = unstack(value) if isinstance(value, dict) else value
    return tree


def stack(params: Any) -> Any:
    """Parameters of an unrolled model as those of the scanned one; undoes `unstack`."""
    tree = {key: stack(value) if isinstance(value, dict) else value for key, value in params.items()}
    count = sum(key.startswith("layers_") for key in tree)
    if count:
        parts = [tree.pop(f"layers_{i}") for i in range(count)]
        tree["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    return tree
