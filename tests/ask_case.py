"""A small drawn model that writes printable bytes, as a folder that `flanx ask` takes."""

import functools
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

import flanx
from flanx import api
from flanx.convert import hf
from flanx.convert.lazy_tensor import in_memory
from flanx.convert.t5_shapes import T5Sizes
from flanx.storage import open_storage

SIZES = T5Sizes(
    vocab_size=384, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=48, num_encoder_layers=1, num_decoder_layers=1,
    gated=True, tied=False,
)  # fmt: skip
LENGTHS = {"inputs": 200, "targets": 24}
_SCRATCH = tempfile.TemporaryDirectory()
PROMPTS = [f"{'why ' * (n % 5)}is {n} {'odd' if n % 2 else 'even'}?" for n in range(32)]
PROMPTS[7] = 40 * "why "  # longer than the shortest rows
PROMPTS[9] = "Q: a\nA: b\n\nQ: c\nA:"


@functools.cache
def folder() -> pathlib.Path:
    """The folder, in Hugging Face's form."""
    draws = np.random.default_rng(4)
    values = {name: (0.35 * draws.standard_normal(shape)).astype(np.float32) for name, shape in SIZES.shapes().items()}
    for name, scale in {"relpos_bias": 3, "encoder_decoder_attention/out": 3, "query": 2, "key/kernel": 2}.items():
        for key in (key for key in values if name in key):
            values[key] *= scale  # so that answers depend on their prompts
    head = values["decoder/logits_dense/kernel"]
    printable = np.zeros(SIZES.vocab_size, bool)
    printable[3 + 32 : 3 + 127] = True
    head[:, ~printable] = 0  # of what is printable, one is always likelier
    head[:, 1] = 1.01 * head[:, 3 + ord('"')]  # the end, now and then
    path = pathlib.Path(_SCRATCH.name) / "drawn"
    hf.write(open_storage(path), {f"target/{name}": in_memory(value) for name, value in values.items()}, SIZES, {})
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    return path


@functools.cache
def model() -> api.Model:
    """The model of the folder."""
    return flanx.load(folder(), lengths=LENGTHS)


@functools.cache
def answers() -> dict[str, str]:
    """{prompt: its greedy answer} of PROMPTS, as `flanx infer` gives them, without a server."""
    return dict(zip(PROMPTS, model().generate(PROMPTS), strict=True))


@functools.cache
def drawn() -> list[str]:
    """Three samples of the first prompt, as DRAWN says."""
    return model().generate(PROMPTS[:1], samples=3, **DRAWN)[0]


DRAWN: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "seed": 5}
