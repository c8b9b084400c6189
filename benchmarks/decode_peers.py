"""What `benchmarks/decode.py` compares with: transformers on torch and CTranslate2, the same shapes, drawn weights."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], Any]  # decodes prompts i64[B, S]


def hugging_face(sizes: dict[str, int], new: int) -> tuple[Any, dict[str, Run]]:
    """The model and {"transformers dynamic 16": ...}: `generate` with SDPA, each kind of cache, each batch size."""
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
    return model, {f"transformers {k} {b}": run(b, cache) for k, cache in kinds.items() for b in (16, 64)}


class _Vocabulary:
    """A piece for each id, in place of a tokenizer."""

    pad_token, eos_token, unk_token = "p0", "p1", "p2"

    def __init__(self, size: int) -> None:
        self._size = size

    def get_vocab(self) -> dict[str, int]:
        return {self.convert_ids_to_tokens(number): number for number in range(self._size)}

    def convert_ids_to_tokens(self, number: int) -> str:
        return f"p{number}"


def ctranslate2(model: Any, folder: pathlib.Path, new: int, cores: int) -> dict[str, Run]:
    """{"ctranslate2 16": ...}: greedy in float32, each batch size, from a T5 of transformers on the CPU."""
    import ctranslate2
    import torch
    from ctranslate2.converters.transformers import T5Loader

    with torch.no_grad():
        spec = T5Loader()(model, _Vocabulary(model.config.vocab_size))
    spec.validate()
    spec.optimize(quantization="float32")
    spec.save(str(folder))
    translator = ctranslate2.Translator(
        str(folder), device="cpu", compute_type="float32", inter_threads=1, intra_threads=cores
    )

    def translate(prompts: np.ndarray, batch: int) -> None:
        pieces = [[f"p{number}" for number in row] for row in prompts.tolist()]
        translator.translate_batch(
            pieces, max_batch_size=batch, beam_size=1, min_decoding_length=new, max_decoding_length=new,
            max_input_length=0,
        )  # fmt: skip

    def run(batch: int) -> Run:
        return lambda prompts: translate(prompts, batch)

    return {f"ctranslate2 {batch}": run(batch) for batch in (8, 16, 64)}
