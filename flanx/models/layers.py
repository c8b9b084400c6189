"""Layers shared by all models, as in T5X: dense, norm, dropout, embedding, MLP, attention; stacks; a model base class.

Letters in shapes and einsum strings: b rows, l/q/k lengths (any, query, key), m emb_dim, h heads, g key-value heads
(h, or 1 for multi-query), d head_dim, f mlp_dim, v vocabulary, n relative-position buckets.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from flanx import kernels as tuned
from flanx.errors import UserError, nearest
from flanx.kernels import MASKED
from flanx.models import adapter as adapters
from flanx.models.blockwise import LONGEST_EXACT, Mask, SegmentMask, attend_in_blocks

Array = jax.Array
Init = Callable[..., Array]

NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
TRUNCATED = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": nn.gelu,  # the tanh approximation, with which T5 1.1 was trained
    "linear": jax.nn.identity,
    "relu": nn.relu,
    "silu": nn.silu,
}
ATTENTION = ("auto", "exact", "fused", "blockwise")
PRODUCT = "product"  # JAX's policies do not see products inside a tuned kernel's custom VJP, so they are named
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
    """Dtypes of the computation, and which kernels run it.

    Parameters and accumulations are float32, activations have the dtype `activations`. Softmax, norms, relative
    position bias, logits and loss are always float32; the optimizer sees only float32 parameters and gradients.

    Attributes:
      kernels: "plain", or "tuned" for those of `flanx.kernels`.
      adapter: what is trained on top of frozen parameters, or None; the frozen ones have the dtype `stored`.
    """

    activations: str = "float32"
    kernels: str = "plain"
    adapter: adapters.Adapter | None = None
    stored: str = "float32"

    def __post_init__(self) -> None:
        if self.activations in ("float16", "fp16", "half"):
            raise UserError(
                "dtype = 'float16': T5's MLP outputs reach about 120,000 and float16 ends at 65,504; use 'bfloat16'"
            )
        check_name("dtype", self.activations, ("float32", "bfloat16"))
        check_name("kernels", self.kernels, tuned.KERNELS)

    @property
    def dtype(self) -> jnp.dtype:
        """The activation dtype."""
        return jnp.dtype(self.activations)

    def product(self, x: Array, kernel: Array, out_dtype: jnp.dtype) -> Array:
        """`product`, or the tuned kernel of that name; a frozen kernel narrower than x is widened in each pass."""
        multiply = tuned.product if self.kernels == "tuned" else product
        if self.adapter is not None and kernel.dtype != x.dtype:
            return tuned.recomputed(lambda x, kernel: multiply(x, kernel, out_dtype))(x, kernel)
        return multiply(x, kernel, out_dtype)


def check_name(field: str, name: str, known: Sequence[str]) -> None:
    """Raises UserError if a model's field has an unknown value."""
    if name not in known:
        raise UserError(f"{field} = '{name}': known are {', '.join(known)}{nearest(name, known)}")


def parameter(
    module: nn.Module, name: str, init: Init, axes: tuple[str, ...], shape: Sequence[int], stored: str = "float32"
) -> Array:
    """A parameter with logical axis names, of dtype `stored`."""
    boxed: Any = nn.with_logical_partitioning(init, axes)  # `param` unboxes what the initializer boxes
    return module.param(name, boxed, tuple(shape), jnp.dtype(stored))


def constrain(x: Array, axes: Sequence[str | None]) -> Array:
    """`x` sharded by the rules in scope, replicated along axes named None; unchanged outside a partitioner's scope.

    Raises UserError for an axis without a rule, which linen would silently leave unsharded.
    """
    known = {name for name, _ in nn.get_logical_axis_rules()}
    for axis in filter(None, axes) if known else ():
        if axis not in known:
            raise UserError(f"no partitioning rule for axis '{axis}' of an activation {axes}{nearest(axis, known)}")
    return with_logical_constraint(x, tuple(axes))


