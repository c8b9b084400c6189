"""What `benchmarks/decode.py` compares with: transformers on torch and CTranslate2, the same shapes."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from flanx import ctranslate2_predictor
from flanx.convert import ctranslate2_model
from flanx.convert.lazy_tensor import flatten, in_memory
from flanx.models.t5 import T5

Run = Callable[[np.ndarray], Any]  # decodes prompts i64[B, S]


def hugging_face(sizes: dict[str, int], new: int) -> dict[str, Run]:
    """{"transformers dynamic 16": ...}: `generate` with SDPA, each kind of cache, each batch size."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.T5Config(
        vocab_size=sizes["vocab_size"],
        d_model=sizes["emb_dim"],
        d_kv=sizes["head_dim"],
        d_ff=sizes["mlp_dim"],
        num_heads=sizes["num_heads"],
        num_layers=sizes["num_encoder_layers"],
        num_decoder_layers=sizes["num_decoder_layers"],
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = transformers.T5ForConditionalGeneration._from_config(config, attn_implementation="sdpa")
        model = model.to(dtype).eval()

    def generate(prompts: np.ndarray, batch: int, cache: str | None) -> None:
        ids = torch.from_numpy(prompts.astype(np.int64)).to(device)
        with torch.inference_mode():
            for first in range(0, len(ids), batch):
                part = ids[first : first + batch]
                model.generate(
                    input_ids=part, attention_mask=torch.ones_like(part), do_sample=False, num_beams=1,
                    min_new_tokens=new, max_new_tokens=new, cache_implementation=cache,
                )  # fmt: skip
        if device == "cuda":
            torch.cuda.synchronize()

    def run(batch: int, cache: str | None) -> Run:
        return lambda prompts: generate(prompts, batch, cache)

    kinds = {"dynamic": None, "static": "static"}
    return {f"transformers {k} {b}": run(b, cache) for k, cache in kinds.items() for b in (16, 64)}


def ctranslate2(model: T5, params: Any, folder: pathlib.Path, new: int) -> dict[str, Run]:
    """{"ctranslate2 16": ..., "ctranslate2-int8 16": ...}: greedy, each batch size, with flanx's own parameters."""
    tensors = {name: in_memory(np.asarray(leaf)) for name, leaf in flatten(params).items()}

    def translate(translator: Any, prompts: np.ndarray, batch: int) -> None:
        for first in range(0, len(prompts), batch):
            ctranslate2_predictor.translate(translator, prompts[first : first + batch], new, min_decoding_length=new)

    def run(translator: Any, batch: int) -> Run:
        return lambda prompts: translate(translator, prompts, batch)

    runs: dict[str, Run] = {}
    for peer, compute_type in (("ctranslate2", "float32"), ("ctranslate2-int8", "int8")):
        (folder / peer).mkdir()
        ctranslate2_model.write(folder / peer, tensors, model, 1, compute_type)
        translator = ctranslate2_predictor.translator(folder / peer, compute_type)
        runs |= {f"{peer} {batch}": run(translator, batch) for batch in (8, 16, 64)}
    return runs
