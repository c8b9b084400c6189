"""Builds of a store, start of the processes included: by layout of the files, vocabulary and number of workers.

    python benchmarks/build.py --data_dir path/to/data    # the real chain-of-thought sets
    python benchmarks/build.py                             # without data: rows that are made up here
    python benchmarks/build.py --quick                     # fewer of them, bytes, one worker

One JSON object per line: examples per second, and per second of processor time of all processes. Rows in the layouts of
NIV2 (a file a task) and P3 (a Parquet file a prompt-task) are always made up, of some 60 words each. SentencePiece has
16,000 pieces, trained on the chain-of-thought sets.
"""

import argparse
import glob
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import tempfile

import record

PIECES = 16_000
TASKS = {"niv2": 20, "p3": 4}  # how many are synthesized
COT = ("aqua", "creak", "ecqa", "gsm8k", "qasc", "sensemaking", "strategyqa")


def write_rows(folder: pathlib.Path, rows: int, cot: bool) -> dict[str, list[str]]:
    """Writes files of `rows` rows in each layout; returns their tasks. `cot`: also the chain-of-thought sets."""
    import pyarrow as pa
    import pyarrow.parquet

    from flanx.data.task import tables

    drawn = random.Random(0)
    syllables = [a + b for a in "bcdfglmnprstvw" for b in ("a", "e", "i", "o", "u", "ay", "er", "on")]
    known = ["".join(drawn.choices(syllables, k=drawn.randint(1, 4))) for _ in range(6000)]

    def say(mean: int) -> str:
        count = drawn.randint(mean // 2, mean * 3 // 2)
        return " ".join(known[int(len(known) * drawn.random() ** 3)] for _ in range(count))

    sets = tables.load_tables().values()
    names = {kind: [s for s in sets if s.source.startswith(f"{kind}:")][:count] for kind, count in TASKS.items()}
    for task in names["niv2"]:
        file = folder / "natural_instructions" / "tasks" / f"{task.source[5:]}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        examples = [{"input": say(60), "output": say(4), "explanation": say(12)} for _ in range(2)]
        instances = [{"id": f"{i}", "input": say(60), "output": [say(4)]} for i in range(rows // TASKS["niv2"])]
        content = {"Definition": [say(60)], "Positive Examples": examples, "Instances": instances}
        file.write_text(json.dumps(content))
    for task in names["p3"]:
        (folder / "p3" / task.source[3:]).mkdir(parents=True)
        records = [{"inputs_pretokenized": say(60), "targets_pretokenized": say(4)} for _ in range(rows // TASKS["p3"])]
        for split in task.splits.values():
            kept = pa.Table.from_pylist(records if split == "train" else records[:10])
            pyarrow.parquet.write_table(kept, folder / "p3" / task.source[3:] / f"{split}-00000-of-00001.parquet")
    for name in COT if cot else ():
        (folder / "cot").mkdir(exist_ok=True)
        lines = [f"{say(45)}?\t{drawn.randint(1, 999)}\t{say(50)}.\n" for _ in range(rows // len(COT))]
        (folder / "cot" / f"{name}_train.tsv").write_text("".join(lines))
    found = {kind: [task.name for task in tasks] for kind, tasks in names.items()}
    return {"cot": [f"cot_{name}" for name in COT], **found}


def train_pieces(files: list[str], pieces: int, to: pathlib.Path) -> str:
    """The path of a SentencePiece model with T5's ids."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=",".join(files), model_prefix=str(to), vocab_size=pieces, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    return f"{to}.model"


def measure_build(data_dir: str, tasks: list[str], vocabulary: str, workers: int) -> dict[str, float]:
    from flanx.data.store import build

    with tempfile.TemporaryDirectory() as folder:
        report = build.build_store(f"{folder}/store", tasks, vocabulary, data_dir=data_dir, workers=workers, quiet=True)
    if report.status or not report.examples:
        raise SystemExit(f"failed: {report.failed or report.missing}")
    return {"examples": report.examples, "seconds": report.seconds}


def measure(*arguments: object) -> dict[str, float]:
    """Runs `measure_build` in a separate process; processor time is that of all its processes, including start-up."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--arguments", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments}: failed\n{done.stderr[-2000:]}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return {"processor": processor} | json.loads(done.stdout.splitlines()[-1])


def report(metric: str, found: dict[str, float]) -> None:
    rate, per_cpu = (found["examples"] / found[key] for key in ("seconds", "processor"))
    record.write({"benchmark": "build", "metric": metric, "value": round(rate), "unit": "examples/s",
                  "examples": found["examples"], "per_processor_s": round(per_cpu)})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data_dir", default=os.environ.get("FLANX_DATA_DIR"), help="a folder with cot/")
    parser.add_argument("--layouts", default="cot,niv2,p3")
    parser.add_argument("--vocabularies", default="byte,sentencepiece")
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arguments:
        print(json.dumps(measure_build(*args.arguments)))
        return
    own = None if args.quick or not args.data_dir or not glob.glob(f"{args.data_dir}/cot/*.tsv") else args.data_dir
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tasks = write_rows(folder, 2000 if args.quick else 20_000, cot=own is None)
        cot = own or name
        model = ""
        if "sentencepiece" in args.vocabularies and not args.quick:
            model = train_pieces(sorted(glob.glob(f"{cot}/cot/*.tsv")), PIECES, folder / "pieces")
        vocabularies = {"bytes": "byte"} if "byte" in args.vocabularies else {}
        vocabularies |= {f"SentencePiece, {PIECES:,} pieces": model} if model else {}
        for said, vocabulary in vocabularies.items():
            for layout in args.layouts.split(","):
                data = cot if layout == "cot" else name
                for workers in (1,) if args.quick else (1, 2):
                    found = measure(data, tasks[layout], vocabulary, workers)
                    report(f"{layout}, {said}, {workers} worker{'s' * (workers > 1)}", found)


if __name__ == "__main__":
    main()
