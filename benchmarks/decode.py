"""Decoding speed: greedy, prompts of 512 tokens, 64 new tokens, T5.1.1-small shapes, float32.

    python benchmarks/decode.py [--rows 64 16 1] [--rounds 3] [--quick] [--peer FORM] [--no-peer]

Peers, with the same shapes in the same run: `generate` of transformers on torch (SDPA, static and dynamic cache) and
CTranslate2 where it is installed, each in its best batch size. All take turns; `ratio` is the median of our rounds'
ratios to the better peer of each; CTranslate2 in int8 is interleaved too, but no peer: it computes less. `floor`: the
share that we reach of the speed of the matrix products and memory reads alone, both measured in this run. Then what 40
samples of each prompt (self-consistency) cost, in greedy passes over the same prompts.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import decode_peers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import record

from flanx.decoding import decode
from flanx.decoding.length_buckets import Batching
from flanx.malloc import keep_freed_memory
from flanx.models import t5

SMALL = {"vocab_size": 32_128, "emb_dim": 512, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024}
SMALL |= {"num_encoder_layers": 8, "num_decoder_layers": 8}
XL = {"vocab_size": 32_128, "emb_dim": 2048, "num_heads": 32, "head_dim": 64, "mlp_dim": 5120}
XL |= {"num_encoder_layers": 24, "num_decoder_layers": 24}
LENGTH, NEW = 512, 64


def seconds(run: Callable[[], Any]) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def rates() -> tuple[float, float]:
    """FLOP/s of a matmul of 2,048 tokens with a [512, 1024] kernel, bytes/s of a sum over 400 MB; best of five."""
    x, kernel, many = jnp.ones((2048, 512)), jnp.ones((512, 1024)), jnp.ones((200_000, 500))
    multiply, add = jax.jit(jnp.matmul), jax.jit(lambda x: x.sum(axis=-1))

    def best(run: Callable[[], Any]) -> float:
        run()
        return min(seconds(lambda: jax.block_until_ready(run())) for _ in range(5))

    return 2 * 2048 * 512 * 1024 / best(lambda: multiply(x, kernel)), many.nbytes / best(lambda: add(many))


def floor(sizes: Mapping[str, int], rows: int, product: float, memory: float) -> float:
    """Seconds of only the matmuls for `rows` prompts and, in the steps, of reading what is larger than a cache: the
    weights, if that takes longer than their matmuls, and keys and values."""
    m, f, joined = sizes["emb_dim"], sizes["mlp_dim"], sizes["num_heads"] * sizes["head_dim"]
    encoders, decoders = sizes["num_encoder_layers"], sizes["num_decoder_layers"]
    weights = encoders * (4 * m * joined + 3 * m * f) + decoders * 2 * m * joined  # keys and values of the inputs
    encoding = rows * LENGTH * (2 * weights + 4 * encoders * LENGTH * joined) / product
    weights = decoders * (6 * m * joined + 3 * m * f) + m * sizes["vocab_size"]
    cache = 4 * rows * 2 * decoders * joined * (LENGTH + NEW / 2)
    return encoding + NEW * (max(2 * rows * weights / product, 4 * weights / memory) + cache / memory)


def turns(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each program, run one after another in each round. All have been warmed up."""
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            taken[name].append(seconds(run))
    return taken