def product(x: Array, kernel: Array, out_dtype: jnp.dtype) -> Array:
    """x [..., i] times kernel [i, o], in x's dtype, as [..., o] of dtype `out_dtype`; accumulated in float32."""
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=out_dtype)


class Dense(nn.Module):
    """A matrix product with `kernel` [in, features], no bias."""

    features: int
    axes: tuple[str, str]
    numerics: Numerics
    init_kernel: Init = TRUNCATED

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., features]."""
        if self.numerics.adapter is not None:
            return checkpoint_name(adapters.dense(self, x, self.numerics.adapter), PRODUCT)
        kernel = parameter(self, "kernel", self.init_kernel, self.axes, (x.shape[-1], self.features))
        dtype = self.numerics.dtype
        return checkpoint_name(self.numerics.product(x.astype(dtype), kernel, dtype), PRODUCT)


class Head(nn.Module):
    """A matrix product with `kernel` [m, v], always in float32, as in T5X."""

    vocab_size: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [b, l, m] -> float32 [b, l, v]."""
        shape, stored = (x.shape[-1], self.vocab_size), self.numerics.stored
        kernel = parameter(self, "kernel", TRUNCATED, ("embed", "vocab"), shape, stored)
        return self.numerics.product(x.astype(jnp.float32), kernel, jnp.dtype("float32"))


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
    """Dropout, active if `apply` is given a "dropout" rng; the mask is broadcast along the `shared` axes.

    T5X broadcasts it along the length of a row [b, l, m] nearly everywhere.
    """

    rate: float
    shared: tuple[int, ...] = (-2,)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Any shape, unchanged; kept values are divided by the keep probability."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        shape = [1 if i - x.ndim in self.shared else n for i, n in enumerate(x.shape)]
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, shape)
        return x * (keep / (1.0 - self.rate)).astype(x.dtype)


class Embed(nn.Module):
    """The token embedding table, [v, m]; as a tied head it also computes the logits."""

    vocab_size: int
    emb_dim: int
    numerics: Numerics

    def setup(self) -> None:
        init = nn.initializers.normal(1.0)
        shape, stored = (self.vocab_size, self.emb_dim), self.numerics.stored
        self.embedding = parameter(self, "embedding", init, ("vocab", "embed"), shape, stored)

    def __call__(self, tokens: Array) -> Array:
        """tokens int32 [b, l] -> [b, l, m]: a gather, or on a TPU a product with one-hot tokens.

        The gradient is a scatter-add, or on a TPU the transposed product, which a sharded table needs. On a TPU the
        product uses the full width of the table even if it is sharded (fsdp): the compiler would otherwise gather the
        one-hot tokens of the whole batch for the gradient, 2.6 GB for Flan-T5-Small.
        """
        is_frozen = self.numerics.adapter is not None  # then cast after the gather, to avoid a copy of the table
        return lax.platform_dependent(
            self.embedding if is_frozen else self.embedding.astype(self.numerics.dtype),
            tokens,
            tpu=lambda t, i: jax.nn.one_hot(i, t.shape[0], dtype=t.dtype) @ constrain(t, ("vocab", None)),
            default=lambda t, i: jnp.take(t, i, axis=0, mode="clip"),
        ).astype(self.numerics.dtype)

    def attend(self, x: Array) -> Array:
        """x [b, l, m] -> float32 logits [b, l, v], scaled by 1/sqrt(m)."""
        logits = self.numerics.product(x.astype(jnp.float32), self.embedding.T, jnp.dtype("float32"))
        return logits / np.sqrt(self.emb_dim).astype(np.float32)


