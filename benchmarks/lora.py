"""A training step with LoRA beside the full step: time and memory at the peak, in turns in one process.

T5.1.1-small, 32,128 pieces, float32, no dropout, Adafactor; the adapter has rank 16 on queries and values. Memory is
what the compiler allots to the step: arguments, results that are not in their place, and temporaries; time is the
median over rounds, the ratio the median of the rounds' ratios.

    python benchmarks/lora.py [--quick] [--rounds N] [--rows R] [--inputs S] [--targets T] [--base bfloat16]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import record

VOCAB, LAYERS = 32_128, 8
SIZES = {"emb_dim": 512, "num_heads": 6, "head_dim": 64, "mlp_dim": 1024}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one layer, short rows, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--inputs", type=int, default=512)
    parser.add_argument("--targets", type=int, default=128)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--base", default="bfloat16", help="float32, bfloat16, int8 or nf4")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.rows, args.inputs, args.targets, args.layers = 2, 2, 64, 16, 1
    return args


def compiled(args: argparse.Namespace, adapter: Any, batch: Any) -> tuple[Callable[[], tuple[float, float]], float]:
    """A function that runs a step and returns its seconds and processor seconds, and the bytes of the step."""
    import jax

    from flanx.models.t5 import T5
    from flanx.optim import adafactor
    from flanx.train_step import Trainer

    depth = {"num_encoder_layers": args.layers, "num_decoder_layers": args.layers}
    model = T5(vocab_size=VOCAB, kernels="tuned", **depth, **SIZES)
    trainer = Trainer(model, adafactor(1e-3), dropout=False, adapter=adapter)
    state = jax.jit(trainer.init)()
    step = jax.jit(trainer.step, donate_argnums=0).lower(state, batch).compile()
    memory: Any = step.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes

    def run() -> tuple[float, float]:
        nonlocal state
        start, cpu = time.perf_counter(), time.process_time()
        state, _ = step(state, batch)
        jax.block_until_ready(state)
        return time.perf_counter() - start, time.process_time() - cpu

    run()
    return run, float(size - memory.alias_size_in_bytes)


def main() -> None:
    args = arguments()
    from flanx.malloc import keep_freed_memory

    keep_freed_memory()  # as `flanx train` does
    import jax.numpy as jnp
    import numpy as np

    from flanx import lora

    draws = np.random.default_rng(0)
    inputs, targets = (draws.integers(3, 32_000, (args.rows, n)) for n in (args.inputs, args.targets))
    batch = {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": np.ones_like(inputs),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_segment_ids": np.ones_like(targets),
        "decoder_loss_weights": np.ones_like(targets),
    }
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    full, full_bytes = compiled(args, None, batch)
    small, small_bytes = compiled(args, lora.Adapter(rank=args.rank, base=args.base), batch)
    rounds = [(full(), small()) for _ in range(args.rounds)]
    for i, metric in enumerate(("step_seconds", "cpu_seconds")):
        pairs = [(b[i], a[i]) for a, b in rounds]
        value, peer = (statistics.median(each) for each in zip(*pairs, strict=True))
        report(args, metric, value, peer, statistics.median(b / a for b, a in pairs))
    report(args, "peak_bytes", small_bytes, full_bytes, small_bytes / full_bytes)


def report(args: argparse.Namespace, metric: str, value: float, peer: float, ratio: float) -> None:
    """One JSON line."""
    line = {"benchmark": "lora", "metric": metric, "value": value, "unit": metric.partition("_")[2]}
    line |= {"peer": "the full step", "peer_value": peer, "ratio": ratio, "base": args.base, "rows": args.rows}
    record.write(line)


if __name__ == "__main__":
    main()
