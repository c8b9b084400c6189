"""Hugging Face folders of T5, T5-1.1, LM-adapted, Flan-T5, mT5 and umT5, both ways, by one table of names.

safetensors files need only numpy; `pytorch_model.bin` needs torch (extra `hf`) and is read without running any code
that it may hold. transformers is never imported here.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flanx.convert import safetensor, torch_bin
from flanx.convert.lazy_tensor import TARGET, LazyTensor, LazyTensors
from flanx.convert.scan_layers import BIAS
from flanx.convert.t5_shapes import T5Sizes, check
from flanx.errors import UserError, nearest
from flanx.storage import Storage, open_storage

SAME, FLIPPED = (
    "same",
    "flipped",
)  # flipped: torch's Linear weights and Embedding tables are transposed relative to T5X's kernels

# Hugging Face name, T5X name, orientation of the values. <field> is one of the alternatives in FIELDS on either side.
TABLE = (
    ("shared.weight", "token_embedder/embedding", SAME),
    ("lm_head.weight", "decoder/logits_dense/kernel", FLIPPED),
    ("<s>.final_layer_norm.weight", "<s>/<s>_norm/scale", SAME),
    ("<s>.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"<s>/{BIAS}", FLIPPED),
    ("<s>.block.<i>.layer.0.SelfAttention.relative_attention_bias.weight", f"<s>/layers_<i>/{BIAS}", FLIPPED),
    ("encoder.block.<i>.layer.0.layer_norm.weight", "encoder/layers_<i>/pre_attention_layer_norm/scale", SAME),
    ("encoder.block.<i>.layer.0.SelfAttention.<a>.weight", "encoder/layers_<i>/attention/<a>/kernel", FLIPPED),
    ("encoder.block.<i>.layer.1.layer_norm.weight", "encoder/layers_<i>/pre_mlp_layer_norm/scale", SAME),
    ("encoder.block.<i>.layer.1.DenseReluDense.<m>.weight", "encoder/layers_<i>/mlp/<m>/kernel", FLIPPED),
    ("decoder.block.<i>.layer.0.layer_norm.weight", "decoder/layers_<i>/pre_self_attention_layer_norm/scale", SAME),
    ("decoder.block.<i>.layer.0.SelfAttention.<a>.weight", "decoder/layers_<i>/self_attention/<a>/kernel", FLIPPED),
    ("decoder.block.<i>.layer.1.layer_norm.weight", "decoder/layers_<i>/pre_cross_attention_layer_norm/scale", SAME),
    (
        "decoder.block.<i>.layer.1.EncDecAttention.<a>.weight",
        "decoder/layers_<i>/encoder_decoder_attention/<a>/kernel",
        FLIPPED,
    ),
    ("decoder.block.<i>.layer.2.layer_norm.weight", "decoder/layers_<i>/pre_mlp_layer_norm/scale", SAME),
    ("decoder.block.<i>.layer.2.DenseReluDense.<m>.weight", "decoder/layers_<i>/mlp/<m>/kernel", FLIPPED),
)
FIELDS: Mapping[str, Mapping[str, str]] = {
    "s": {"encoder": "encoder", "decoder": "decoder"},
    "i": {},  # any number
    "a": {"q": "query", "k": "key", "v": "value", "o": "out"},
    "m": {"wi": "wi", "wi_0": "wi_0", "wi_1": "wi_1", "wo": "wo"},
}
# second copies of shared.weight, which public files of untied models hold, and so do ours: they must be equal to it
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# a table that T5 (1.0) files hold and no version of the model ever reads
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)

TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
MODEL_TYPES = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}  # config.json's model_type -> transformers' class
ACTIVATIONS = {  # feed_forward_proj -> flanx's mlp_activations
    "gated-gelu": ("gelu", "linear"),
    "gated-gelu_new": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
    "gated-relu": ("relu", "linear"),
    "relu": ("relu",),
    "silu": ("silu",),
    "gelu_new": ("gelu",),
}
# entries of config.json that affect the computation besides sizes and activation, and what flanx computes
_COMPUTED: Mapping[str, Any] = {
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "is_encoder_decoder": True,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_encoder_decoder": False,
} | dict.fromkeys(
    (
        *("auto_map", "bad_words_ids", "begin_suppress_tokens", "cross_attention_hidden_size", "forced_bos_token_id"),
        *("forced_eos_token_id", "pruned_heads", "quantization_config", "suppress_tokens"),
    )
)
_SIZES = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers", "num_decoder_layers")
_READ = ("decoder_start_token_id", "dense_act_fn", "feed_forward_proj", "is_gated_act", "model_type",
         "scale_decoder_outputs", "tie_word_embeddings")  # fmt: skip
# fields that change no logit: for training, transformers' own decoding and its bookkeeping
_FREE = frozenset((
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "architectures",
    "attn_implementation", "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "diversity_penalty",
    "do_sample", "dropout_rate", "dtype", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "gradient_checkpointing", "id2label",
    "initializer_factor", "label2id", "length_penalty", "max_length", "max_new_tokens", "min_length", "n_positions",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_past", "output_scores", "prefix", "problem_type",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "scalable_attention",
    "sep_token_id", "task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16", "use_cache",
))  # fmt: skip
_MT5_VOCAB_SIZE = 250_112  # no other T5 has it; T5X's checkpoints do not record their model type
_SHARD_BYTES = 5 * 10**9


def translate(name: str, to_t5x: bool, layer_bias: bool = False) -> tuple[str, str] | None:
    """(the name on the other side, SAME or FLIPPED), or None if no row of the table matches.

    layer_bias: whether every layer has a relative bias (umT5); Hugging Face keeps a stack's bias in its first layer.
    """
    for row in TABLE:
        if BIAS in row[1] and ("<i>" in row[1]) != layer_bias:
            continue
        here, there = row[:2] if to_t5x else row[1::-1]
        match = _pattern(here, to_t5x).fullmatch(name)
        if match:
            return _fill(there, match.groupdict(), to_t5x), row[2]
    return None


def _pattern(template: str, to_t5x: bool) -> re.Pattern[str]:
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        field = match[1]
        if field in seen:
            return f"(?P={field})"
        seen.add(field)
        names = FIELDS[field] if to_t5x else FIELDS[field].values()
        return f"(?P<{field}>{'|'.join(names) or r'[0-9]+'})"

    return re.compile(re.sub("<(.)>", group, template.replace(".", r"\.")))


def _fill(template: str, values: Mapping[str, str], to_t5x: bool) -> str:
    def name(match: re.Match[str]) -> str:
        value, names = values[match[1]], FIELDS[match[1]]
        return (names if to_t5x else {v: k for k, v in names.items()}).get(value, value)

    return re.sub("<(.)>", name, template)


def _oriented(tensor: LazyTensor, how: str) -> LazyTensor:
    return tensor.transposed() if how == FLIPPED else tensor


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a Hugging Face folder holds: parameters under T5X's names, sizes, config.json as is."""

    tensors: dict[str, LazyTensor]
    sizes: T5Sizes
    config: dict[str, Any]


