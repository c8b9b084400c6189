"""Mixtures of 10 and of 1,836 tasks: opening, speed, memory, jumps, padding; SeqIO beside it.

    python benchmarks/mixture.py            # about three minutes; with SeqIO on 100 tasks
    python benchmarks/mixture.py --quick    # under a minute
    python benchmarks/mixture.py --store out/store --mixture cot    # only: a store of your own, at two lengths

One JSON object per line. The tasks are made here: short texts as bytes, 60 examples each (as in the measurement of
SeqIO that the project started from), packed into rows of 512/128. Every measurement is a process of its own. Speeds are
given per second and, since a shared machine is noisy, per second of processor time as well.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import record

LENGTHS = {"inputs": 512, "targets": 128}
ROWS = 32  # per batch
RATE = 25_000  # rows per second that a reader requests from the loader
WORDS = "time year people way day man thing woman life child world school state family student group country"


def text(task: int, row: int, words: int) -> str:
    """A short text, different for every task and row."""
    rng = np.random.default_rng([task, row, words])
    known = WORDS.split()
    return " ".join(known[i] for i in rng.integers(0, len(known), rng.integers(1, 2 * words)))


def example(task: int, row: int) -> tuple[str, str]:
    return f"task {task}: {text(task, row, 16)}", text(task, row, 4)


def make_store(
    folder: pathlib.Path, tasks: int, rows: int, collections: tuple[str, ...] = ("cot", "muffin", "t0_sf", "niv2")
) -> None:
    """A store of synthetic tasks in four collections."""
    from flanx.data import vocabulary
    from flanx.data.store import assemble

    words = vocabulary.load("byte")

    def stream(task: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for row in range(rows):
            yield tuple(np.array([*words.encode(side), 1], np.int32) for side in example(task, row))

    facts, examples = {}, {}
    for task in range(tasks):
        collection = collections[task % len(collections)]
        name = f"{collection}_{task:04d}"
        facts[name] = {"collection": collection, "cap": None, "held_out": False, "cot": collection == "cot"}
        examples[name, "zsopt"] = [stream(task)]
    assemble.write_store(folder, facts, examples, words)


# ---- what is measured, each in a fresh process -----------------------------------------------------------------------


def measure_read(
    folder: str, seconds: float, started: float, name: str = "proportion_b", lengths: dict[str, int] | None = None
) -> dict[str, float]:
    """Opening time, jump, speed and memory of one reading process. `started`: when the process was started."""
    import resource

    from flanx.data import store
    from flanx.data.pipeline import batches as batches_module
    from flanx.data.pipeline import mixture

    asked = mixture.Mixture(name, allow_missing=True)
    batches = batches_module.Batches(store.open_store(folder), asked, lengths or LENGTHS, ROWS)
    batches.batch(0)
    found = {"open to first batch": time.time() - started}
    assert "tensorflow" not in sys.modules and "seqio" not in sys.modules
    at = time.perf_counter()
    batches.batch(1_000_000)
    found["jump to step 1,000,000"] = time.perf_counter() - at
    steps, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        batches.batch(steps)
        steps += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    plan = batches.chunk_plan(0)
    rows = np.add.reduceat(plan.length / np.array(batches.limits), plan.starts[:-1], axis=0)
    return found | {
        "packed rows per second": steps * ROWS / wall,
        "packed rows per CPU second": steps * ROWS / cpu,
        "examples per second": steps * ROWS / wall * batches.examples_per_row,
        "padding of the side that fills first, row by row": 1 - float(rows.max(axis=1).mean()),
        "padding of all inputs": 1 - float(rows[:, 0].mean()),
        "padding of all targets": 1 - float(rows[:, 1].mean()),
        "peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_loader(folder: str, seconds: float, started: float) -> dict[str, float]:
    """Speed through the loader, and the waits of a reader requesting RATE rows per second, after the first second."""
    from flanx.data import store
    from flanx.data.pipeline import batches as batches_module
    from flanx.data.pipeline import mixture, prefetch

    batches = batches_module.Batches(store.open_store(folder), mixture.Mixture("proportion_b"), LENGTHS, ROWS)
    reader = prefetch.Loader(batches)
    next(reader)
    steps, begun = 0, time.perf_counter()
    while (wall := time.perf_counter() - begun) < seconds / 2:
        next(reader)
        steps += 1
    found = {"packed rows per second, with the loader": steps * ROWS / wall}
    waits, late, begun, taken = [], 0, time.perf_counter(), time.perf_counter()
    while taken - begun < seconds / 2 + 1:
        time.sleep(max(0.0, taken + ROWS / RATE - time.perf_counter()))  # stands in for a step
        at, ready = time.perf_counter(), reader.ready
        next(reader)
        taken = time.perf_counter()
        if at - begun > 1:
            waits.append(taken - at)
            late += not ready
    reader.close()
    label = f"at {RATE:,} rows a second"
    return found | {f"longest call {label}": max(waits), f"calls that found no batch ready {label}": late / len(waits)}


def measure_seqio(tasks: int, rows: int, seconds: float, started: float) -> dict[str, float]:
    """The same tasks online in SeqIO: one mixture, packed by SeqIO's converter."""
    import resource

    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import seqio
    import tensorflow as tf

    words = seqio.ByteVocabulary()
    features = {name: seqio.Feature(words, add_eos=True) for name in ("inputs", "targets")}
    for task in range(tasks):
        pairs = [example(task, row) for row in range(rows)]

        def data(split: str, shuffle_files: bool = False, seed: int | None = None, pairs: list = pairs) -> object:
            return tf.data.Dataset.from_tensor_slices(
                {"inputs": [p[0] for p in pairs], "targets": [p[1] for p in pairs]}
            )

        seqio.TaskRegistry.add(
            f"t{task}", source=seqio.FunctionDataSource(data, ["train"], num_input_examples={"train": rows}),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos], output_features=features,
        )  # fmt: skip
    seqio.MixtureRegistry.add("all", [f"t{task}" for task in range(tasks)], default_rate=1.0)
    converter = seqio.EncDecFeatureConverter(pack=True)
    dataset = seqio.get_dataset(
        "all", LENGTHS, dataset_split="train", feature_converter=converter, shuffle=True, num_epochs=None
    )
    batches = iter(dataset.batch(ROWS).as_numpy_iterator())
    next(batches)
    found = {"open to first batch": time.time() - started}
    steps, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        next(batches)
        steps += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return found | {
        "packed rows per second": steps * ROWS / wall,
        "packed rows per CPU second": steps * ROWS / cpu,
        "peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


MEASURES = {"read": measure_read, "loader": measure_loader, "seqio": measure_seqio}
UNITS = {
    "open to first batch": "s",
    "jump to step 1,000,000": "s",
    f"longest call at {RATE:,} rows a second": "s",
    f"calls that found no batch ready at {RATE:,} rows a second": "share",
    "padding of the side that fills first, row by row": "share",
    "padding of all inputs": "share",
    "padding of all targets": "share",
    "peak memory": "MiB",
    "examples per second": "examples/s",
}  # of others: rows/s


def in_process(measure: str, **arguments: object) -> dict[str, float]:
    """Runs one measurement in a fresh process."""
    arguments = arguments | {"started": time.time()}
    command = [sys.executable, __file__, "--measure", measure, "--arguments", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        raise SystemExit(f"{measure} {arguments}: failed")
    return json.loads(done.stdout.splitlines()[-1])


def report(metric: str, value: float, unit: str, peer: str | None = None, peer_value: float | None = None) -> None:
    ratio = value / peer_value if peer_value else None
    line = {"benchmark": "mixture", "metric": metric, "value": value, "unit": unit,
            "peer": peer, "peer_value": peer_value, "ratio": ratio}  # fmt: skip
    record.write({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})


def report_all(found: dict[str, float], label: str, peer: str | None = None, beside: dict | None = None) -> None:
    for metric, value in found.items():
        report(f"{metric}, {label}", value, UNITS.get(metric, "rows/s"), peer, (beside or {}).get(metric))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=60, help="examples of each synthetic task")
    parser.add_argument("--seqio_tasks", type=int, help="tasks of the mixture that SeqIO reads; 0: leave it out")
    parser.add_argument("--store", help="read this store, and nothing else")
    parser.add_argument("--mixture", default="proportion_b", help="of --store")
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, default={}, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](**args.arguments)))
        return
    seconds = 2.0 if args.quick else 10.0
    if args.store:
        for inputs, targets in ((512, 128), (2048, 512)):
            lengths = {"inputs": inputs, "targets": targets}
            found = in_process("read", folder=args.store, seconds=seconds, name=args.mixture, lengths=lengths)
            report_all(found, f"{args.mixture} at {inputs:,}/{targets}")
        return
    with tempfile.TemporaryDirectory() as folder:
        for tasks in (1836, 10):
            # The same total number of examples, so that only the number of tasks differs.
            make_store(pathlib.Path(folder) / str(tasks), tasks, args.rows * 1836 // tasks)
            store = str(pathlib.Path(folder) / str(tasks))
            report_all(in_process("read", folder=store, seconds=seconds), f"{tasks:,} tasks")
            report_all(in_process("loader", folder=store, seconds=seconds), f"{tasks:,} tasks")
        beside = args.seqio_tasks if args.seqio_tasks is not None else (0 if args.quick else 100)
        if beside:
            make_store(pathlib.Path(folder) / "peer", beside, args.rows)
            ours = in_process("read", folder=str(pathlib.Path(folder) / "peer"), seconds=seconds)
            theirs = in_process("seqio", tasks=beside, rows=args.rows, seconds=seconds)
            report_all({k: ours[k] for k in theirs}, f"{beside:,} tasks", "SeqIO", theirs)


if __name__ == "__main__":
    main()
