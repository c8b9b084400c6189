"""What knowing the loss of every task costs: a validation of 50 tasks, and the sums by task in a training step.

    python benchmarks/validation.py [--quick]

One JSON object a line: seconds of one validation of 50 tasks x 100 examples of the embedded suite with the model of
width 96 (its second: nothing compiles), and what sums over 50 and over 1,836 tasks add to a step of a model of width
256, against the step without them, blocks of both in turn.
"""

import argparse
import contextlib
import io
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
import record

from flanx import optim
from flanx.cli.main import main as run_command
from flanx.data.pipeline.batches import Batches
from flanx.data.pipeline.mixture import Mixture
from flanx.data.store import open_store
from flanx.data.task import tables
from flanx.models import t5
from flanx.partition import Partitioner
from flanx.train_step import Trainer
from flanx.validation import ValidationBatches, Validator

VOCABULARY = {"vocab_size": 384}
D96 = t5.T5(**VOCABULARY, emb_dim=96, num_heads=6, head_dim=16, mlp_dim=192, num_encoder_layers=2, num_decoder_layers=2)
D256 = t5.T5(
    **VOCABULARY, emb_dim=256, num_heads=4, head_dim=64, mlp_dim=512, num_encoder_layers=2, num_decoder_layers=2
)
LENGTHS = {"inputs": 256, "targets": 64}
ROWS = 8


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 tasks x 20 examples, two short blocks")
    quick = parser.parse_args().quick
    names = [name for name in tables.load_tables() if name.startswith("suite_text_")][: 5 if quick else 50]
    examples = 20 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        bound = {
            "STORE_DIR": folder,
            "MIXTURE_OR_TASK_NAME": names,
            "VOCABULARY": "byte",
            "VALIDATION_EXAMPLES": examples,
        }
        gin = [f"--gin.{name}={value!r}" for name, value in bound.items()]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert run_command(["store", "build", "--gin_file=runs/store.gin", *gin]) == 0
        like = Batches(open_store(folder), Mixture(names), LENGTHS, ROWS, packing="encoder_decoder")
        record.write({"benchmark": "validation", **validate(folder, like, examples)})
        for count in (50, 1836):
            record.write({"benchmark": "loss_by_task", **overhead(like, count, *((2, 2) if quick else (11, 6)))})


def validate(folder: str, like: Batches, examples: int) -> dict[str, Any]:
    """Seconds of a validation once its step is compiled."""
    held = open_store(pathlib.Path(folder) / "validation")
    batches = ValidationBatches(held, list(held.tasks), like, examples, ROWS)
    partitioner = Partitioner(devices=jax.devices()[:1])
    trainer = Trainer(D96, optim.adafactor(1e-3))
    validator = Validator(batches, trainer, partitioner, "byte", None, 1)
    with partitioner.scope():
        params = jax.device_put(trainer.init().params, partitioner.everywhere())
        seconds = [validator.evaluate(params)["seconds"] for _ in range(3)]
    return {
        "metric": f"seconds_{len(held.tasks)}_tasks_x_{examples}_d96", "value": round(min(seconds[1:]), 3), "unit": "s",
        "first": round(seconds[0], 3), "examples": batches.examples,
    }  # fmt: skip


def overhead(like: Batches, count: int, blocks: int, steps: int) -> dict[str, Any]:
    """Percent by which the sums of `count` tasks lengthen a step: the median over blocks of the ratio in a block."""
    batch = like.batch(0)
    batch["decoder_task_ids"] = np.where(batch["decoder_task_ids"] > 0, batch["decoder_task_ids"] * (count // 50), 0)
    batch = jax.device_put(batch)
    runs = []
    for number in (0, count):
        trainer = Trainer(D256, optim.adafactor(1e-3), num_tasks=number)
        state = trainer.init()
        step = jax.jit(trainer.step)
        jax.block_until_ready(step(state, batch))
        runs.append((step, state))
    ratios = []
    for block in range(blocks):
        taken = {}
        for which in (0, 1) if block % 2 else (1, 0):
            step, state = runs[which]
            began = time.perf_counter()
            for _ in range(steps):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            taken[which] = time.perf_counter() - began
        ratios.append(taken[1] / taken[0])
    value = 100 * (statistics.median(ratios) - 1)
    return {"metric": f"added_by_{count}_tasks", "value": round(value, 2), "unit": "%", "blocks": blocks}


if __name__ == "__main__":
    main()
