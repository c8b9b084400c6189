"""A decoding step on a CPU with either library of XLA's compiler, YNNPACK and Eigen: milliseconds, by rows and model.

    python benchmarks/decode_step.py [--rows 1 4 16 64] [--steps 16] [--rounds 4] [--quick]

The loop of steps that decoding runs, from prompts that are encoded once: T5.1.1-small after 512 tokens, smaller models
after 128. Both libraries take turns; `ratio` is the median of the rounds', YNNPACK over Eigen. `chosen` is the library
that flanx takes on this machine (`flanx/decoding/product_library.py`); the table of docs/performance.md has the rest.
"""

import argparse
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import record
from decode import SMALL

from flanx.decoding import decode, product_library, state
from flanx.malloc import keep_freed_memory
from flanx.models import t5

LIBRARIES = {"YNNPACK": False, "Eigen": True}
MODELS = {  # name: (sizes, prompt length)
    "T5.1.1-small": (SMALL, 512),
    "256 wide, 4 layers, 32,128 pieces": (
        {"vocab_size": 32_128, "emb_dim": 256, "num_heads": 4, "head_dim": 64, "mlp_dim": 512}
        | {"num_encoder_layers": 4, "num_decoder_layers": 4},
        128,
    ),
    "192 wide, 4 layers, 384 pieces": (
        {"vocab_size": 384, "emb_dim": 192, "num_heads": 6, "head_dim": 32, "mlp_dim": 512}
        | {"num_encoder_layers": 4, "num_decoder_layers": 4},
        128,
    ),
    "96 wide, 3 layers, 384 pieces": (
        {"vocab_size": 384, "emb_dim": 96, "num_heads": 6, "head_dim": 16, "mlp_dim": 192}
        | {"num_encoder_layers": 3, "num_decoder_layers": 3},
        128,
    ),
}


def measure(model: t5.T5, rows: int, length: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step with each library, for each round."""
    params = jax.jit(lambda key: nn.unbox(model.init(key)))(jax.random.key(0))
    prompts = jnp.asarray(np.random.default_rng(0).integers(3, model.vocab_size, (rows, length)), jnp.int32)
    numbers, used = jnp.zeros((rows, 1), jnp.int32), jnp.ones(rows, bool)
    key = jnp.zeros((rows, 2), jnp.uint32)
    start = state.start_rows(model, params, prompts, key, used, numbers, max_new=steps, shared=())
    taken: dict[str, list[float]] = {name: [] for name in LIBRARIES}
    for turn in range(1 + rounds):
        for name, with_eigen in LIBRARIES.items():
            product_library.has_eigen_steps = lambda params, chosen=with_eigen: chosen
            rows_in_flight = jax.block_until_ready(jax.tree.map(jnp.copy, start))
            began = time.perf_counter()
            options = {"method": decode.GREEDY, "eos_id": -1, "shared": ()}
            ended = state.advance_rows(model, params, rows_in_flight, rows, steps, **options)
            jax.block_until_ready(ended)
            taken[name] += [(time.perf_counter() - began) / steps] * bool(turn)
    return taken


def main() -> None:
    """Prints one JSON object for each model and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="the two smallest models, 16 rows, two rounds")
    args = parser.parse_args()
    names = list(MODELS)
    if args.quick:
        args.rows, args.rounds, names = [16], 2, names[2:]
    keep_freed_memory()  # as `flanx evaluate` does
    chooses = product_library.has_eigen_steps
    for name in names:
        sizes, length = MODELS[name]
        model = t5.T5(**sizes, dtype="float32")
        shapes = jax.eval_shape(lambda key, model=model: nn.unbox(model.init(key)), jax.random.key(0))
        for rows in args.rows:
            taken = measure(model, rows, length, args.steps, args.rounds)
            medians = {library: 1e3 * statistics.median(each) for library, each in taken.items()}
            ratio = statistics.median(a / b for a, b in zip(*taken.values(), strict=True))
            line = {"benchmark": "decode_step", "metric": f"{name}, {rows} rows", "unit": "ms"}
            line |= {"value": round(medians["Eigen"], 2), "peer": "YNNPACK", "peer_value": round(medians["YNNPACK"], 2)}
            record.write(line | {"ratio": round(ratio, 3), "chosen": "Eigen" if chooses(shapes) else "YNNPACK"})


if __name__ == "__main__":
    main()
