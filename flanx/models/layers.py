"""Layers of every model: dense, norms, embedding, attention, MLP, relative position bias, dropout as T5X has it.

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
from jax import lax

from flanx.errors import UserError, nearest

Array = jax.Array
Init = Callable[..., Array]

MASKED = -1e10  # T5X's logit of a masked pair; finite, so that a row without any key stays finite
NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
TRUNCATED = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": nn.gelu,  # the tanh form, as T5 1.1 was trained
    "linear": lambda x: x,
    "relu": nn.relu,
    "silu": nn.silu,
}
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,  # keep everything
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep products with weights
    "dots": jax.checkpoint_policies.dots_saveable,  # keep attention scores as well
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the input of every layer
}


@dataclasses.dataclass(frozen=True)
class Precision:
    """Which number has which type: parameters and sums in float32, activations in `activations`.

    Softmax, norms, relative position bias, logits and loss are float32 whatever the activations are; the optimizer
    sees only float32 parameters and gradients.
    """

    activations: str = "float32"

    def __post_init__(self) -> None:
        if self.activations in ("float16", "fp16", "half"):
            raise UserError(
                "dtype = 'float16': T5's MLP outputs reach about 120,000 and float16 ends at 65,504; use 'bfloat16'"
            )
        check_name("dtype", self.activations, ("float32", "bfloat16"))

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations."""
        return jnp.dtype(self.activations)


def check_name(field: str, name: str, known: Sequence[str]) -> None:
    """Raises UserError where a model's field has a value that is not in the table."""
    if name not in known:
        raise UserError(f"{field} = '{name}': known are {', '.join(known)}{nearest(name, known)}")


def parameter(module: nn.Module, name: str, init: Init, axes: tuple[str, ...], shape: Sequence[int]) -> Array:
    """A float32 parameter whose axes have logical names."""
    return module.param(name, nn.with_logical_partitioning(init, axes), tuple(shape), jnp.float32)


@jax.custom_vjp
def settle(x: Array) -> Array:
    """x; on a CPU its gradient is computed once and stored before it is used.

    The gradient of a product's result enters two more products. XLA's CPU compiler would fuse the arithmetic behind it
    (a gelu's derivative, a softmax over the vocabulary) into the transposition for either, element by element.
    """
    return x


def _settle_backward(_: None, gradient: Array) -> tuple[Array]:
    return (lax.platform_dependent(gradient, cpu=lax.optimization_barrier, default=lambda g: g),)


settle.defvjp(lambda x: (x, None), _settle_backward)


class Dense(nn.Module):
    """A product with `kernel` [in, features], no bias."""

    features: int
    axes: tuple[str, str]
    precision: Precision
    init_kernel: Init = TRUNCATED

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., features]."""
        kernel = parameter(self, "kernel", self.init_kernel, self.axes, (x.shape[-1], self.features))
        return settle(x.astype(self.precision.dtype) @ kernel.astype(self.precision.dtype))


class Head(nn.Module):
    """A product with `kernel` [m, v] into float32 logits."""

    vocab_size: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [b, l, m] -> float32 [b, l, v]."""
        kernel = parameter(self, "kernel", TRUNCATED, ("embed", "vocab"), (x.shape[-1], self.vocab_size))
        return settle(jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32))


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, and a scale: T5's layer norm, in float32."""

    precision: Precision
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x [..., m] -> [..., m]."""
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt(jnp.mean(lax.square(x), axis=-1, keepdims=True) + self.epsilon)
        return (x * jnp.expand_dims(scale, range(x.ndim - 1))).astype(self.precision.dtype)


class Dropout(nn.Module):
    """Dropout, on where the call to `apply` brings a "dropout" rng; one mask is shared along `shared` axes.

    T5X shares it along the length of a row [b, l, m] nearly everywhere.
    """

    rate: float
    shared: tuple[int, ...] = (-2,)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Any shape, unchanged; kept values are divided by the share that is kept."""
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        shape = [1 if i - x.ndim in self.shared else n for i, n in enumerate(x.shape)]
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, shape)
        return x * (keep / (1.0 - self.rate)).astype(x.dtype)


@jax.custom_vjp
def look_up(table: Array, tokens: Array) -> Array:
    """Rows of `table` [v, m] at `tokens` [b, l] -> [b, l, m]: a gather, or on a TPU a product with one-hot tokens.

    The gradient is a scatter-add, or on a TPU the transposed product, which a table split over devices needs.
    """
    return _look_up_forward(table, tokens)[0]


def _one_hot(tokens: Array, size: int, dtype: jnp.dtype) -> Array:
    return jax.nn.one_hot(tokens, size, dtype=dtype)


