"""A T5 in CTranslate2's form, written from its parameters, without torch, transformers or a tokenizer.

CTranslate2 takes and returns pieces of text, so its vocabulary has the digits of each id as the id's piece: flanx keeps
its own tokenization.
"""

import functools
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from flanx import files
from flanx.convert.conversion import atomic
from flanx.convert.lazy_tensor import LazyTensors, fingerprint
from flanx.convert.scan_layers import BIAS
from flanx.errors import UserError
from flanx.models import Model
from flanx.models.t5 import T5
from flanx.storage import cache_dir, open_storage

FORM = 1  # version of the folders in the cache, to be changed when what is written changes
MARK = "flanx_ctranslate2.json"  # records what a folder holds, and that it is flanx's
ACTIVATIONS = {"gelu": "GELUTanh", "relu": "RELU", "silu": "SWISH"}  # flanx's name -> CTranslate2's
MAX_DISTANCE = 128  # of the relative positions, as `flanx.models.layers.RelativeBias` has it


def is_installed() -> bool:
    """Whether the extra `ctranslate2` is installed."""
    return importlib.util.find_spec("ctranslate2") is not None


def expect_supported(model: Model) -> T5:
    """Returns the model. Raises UserError if CTranslate2 is not installed or does not support it."""
    if not is_installed():
        raise UserError("ENGINE is 'ctranslate2', which is not installed: pip install 'flanx[ctranslate2]'")
    if not isinstance(model, T5):
        raise UserError(
            f"ENGINE is 'ctranslate2', which flanx only has for T5: {type(model).__name__} needs ENGINE = 'flanx'"
        )
    first, *others = model.mlp_activations
    if first not in ACTIVATIONS or others not in ([], ["linear"]):
        raise UserError(
            f"ENGINE is 'ctranslate2', which does not have mlp_activations = {model.mlp_activations}: it has one of "
            f"{', '.join(ACTIVATIONS)}, alone or with linear; use ENGINE = 'flanx'"
        )
    return model


def cached(params: LazyTensors, model: T5, eos_id: int, quantization: str) -> tuple[Path, str]:
    """(a folder with the parameters in CTranslate2's form, their fingerprint); written once and kept in the cache.

    Args:
      params: by T5X's names, layers unrolled.
      quantization: how matrices are stored, "float32" or "int8".

    Raises:
      UserError: for a parameter that is not finite, and if the cache holds a folder that is not flanx's.
    """
    mark = fingerprint(params, finite=files.verifying)
    record = {"parameters": mark, "model": repr(model), "eos_id": eos_id, "quantization": quantization, "form": FORM}
    name = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_dir() / "ctranslate2" / name
    with files.lock(folder.with_name(f"{name}.lock")):
        if folder.exists() and not _is_intact(folder):
            print(f"note: {folder} is damaged; it is made again")
            shutil.rmtree(folder)
        if not folder.exists():
            with atomic(open_storage(folder)) as made:
                write(made.local(), params, model, eos_id, quantization)
                made.write(MARK, json.dumps(record, indent=2) + "\n")
                files.write_checksums(made.local())
    return folder, mark


def _is_intact(folder: Path) -> bool:
    """Whether a folder in the cache is as it was written. Raises UserError if it is not flanx's."""
    if not (folder / MARK).is_file():
        raise UserError(f"{folder} is not flanx's, which keeps models there: move it away, or set FLANX_CACHE")
    try:
        files.verify_checksums(folder)
    except UserError:
        return False
    return (folder / files.CHECKSUMS).is_file()


def write(folder: Path, params: LazyTensors, model: T5, eos_id: int, quantization: str) -> None:
    """Writes a model that `ctranslate2.Translator` loads; arguments as in `cached`."""
    from ctranslate2 import specs  # noqa: PLC0415  the extra `ctranslate2`

    activation, *gate = model.mlp_activations
    spec = specs.TransformerSpec.from_config(
        (model.num_encoder_layers, model.num_decoder_layers),
        model.num_heads,
        activation=specs.Activation[ACTIVATIONS[activation]],
        ffn_glu=bool(gate),
        relative_attention_bias=True,
        rms_norm=True,
    )

    @functools.cache  # shared values are compared by identity
    def values(name: str) -> np.ndarray:
        return params[name].read().astype(np.float32)

    def set_linear(linear: Any, *kernels: str) -> None:
        linear.weight = np.concatenate([params[f"{name}/kernel"].read().astype(np.float32).T for name in kernels])

    def set_attention(attention: Any, name: str, norm: str, groups: tuple[tuple[str, ...], ...]) -> None:
        attention.queries_scale = 1.0  # T5 does not scale them
        attention.layer_norm.gamma = values(f"{norm}/scale")
        for linear, group in zip(attention.linear, groups, strict=True):
            set_linear(linear, *(f"{name}/{each}" for each in group))

    for name, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        table = stack.embeddings[0] if name == "encoder" else stack.embeddings
        table.weight, stack.scale_embeddings = values("token_embedder/embedding"), False
        stack.layer_norm.gamma = values(f"{name}/{name}_norm/scale")
        for number, layer in enumerate(stack.layer):
            prefix = f"{name}/layers_{number}"
            own = f"{prefix}/attention", f"{prefix}/pre_attention_layer_norm"
            if name == "decoder":
                own = f"{prefix}/self_attention", f"{prefix}/pre_self_attention_layer_norm"
                across = f"{prefix}/encoder_decoder_attention", f"{prefix}/pre_cross_attention_layer_norm"
                set_attention(layer.attention, *across, (("query",), ("key", "value"), ("out",)))
            set_attention(layer.self_attention, *own, (("query", "key", "value"), ("out",)))
            bias = f"{prefix if model.relative_bias == 'layer' else name}/{BIAS}"
            layer.self_attention.relative_attention_bias = values(bias).T
            layer.self_attention.relative_attention_max_distance = np.int32(MAX_DISTANCE)
            layer.ffn.layer_norm.gamma = values(f"{prefix}/pre_mlp_layer_norm/scale")
            set_linear(layer.ffn.linear_0, f"{prefix}/mlp/{'wi_0' if gate else 'wi'}")
            if gate:
                set_linear(layer.ffn.linear_0_noact, f"{prefix}/mlp/wi_1")
            set_linear(layer.ffn.linear_1, f"{prefix}/mlp/wo")
    if model.tied_head:
        spec.decoder.projection.weight = values("token_embedder/embedding")
        spec.decoder.scale_outputs = model.emb_dim**-0.5
    else:
        set_linear(spec.decoder.projection, "decoder/logits_dense")

    pieces = list(map(str, range(model.vocab_size)))
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "0", str(eos_id), "2"
    spec.config.decoder_start_token = str(model.decoder_start_token_id)
    spec.config.add_attribute("layer_norm_epsilon", 1e-6)
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))
