"""What following a run costs: the loop's calls for metrics, time split and logs beside the step that they follow.

    python benchmarks/following.py [--quick]

One JSON object: microseconds a step of `Watch` with arrays that are ready (two `during`, one `record`, a record of
metrics.jsonl with its TensorBoard event every ten steps, sums of 50 tasks), best of five rounds, and that as percent of
a training step of a T5 of width 256 on one device here, median of its repeats. Both are measured apart, as the
difference of two loops would drown in the noise of a shared machine.
"""

import argparse
import contextlib
import io
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import numpy as np
import record

from flanx import optim
from flanx.data.pipeline import mixture
from flanx.data.pipeline.batches import DatasetConfig
from flanx.models import t5
from flanx.partition import Partitioner
from flanx.train_metrics import Watch
from flanx.train_step import Trainer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tests import run_case

SIZES = {"emb_dim": 256, "num_heads": 4, "head_dim": 64, "mlp_dim": 512}
MODEL = t5.T5(vocab_size=384, **SIZES, num_encoder_layers=2, num_decoder_layers=2)
LENGTHS, ROWS, TASKS = {"inputs": 256, "targets": 64}, 8, 50


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        follows = min(follow(pathlib.Path(folder) / str(n), 100 if quick else 2000) for n in range(5))
        steps = step(5 if quick else 30)
    share = 100.0 * follows / steps
    line = {"benchmark": "following", "metric": "share_of_a_step", "value": round(share, 3), "unit": "%"}
    seconds = {"follow_us": round(1e6 * follows, 1), "step_us": round(1e6 * steps, 1)}
    record.write(line | seconds | {"device": jax.devices()[0].device_kind})


def follow(folder: pathlib.Path, count: int) -> float:
    """Seconds per step of what the loop calls in addition to the step."""
    names = ("loss", "cross_ent_loss", "z_loss", "correct", "tokens", "grad_norm", "filled", "positions")
    metrics = jax.device_put(dict.fromkeys(names, np.float32(1)) | {"tasks": np.ones((4, TASKS), np.float32)})
    tasks = {f"task_{n}": "muffin" for n in range(TASKS)}
    watch = Watch(folder, MODEL, 0, count, 10, lambda: None, tasks, full_speed=1.0)
    with contextlib.closing(watch):
        began = time.perf_counter()
        for number in range(1, count + 1):
            with watch.during("input"):
                pass
            watch.record(number, metrics, None, None)
            with watch.during("checkpoint"):
                pass
        return (time.perf_counter() - began) / count


def step(count: int) -> float:
    """Median seconds of a training step on a batch already on the device."""
    partitioner, trainer = Partitioner(devices=jax.devices()[:1]), Trainer(MODEL, optim.adafactor(1e-3))
    dataset = DatasetConfig(mixture.Mixture("own"), str(run_case.store_dir()), "byte", LENGTHS, ROWS)
    batches = dataset.open(MODEL.vocab_size, MODEL.packing, 0)
    with partitioner.scope():
        target = trainer.abstract_state(partitioner)
        state = jax.jit(trainer.init, out_shardings=jax.tree.map(lambda s: s.sharding, target))()
        step_fn, batch = trainer.jit(target), partitioner.global_batch(batches.batch(0), ROWS)
        seconds = []
        for _ in range(count + 1):
            began = time.perf_counter()
            state, metrics = step_fn(state, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