def read(folder: Storage) -> Contents:
    """Opens a folder without reading values, except to compare second copies of the embedding.

    Raises UserError for a model that is not a T5, and for a tensor that is unknown, missing, of the wrong shape, or a
    copy that is not equal.
    """
    path, config = folder.local(), read_config(folder)
    files = _with_table(_open(path), config)
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in files.items():
        if name in COPIES or name in UNUSED:
            continue
        translated = translate(name, to_t5x=True, layer_bias=config["model_type"] == "umt5")
        if translated is None:
            raise UserError(f"{folder}: '{name}' is not a tensor of a T5{nearest(name, [row[0] for row in TABLE])}")
        tensors[TARGET + translated[0]] = _oriented(tensor, translated[1])
    for name in COPIES:
        if name in files:
            _expect_equal(files[name], files.get("shared.weight"), name, folder)
    _resolve_head(tensors, files, config, folder)
    for key in ("num_layers", "num_decoder_layers"):
        if (config.get(key) or 1) > len(files):
            raise UserError(
                f"{folder}/config.json: {key} is {config[key]}, but the folder has {len(files)} tensors in all"
            )
    sizes = _sizes(config, TARGET + "decoder/logits_dense/kernel" not in tensors)
    check(tensors, sizes, folder)
    return Contents(tensors, sizes, config)


