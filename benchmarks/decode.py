"""Decoding speed: greedy, 64 prompts of 512 tokens, 64 new tokens, T5.1.1-small shapes, float32.

Peer: Hugging Face `generate` on torch with the same shapes, its best batch size of those tried, in the same run. Then
what 40 samples of each prompt (self-consistency) cost, in greedy passes over the same prompts.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flanx.decoding import decode
from flanx.decoding.length_buckets import Batching
from flanx.malloc import keep_freed_memory
from flanx.models import t5

SMALL = {"vocab_size": 32_128, "emb_dim": 512, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024}
SMALL |= {"num_encoder_layers": 8, "num_decoder_layers": 8}
XL = {"vocab_size": 32_128, "emb_dim": 2048, "num_heads": 32, "head_dim": 64, "mlp_dim": 5120}
XL |= {"num_encoder_layers": 24, "num_decoder_layers": 24}


def best(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def report(metric: str, value: float, unit: str, peer: str | None = None, peer_value: float | None = None) -> None:
    """One line of JSON; the ratio says how many times the peer we are."""
    ratio = value / peer_value if peer_value else None
    line = {"benchmark": "decode", "metric": metric, "value": value, "unit": unit}
    print(json.dumps(line | {"peer": peer, "peer_value": peer_value, "ratio": ratio}), flush=True)


def hugging_face(sizes: dict[str, int], prompts: np.ndarray, new: int, batches: list[int], repeats: int) -> Any:
    """New tokens per second of the best batch size; None where torch or transformers is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
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
        model = transformers.T5ForConditionalGeneration(config).to(dtype).eval()
    ids = torch.from_numpy(prompts.astype(np.int64)).to(device)

    def run(batch: int) -> None:
        with torch.inference_mode():
            for first in range(0, len(ids), batch):
                part = ids[first : first + batch]
                mask = torch.ones_like(part)
                model.generate(
                    input_ids=part, attention_mask=mask, do_sample=False, num_beams=1,
                    min_new_tokens=new, max_new_tokens=new,
                )  # fmt: skip
        if device == "cuda":
            torch.cuda.synchronize()

    return max(len(prompts) * new / best(lambda b=batch: run(b), repeats) for batch in batches)


def main() -> None:
    """Prints one JSON object per line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the prompts, once")
    parser.add_argument("--size", choices=("small", "xl"), default="small", help="xl: bfloat16, for an accelerator")
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    keep_freed_memory()  # as `flanx evaluate` does
    sizes = SMALL if args.size == "small" else XL
    count, new, repeats = (16 if args.quick else 64), 64, (1 if args.quick else 2)
    model = t5.T5(**sizes, dtype="float32" if args.size == "small" else "bfloat16")
    params = jax.jit(lambda key: nn.unbox(model.init(key)))(jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 32_000, size=(count, 512))
    lists = [row.tolist() for row in prompts]

    def seconds(given: list[list[int]], repeats: int, batch_size: int, **options: Any) -> float:
        common = {"max_new": new, "eos_id": -1, "batching": Batching(batch_size, (512,))}
        return best(lambda: decode.generate(model, params, given, **common, **options), repeats)

    ours = count * new / seconds(lists, repeats, batch_size=64)
    theirs = None
    if not args.no_peer:
        theirs = hugging_face(sizes, prompts, new, [count] if args.quick else [16, 64], repeats)
    device = jax.devices()[0].device_kind
    name = f"T5.1.1-{args.size} greedy {count} x 512 -> {new}, {device}"
    theirs = round(theirs, 1) if theirs else None
    report(name, round(ours, 1), "new tokens/s", "transformers.generate" if theirs else None, theirs)
    few = lists if args.size == "xl" else lists[:16]
    common = {"given": few, "repeats": 1 if args.size == "small" else repeats}
    once = seconds(batch_size=64, **common)
    forty = seconds(batch_size=8, samples=40, method=decode.Sample(0.7, top_k=40), **common)
    report(
        f"T5.1.1-{args.size} 40 samples of {len(few)} prompts, in greedy passes, {device}", round(forty / once, 2), "x"
    )


if __name__ == "__main__":
    main()
