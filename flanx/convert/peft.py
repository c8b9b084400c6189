"""LoRA folders of Hugging Face PEFT, both ways: adapter_config.json and adapter_model.safetensors.

The layer `encoder/layers_0/attention/query` is `base_model.model.encoder.block.0.layer.0.SelfAttention.q` in PEFT, its
A [r, i] and B [o, r] are transposed, and DoRA's magnitude is `lora_magnitude_vector` (peft/utils/save_and_load.py).
"""

import json
import math
import re
from typing import Any

import numpy as np

from flanx import hub
from flanx.convert import hf, safetensor
from flanx.convert.adapter_merge import Pairs
from flanx.convert.flanx_format import NOTE
from flanx.convert.lazy_tensor import LazyTensor, in_memory
from flanx.convert.scan_layers import BIAS
from flanx.errors import UserError
from flanx.models.adapter import Adapter
from flanx.storage import Storage

CONFIG, WEIGHTS = hub.ADAPTER, "adapter_model.safetensors"
BASE = "base"  # the subfolder with the base, if it is written with the adapter
PREFIX = "base_model.model."
PARTS = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
FINGERPRINT = "base_fingerprint"  # in flanx's own note next to them
# options that affect the computation, and the only values supported here
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (False, None, {}),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "megatron_config": (None,),
}


def read(folder: Storage) -> Pairs:
    """The adapter in a PEFT folder.

    Raises UserError for a method other than LoRA, an unsupported option, or a tensor that belongs to no T5 layer.
    """
    config = folder.read_json(CONFIG)
    where = f"{folder}/{CONFIG}"
    for key, values in _PLAIN.items():
        if isinstance(config, dict) and config.get(key, values[0]) not in values:
            raise UserError(f"{where}: {key} is {config[key]!r}, flanx reads LoRA with {values[0]!r} alone")
    rank, alpha = (config.get(key) if isinstance(config, dict) else None for key in ("r", "lora_alpha"))
    if (
        type(rank) is not int
        or isinstance(alpha, bool)
        or not isinstance(alpha, int | float)
        or not 0 < alpha < math.inf
    ):
        raise UserError(f"{where} has no rank ('r') and 'lora_alpha' above 0; copy the folder again")
    path = folder.local() / WEIGHTS
    if not path.exists():
        raise UserError(f"no {WEIGHTS} in {folder}; flanx only reads safetensors")
    layers: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in safetensor.read(path).items():
        layer, part = _translate(name, folder)
        layers.setdefault(layer, {})[part] = tensor if part == "magnitude" else tensor.transposed()
    if not layers:
        raise UserError(f"{path} holds no tensors; copy the folder again")
    base = hub.base_of_adapter(config, folder)
    if base is None:
        raise UserError(f"{where} names no base (base_model_name_or_path); give it: flanx convert --base BASE")
    ranks = {parts["a"].shape[1] for parts in layers.values() if "a" in parts}
    if ranks != {rank}:
        raise UserError(f"{where}: r is {rank}, the matrices have {sorted(ranks)}; copy the folder again")
    rs, dora = bool(config.get("use_rslora")), bool(config.get("use_dora"))
    adapter = Adapter(rank, float(alpha), tuple(re.escape(layer) for layer in layers), rs=rs, dora=dora)
    note = folder.read_json(NOTE) if NOTE in folder.children() else {}
    return Pairs(adapter, layers, base, note.get(FINGERPRINT), folder)


def _translate(name: str, folder: Any) -> tuple[str, str]:
    """A tensor's layer and its part, a key of PARTS."""
    for part, suffix in PARTS.items():
        module = name.removeprefix(PREFIX).removesuffix(f".{suffix}")
        if name == f"{PREFIX}{module}.{suffix}" and (found := hf.translate(f"{module}.weight", to_t5x=True)):
            return found[0].removesuffix("/kernel"), part
    raise UserError(f"{folder}/{WEIGHTS}: '{name}' belongs to no layer of a T5 that flanx adapts")


def write(folder: Storage, pairs: Pairs, has_base: bool = False) -> None:
    """Writes a folder that `peft` loads onto the base in Hugging Face's form.

    has_base: name the subfolder BASE as the base.

    Raises UserError if the adapter's model is not a T5.
    """
    modules: dict[str, str] = {}
    tensors: dict[str, LazyTensor] = {}
    for layer, parts in pairs.of_layers.items():
        found = hf.translate(f"{layer}/kernel", to_t5x=False)
        if found is None or BIAS in layer:
            raise UserError(f"{pairs.where}: '{layer}' is not a layer of a T5; PEFT folders are written only for T5")
        modules[layer] = found[0].removesuffix(".weight")
        for part, tensor in parts.items():
            values = tensor.read().astype(np.float32)
            values = np.ascontiguousarray(values if part == "magnitude" else values.T)
            name = f"{PREFIX}{modules[layer]}.{PARTS[part]}"
            tensors[name] = in_memory(values)
    adapter = pairs.adapter
    base, revision = hub.split(pairs.base) if pairs.base.startswith(hub.PREFIX) else (pairs.base, None)
    base, revision = (BASE, None) if has_base else (base, revision)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rs,
        "use_dora": adapter.dora,
        "target_modules": sorted(modules.values()),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    path = folder.local()
    path.mkdir(parents=True, exist_ok=True)
    safetensor.write(path / WEIGHTS, tensors)
    (path / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    note = {"from": "flanx", "to": "peft", FINGERPRINT: pairs.fingerprint}
    (path / NOTE).write_text(json.dumps(note, indent=2) + "\n")