def _look_up_forward(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    found = lax.platform_dependent(
        table,
        tokens,
        tpu=lambda t, i: _one_hot(i, t.shape[0], t.dtype) @ t,
        default=lambda t, i: jnp.take(t, i, axis=0, mode="clip"),
    )
    return found, (tokens, table[:, :0])


def _look_up_backward(residual: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    tokens, empty = residual
    shape = (empty.shape[0], gradient.shape[-1])

    def product(g: Array, i: Array) -> Array:
        return jnp.einsum("blv,blm->vm", _one_hot(i, shape[0], g.dtype), g)

    def scatter(g: Array, i: Array) -> Array:
        return jnp.zeros(shape, g.dtype).at[i].add(g, mode="drop")

    return lax.platform_dependent(gradient, tokens, tpu=product, default=scatter), None


look_up.defvjp(_look_up_forward, _look_up_backward)


class Embed(nn.Module):
    """The table of token embeddings, [v, m]; as a tied head it also gives the logits."""

    vocab_size: int
    emb_dim: int
    precision: Precision

    def setup(self) -> None:
        init = nn.initializers.normal(1.0)
        self.embedding = parameter(self, "embedding", init, ("vocab", "embed"), (self.vocab_size, self.emb_dim))

    def __call__(self, tokens: Array) -> Array:
        """tokens int32 [b, l] -> [b, l, m]."""
        return look_up(self.embedding.astype(self.precision.dtype), tokens)

    def attend(self, x: Array) -> Array:
        """x [b, l, m] -> float32 logits [b, l, v], scaled by 1/sqrt(m)."""
        table = self.embedding.astype(x.dtype)
        logits = settle(jnp.einsum("blm,vm->blv", x, table, preferred_element_type=jnp.float32))
        return logits / np.sqrt(self.emb_dim).astype(np.float32)


def relative_buckets(distance: Any, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128) -> Any:
    """T5's bucket of each distance (key position - query position), int32, any shape; numpy in, numpy out.

    Half of the buckets are single small distances, half grow with the logarithm up to `max_distance`. With
    `bidirectional` the upper half of the table is for keys behind the query; without, such keys share bucket 0.
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

    def __call__(self, length: int) -> Array:
        """float32 [1, h, q, k] for a row of `length` positions: one number per distance, laid along the diagonals.

        Two reshapes lay them: a row of 2 * length numbers, repeated, read in rows of one less moves on by one each.
        """
        distance = np.arange(-length + 1, length + 1, dtype=np.int32)
        values = self.of(distance)  # [h, 2 * length]
        shape = (self.num_heads, length, 2 * length)
        flat = jnp.broadcast_to(values[:, None, :], shape).reshape(self.num_heads, -1)
        rows = flat[:, : length * (2 * length - 1)].reshape(self.num_heads, length, 2 * length - 1)
        return rows[None, :, :, length - 1 :]

    def at(self, distance: Array) -> Array:
        """distance int32 [b, k] from each row's one query to the keys -> float32 [b, h, 1, k]."""
        return jnp.moveaxis(self.of(distance), 0, 1)[:, :, None, :]

    def of(self, distance: Any) -> Array:
        """distance int32 [...] (key - query) -> float32 [h, ...]; a product with one-hot buckets."""
        buckets = relative_buckets(distance, self.bidirectional, self.num_buckets, self.max_distance)
        one_hot = jax.nn.one_hot(buckets, self.num_buckets, dtype=jnp.float32)
        return jnp.tensordot(self.rel_embedding, one_hot, (1, -1))


def attend(self, x: Array) -> Array:
        """x [b, l, m] -> float32 logits [b, l, v], scaled by 1/sqrt(m)."""
        table = self.embedding.astype(x.dtype)
        logits = settle(jnp.einsum("blm,vm->blv", x, table, preferred_element_type=jnp.float32))
        return logits / np.sqrt(self.emb_dim).astype(np.float32)


def relative_buckets(distance: Any, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128) -> Any:
    """T5's bucket of each distance (key position - query position), int32, any shape; numpy in, numpy out.

    Half of the buckets are single small distances, half grow with the logarithm up to `max_distance`. With
    `bidirectional` the upper half of the table is for keys behind the query; without, such keys share bucket 0.
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

    def __call__(self, length: int) -> Array:
        """float32 [1, h, q, k] for a row of `length` positions."""
        position = np.arange(length, dtype=np.int32)
        return self.at(position[None, None, :] - position[None, :, None])

    def at(self, distance: Any) -> Array:
        """distance int32 [b, q, k] (key - query) -> float32 [b, h, q, k]; a product with one-hot buckets."""
        buckets = relative_buckets(distance, self.bidirectional, self.num_buckets, self.max_distance)
        one_hot = jax.nn.one_hot(buckets, self.num_buckets, axis=1, dtype=jnp.float32)
        return jnp.einsum("hn,bnqk->bhqk", self.rel_embedding, one_hot)


def attend(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None, kind: str = "auto") -> Array:
    """Softmax attention without scaling (T5 folds it into the query's initial values; others scale the query).

    Args:
      query: [b, q, h, d]; key and value: [b, k, g, d] with g = h or 1.
      bias: float32 [1 or b, h, q, k] added to the scores, or None.
      mask: bool [b, 1, q, k], True where the query may see the key, or None.
      kind: "exact", or "fused" for the backend's kernel (cuDNN), or "auto": fused on a GPU in bfloat16, else exact.

    Returns:
      [b, q, h, d] in the type of `value`.
    """
    if kind == "auto":
        kind = "fused" if jax.default_backend() == "gpu" and query.dtype == jnp.bfloat16 else "exact"
    if kind == "fused":
        bias = None if bias is None else bias.astype(query.dtype)
        return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=1.0)
    if key.shape[2] == 1:
        scores = jnp.einsum("bqhd,bkd->bhqk", query, key[:, :, 0], preferred_element_type=jnp.float32)
    else:
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias if bias.shape[0] == scores.shape[0] else scores + jnp.broadcast_to(bias, scores.shape)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if value.shape[2] == 1:
        return jnp.einsum("bhqk,bkd->bqhd", weights, value[:, :, 0])
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


class Attention(nn.Module):
    """T5's multi-head attention: `query`, `key`, `value`, `out`, no biases, no scaling of the scores.

    T5X drops attention weights with one mask for all queries of a row; weights [b, h, 1, k] times values equal values
    [b, k, h, 1] times weights, so the mask is applied to the values and every kernel of attention can take it.
    """

    num_heads: int
    head_dim: int
    emb_dim: int
    dropout_rate: float
    precision: Precision
    kind: str = "auto"

    def setup(self) -> None:
        def init_query(*args: Any) -> Array:
            return NORMAL(*args) / np.sqrt(self.head_dim).astype(np.float32)

        joined, axes = self.num_heads * self.head_dim, ("embed", "joined_kv")
        self.query = Dense(joined, axes, self.precision, init_query)
        self.key = Dense(joined, axes, self.precision, NORMAL)
        self.value = Dense(joined, axes, self.precision, NORMAL)
        self.out = Dense(self.emb_dim, axes[::-1], self.precision, NORMAL)
        self.dropout = Dropout(self.dropout_rate, shared=(-1,))

    def split(self, x: Array) -> Array:
        """[b, l, h * d] -> [b, l, h, d], heads over the mesh."""
        x = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        return nn.with_logical_constraint(x, ("batch", "length", "heads", "kv"))

    def keys_and_values(self, memory: Array) -> tuple[Array, Array]:
        """memory [b, k, m] -> keys and values [b, k, h, d]."""
        return self.split(self.key(memory)), self.split(self.value(memory))

    def __call__(self, x: Array, memory: Array, bias: Array | None, mask: Array | None) -> Array:
        """x [b, q, m] looks at memory [b, k, m] -> [b, q, m]; bias and mask as in `attend`."""
        key, value = self.keys_and_values(memory)
        return self.from_cache(x, key, self.dropout(value), bias, mask)

    def from_cache(self, x: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
        """x [b, q, m] looks at given keys and values [b, k, h, d] -> [b, q, m]."""
        seen = attend(self.split(self.query(x)), key, value, bias, mask, self.kind)
        return self.out(seen.reshape(*x.shape[:-1], self.num_heads * self.head_dim))


class MLP(nn.Module):
    """T5's MLP: one product per activation (`wi`, or `wi_0`, `wi_1`, ...), multiplied together, and `wo`."""

    mlp_dim: int
    emb_dim: int
    activations: tuple[str, ...]
    dropout_rate: float
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[b, l, m] -> [b, l, m]."""
        names = ["wi"] if len(self.activations) == 1 else [f"wi_{i}" for i in range(len(self.activations))]
        hidden: Any = 1
        for name, activation in zip(names, self.activations, strict=True):
            part = Dense(self.mlp_dim, ("embed", "mlp"), self.precision, name=name)(x)
            hidden = hidden * ACTIVATIONS[activation](part)
        hidden = Dropout(self.dropout_rate)(hidden)
        hidden = nn.with_logical_constraint(hidden, ("batch", "length", "mlp"))
        return Dense(self.emb_dim, ("mlp", "embed"), self.precision, name="wo")(hidden)


def segment_mask(query_segments: Array, key_segments: Array, causal: bool = False) -> Array:
    """Who may see whom in packed rows: bool [b, 1, q, k] from segment numbers [b, q] and [b, k], 0 for padding."""
    query, key = query_segments[:, :, None], key_segments[:, None, :]
    mask = (query == key) & (query > 0)
    if causal:
        position = np.arange(query_segments.shape[1])
        mask &= (position[:, None] >= position[None, :])[None]
    return mask[:, None]


def is_worth_naming(module: nn.Module, method: str) -> bool:
    """Whether the search for bad layers looks at a module's output: not at dropout, which it runs without."""
    return method == "__call__" and not isinstance(module, Dropout)


def write(cache: Array, new: Array, position: Array) -> Array:
    """Writes new [b, 1, g, d] into cache [b, k, g, d] at position int32 [b], one per row."""
    return cache.at[np.arange(cache.shape[0]), position].set(new[:, 0])


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
        in_axes=nn.broadcast,
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