def read_config(folder: Storage) -> dict[str, Any]:
    """config.json of a folder. Raises UserError for the first field whose computation differs from flanx's."""
    config = folder.read_json("config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json is not a dict; download it again")
    if config.get("model_type") not in tuple(MODEL_TYPES):
        known = ", ".join(MODEL_TYPES)
        raise UserError(f"{folder}/config.json: model_type '{config.get('model_type')}'; flanx converts {known}")
    if "generation_config.json" in folder.children():
        _take_generation_config(config, folder)
    _check_config(config, folder)
    return config


def _take_generation_config(config: dict[str, Any], folder: Any) -> None:
    """Takes the first decoder token from generation_config.json, which transformers uses."""
    generation = folder.read_json("generation_config.json")
    start = generation.get("decoder_start_token_id") if isinstance(generation, dict) else None
    given = config.get("decoder_start_token_id")
    if start is not None and given not in (None, start):
        raise UserError(
            f"{folder}: decoder_start_token_id is {given!r} in config.json and {start!r} in generation_config.json; "
            "make both the one that the model was trained with"
        )
    if start is not None:
        config["decoder_start_token_id"] = start


def _check_config(config: Mapping[str, Any], folder: Any) -> None:
    """Raises UserError for the first field that is unknown to flanx or whose computation differs from flanx's."""
    where = f"{folder}/config.json"
    for key in _SIZES:
        value = config.get(key)
        if value is None and key == "num_decoder_layers":
            continue
        if key not in config:
            raise UserError(f"{where} has no '{key}'; download it again")
        if type(value) is not int or value < 1:
            raise UserError(f"{where}: {key} is {value!r}, not a size; download it again")
    known = {*_COMPUTED, *_SIZES, *_READ, *_FREE}
    for key, value in config.items():
        if key not in known:
            raise UserError(
                f"{where}: flanx does not know '{key}'{nearest(key, known)}; take it out if no logit depends on it"
            )
        if key in _COMPUTED and value not in (None, _COMPUTED[key], {}, []):
            raise UserError(
                f"{where}: {key} is {value!r}, flanx's T5 has {_COMPUTED[key]!r}: it would compute another model"
            )
    projection, start = feed_forward(config), start_token(config)
    if not isinstance(projection, str) or projection not in ACTIVATIONS:
        raise UserError(f"{where}: feed_forward_proj is {projection!r}; flanx has {', '.join(ACTIVATIONS)}")
    if type(start) is not int or not 0 <= start < config["vocab_size"]:
        raise UserError(f"{where}: decoder_start_token_id is {start!r}, not one of {config['vocab_size']} tokens")
    # transformers derives these two from feed_forward_proj, but takes them from the file if they are there
    function = {"gelu": "gelu_new"}.get(ACTIVATIONS[projection][0], ACTIVATIONS[projection][0])
    for key, wanted in (("dense_act_fn", function), ("is_gated_act", len(ACTIVATIONS[projection]) > 1)):
        if config.get(key, wanted) != wanted:
            raise UserError(f"{where}: {key} is {config[key]!r}, but feed_forward_proj {projection!r} is {wanted!r}")


def feed_forward(config: Mapping[str, Any]) -> Any:
    """feed_forward_proj of a config.json, or its model's default if absent."""
    return config.get("feed_forward_proj", "relu" if config.get("model_type", "t5") == "t5" else "gated-gelu")


def start_token(config: Mapping[str, Any]) -> Any:
    """The first decoder token of a config.json."""
    value = config.get("decoder_start_token_id")
    return 0 if value is None else value


