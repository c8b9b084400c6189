"""What a decoder-only model gains where the prompts of a task share their exemplars: read once, or with every prompt.

    python benchmarks/prefix.py [--items 64] [--rounds 3] [--quick]

PaLM's layers (8 of width 512, 32,128 pieces, float32) on prompts with the lengths of BBH's: exemplars of 690 tokens and
questions of 40 to 160 (mean lengths of bbh_cot, four bytes a token), `--new` tokens each. Both forms take turns and
give the same tokens; `ratio` is the median of the rounds'.
"""

import argparse
import statistics

import flax.linen as nn
import jax
import numpy as np
import record
from decode import turns

from flanx.decoding import decode, prefix
from flanx.decoding.length_buckets import Batching, bucket_lengths
from flanx.malloc import keep_freed_memory
from flanx.models.palm import PaLM

SIZES = {"vocab_size": 32_128, "emb_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 2048, "num_layers": 8}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--new", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="16 items, one round")
    args = parser.parse_args()
    items, rounds = (16, 1) if args.quick else (args.items, args.rounds)
    keep_freed_memory()  # as `flanx evaluate` does
    model = PaLM(**SIZES)
    params = jax.jit(lambda key: nn.unbox(model.init(key)))(jax.random.key(0))
    draws = np.random.default_rng(0)
    exemplars = draws.integers(3, 32_000, 690).tolist()
    prompts = [exemplars + draws.integers(3, 32_000, draws.integers(40, 160)).tolist() for _ in range(items)]
    worth = prefix.COMPILATION

    def run(saved: float) -> list[decode.Output]:
        prefix.COMPILATION = saved  # tokens that a prefix must save
        batching = Batching(64, bucket_lengths(2048))
        return decode.generate(model, params, prompts, max_new=args.new, eos_id=-1, batching=batching)

    programs = {"shared": lambda: run(worth), "whole": lambda: run(float("inf"))}
    same = [a.tokens == b.tokens for a, b in zip(*(program() for program in programs.values()), strict=True)]
    taken = turns(programs, rounds)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    ratio = statistics.median(whole / shared for whole, shared in zip(taken["whole"], taken["shared"], strict=True))
    record.write(
        {
            "benchmark": "prefix",
            "metric": f"PaLM of {model.num_params() / 1e6:.0f} million, {items} prompts with 690 tokens in common",
            "value": round(items / medians["shared"], 2),
            "unit": "items/s",
            "peer": "the same without",
            "peer_value": round(items / medians["whole"], 2),
            "ratio": round(ratio, 2),
            "same": sum(same) / len(same),
        }
    )


if __name__ == "__main__":
    main()
