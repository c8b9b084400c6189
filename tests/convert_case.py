"""Small random T5s for the tests of conversion, drawn by numpy."""

import dataclasses

import numpy as np

from flanx.convert.lazy_tensor import LazyTensor, in_memory
from flanx.convert.t5_shapes import T5Sizes

SMALL = T5Sizes(
    vocab_size=160,
    emb_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_dim=144,
    num_encoder_layers=2,
    num_decoder_layers=3,
    gated=True,
    tied=False,
)
ONE_LAYER = dataclasses.replace(SMALL, num_encoder_layers=1, num_decoder_layers=1)
PLAIN_TIED = dataclasses.replace(SMALL, gated=False, tied=True)


MODULES = (
    "relpos_bias", "encoder_norm", "decoder_norm", "pre_attention_layer_norm", "pre_self_attention_layer_norm",
    "pre_cross_attention_layer_norm", "pre_mlp_layer_norm", "attention", "self_attention", "encoder_decoder_attention",
    "mlp",
)  # fmt: skip
ARRAYS = ("rel_embedding", "scale", "query", "key", "value", "out", "wi", "wi_0", "wi_1", "wo")


def drawn_order(name: str) -> tuple[int, ...]:
    """The order in which the parameters of the stored goldens were drawn."""
    if name in (heads := ("token_embedder/embedding", "decoder/logits_dense/kernel")):
        return (heads.index(name),)
    stack, *layer, module, array = name.removesuffix("/kernel").split("/")
    number = int(layer[0].removeprefix("layers_")) if layer else -1
    return 2 + (stack == "decoder"), number, MODULES.index(module), ARRAYS.index(array)


def draw(sizes: T5Sizes = SMALL, optimizer: bool = False, step: int = 7, seed: int = 0) -> dict[str, LazyTensor]:
    """Random parameters of a T5, small enough for sane logits; with Adafactor's state and a step if asked for."""
    rng = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...]) -> LazyTensor:
        return in_memory((0.1 * rng.standard_normal(shape)).astype(np.float32))

    shapes = dict(sorted(sizes.shapes().items(), key=lambda item: drawn_order(item[0])))
    tensors = {f"target/{name}": normal(shape) for name, shape in shapes.items()}
    if optimizer:
        tensors["state/step"] = in_memory(np.asarray(step, np.int32))
        for name, shape in shapes.items():
            moments = dict.fromkeys(("m", "v", "v_row", "v_col"), (1,))
            if len(shape) == 2 and min(shape) >= 128:
                second, largest = np.argsort(shape, kind="stable")
                moments |= {"v_row": (shape[second],), "v_col": (shape[largest],)}
            else:
                moments["v"] = shape
            for moment, size in moments.items():
                zeros = in_memory(np.zeros((1,), np.float32))
                tensors[f"state/param_states/{name}/{moment}"] = zeros if size == (1,) else normal(size)
    return tensors


def values(tensors: dict[str, LazyTensor]) -> dict[str, np.ndarray]:
    """Everything read."""
    return {name: np.asarray(tensor.read()) for name, tensor in tensors.items()}


def assert_same(left: dict[str, LazyTensor], right: dict[str, LazyTensor]) -> None:
    """The same names, dtypes and bits."""
    a, b = values(left), values(right)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name