def _is_scaled(config: Mapping[str, Any]) -> bool:
    """Whether the logits are scaled by d_model**-0.5, however its release of config.json states it."""
    scale = config.get("scale_decoder_outputs")
    is_tied = config.get("tie_word_embeddings") is not False
    return config["model_type"] != "mt5" and (is_tied if scale is None else bool(scale))


def _with_table(files: LazyTensors, config: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """The tensors with the embedding table as `shared.weight`, whichever of its names the files use.

    `safetensors.torch.save_model` and transformers keep one of several equal tensors, not always that one.
    """
    names = [*COPIES, *(["lm_head.weight"] if config.get("tie_word_embeddings") is not False else [])]
    copy = next((name for name in names if name in files), None)
    return dict(files) if "shared.weight" in files or copy is None else {**files, "shared.weight": files[copy]}


def _resolve_head(tensors: dict[str, LazyTensor], files: LazyTensors, config: Mapping[str, Any], folder: Any) -> None:
    """Makes the head tied (scaled logits, no matrix) or untied (a matrix, unscaled logits), as in T5X.

    Hugging Face has two switches, the scale and the tie, and releases differ in which of them config.json states.
    """
    scaled = _is_scaled(config)
    head = TARGET + "decoder/logits_dense/kernel"
    embedding = tensors.get(TARGET + "token_embedder/embedding")
    if scaled and head in tensors:
        _expect_equal(files["lm_head.weight"], files.get("shared.weight"), "lm_head.weight", folder)
        del tensors[head]
    elif not scaled and head not in tensors and embedding is not None:
        tensors[head] = embedding.transposed()


def _expect_equal(copy: LazyTensor, original: LazyTensor | None, name: str, folder: Any) -> None:
    if original is None or not _equal(copy, original):
        why = (
            "of which it is a copy: the folder is damaged, or of a model that is not a T5"
            if name in COPIES
            else "but config.json ties them; set tie_word_embeddings to false in config.json if the head is its own"
        )
        raise UserError(f"{folder}: '{name}' differs from 'shared.weight', {why}")


def _equal(copy: LazyTensor, original: LazyTensor) -> bool:
    """Whether two tensors have the same values; compared in blocks of rows."""
    rows, others = copy.block_rows(), tuple(slice(0, n) for n in copy.shape[1:])
    indices = [(slice(start, start + rows), *others) for start in range(0, copy.shape[0], rows)]
    return copy.shape == original.shape and all(np.array_equal(copy.read(i), original.read(i)) for i in indices)


def _sizes(config: Mapping[str, Any], tied: bool) -> T5Sizes:
    return T5Sizes(
        vocab_size=config["vocab_size"],
        emb_dim=config["d_model"],
        num_heads=config["num_heads"],
        head_dim=config["d_kv"],
        mlp_dim=config["d_ff"],
        num_encoder_layers=config["num_layers"],
        num_decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
        gated=len(ACTIVATIONS[feed_forward(config)]) > 1,
        tied=tied,
        num_buckets=config.get("relative_attention_num_buckets", 32),
        layer_bias=config["model_type"] == "umt5",
    )


def sizes(config: Mapping[str, Any]) -> T5Sizes:
    """The sizes in a config.json as returned by `read_config`; no tensors are needed."""
    return _sizes(config, _is_scaled(config))


def _open(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a folder, in whichever of the four file layouts."""
    readers: tuple[tuple[str, Callable[[Path], dict[str, LazyTensor]]], ...] = (
        ("model.safetensors", safetensor.read),
        ("pytorch_model.bin", torch_bin.read),
    )
    for name, reader in readers:
        if (path / name).exists():
            return reader(path / name)
        if (path / f"{name}.index.json").exists():
            file_of = _weight_map(path, f"{name}.index.json")
            shards = {file: _shard(path, file, reader) for file in sorted(set(file_of.values()))}
            for tensor, file in file_of.items():
                if tensor not in shards[file]:
                    raise UserError(
                        f"{path / file} has no '{tensor}', which the index expects there; download it again"
                    )
            return {tensor: shards[file][tensor] for tensor, file in file_of.items()}
    raise UserError(f"no weights in {path}: neither model.safetensors nor pytorch_model.bin, nor an index of either")


def _weight_map(path: Path, name: str) -> dict[str, str]:
    """The tensor -> file map of an index. Raises UserError if it has none, or names a file outside the folder."""
    index = open_storage(path).read_json(name)
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict):
        raise UserError(f"{path / name} has no 'weight_map' of tensors to files; download it again")
    for tensor, file in file_of.items():
        if not isinstance(file, str) or file != Path(file).name:
            raise UserError(
                f"{path / name}: '{tensor}' is in {file!r}, which is not a file of the folder; download it again"
            )
    return file_of


def _shard(path: Path, file: str, reader: Callable[[Path], dict[str, LazyTensor]]) -> dict[str, LazyTensor]:
    if not (path / file).exists():
        raise UserError(f"no file '{file}' in {path}, which the index names; download it")
    return reader(path / file)


def write(folder: Storage, tensors: LazyTensors, sizes: T5Sizes, config: Mapping[str, Any]) -> None:
    """Writes config.json, generation_config.json and the weights (safetensors, in shards of at most 5 GB).

    Args:
      tensors: `target/...`; anything else is left out, as such a folder holds no optimizer state.
      config: entries of config.json that cannot be inferred from tensors (feed_forward_proj, dropout_rate, ...).
    """
    path = folder.local()
    path.mkdir(parents=True, exist_ok=True)
    out: dict[str, LazyTensor] = {}
    for name in sizes.shapes():
        translated = translate(name, to_t5x=False, layer_bias=sizes.layer_bias)
        assert translated is not None, name  # every T5 parameter has a row in the table
        out[translated[0]] = _oriented(tensors[TARGET + name], translated[1])
    if not sizes.tied:  # with tie_word_embeddings=False transformers 5 ties nothing, and randomizes absent copies
        out |= dict.fromkeys(COPIES, out["shared.weight"])
    _write_shards(path, out)
    full = config_of(sizes, config) | {"dtype": next(iter(out.values())).dtype.name}
    generation = {key: full[key] for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    (path / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (path / "config.json").write_text(json.dumps(full, indent=2, sort_keys=True) + "\n")


def config_of(sizes: T5Sizes, extra: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a T5 of these sizes; `extra` holds what sizes do not determine."""
    model_type = extra.get("model_type", "mt5" if sizes.vocab_size == _MT5_VOCAB_SIZE else "t5")
    model_type = "umt5" if sizes.layer_bias else model_type
    return {
        "feed_forward_proj": "gated-gelu" if sizes.gated else "relu",
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "relative_attention_max_distance": 128,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **{
            key: value
            for key, value in extra.items()
            if key not in ("_name_or_path", "transformers_version", "torch_dtype")
        },
        "architectures": [f"{MODEL_TYPES[model_type]}ForConditionalGeneration"],
        "model_type": model_type,
        "is_encoder_decoder": True,
        "vocab_size": sizes.vocab_size,
        "d_model": sizes.emb_dim,
        "d_kv": sizes.head_dim,
        "d_ff": sizes.mlp_dim,
        "num_heads": sizes.num_heads,
        "num_layers": sizes.num_encoder_layers,
        "num_decoder_layers": sizes.num_decoder_layers,
        "relative_attention_num_buckets": sizes.num_buckets,
        "tie_word_embeddings": sizes.tied,
        "scale_decoder_outputs": sizes.tied,
    }


def _write_shards(path: Path, tensors: dict[str, LazyTensor]) -> None:
    shards: list[dict[str, LazyTensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        if filled and filled + size > _SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    if len(shards) == 1:
        safetensor.write(path / "model.safetensors", shards[0])
        return
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        safetensor.write(path / file, shard)
    total = sum(int(np.prod(t.shape)) * t.dtype.itemsize for t in tensors.values())
    file_of = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": file_of}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