def chosen(peers: Mapping[str, Callable[[np.ndarray], Any]], prompts: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The fastest form of each peer on these prompts, by one run after a short warm-up."""
    best: dict[str, tuple[float, str, Callable[[], Any]]] = {}
    for name, run in peers.items():
        peer, batch = name.split()[0], int(name.split()[-1])
        if batch > max(len(prompts), 8 if peer.startswith("ctranslate2") else 16):
            continue  # the same as a smaller one
        run(prompts[:1])
        found = seconds(lambda run=run: run(prompts)), name, lambda run=run: run(prompts)
        best[peer] = min(best.get(peer, found), found, key=lambda each: each[0])
    return {name: run for _, name, run in best.values()}


def measure(
    ours: Callable[[np.ndarray], Any], peers: Mapping[str, Any], prompts: np.ndarray, rounds: int, least: float
) -> dict[str, Any]:
    """The content of a line for these prompts; `least`: the seconds of the floor."""
    programs: dict[str, Callable[[], Any]] = {"flanx": lambda: ours(prompts)} | chosen(peers, prompts)
    programs["flanx"]()
    taken = turns(programs, rounds)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    tokens = len(prompts) * NEW
    line = {"value": round(tokens / medians["flanx"], 1), "unit": "new tokens/s", "floor": least / medians["flanx"]}
    line |= {"floor": round(line["floor"], 3), "seconds": {name: round(each, 3) for name, each in medians.items()}}
    if rivals := [name for name in taken if name != "flanx" and "int8" not in name]:
        pairs = [min(taken[name][n] for name in rivals) / taken["flanx"][n] for n in range(rounds)]
        peer = min(rivals, key=lambda name: medians[name])
        line |= {"peer": peer, "peer_value": round(tokens / medians[peer], 1)}
        line |= {"ratio": round(statistics.median(pairs), 3)}
    return line


def main() -> None:
    """Prints one JSON object per line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[64, 16, 1], help="prompts, a line for each number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="4 prompts, once; samples of one")
    parser.add_argument("--size", choices=("small", "xl"), default="small", help="xl: bfloat16, for an accelerator")
    parser.add_argument(
        "--peer", action="append", help="this form alone, as 'ctranslate2 8' or 'transformers static 16'"
    )
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-samples", action="store_true", help="without the passes of 40 samples")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.rounds = [4], 1
    keep_freed_memory()  # as `flanx evaluate` does
    sizes = SMALL if args.size == "small" else XL
    model = t5.T5(**sizes, dtype="float32" if args.size == "small" else "bfloat16")
    params = jax.jit(lambda key: nn.unbox(model.init(key)))(jax.random.key(0))
    device, draws = jax.devices()[0].device_kind, np.random.default_rng(0)
    name = f"T5.1.1-{args.size}"

    def ours(prompts: np.ndarray, **options: Any) -> Any:
        common = {"max_new": NEW, "eos_id": -1, "batching": Batching(64, (LENGTH,)), **options}
        return decode.generate(model, params, prompts.tolist(), **common)

    with tempfile.TemporaryDirectory() as folder:
        peers = {} if args.no_peer else find_peers(model, params, sizes, pathlib.Path(folder))
        peers = {name: run for name, run in peers.items() if name in (args.peer or peers)}
        for rows in args.rows:
            prompts, speeds = draws.integers(3, 32_000, (rows, LENGTH)), rates()
            line = measure(ours, peers, prompts, args.rounds, floor(sizes, rows, *speeds))
            line |= {"product_gflops": round(speeds[0] / 1e9, 1), "memory_gb_s": round(speeds[1] / 1e9, 1)}
            metric = f"{name} greedy {rows} x {LENGTH} -> {NEW}, {device}"
            record.write({"benchmark": "decode", "metric": metric, **line})
    if not args.no_samples:
        prompts = draws.integers(3, 32_000, (1 if args.quick else 16, LENGTH))
        method = decode.Sample(0.7, top_k=40)
        programs: dict[str, Callable[[], Any]] = {
            "once": lambda: ours(prompts),
            "forty": lambda: ours(prompts, samples=40, method=method, batching=Batching(8, (LENGTH,))),
        }
        for run in programs.values():
            run()
        taken = turns(programs, 1)
        passes = round(taken["forty"][0] / taken["once"][0], 2)
        line = {"metric": f"{name} 40 samples of {len(prompts)} prompts, {device}", "value": passes, "unit": "passes"}
        record.write({"benchmark": "decode", **line, "seconds": {k: round(v[0], 2) for k, v in taken.items()}})


def find_peers(
    model: t5.T5, params: Any, sizes: dict[str, int], folder: pathlib.Path
) -> dict[str, Callable[[np.ndarray], Any]]:
    """The peers that are installed."""
    peers: dict[str, Callable[[np.ndarray], Any]] = {}
    with contextlib.suppress(ImportError):
        peers |= decode_peers.hugging_face(sizes, NEW)
    if jax.default_backend() == "cpu":
        with contextlib.suppress(ImportError):
            peers |= decode_peers.ctranslate2(model, params, folder, NEW)
    return peers


if __name__ == "__main__":
    main()
