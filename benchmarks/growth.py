"""How the cost of flanx grows: tasks, examples, sequence length, batch rows, devices; the slope of each.

    python benchmarks/growth.py [--quick] [figures ...]
    python benchmarks/growth.py --draw LINES.jsonl --to docs/growth    # .png and .svg

One JSON object per figure: what was varied (`x`), seconds or bytes (`y`), and `slope`, the exponent of the power law
through the last three points: 0 is free, 1 linear, 2 quadratic. `tasks`: from opening a store to its first packed
batch. `examples`: the draws of a chunk in the middle of an epoch, from the index alone. `sequence`: one row of inputs
through a training step of T5 (two layers of 128 wide, 64 targets): seconds, and temporary memory as compiled, above
2,048 in blocks as "auto" attends. `batch`: rows of 512 inputs. `devices`: the same 8 rows over forced host devices,
which share this machine's cores: what splitting costs where it gains nothing.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import record

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

X = {  # figure -> (x values with --quick, x values without it)
    "tasks": ((10, 40), (10, 100, 1000, 10_000)),
    "examples": ((10**4, 10**6), tuple(10**n for n in range(4, 9))),
    "sequence": ((64, 128), (512, 1024, 2048, 4096, 8192)),
    "batch": ((1, 2), (1, 2, 4, 8, 16)),
    "devices": ((1, 2), (1, 2, 4, 8)),
}


def least(function: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def tasks(count: int, repeats: int) -> dict[str, float]:
    """From opening a store of `count` tasks with four examples each to the first batch."""
    from benchmarks import mixture as drawn
    from flanx.data import store
    from flanx.data.pipeline.batches import Batches
    from flanx.data.pipeline.mixture import Mixture

    with tempfile.TemporaryDirectory() as folder:
        drawn.make_store(pathlib.Path(folder), count, 4)

        def first() -> None:
            asked = Mixture("proportion_b", allow_missing=True)
            Batches(store.open_store(folder), asked, {"inputs": 512, "targets": 128}, 32).batch(0)

        return {"seconds": least(first, repeats)}


def examples(count: int, repeats: int) -> dict[str, float]:
    """The draws of one chunk of a source of `count` examples."""
    from flanx.data.pipeline import sampling

    one = np.ones((1, 1), np.int64)
    sources = sampling.Sources(np.ones(1), np.ones(1, np.uint64), count * one, 0 * one, 0 * one)
    order = sampling.Order(sources, 0)
    return {"seconds": least(lambda: order.chunk(max(1, count // (2 * order.draws))), repeats)}


def step(rows: int, inputs: int, repeats: int, devices: int = 1) -> dict[str, float]:
    """A training step of a small T5 with Adafactor: seconds, temporary bytes per device."""
    import jax

    from flanx import optim
    from flanx.malloc import keep_freed_memory
    from flanx.models.t5 import T5
    from flanx.partition import Partitioner
    from flanx.train_step import Trainer

    keep_freed_memory()  # as commands do: a fresh page for each array would cost a third of a step
    sizes: dict[str, Any] = {"vocab_size": 384, "emb_dim": 128, "num_heads": 2, "head_dim": 64, "mlp_dim": 256}
    model = T5(**sizes, num_encoder_layers=2, num_decoder_layers=2, kernels="tuned")
    partitioner, trainer = Partitioner(devices=jax.devices()[:devices]), Trainer(model, optim.adafactor(1e-3))
    draws = np.random.default_rng(0)
    batch = {}
    for side, length in (("encoder", inputs), ("decoder", 64)):
        batch[f"{side}_input_tokens"] = draws.integers(3, 384, (rows, length)).astype(np.int32)
        batch[f"{side}_segment_ids"] = np.ones((rows, length), np.int32)
    batch["decoder_target_tokens"] = draws.integers(3, 384, (rows, 64)).astype(np.int32)
    batch["decoder_loss_weights"] = np.ones((rows, 64), np.int32)
    with partitioner.scope():
        target = trainer.abstract_state(partitioner)
        state = jax.jit(trainer.init, out_shardings=jax.tree.map(lambda s: s.sharding, target))()
        given = partitioner.global_batch(batch, rows)
        compiled = trainer.jit(target).lower(state, given).compile()

        def once() -> None:
            nonlocal state
            state, _ = compiled(state, given)
            jax.block_until_ready(state)

        once()
        return {
            "seconds": least(once, repeats),
            "temporary bytes": compiled.memory_analysis().temp_size_in_bytes,
        }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent of the power law through the last three points, by least squares."""
    return float(np.polyfit(np.log(x[-3:]), np.log(np.maximum(y[-3:], 1e-12)), 1)[0])