class MLP(nn.Module):
    """T5's MLP: one projection per activation (`wi`, or `wi_0`, `wi_1`, ...), multiplied together, then `wo`."""

    mlp_dim: int
    emb_dim: int
    activations: tuple[str, ...]
    dropout_rate: float
    numerics: Numerics

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[b, l, m] -> [b, l, m]."""
        axes, count = ("embed", "mlp"), len(self.activations)
        names = ("wi",) if count == 1 else map("wi_{}".format, range(count))
        parts = [Dense(self.mlp_dim, axes, self.numerics, name=name)(x) for name in names]
        acts = [ACTIVATIONS[activation] for activation in self.activations]
        # with a frozen `wo` no gradient needs `hidden` itself
        again = tuned.recomputed if self.numerics.adapter is not None else lambda function: function
        hidden = again(
            lambda *parts: functools.reduce(operator.mul, [act(p) for act, p in zip(acts, parts, strict=True)])
        )(*parts)
        hidden = Dropout(self.dropout_rate)(hidden)
        hidden = constrain(hidden, ("batch", "length", "mlp"))
        return Dense(self.emb_dim, ("mlp", "embed"), self.numerics, name="wo")(hidden)


# ---- attention -------------------------------------------------------------------------------------------------------


def relative_buckets(distance: Any, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128) -> Any:
    """T5's bucket of each distance (key position - query position), int32, any shape; numpy in, numpy out.

    Half of the buckets hold one small distance each, half are logarithmically spaced up to `max_distance`. With
    `bidirectional` the upper half of the table is for keys after the query; without it, such keys share bucket 0.
    """
    xp = np if isinstance(distance, np.ndarray) else jnp
    behind = 0
    back = -distance
    if bidirectional:
        num_buckets //= 2
        behind = (back < 0).astype(np.int32) * num_buckets
        back = abs(back)
    else:
        back = xp.maximum(back, 0)
    exact = num_buckets // 2
    ratio = back.astype(np.float32) / exact + np.finfo(np.float32).eps
    far = exact + (xp.log(ratio) / np.log(max_distance / exact) * (num_buckets - exact)).astype(np.int32)
    return behind + xp.where(back < exact, back, xp.minimum(far, num_buckets - 1)).astype(np.int32)


def diagonals(values: Array, queries: int, keys: int) -> Array:
    """values [h, q + k] for distances -(q - 1) to k -> [h, q, k], constant along the diagonals.

    Two reshapes do it: a row of q + k values, tiled and re-read in rows one shorter, shifts by one per row.
    """
    width = queries + keys
    flat = jnp.broadcast_to(values[:, None, :], (len(values), queries, width)).reshape(len(values), -1)
    rows = flat[:, : queries * (width - 1)].reshape(len(values), queries, width - 1)
    return rows[:, :, queries - 1 :]


class RelativeBias(nn.Module):
    """T5's relative position bias: one learned number per head and bucket of distance."""

    num_heads: int
    bidirectional: bool
    num_buckets: int = 32
    max_distance: int = 128

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        axes, shape = ("heads", "relpos_buckets"), (self.num_heads, self.num_buckets)
        self.rel_embedding = parameter(self, "rel_embedding", init, axes, shape)

    def __call__(self, length: int, mask: Mask | None = None) -> Array:
        """float32 [1, h, q, k] for a row of `length` positions, constant along the diagonals; with a blockwise mask
        only the one value per distance, [h, 2 * length]."""
        values = self.of(np.arange(-length + 1, length + 1, dtype=np.int32))
        return values if isinstance(mask, SegmentMask) else diagonals(values, length, length)[None]

    def at(self, distance: Array) -> Array:
        """distance int32 [b, k] from each row's single query to the keys -> float32 [b, h, 1, k]."""
        return jnp.moveaxis(self.of(distance), 0, 1)[:, :, None, :]

    def of(self, distance: Any) -> Array:
        """distance int32 [...] (key - query) -> float32 [h, ...]; a product with one-hot buckets."""
        buckets = relative_buckets(distance, self.bidirectional, self.num_buckets, self.max_distance)
        one_hot = jax.nn.one_hot(buckets, self.num_buckets, dtype=jnp.float32)
        return jnp.tensordot(self.rel_embedding, one_hot, (1, -1))


