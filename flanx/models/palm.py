"""PaLM: a causal decoder with parallel blocks, SwiGLU, multi-query attention and rotary positions.

y = x + MLP(norm(x)) + attention(norm(x)); no biases; one embedding table, whose transpose scaled by 1/sqrt(emb_dim) is
the head. With `prefix_lm` a row's inputs attend to each other in both directions, as in U-PaLM. The paper gives neither
the rotary base nor the norm's epsilon; 10,000 and 1e-6 are usual. Shape letters: see `flanx.models.layers`.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flanx.models import Cache, Params
from flanx.models.blockwise import Mask
from flanx.models.layers import (
    MLP,
    NORMAL,
    Array,
    Dense,
    Dropout,
    Embed,
    LinenModel,
    RMSNorm,
    attend,
    constrain,
    rotate,
    segment_mask,
    stack_layers,
    write,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaLM(LinenModel):
    """Configuration of a PaLM, implementing the `flanx.models.Model` protocol.

    Attributes:
      prefix_lm: the inputs of a row (`decoder_causal_attention` = 1) attend to each other in both directions.
    """

    vocab_size: int = 256_000
    emb_dim: int = 4096
    num_heads: int = 16
    head_dim: int = 256
    mlp_dim: int = 16_384
    num_layers: int = 32
    prefix_lm: bool = False

    packing: ClassVar[str] = "decoder_only"
    features: ClassVar[tuple[str, ...]] = (
        "decoder_input_tokens",
        "decoder_segment_ids",
        "decoder_positions",
        "decoder_causal_attention",
    )

    @functools.cached_property
    def module(self) -> "Transformer":
        """The linen module whose parameters these are."""
        return Transformer(self)

    def prefill(self, params: Params, inputs: Array, max_new: int) -> tuple[Cache, Array]:
        """Reads inputs int32 [b, s], 0 = padding, after a start token 0; the first step feeds each row's last token.

        That step recomputes the keys and values of the prefill, and gives the logits of the first new token.
        """
        return self._prefill(params, jnp.pad(inputs, ((0, 0), (1, 0))), max_new, None)

    @property
    def shares_prefix(self) -> bool:
        """Whether a prefix is encoded independently of what follows: false with bidirectional attention on inputs."""
        return not self.prefix_lm

    def prefill_after(self, params: Params, prefix: Cache, inputs: Array, max_new: int) -> tuple[Cache, Array]:
        """`prefill` of the tokens in `prefix`, a one-row cache with no free positions, and inputs [b, s >= 1]."""
        return self._prefill(params, inputs, max_new, prefix)

    def _prefill(self, params: Params, tokens: Array, max_new: int, prefix: Cache | None) -> tuple[Cache, Array]:
        module, variables = self.unrolled(params)
        cache = module.apply(variables, tokens, max_new, prefix, method="prefill")
        last = jnp.sum(tokens[:, 1:] > 0, axis=1, dtype=jnp.int32)  # the first may be the start token, 0
        return cache, jnp.take_along_axis(tokens, last[:, None], axis=1)[:, 0]

    def _matrices(self) -> tuple[int, int]:
        """Matrix weights of one layer and of the embedding table."""
        attention = 2 * self.emb_dim * self.num_heads * self.head_dim + 2 * self.emb_dim * self.head_dim
        return attention + 3 * self.emb_dim * self.mlp_dim, self.vocab_size * self.emb_dim

    def num_params(self) -> int:
        """Number of parameters, computed from the sizes."""
        layer, table = self._matrices()
        return self.num_layers * (layer + self.emb_dim) + self.emb_dim + table

    def flops_per_token(self, inputs: int, targets: int) -> float:
        """Training FLOPs, forward and backward, per token of a row of inputs + targets tokens.

        Six per weight, and twelve per pair of positions and attention channel; masked pairs count.
        """
        layer, table = self._matrices()
        pairs = self.num_layers * (inputs + targets) * self.num_heads * self.head_dim
        return 6.0 * (self.num_layers * layer + table) + 12.0 * pairs


class Attention(nn.Module):
    """Multi-query attention with rotary positions: many queries, one key and one value head."""

    config: PaLM

    def setup(self) -> None:
        c = self.config
        joined = c.num_heads * c.head_dim
        self.query = Dense(joined, ("embed", "joined_kv"), c.numerics, NORMAL)
        self.key = Dense(c.head_dim, ("embed", "kv"), c.numerics, NORMAL)
        self.value = Dense(c.head_dim, ("embed", "kv"), c.numerics, NORMAL)
        self.out = Dense(c.emb_dim, ("joined_kv", "embed"), c.numerics, NORMAL)
        self.dropout = Dropout(c.dropout_rate, shared=(-1,))

    def keys_and_values(self, x: Array, position: Array) -> tuple[Array, Array]:
        """x [b, l, m] at position [b, l] -> keys, rotated, and values, [b, l, 1, d]."""
        return rotate(self.key(x)[:, :, None, :], position), self.value(x)[:, :, None, :]

    def from_cache(self, x: Array, position: Array, key: Array, value: Array, mask: Mask) -> Array:
        """x [b, q, m] at position [b, q] attends to keys and values [b, k, 1, d] under mask [b, 1, q, k]."""
        c = self.config
        query = self.query(x).reshape(*x.shape[:-1], c.num_heads, c.head_dim)
        query = constrain(query, ("batch", "length", "heads", "kv"))
        query = rotate(query, position) * np.asarray(c.head_dim**-0.5, c.numerics.dtype)
        seen = attend(query, key, value, None, mask, c.attention, c.kernels)
        return self.out(seen.reshape(*x.shape[:-1], c.num_heads * c.head_dim))

    def __call__(self, x: Array, position: Array, mask: Mask) -> Array:
        """Self-attention of x [b, l, m] -> [b, l, m]."""
        key, value = self.keys_and_values(x, position)
        return self.from_cache(x, position, key, self.dropout(value), mask)


class Layer(nn.Module):
    """One parallel block."""

    config: PaLM

    def setup(self) -> None:
        c = self.config
        self.layer_norm = RMSNorm(c.numerics)
        self.attention = Attention(c)
        self.mlp = MLP(c.mlp_dim, c.emb_dim, ("silu", "linear"), c.dropout_rate, c.numerics)
        self.dropout = Dropout(c.dropout_rate)

    def __call__(self, x: Array, position: Array, mask: Mask) -> tuple[Array, None]:
        """x [b, l, m] -> [b, l, m]."""
        y = self.layer_norm(x)
        x = x + self.dropout(self.attention(y, position, mask) + self.mlp(y))
        return constrain(x, ("batch", "length", "embed")), None

    def prefill(
        self, x: Array, position: Array, mask: Mask, max_new: int, prefix: dict[str, Array] | None
    ) -> tuple[Array, dict[str, Array]]:
        """x [b, l, m] attends to a prefix's keys and values [1, p, 1, d], if any, and to itself -> [b, l, m], and keys
        and values [b, p + l + max_new, 1, d] for the cache."""
        y = self.layer_norm(x)
        key, value = self.attention.keys_and_values(y, position)
        if prefix is not None:
            before = (
                jnp.broadcast_to(prefix[name], (x.shape[0], *prefix[name].shape[1:])) for name in ("key", "value")
            )
            key, value = (jnp.concatenate(both, axis=1) for both in zip(before, (key, value), strict=True))
        x = x + self.attention.from_cache(y, position, key, value, mask) + self.mlp(y)
        room = ((0, 0), (0, max_new), (0, 0), (0, 0))
        return x, {"key": jnp.pad(key, room), "value": jnp.pad(value, room)}

    def step(self, x: Array, cache: dict[str, Array], position: Array, mask: Mask) -> tuple[Array, dict[str, Array]]:
        """x [b, 1, m] at position [b] -> [b, 1, m] and the cache including x's key and value."""
        y = self.layer_norm(x)
        key, value = self.attention.keys_and_values(y, position[:, None])
        cache = {"key": write(cache["key"], key, position), "value": write(cache["value"], value, position)}
        return x + self.attention.from_cache(y, position[:, None], **cache, mask=mask) + self.mlp(y), cache


