"""The tensors of a T5 and their shapes: every checkpoint that is read or written is checked against them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from flanx.convert.lazy_tensor import flatten, parameters
from flanx.convert.scan_layers import BIAS, has_layer_bias
from flanx.errors import UserError, nearest
from flanx.models.t5 import T5

GATED, PLAIN = ("gelu", "linear"), ("relu",)  # T5.1.1's and T5's MLP


@dataclasses.dataclass(frozen=True)
class T5Sizes:
    """The sizes of a T5 of any version (T5, T5.1.1, LM-adapted, Flan-T5, mT5).

    Attributes:
      gated: the MLP has two input projections (T5.1.1, mT5), or one (T5).
      tied: logits come from the embedding, scaled by emb_dim**-0.5 (T5), or from their own matrix (T5.1.1, mT5).
      layer_bias: every layer has its own relative bias (T5X's scalable_t5, umT5), or each stack has one.
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
    layer_bias: bool = False

    def model(self, mlp_activations: tuple[str, ...] | None = None) -> T5:
        """flanx's T5 of these sizes; tensors do not show its activations, which default to T5's own."""
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        gated, tied, _ = sizes.pop("gated"), sizes.pop("tied"), sizes.pop("num_buckets")
        bias = "layer" if sizes.pop("layer_bias") else "stack"
        activations = mlp_activations or (GATED if gated else PLAIN)
        return T5(tied_head=tied, mlp_activations=activations, relative_bias=bias, **sizes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """T5X's parameter names (without `target/`) and shapes, as the model initializes them."""
        one_program = dataclasses.replace(self.model(), scan_layers=True)  # traces as fast as one layer
        shapes: dict[str, tuple[int, ...]] = {}
        # unboxed inside, as `nn.unbox` constrains arrays to the active mesh, which does not work on bare shapes
        abstract = jax.eval_shape(lambda key: nn.unbox(one_program.init(key)), jax.random.key(0))
        for name, leaf in flatten(abstract).items():
            stack, layers, inside = name.partition("/layers/")
            if layers:
                shapes |= {f"{stack}/layers_{i}/{inside}": leaf.shape[1:] for i in range(leaf.shape[0])}
            else:
                shapes[name] = leaf.shape
        return shapes | {name: (self.num_heads, self.num_buckets) for name in shapes if "relpos_bias" in name}


def is_t5(tensors: Mapping[str, Any]) -> bool:
    """Whether these are the parameters of an encoder-decoder; PaLM has no encoder."""
    return any(name.startswith("encoder/") for name in parameters(tensors))


def infer(tensors: Mapping[str, Any], path: Any) -> T5Sizes:
    """The sizes inferred from a T5's parameters (`target/...`, unrolled); `path` is for messages.

    Raises UserError if a tensor that determines a size is missing.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters(tensors).items()}

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(f"{path} has no 'target/{name}'{nearest(name, shapes)}")
        return shapes[name]

    def count(stack: str) -> int:
        return len({m[1] for name in shapes if (m := re.match(rf"{stack}/layers_(\d+)/", name))})

    vocab_size, emb_dim = shape("token_embedder/embedding")
    layer_bias = has_layer_bias(shapes)
    num_heads, num_buckets = shape(f"encoder/{'layers_0/' if layer_bias else ''}{BIAS}")
    joined = shape("encoder/layers_0/attention/query/kernel")[-1]
    return T5Sizes(
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
        layer_bias=layer_bias,
    )


def check(tensors: Mapping[str, Any], sizes: T5Sizes, path: Any) -> None:
    """Raises UserError for the first parameter that is unknown, missing or of another shape."""
    expected = sizes.shapes()
    params = parameters(tensors)
    for name in sorted(params):
        if name not in expected:
            raise UserError(
                f"{path} holds 'target/{name}', which a T5 of these sizes does not have{nearest(name, expected)}"
            )
    for name, shape in expected.items():
        if name not in params:
            raise UserError(f"{path} has no 'target/{name}' of shape {list(shape)}")
        if tuple(params[name].shape) != shape:
            raise UserError(
                f"{path}: 'target/{name}' is {list(params[name].shape)}; its other tensors imply {list(shape)}"
            )