def rotate(x: Array, position: Array, base: float = 10_000.0) -> Array:
    """Rotary positions: x [b, l, h, d] with each pair (i, i + d/2) rotated by position [b, l] * base^(-2i/d)."""
    half = x.shape[-1] // 2
    speed = (base ** (-np.arange(half, dtype=np.float32) / half))[None, None, None, :]
    angle = position[:, :, None, None].astype(jnp.float32) * speed
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Mask | None,
    kind: str = "auto",
    kernels: str = "plain",
) -> Array:
    """Softmax attention without scaling (T5 folds it into the query's initialization; others scale the query).

    Args:
      query: [b, q, h, d]; key and value: [b, k, g, d] with g = h or 1.
      bias: float32 [1 or b, h, q, k] added to the scores, or None; blockwise [h, q + k], one per distance.
      mask: bool [b, 1, q, k], True where the query may see the key, or None, or a blockwise mask.
      kind: "exact", or "fused" for the backend's kernel (cuDNN), or "auto": fused on a GPU in bfloat16, else exact.
        "blockwise", which "auto" picks for long rows, is recognized by its mask (`segment_mask`).
      kernels: of exact attention, "plain" or "tuned"; see `flanx.kernels`.

    Returns:
      [b, q, h, d] in the dtype of `value`.
    """
    exact = tuned.attend if kernels == "tuned" else attend_plainly
    if isinstance(mask, SegmentMask):
        return attend_in_blocks(query, key, value, bias, mask, exact, diagonals)
    if kind == "auto":
        kind = "fused" if jax.default_backend() == "gpu" and query.dtype == jnp.bfloat16 else "exact"
    if kind == "fused":
        bias = None if bias is None else bias.astype(query.dtype)
        return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=1.0)
    return exact(query, key, value, bias, mask)