class Decoder(nn.Module):
    """The stack of layers."""

    config: PaLM

    def setup(self) -> None:
        c = self.config
        self.layers = stack_layers(Layer, c, c.num_layers)
        self.decoder_norm = RMSNorm(c.numerics)
        self.dropout = Dropout(c.dropout_rate)

    def mask(self, segments: Array, readable: Array) -> Mask:
        """Attention mask [b, 1, l, l]: causal within a segment; with prefix_lm, inputs also see all of its inputs."""
        kind = self.config.attention
        mask = segment_mask(segments, segments, causal=True, kind=kind)
        if self.config.prefix_lm:
            mask |= segment_mask(segments * readable, segments * readable, kind=kind)
        return mask

    def __call__(self, x: Array, segments: Array, position: Array, readable: Array) -> Array:
        """Embedded tokens [b, l, m] with segment numbers, positions and input flags [b, l] -> [b, l, m], normed."""
        mask = self.mask(segments, readable)
        x = self.dropout(x)
        for layer in self.layers:
            x, _ = layer(x, position, mask)
        return self.dropout(self.decoder_norm(x))

    def prefill(self, x: Array, last: Array, max_new: int, prefix: Cache | None) -> Cache:
        """Embedded prompts [b, l, m], after a prefix if any, their last tokens at positions last [b] of l -> the cache
        before the first step."""
        behind = 0 if prefix is None else prefix["layers"][0]["key"].shape[1]
        place = jnp.broadcast_to(np.arange(x.shape[1], dtype=np.int32), x.shape[:2])
        inside = (place <= last[:, None]).astype(jnp.int32)
        if prefix is None:
            mask = self.mask(inside, inside)
        else:
            known = jnp.pad(inside, ((0, 0), (behind, 0)), constant_values=1)
            mask = segment_mask(inside, known, causal=True, first=behind)
        layers = []
        for number, layer in enumerate(self.layers):
            before = None if prefix is None else prefix["layers"][number]
            x, kept = layer.prefill(x, behind + place, mask, max_new, before)
            layers.append(kept)
        return {"layers": layers, "position": behind + last}

    def step(self, x: Array, cache: Cache) -> tuple[Array, Cache]:
        """Embedded tokens [b, 1, m] -> [b, 1, m], normed, and the updated cache."""
        position = cache["position"]
        keys = np.arange(cache["layers"][0]["key"].shape[1], dtype=np.int32)
        mask = (keys[None, :] <= position[:, None])[:, None, None, :]
        layers = []
        for layer, kept in zip(self.layers, cache["layers"], strict=True):
            x, kept = layer.step(x, kept, position, mask)
            layers.append(kept)
        return self.decoder_norm(x), {"layers": layers, "position": position + 1}


class Transformer(nn.Module):
    """Embedding, decoder, and the embedding again as the head."""

    config: PaLM

    def setup(self) -> None:
        c = self.config
        self.token_embedder = Embed(c.vocab_size, c.emb_dim, c.numerics)
        self.decoder = Decoder(c)

    def __call__(self, tokens: Array, segments: Array, position: Array, readable: Array) -> Array:
        """Shifted tokens [b, t] with segment numbers, positions, input flags -> float32 logits [b, t, v]."""
        x = self.decoder(self.token_embedder(tokens), segments, position, readable)
        return self.token_embedder.attend(x)

    def prefill(self, tokens: Array, max_new: int, prefix: Cache | None) -> Cache:
        """tokens int32 [b, s], 0 = padding: a start token 0 and the prompt, or what follows a prefix -> the cache
        before the first step."""
        last = jnp.sum(tokens[:, 1:] > 0, axis=1, dtype=jnp.int32)
        return self.decoder.prefill(self.token_embedder(tokens), last, max_new, prefix)

    def step(self, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        """tokens int32 [b] -> float32 logits [b, v] and the updated cache."""
        x, cache = self.decoder.step(self.token_embedder(tokens[:, None]), cache)
        return self.token_embedder.attend(x)[:, 0], cache
