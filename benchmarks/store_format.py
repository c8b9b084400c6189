"""The store's files beside ArrayRecord and Arrow: opening, lengths, whole examples at random, bytes on disk.

    python benchmarks/store_format.py            # half a minute; needs array_record and pyarrow
    python benchmarks/store_format.py --quick

One JSON object per line. The same synthetic examples (benchmarks/mixture.py) in every format; each is measured in a
process of its own.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import record
from mixture import make_store


def measure(kind: str, folder: str, started: float) -> dict[str, float]:
    """One format's file of the same examples, in a fresh process: opening, and reading at random places.

    "lengths": those of 131,072 examples, which packing needs before it reads a token. "examples": whole ones, one at a
    time in random order, as numpy arrays of inputs and targets.
    """
    read_lengths, read_example, size, count = FORMATS[kind](pathlib.Path(folder))
    read_example(0)
    found = {"open to first example": time.time() - started, "bytes of an example on disk": size / count}
    places = np.random.default_rng(0).integers(0, count, 1 << 17)
    at = time.perf_counter()
    assert read_lengths(places).shape == (1 << 17, 2)
    found["lengths of 131,072 examples"] = time.perf_counter() - at
    at, places = time.perf_counter(), places[:20_000].tolist()
    for place in places:
        read_example(place)
    return found | {"examples per second at random": len(places) / (time.perf_counter() - at)}


def open_store_file(folder: pathlib.Path) -> tuple:
    from flanx.data import store

    volume = store.open_store(folder / "store").volume(0)
    lengths = np.stack([volume.index["inputs"], volume.index["targets"]], axis=1)

    def example(place: int) -> list[np.ndarray]:
        offset, inputs, targets = volume.index[place].tolist()
        return np.split(volume.tokens[offset : offset + inputs + targets], [inputs])

    return lambda places: lengths[places], example, size_of(folder / "store", "*.npy"), len(volume.index)


def open_array_record(folder: pathlib.Path) -> tuple:
    """A record holds the two lengths and the tokens; a reader must fetch a record to know its lengths."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(folder / "examples.array_record"), options="readahead_buffer_size:0")

    def example(place: int) -> list[np.ndarray]:
        values = np.frombuffer(reader.read([place])[0], np.uint16)
        return np.split(values[2:], values[:1].astype(int))

    def lengths(places: np.ndarray) -> np.ndarray:
        return np.array([np.frombuffer(record[:4], np.uint16) for record in reader.read(places.tolist())])

    return lengths, example, size_of(folder, "*.array_record"), reader.num_records()


def open_arrow(folder: pathlib.Path) -> tuple:
    """A memory-mapped IPC file with two list columns."""
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(folder / "examples.arrow"))).read_all()
    columns = [table.column(name).chunk(0) for name in ("inputs", "targets")]
    ends = [column.offsets.to_numpy() for column in columns]
    tokens = [column.values.to_numpy() for column in columns]

    def example(place: int) -> list[np.ndarray]:
        return [t[e[place] : e[place + 1]] for t, e in zip(tokens, ends, strict=True)]

    def lengths(places: np.ndarray) -> np.ndarray:
        return np.stack([e[places + 1] - e[places] for e in ends], axis=1)

    return lengths, example, size_of(folder, "*.arrow"), len(table)


def size_of(folder: pathlib.Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))


FORMATS = {"flanx store": open_store_file, "ArrayRecord": open_array_record, "Arrow": open_arrow}


def compare(folder: pathlib.Path, tasks: int, rows: int) -> None:
    """Writes the same examples in every format and measures each in a separate process."""
    import pyarrow as pa
    from array_record.python.array_record_module import ArrayRecordWriter

    make_store(folder / "store", tasks, rows, collections=("cot",))
    from flanx.data import store

    opened = store.open_store(folder / "store")
    pairs = [opened.example(part, i) for task in opened.tasks.values() for r in task.parts.values() for part in r
             for i in range(part.examples)]  # fmt: skip
    pairs = [[side.astype(np.uint16) for side in pair] for pair in pairs]
    writer = ArrayRecordWriter(str(folder / "examples.array_record"), "group_size:1")  # as Grain requires
    for inputs, targets in pairs:
        head = np.array([len(inputs), len(targets)], np.uint16)
        writer.write(np.concatenate([head, inputs, targets]).tobytes())
    writer.close()
    kind = pa.list_(pa.uint16())
    table = pa.table({n: pa.array([p[i] for p in pairs], kind) for i, n in enumerate(("inputs", "targets"))})
    with pa.ipc.new_file(str(folder / "examples.arrow"), table.schema) as sink:
        sink.write_table(table, max_chunksize=len(table))
    ours, *others = (in_process(kind, folder) for kind in FORMATS)
    for peer, theirs in zip(list(FORMATS)[1:], others, strict=True):
        for metric, value in ours.items():
            line = {"benchmark": "store_format", "metric": f"{metric}, {len(pairs):,} examples", "value": value,
                    "unit": UNITS[metric], "peer": peer, "peer_value": theirs[metric],
                    "ratio": value / theirs[metric]}  # fmt: skip
            record.write({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()})


UNITS = {
    "open to first example": "s",
    "lengths of 131,072 examples": "s",
    "bytes of an example on disk": "bytes",
    "examples per second at random": "examples/s",
}


def in_process(kind: str, folder: pathlib.Path) -> dict[str, float]:
    """Measures one format in a fresh process."""
    command = [sys.executable, __file__, f"--measure={kind}", f"--folder={folder}", f"--started={time.time()}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        raise SystemExit(f"{kind}: failed")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=60, help="examples of each of the synthetic tasks")
    parser.add_argument("--measure", choices=sorted(FORMATS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.folder, args.started)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(pathlib.Path(folder), 184 if args.quick else 1836, args.rows)


if __name__ == "__main__":
    main()