def attend_plainly(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
    """`attend` in plain JAX operations, softmax in float32."""
    kv = "bkhd"
    if key.shape[2] == 1:  # a single key head drops its axis and is shared by all query heads
        kv, key, value = "bkd", key[:, :, 0], value[:, :, 0]
    scores = jnp.einsum(f"bqhd,{kv}->bhqk", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum(f"bhqk,{kv}->bqhd", weights, value)


class Attention(nn.Module):
    """T5's multi-head attention: `query`, `key`, `value`, `out`, no biases, no scaling of the scores.

    T5X drops attention weights with one mask for all queries of a row; masking the weights [b, h, 1, k] equals masking
    the values [b, k, h, 1], so the mask is applied to the values, which works with every attention kernel.
    """

    config: Any  # the model's dataclass

    def setup(self) -> None:
        c = self.config
        scale = np.sqrt(c.head_dim).astype(np.float32)
        joined = c.num_heads * c.head_dim
        self.query = Dense(joined, ("embed", "joined_kv"), c.numerics, lambda *args: NORMAL(*args) / scale)
        self.key = Dense(joined, ("embed", "joined_kv"), c.numerics, NORMAL)
        self.value = Dense(joined, ("embed", "joined_kv"), c.numerics, NORMAL)
        self.out = Dense(c.emb_dim, ("joined_kv", "embed"), c.numerics, NORMAL)
        self.dropout = Dropout(c.dropout_rate, shared=(-1,))

    def split(self, x: Array) -> Array:
        """[b, l, h * d] -> [b, l, h, d], heads sharded over the mesh."""
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
        return constrain(x, ("batch", "length", "heads", "kv"))

    def keys_and_values(self, memory: Array) -> tuple[Array, Array]:
        """memory [b, k, m] -> keys and values [b, k, h, d]."""
        return self.split(self.key(memory)), self.split(self.value(memory))

    def __call__(self, x: Array, memory: Array, bias: Array | None, mask: Mask | None) -> Array:
        """x [b, q, m] attends to memory [b, k, m] -> [b, q, m]; bias and mask as in `attend`."""
        key, value = self.keys_and_values(memory)
        query, value = self.split(self.query(x)), self.dropout(value)
        seen = attend(query, key, value, bias, mask, self.config.attention, self.config.kernels)
        return self.out(seen.reshape(*x.shape[:-1], -1))

    def recall(self, x: Array, key: Array, value: Array, bias: Array | None, mask: Array) -> Array:
        """x [b, 1, m] attends to cached keys and values [b, h, k, d] -> [b, 1, m]."""
        seen = recall(self.split(self.query(x)), key, value, bias, mask)
        return self.out(seen.reshape(*x.shape[:-1], -1))


def segment_mask(
    query_segments: Array, key_segments: Array, causal: bool = False, first: Any = 0, kind: str = "exact"
) -> Any:
    """Attention mask of packed rows: bool [b, 1, q, k] from segment numbers [b, q] and [b, k], 0 for padding.

    `first`: the position of the first query. `kind`: of attention; for "blockwise", which "auto" picks above
    `blockwise.LONGEST_EXACT` keys except on a GPU, the same mask as a `SegmentMask`.
    """
    is_long = key_segments.shape[1] > LONGEST_EXACT and jax.default_backend() != "gpu"
    if kind == "blockwise" or (kind == "auto" and is_long):
        return SegmentMask(((query_segments, key_segments),), (causal,), segment_mask)
    query, key = query_segments[:, :, None], key_segments[:, None, :]
    mask = (query == key) & (query > 0)
    if causal:
        position = first + np.arange(query_segments.shape[1])
        mask &= (position[:, None] >= np.arange(key_segments.shape[1])[None, :])[None]
    return mask[:, None]


def write(cache: Array, new: Array, position: Array) -> Array:
    """Writes new [b, 1, g, d] into cache [b, k, g, d] at position int32 [b], one per row."""
    return cache.at[np.arange(cache.shape[0]), position].set(new[:, 0])


def heads_first(x: Array) -> Array:
    """[b, k, h, d] -> [b, h, k, d] (or back), the cache layout: attending with one query is one product per head.

    In the other layout XLA's CPU compiler transposes the whole cache at every step, at seven times the cost.
    """
    return jnp.swapaxes(x, 1, 2)


def write_heads(cache: Array, new: Array, position: Array) -> Array:
    """Writes new [b, 1, h, d] into cache [b, h, k, d] at position int32 [b], one per row."""
    return cache.at[np.arange(cache.shape[0]), :, position].set(new[:, 0])


def recall(query: Array, key: Array, value: Array, bias: Array | None, mask: Array) -> Array:
    """`attend` of one query [b, 1, h, d] to a cache [b, h, k, d], softmax in float32 -> [b, 1, h, d].

    The query is moved to the cache layout: otherwise XLA's CPU compiler transposes the keys of a single row.
    """
    scores = jnp.einsum("bhqd,bhkd->bhqk", heads_first(query), key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(value.dtype)
    return heads_first(jnp.einsum("bhqk,bhkd->bhqd", weights, value))


# ---- stacks of layers ------------------------------------------------------------------------------------------------


def stack_layers(layer: type[nn.Module], config: Any, num_layers: int) -> list[nn.Module]:
    """Makes the layers `layers_0`, ... of a stack, or the single scanned `layers`, from a class that takes `config`.

    A layer's call is (x, *same for every layer) -> (x, None), rematerialized by the policy `config.remat`. With
    `config.scan_layers` the parameters of all layers are stacked on axis 0, logical name "layers", and the list holds
    one module that runs them all.
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
        in_axes=nn.broadcast,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  flax annotates int
        length=num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return [looped(config, name="layers")]


def unstack(params: Any) -> Any:
    """Converts parameters of a scanned model to the unrolled form: each `layers` [n, ...] becomes `layers_0`, ..."""
    tree: dict[str, Any] = {}
    for key, value in params.items():
        if key == "layers":
            count = jax.tree.leaves(value)[0].shape[0]
            tree |= {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], value) for i in range(count)}
        else:
            tree[key] = unstack(value) if isinstance(value, dict) else value
    return tree


def stack(params: Any) -> Any:
    """Converts parameters of an unrolled model to the scanned form; the inverse of `unstack`."""
    tree = {key: stack(value) if isinstance(value, dict) else value for key, value in params.items()}
    count = sum(key.startswith("layers_") for key in tree)
    if count:
        parts = [tree.pop(f"layers_{i}") for i in range(count)]
        tree["layers"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    return tree


# ---- a model of layers -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinenModel:
    """Base of models built on a linen module, which are frozen dataclasses of sizes.

    Subclasses build a module and name the batch features that it takes. The module's `__call__` maps the features to
    logits [b, t, v]; its other method is `step`.

    Attributes:
      dropout_rate: of embeddings, attention, MLP and residuals, when logits are computed with a dropout rng.
      dtype: of activations, "float32" or "bfloat16"; see `Numerics` for what stays float32.
      remat: what the backward pass recomputes, a name in `REMAT_POLICIES`.
      scan_layers: loop over stacked layers instead of unrolling them: compiles faster, same numbers.
      attention: "auto", "exact", "fused" or "blockwise"; see `attend`.
      kernels: "plain", which every JAX transformation supports, or "tuned", those of `flanx.kernels`: faster on a CPU,
        reverse-mode gradients only. The numbers are the same, so it is left out of a run's identity (`repr`).
      adapter: what is trained next to frozen parameters, set by the trainer; None: no adapter.
    """

    dropout_rate: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "auto"
    kernels: str = dataclasses.field(default="plain", repr=False)
    adapter: adapters.Adapter | None = dataclasses.field(default=None, repr=False)

    features: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        check_name("remat", self.remat, tuple(REMAT_POLICIES))
        check_name("attention", self.attention, ATTENTION)
        _ = self.numerics  # checks dtype and kernels

    @functools.cached_property
    def module(self) -> Any:
        """The linen module whose parameters these are."""
        raise NotImplementedError

    @functools.cached_property
    def numerics(self) -> Numerics:
        """Dtypes of the computation, and which kernels run it."""
        stored = "float32" if self.adapter is None else self.adapter.stored
        return Numerics(self.dtype, self.kernels, self.adapter, stored)

    @property
    def shares_prefix(self) -> bool:
        """Whether prompts with a common prefix can be read after it; see `prefill_after`."""
        return False

    def prefill_after(self, params: Any, prefix: Any, inputs: Array, max_new: int) -> tuple[Any, Array]:
        """Only for models that share prefixes."""
        raise NotImplementedError

    def init(self, rng: jax.Array) -> Any:
        """New parameters, boxed with logical axis names; call it under `jit` or `eval_shape`."""
        return self.module.init(rng, *[jnp.ones((1, 1), jnp.int32)] * len(self.features))["params"]

    def logits(self, params: Any, batch: Any, dropout_rng: jax.Array | None = None) -> Array:
        """Teacher-forced logits of (packed) rows, float32 [b, t, v]; dropout if an rng is given."""
        rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
        return self.module.apply({"params": params}, *(batch[name] for name in self.features), rngs=rngs)

    def outputs(self, params: Any, batch: Any) -> Any:
        """Every module's output, nested by module name, without dropout: used to find the first bad layer."""

        def is_wanted(module: nn.Module, method: str) -> bool:
            return method == "__call__" and not isinstance(module, Dropout)

        module, variables = self.unrolled(params)
        _, captured = module.apply(
            variables,
            *(batch[name] for name in self.features),
            capture_intermediates=is_wanted,
            mutable=["intermediates"],
        )
        return captured["intermediates"]

    def decode_step(self, params: Any, cache: Any, tokens: Array) -> tuple[Array, Any]:
        """Logits float32 [b, v] after tokens int32 [b], each row at its own position, and the updated cache."""
        module, variables = self.unrolled(params)
        return module.apply(variables, cache, tokens, method="step")

    def unrolled(self, params: Any) -> tuple[Any, dict[str, Any]]:
        """The unscanned module and its variables, as used by decoding and the search for bad layers."""
        if not self.scan_layers:
            return self.module, {"params": params}
        return dataclasses.replace(self, scan_layers=False).module, {"params": unstack(params)}
