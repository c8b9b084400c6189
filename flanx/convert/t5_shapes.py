"""Which tensors a T5 has, and their shapes: every checkpoint that comes in or goes out is held against this."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from flanx.convert.lazy_tensor import parameters
from flanx.errors import UserError, nearest

_ATTENTION = ("query", "key", "value", "out")
_STACKS = {  # stack -> its attentions and norms inside a layer
    "encoder": (("attention",), ("pre_attention_layer_norm", "pre_mlp_layer_norm")),
    "decoder": (
        ("self_attention", "encoder_decoder_attention"),
        ("pre_self_attention_layer_norm", "pre_cross_attention_layer_norm", "pre_mlp_layer_norm"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The sizes of a T5 of any version (T5, T5.1.1, LM-adapted, Flan-T5, mT5).

    Attributes:
      gated: the MLP has two input projections (T5.1.1, mT5), or one (T5).
      tied: logits come from the embedding, scaled by emb_dim**-0.5 (T5), or from their own matrix (T5.1.1, mT5).
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    gated: bool
    tied: bool
    num_buckets: int = 32

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """T5X's parameter names (without `target/`) and shapes."""
        joined = self.num_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"token_embedder/embedding": (self.vocab_size, self.emb_dim)}
        if not self.tied:
            shapes["decoder/logits_dense/kernel"] = (self.emb_dim, self.vocab_size)
        for stack, layers in (("encoder", self.num_encoder_layers), ("decoder", self.num_decoder_layers)):
            attentions, norms = _STACKS[stack]
            shapes[f"{stack}/relpos_bias/rel_embedding"] = (self.num_heads, self.num_buckets)
            shapes[f"{stack}/{stack}_norm/scale"] = (self.emb_dim,)
            for layer in (f"{stack}/layers_{i}" for i in range(layers)):
                shapes |= {f"{layer}/{norm}/scale": (self.emb_dim,) for norm in norms}
                for attention in attentions:
                    shapes |= {f"{layer}/{attention}/{name}/kernel": (self.emb_dim, joined) for name in _ATTENTION[:3]}
                    shapes[f"{layer}/{attention}/out/kernel"] = (joined, self.emb_dim)
                inputs = ("wi_0", "wi_1") if self.gated else ("wi",)
                shapes |= {f"{layer}/mlp/{name}/kernel": (self.emb_dim, self.mlp_dim) for name in inputs}
                shapes[f"{layer}/mlp/wo/kernel"] = (self.mlp_dim, self.emb_dim)
        return shapes


def is_t5(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the parameters of an encoder-decoder; PaLM's have no encoder."""
    return any(name.startswith("encoder/") for name in parameters(tensors))


def infer(tensors: Mapping[str, Any], place: Any) -> Layout:
    """The layout that a T5's parameters (`target/...`, unrolled) show.

    Raises UserError where a tensor that fixes a size is missing.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters(tensors).items()}

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(f"{place} has no 'target/{name}'{nearest(name, shapes)}")
        return shapes[name]

    def count(stack: str) -> int:
        return len({m[1] for name in shapes if (m := re.match(rf"{stack}/layers_(\d+)/", name))})

    vocab_size, emb_dim = shape("token_embedder/embedding")
    num_heads, num_buckets = shape("encoder/relpos_bias/rel_embedding")
    joined = shape("encoder/layers_0/attention/query/kernel")[-1]
    return Layout(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=joined // num_heads,
        mlp_dim=shape("encoder/layers_0/mlp/wo/kernel")[0],
        num_encoder_layers=count("encoder"),
        num_decoder_layers=count("decoder"),
        gated="encoder/layers_0/mlp/wi_0/kernel" in shapes,
        tied="decoder/logits_dense/kernel" not in shapes,
        num_buckets=num_buckets,
    )


def check(tensors: Mapping[str, Any], layout: Layout, place: Any) -> None:
    """Raises UserError that names the first parameter that `layout` lacks, misses, or has in another shape."""
    expected = layout.shapes()
    found = parameters(tensors)
    for name in sorted(found):
        if name not in expected:
            raise UserError(f"{place} holds 'target/{name}', which no T5 of these sizes has{nearest(name, expected)}")
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{place} has no 'target/{name}'; it should be there with shape {list(shape)}")
        if tuple(found[name].shape) != shape:
            raise UserError(
                f"{place}: 'target/{name}' is {list(found[name].shape)}; the other sizes want {list(shape)}"
            )
