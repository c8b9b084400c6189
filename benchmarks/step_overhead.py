"""What flanx's loop adds to a step: the loop of `flanx train` and the bare jitted function on one batch, in turns.

The loop reads batches from a store, places them, guards transfers, takes metrics a step late and writes the log; the
bare function is called on a batch that lies on the device, and its metrics are fetched at the end.
"""

import argparse
import contextlib
import itertools
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import record

from flanx import checkpoint, optim, train
from flanx.data.pipeline import mixture
from flanx.data.pipeline.batches import DatasetConfig
from flanx.models import t5
from flanx.partition import Partitioner
from flanx.train_metrics import Watch
from flanx.train_step import Trainer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tests import run_case

MODEL = t5.T5(
    vocab_size=384,
    emb_dim=256,
    num_heads=4,
    head_dim=64,
    mlp_dim=512,
    num_encoder_layers=2,
    num_decoder_layers=2,
    kernels="tuned",  # as the gin files of models set it
)


def main() -> None:
    """Prints one JSON line: the overhead in percent, medians of interleaved blocks of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    blocks, steps, rows = (3, 4, 8) if quick else (9, 6, 8)
    with tempfile.TemporaryDirectory() as folder:
        bare, loop = measure(pathlib.Path(folder), blocks, steps, rows)
    value = 100.0 * (loop / bare - 1.0)
    line = {"benchmark": "step_overhead", "metric": "overhead_of_the_loop", "value": round(value, 2), "unit": "%"}
    record.write(line | {"peer": "bare jitted step", "peer_value": round(bare, 4), "ratio": round(loop / bare, 4)})


def measure(folder: pathlib.Path, blocks: int, steps: int, rows: int) -> tuple[float, float]:
    """Median seconds per step of (the bare function, the loop), in alternating blocks."""
    partitioner, trainer = Partitioner(devices=jax.devices()[:1]), Trainer(MODEL, optim.adafactor(1e-3))
    lengths = {"inputs": 256, "targets": 64}
    dataset = DatasetConfig(mixture.Mixture("own"), str(run_case.store_dir()), "byte", lengths, rows)
    batches, saved = dataset.open(MODEL.vocab_size, MODEL.packing, 0), checkpoint.Checkpoints(folder / "run")
    with contextlib.closing(saved), partitioner.scope():
        parent = checkpoint.RestoreCheckpointConfig()
        state, target = train.init_state(folder / "run", trainer, partitioner, saved, parent, 0, 10**6)
        step_fn = trainer.jit(target)
        fixed = partitioner.global_batch(batches.batch(0), rows)
        state, _ = step_fn(state, fixed)
        jax.block_until_ready(state)
        watch = Watch(folder / "run", MODEL, 0, 10**6, 10, saved.latest)
        stream = train.device_batches(batches, partitioner, 0, 10**6, watch)
        times: dict[str, list[float]] = {"bare": [], "loop": []}
        with contextlib.closing(watch), contextlib.closing(stream), contextlib.redirect_stdout(sys.stderr):
            for _ in range(blocks):
                began = time.perf_counter()
                for _ in range(steps):
                    state, _ = step_fn(state, fixed)
                jax.block_until_ready(state)
                times["bare"].append((time.perf_counter() - began) / steps)
                began = time.perf_counter()
                for step, batch in itertools.islice(stream, steps):
                    with jax.transfer_guard("disallow"):
                        state, metrics = step_fn(state, batch)
                    watch.record(step, metrics, batch, state.params)
                jax.block_until_ready(state)
                times["loop"].append((time.perf_counter() - began) / steps)
    return statistics.median(times["bare"]), statistics.median(times["loop"])


if __name__ == "__main__":
    main()
