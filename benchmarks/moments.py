"""Optimizers with less state beside AdamW in float32: the loss after 200 steps, the bytes of the state.

A T5 of two layers learns to copy 16 random tokens backwards, from one start, on the same batches; every optimizer at
the best of three rates, by the mean loss of the last 20 steps. One JSON line each.

    python benchmarks/moments.py [--quick] [--steps N]
"""

import argparse
import statistics
from typing import Any

import record

SIZES = {"vocab_size": 64, "emb_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 128}
RATES = {"adamw": 3e-3, "adamw_bfloat16": 3e-3, "adamw_8bit": 3e-3, "muon": 3e-3, "adafactor": 3e-2}


def batches(steps: int) -> list[dict[str, Any]]:
    """32 rows per step: tokens, and the same tokens reversed."""
    import jax.numpy as jnp
    import numpy as np

    found, rng = [], np.random.default_rng(0)
    for _ in range(steps):
        tokens = rng.integers(3, 64, (32, 16))
        targets = tokens[:, ::-1]
        rows = {
            "encoder_input_tokens": tokens,
            "encoder_segment_ids": np.ones_like(tokens),
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": targets,
            "decoder_segment_ids": np.ones_like(tokens),
            "decoder_loss_weights": np.ones_like(tokens),
        }
        found.append({name: jnp.asarray(array, jnp.int32) for name, array in rows.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three steps, one rate")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    import jax

    from flanx import optim
    from flanx.models.t5 import T5
    from flanx.train_step import Trainer

    model = T5(num_encoder_layers=2, num_decoder_layers=2, scan_layers=True, **SIZES)
    steps, factors = (3, (1.0,)) if args.quick else (args.steps, (1 / 3, 1.0, 3.0))
    data, reference = batches(steps), None
    for name, rate in RATES.items():
        found: list[tuple[float, float]] = []
        for factor in factors:
            rule = getattr(optim, name)(rate * factor)
            trainer = Trainer(model, rule, dropout=False, loss_normalizing_factor="tokens")
            state = jax.jit(trainer.init)()
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
            step, losses = jax.jit(trainer.step, donate_argnums=0), []
            for rows in data:
                state, metrics = step(state, rows)
                losses.append(metrics["loss"] / metrics["tokens"])
            found.append((statistics.fmean(map(float, losses[-20:])), rate * factor))
        (loss, best), a_parameter = min(found), size / model.num_params()
        reference = reference or loss
        line = {"benchmark": "moments", "metric": "loss", "optimizer": name, "value": loss, "rate": best}
        line |= {"peer": "adamw", "peer_value": reference, "ratio": loss / reference, "steps": steps}
        record.write(line | {"state_bytes_per_parameter": a_parameter})


if __name__ == "__main__":
    main()