def draw(lines: Sequence[dict[str, Any]], to: pathlib.Path) -> None:
    """One panel for each of the lines, on log axes, with a dashed line of slope 1 through its first point."""
    from flanx.sweep.figures import plotting, save

    across = 3
    down = -(-len(lines) // across)
    with plotting("growth") as pyplot:
        canvas, spots = pyplot.subplots(down, across, figsize=(4 * across, 3.3 * down), squeeze=False)
        for spot, line in zip(spots.flat, lines, strict=False):
            x, y = np.array(line["x"], float), np.array(line["y"], float)
            spot.loglog(x, y, marker="o")
            spot.loglog(x, y[0] * x / x[0], linestyle="--", color="0.6", zorder=0)
            spot.set_ylim(min(y) / 3, max(y) * 3)
            spot.set_xticks(x, [f"{each:,.0f}" if each <= 10_000 else f"{each:.0e}" for each in x])
            spot.minorticks_off()
            spot.set_yticks(y[[0, -1]] if max(y) > 1.5 * min(y) else y[:1])
            spot.yaxis.set_major_formatter("{x:.2g}")
            spot.set(title=f"{line['figure']}: slope {line['slope']}", xlabel=line["figure"], ylabel=line["unit"])
        for spot in spots.flat[len(lines) :]:
            spot.set_visible(False)
        canvas.tight_layout()
        save(canvas, to)


MEASURES: dict[str, Callable[[int, int], dict[str, float]]] = {
    "tasks": tasks,
    "examples": examples,
    "sequence": lambda length, repeats: step(1, length, repeats),
    "batch": lambda rows, repeats: step(rows, 512, repeats),
    "devices": lambda devices, repeats: step(8, 256, repeats, devices),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", default=list(X), help=f"some of {', '.join(X)}")
    parser.add_argument("--quick", action="store_true", help="two small points of each")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--draw", type=pathlib.Path, metavar="LINES", help="draw these lines instead of measuring")
    parser.add_argument("--to", type=pathlib.Path, default=pathlib.Path("growth"), help="the figure, without suffix")
    args = parser.parse_args()
    if args.draw:
        lines = [json.loads(text) for text in args.draw.read_text(encoding="utf-8").splitlines()]
        draw([line for line in lines if line["benchmark"] == "growth"], args.to)
        return
    if args.one:
        figure, x, repeats = args.one[0], *map(int, args.one[1:])
        print(json.dumps(MEASURES[figure](x, repeats)))
        return
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    for figure in args.figures:
        xs, found = X[figure][0 if args.quick else 1], []
        for x in xs:  # each in a separate process, so that caches and memory start empty
            if args.quick and figure != "devices":
                found.append(MEASURES[figure](x, 1))
                continue
            command = [sys.executable, __file__, "--one", figure, str(x), "1" if args.quick else "5"]
            given = os.environ | ({"XLA_FLAGS": flags} if figure == "devices" else {})
            done = subprocess.run(command, env=given, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        for unit in found[0]:
            y = [point[unit] for point in found]
            line = {"benchmark": "growth", "metric": f"{figure}, {unit}", "value": round(y[-1], 5), "unit": unit}
            line |= {"figure": figure, "x": xs, "y": [round(v, 5) for v in y], "slope": round(slope(xs, y), 2)}
            record.write(line)


if __name__ == "__main__":
    main()
