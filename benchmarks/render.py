"""Rendering of prompts: rows of made-up word problems to texts, and through SeqIO to tokens, zero- and few-shot.

    python benchmarks/render.py            # 6,000 rows
    python benchmarks/render.py --quick    # 1,000

One JSON object per line, on one core, per second and per second of processor time. The rows have the lengths of GSM8K's
(a question of some 45 words, a rationale of some 50); tokens are bytes.
"""

import argparse
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import record

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
WORDS = (
    "apples",
    "boxes",
    "sold",
    "twice",
    "each",
    "day",
    "week",
    "price",
    "left",
    "half",
    "more",
    "than",
    "train",
    "cost",
)


def write_rows(folder: pathlib.Path, count: int) -> None:
    """`cot/gsm8k_train.tsv` with `count` rows."""
    drawn = random.Random(0)

    def say(mean: int) -> str:
        return " ".join(drawn.choices(WORDS, k=drawn.randint(mean // 2, mean * 3 // 2)))

    (folder / "cot").mkdir()
    lines = [f"{say(45)} {i}?\t{drawn.randint(1, 999)}\t{say(50)}.\n" for i in range(count)]
    (folder / "cot" / "gsm8k_train.tsv").write_text("".join(lines))


def measure(name: str, style: str, examples: Callable[[], Iterable[Any]]) -> None:
    """Prints how fast the examples are produced."""
    wall, processor = time.perf_counter(), time.process_time()
    count = sum(1 for _ in examples())
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    line = {
        "benchmark": name,
        "style": style,
        "examples": count,
        "examples_per_s": round(count / wall),
        "examples_per_cpu_s": round(count / processor),
    }
    record.write(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    count = 1000 if parser.parse_args().quick else 6000
    from flanx.data import vocabulary
    from flanx.data.task import render, tables
    from flanx.seqio import tasks

    said = vocabulary.load("byte")
    task = tables.load_tables()["cot_gsm8k"]
    with tempfile.TemporaryDirectory() as folder:
        write_rows(pathlib.Path(folder), count)
        for style in task.styles:
            measure("render", style, lambda s=style: render.render_rows(
                task, s, "train", folder, count=said.count))  # fmt: skip
        for style in task.styles:
            made = tasks.make_task(task, style, said, data_dir=folder)
            measure("render_seqio", style, lambda m=made: m.get_dataset(None, "train", shuffle=False, num_epochs=1))


if __name__ == "__main__":
    main()
