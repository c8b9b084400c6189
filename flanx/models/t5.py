"""T5: the encoder-decoder of T5.1.1, Flan-T5, T5.1.0 and mT5, with T5X's parameter names.

T5.1.1 and mT5 have a gated MLP (`gelu`, `linear`) and a separate head; T5.1.0 has a plain MLP (`relu`) and a tied
head whose logits are scaled by 1/sqrt(emb_dim). Shape letters: see `flanx.models.layers`; s inputs, t targets.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flanx.errors import UserError
from flanx.models import Cache, Params
from flanx.models.blockwise import Mask
from flanx.models.layers import (
    ACTIVATIONS,
    MLP,
    Array,
    Attention,
    Dropout,
    Embed,
    Head,
    LinenModel,
    RelativeBias,
    RMSNorm,
    check_name,
    constrain,
    heads_first,
    segment_mask,
    stack_layers,
    write_heads,
)

RELATIVE_BIASES = ("stack", "layer")
YOUNGER = ("relative_bias", "decoder_start_token_id")  # fields that the first version of `T5` lacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5(LinenModel):
    """Configuration of a T5, implementing the `flanx.models.Model` protocol.

    Attributes:
      mlp_activations: one product per entry; ("gelu", "linear") is T5.1.1's gated MLP, ("relu",) T5.1.0's plain one.
      tied_head: logits from the embedding table (T5.1.0) instead of a separate head.
      relative_bias: "stack", one table for all layers of a stack, or "layer", one in each (T5X's scalable_t5, umT5).
      decoder_start_token_id: the first token of the decoder's inputs: T5's 0, or what a Hugging Face config names.
    """

    vocab_size: int = 32_128
    emb_dim: int = 768
    num_heads: int = 12
    head_dim: int = 64
    mlp_dim: int = 2048
    num_encoder_layers: int = 12
    num_decoder_layers: int = 12
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    tied_head: bool = False
    relative_bias: str = dataclasses.field(default="stack", repr=False)
    decoder_start_token_id: int = dataclasses.field(default=0, repr=False)

    packing: ClassVar[str] = "encoder_decoder"
    features: ClassVar[tuple[str, ...]] = (
        "encoder_input_tokens",
        "encoder_segment_ids",
        "decoder_input_tokens",
        "decoder_segment_ids",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for activation in self.mlp_activations:
            check_name("mlp_activations", activation, tuple(ACTIVATIONS))
        if not self.mlp_activations:
            raise UserError(
                "mlp_activations is empty: give one, as ('relu',), or two of a gated MLP, ('gelu', 'linear')"
            )
        check_name("relative_bias", self.relative_bias, RELATIVE_BIASES)
        if not 0 <= self.decoder_start_token_id < self.vocab_size:
            start, size = self.decoder_start_token_id, self.vocab_size
            raise UserError(f"decoder_start_token_id = {start} is not one of the {size} tokens (0 to {size - 1})")
        super().__post_init__()

    def __repr__(self) -> str:
        """A run's identity; newer fields are omitted at their default, which preserves the identity of older runs."""
        fields = dataclasses.fields(self)
        shown = [f for f in fields if f.repr or (f.name in YOUNGER and getattr(self, f.name) != f.default)]
        return f"T5({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    @functools.cached_property
    def module(self) -> "Transformer":
        """The linen module whose parameters these are."""
        return Transformer(self)

    def prefill(self, params: Params, inputs: Array, max_new: int) -> tuple[Cache, Array]:
        """Encodes inputs int32 [b, s], 0 = padding; the first step feeds `decoder_start_token_id`."""
        module, variables = self.unrolled(params)
        cache = module.apply(variables, inputs, max_new, method="prefill")
        return cache, jnp.full(inputs.shape[:1], self.decoder_start_token_id, jnp.int32)

    def _matrices(self) -> tuple[int, int, int]:
        """Matrix weights of one attention layer, one MLP and the head."""
        attention = 4 * self.emb_dim * self.num_heads * self.head_dim
        mlp = (len(self.mlp_activations) + 1) * self.emb_dim * self.mlp_dim
        return attention, mlp, self.vocab_size * self.emb_dim

    def num_params(self) -> int:
        """Number of parameters, computed from the sizes."""
        attention, mlp, table = self._matrices()
        encoder = self.num_encoder_layers * (attention + mlp + 2 * self.emb_dim) + self.emb_dim
        decoder = self.num_decoder_layers * (2 * attention + mlp + 3 * self.emb_dim) + self.emb_dim
        biases = self.num_encoder_layers + self.num_decoder_layers if self.relative_bias == "layer" else 2
        return encoder + decoder + biases * 32 * self.num_heads + table * (1 if self.tied_head else 2)

    def flops_per_token(self, inputs: int, targets: int) -> float:
        """Training FLOPs, forward and backward, per token of a row of inputs + targets tokens.

        Six per weight and token multiplied by it (for cross-attention keys and values, the input tokens), and twelve
        per pair of positions and attention channel; masked pairs count, as they are computed.
        """
        attention, mlp, head = self._matrices()
        encoder = self.num_encoder_layers * (attention + mlp) * inputs
        decoder = self.num_decoder_layers * ((1.5 * attention + mlp) * targets + 0.5 * attention * inputs)
        pairs = self.num_encoder_layers * inputs**2 + self.num_decoder_layers * targets * (targets + inputs)
        width = self.num_heads * self.head_dim
        return (6.0 * (encoder + decoder + head * targets) + 12.0 * pairs * width) / (inputs + targets)


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each with a norm before it and a residual around it."""

    config: T5

    def setup(self) -> None:
        c = self.config
        if c.relative_bias == "layer":
            self.relpos_bias = RelativeBias(c.num_heads, bidirectional=True)
        self.pre_attention_layer_norm = RMSNorm(c.numerics)
        self.attention = Attention(c)
        self.pre_mlp_layer_norm = RMSNorm(c.numerics)
        self.mlp = MLP(c.mlp_dim, c.emb_dim, c.mlp_activations, c.dropout_rate, c.numerics)
        self.dropout = Dropout(c.dropout_rate)

    def __call__(self, x: Array, bias: Array | None, mask: Mask) -> tuple[Array, None]:
        """x [b, s, m] -> [b, s, m]; `bias` is None if the layer has its own."""
        bias = self.relpos_bias(x.shape[1], mask) if bias is None else bias
        y = self.pre_attention_layer_norm(x)
        x = x + self.dropout(self.attention(y, y, bias, mask))
        x = x + self.dropout(self.mlp(self.pre_mlp_layer_norm(x)))
        return constrain(x, ("batch", "length", "embed")), None


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention and MLP, each with a norm before it and a residual around it."""

    config: T5

    def setup(self) -> None:
        c = self.config
        if c.relative_bias == "layer":
            self.relpos_bias = RelativeBias(c.num_heads, bidirectional=False)
        self.pre_self_attention_layer_norm = RMSNorm(c.numerics)
        self.self_attention = Attention(c)
        self.pre_cross_attention_layer_norm = RMSNorm(c.numerics)
        self.encoder_decoder_attention = Attention(c)
        self.pre_mlp_layer_norm = RMSNorm(c.numerics)
        self.mlp = MLP(c.mlp_dim, c.emb_dim, c.mlp_activations, c.dropout_rate, c.numerics)
        self.dropout = Dropout(c.dropout_rate)

    def __call__(
        self, x: Array, encoded: Array, bias: Array | None, self_mask: Mask, cross_mask: Mask
    ) -> tuple[Array, None]:
        """x [b, t, m] attends to itself and to encoded [b, s, m] -> [b, t, m]; `bias` None: the layer has its own."""
        bias = self.relpos_bias(x.shape[1], self_mask) if bias is None else bias
        y = self.pre_self_attention_layer_norm(x)
        x = x + self.dropout(self.self_attention(y, y, bias, self_mask))
        y = self.pre_cross_attention_layer_norm(x)
        x = x + self.dropout(self.encoder_decoder_attention(y, encoded, None, cross_mask))
        x = x + self.dropout(self.mlp(self.pre_mlp_layer_norm(x)))
        return constrain(x, ("batch", "length", "embed")), None

    def cross(self, encoded: Array) -> tuple[Array, Array]:
        """Cross-attention keys and values of encoded [b, s, m]."""
        return self.encoder_decoder_attention.keys_and_values(encoded)

    def step(self, x: Array, cache: dict[str, Array], shared: "StepInputs") -> tuple[Array, dict[str, Array]]:
        """x [b, 1, m], this layer's cache and what all layers share -> [b, 1, m] and the cache including x's keys."""
        y = self.pre_self_attention_layer_norm(x)
        key, value = self.self_attention.keys_and_values(y)
        cache = cache | {"key": write_heads(cache["key"], key, shared.position)}
        cache = cache | {"value": write_heads(cache["value"], value, shared.position)}
        bias = self.relpos_bias.at(shared.distance) if shared.bias is None else shared.bias
        x = x + self.self_attention.recall(y, cache["key"], cache["value"], bias, shared.self_mask)
        y = self.pre_cross_attention_layer_norm(x)
        memory = cache["cross_key"], cache["cross_value"]
        x = x + self.encoder_decoder_attention.recall(y, *memory, None, shared.cross_mask)
        return x + self.mlp(self.pre_mlp_layer_norm(x)), cache


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """Inputs of a decoding step that all decoder layers share."""

    position: Array  # int32 [b]
    distance: Array  # int32 [b, t], from the current position to each cache position
    bias: Array | None  # float32 [b, h, 1, t]; None if every layer has its own
    self_mask: Array  # bool [b, 1, 1, t]
    cross_mask: Array  # bool [b, 1, 1, s]


class Encoder(nn.Module):
    """The stack of encoder layers."""

    config: T5

    def setup(self) -> None:
        c = self.config
        if c.relative_bias == "stack":
            self.relpos_bias = RelativeBias(c.num_heads, bidirectional=True)
        self.layers = stack_layers(EncoderLayer, c, c.num_encoder_layers)
        self.encoder_norm = RMSNorm(c.numerics)
        self.dropout = Dropout(c.dropout_rate)
        self.final_dropout = Dropout(c.dropout_rate, shared=())

    def __call__(self, x: Array, segments: Array) -> Array:
        """Embedded inputs [b, s, m] and their segment numbers [b, s] -> [b, s, m]."""
        mask = segment_mask(segments, segments, kind=self.config.attention)
        bias = self.relpos_bias(x.shape[1], mask) if self.config.relative_bias == "stack" else None
        x = self.dropout(x)
        for layer in self.layers:
            x, _ = layer(x, bias, mask)
        return self.final_dropout(self.encoder_norm(x))


class Decoder(nn.Module):
    """The stack of decoder layers."""

    config: T5

    def setup(self) -> None:
        c = self.config
        if c.relative_bias == "stack":
            self.relpos_bias = RelativeBias(c.num_heads, bidirectional=False)
        self.layers = stack_layers(DecoderLayer, c, c.num_decoder_layers)
        self.decoder_norm = RMSNorm(c.numerics)
        self.dropout = Dropout(c.dropout_rate)
        if not c.tied_head:
            self.logits_dense = Head(c.vocab_size, c.numerics)

    def __call__(self, x: Array, encoded: Array, segments: Array, encoded_segments: Array) -> Array:
        """Embedded targets [b, t, m], encoded [b, s, m], segment numbers of both -> [b, t, m], normed."""
        kind = self.config.attention
        mask = segment_mask(segments, segments, causal=True, kind=kind)
        cross_mask = segment_mask(segments, encoded_segments, kind=kind)
        bias = self.relpos_bias(x.shape[1], mask) if self.config.relative_bias == "stack" else None
        x = self.dropout(x)
        for layer in self.layers:
            x, _ = layer(x, encoded, bias, mask, cross_mask)
        return self.dropout(self.decoder_norm(x))

    def prefill(self, encoded: Array, readable: Array, max_new: int) -> Cache:
        """encoded [b, s, m] and its non-padding positions, bool [b, s] -> the cache before the first step."""
        c = self.config
        empty = jnp.zeros((encoded.shape[0], c.num_heads, max_new, c.head_dim), encoded.dtype)
        layers = []
        for layer in self.layers:
            key, value = map(heads_first, layer.cross(encoded))
            layers.append({"key": empty, "value": empty, "cross_key": key, "cross_value": value})
        return {"layers": layers, "readable": readable, "position": jnp.zeros(encoded.shape[0], jnp.int32)}

    def step(self, x: Array, cache: Cache) -> tuple[Array, Cache]:
        """Embedded tokens [b, 1, m] -> [b, 1, m], normed, and the updated cache."""
        position = cache["position"]
        keys = np.arange(cache["layers"][0]["key"].shape[2], dtype=np.int32)
        distance = keys[None, :] - position[:, None]
        cross_mask = cache["readable"][:, None, None, :]
        bias = self.relpos_bias.at(distance) if self.config.relative_bias == "stack" else None
        shared = StepInputs(position, distance, bias, (distance <= 0)[:, None, None], cross_mask)
        layers = []
        for layer, layer_cache in zip(self.layers, cache["layers"], strict=True):
            x, layer_cache = layer.step(x, layer_cache, shared)
            layers.append(layer_cache)
        return self.decoder_norm(x), cache | {"layers": layers, "position": position + 1}


class Transformer(nn.Module):
    """Embedding, encoder, decoder, head."""

    config: T5

    def setup(self) -> None:
        c = self.config
        self.token_embedder = Embed(c.vocab_size, c.emb_dim, c.numerics)
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)

    def __call__(self, inputs: Array, input_segments: Array, targets: Array, target_segments: Array) -> Array:
        """Tokens and segment numbers of inputs [b, s] and of shifted targets [b, t] -> float32 logits [b, t, v]."""
        if start := self.config.decoder_start_token_id:  # batches begin every segment with 0
            begins = target_segments != jnp.pad(target_segments, ((0, 0), (1, 0)))[:, :-1]
            targets = jnp.where(begins, start, targets)
        both = self.token_embedder(jnp.concatenate([inputs, targets], axis=1))  # one lookup: one gradient of the table
        encoded = self.encoder(both[:, : inputs.shape[1]], input_segments)
        return self.head(self.decoder(both[:, inputs.shape[1] :], encoded, target_segments, input_segments))

    def head(self, x: Array) -> Array:
        """[b, t, m] -> float32 logits [b, t, v]."""
        return self.token_embedder.attend(x) if self.config.tied_head else self.decoder.logits_dense(x)

    def prefill(self, inputs: Array, max_new: int) -> Cache:
        """inputs int32 [b, s], 0 = padding -> the cache before the first step."""
        readable = inputs > 0
        encoded = self.encoder(self.token_embedder(inputs), readable.astype(jnp.int32))
        return self.decoder.prefill(encoded, readable, max_new)

    def step(self, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        """tokens int32 [b] -> float32 logits [b, v] and the updated cache."""
        x, cache = self.decoder.step(self.token_embedder(tokens[:, None]), cache)
        return self.head(x)[:, 0], cache
