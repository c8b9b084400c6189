"""What a base in fewer bits costs an adapter: scores on the embedded suite after the same finetuning.

A T5 of two layers and width 64 is trained on 16 tasks on words; an adapter of rank 16 on every layer then learns four
others over that base, kept in float32, bfloat16, int8 and NF4, from one start and on the same batches. The score is
the exact match over all validation items of the four tasks, each adapter evaluated as it is merged. One JSON line each.

    python benchmarks/lora_bases.py [--quick] [--steps N] [--base_steps N]
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import record

WORDS = (
    "reverse",
    "drop_first",
    "drop_last",
    "first_two",
    "last_two",
    "ends",
    "swap_ends",
    "to_end",
    "to_front",
    "twice",
)
WORDS += ("double_first", "double_last", "first", "second", "lowest", "upper")
TASKS = [f"suite_text_word_{name}" for name in WORDS]
NEW = [f"suite_text_word_{name}" for name in ("last", "third", "swap_first", "hyphens")]
BASES = ("float32", "bfloat16", "int8", "nf4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three steps of each training")
    parser.add_argument("--steps", type=int, default=200, help="of each adapter")
    parser.add_argument("--base_steps", type=int, default=1000)
    args = parser.parse_args()
    steps, base_steps = (3, 3) if args.quick else (args.steps, args.base_steps)
    import flanx

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        flanx.build_store(folder / "store", [*TASKS, *NEW], vocabulary="byte", workers=0)
        common = {"model": "t5_1_1/tiny", "store_dir": folder / "store", "vocabulary": "byte", "batch_size": 16}
        common |= {"task_feature_lengths": {"inputs": 128, "targets": 64}, "validation": None}
        base = flanx.train(**common, mixture=TASKS, model_dir=folder / "base", train_steps=base_steps,
                           gin_files=["runs/scratch.gin"])  # fmt: skip
        suites, reference = [f"{task}:validation" for task in NEW], None
        report("base", 0.0, score(base, suites), None)
        for name in BASES:
            began = time.perf_counter()
            run = flanx.train(
                **common, mixture=NEW, model_dir=folder / name, train_steps=steps, gin_files=["runs/lora.gin"],
                initial_checkpoint_path=str(base), lora_rank=16, lora_targets=[".*"], lora_base=name,
                learning_rate=3e-3,
            )  # fmt: skip
            seconds, found = time.perf_counter() - began, score(run, suites)
            reference = found if reference is None else reference
            report(name, seconds, found, reference)


def score(run: pathlib.Path, suites: list[str]) -> float:
    """The mean exact match over the suites, in percent."""
    import flanx

    found = flanx.evaluate(run, suites)["suites"]
    return statistics.fmean(entry["score"] for entry in found.values())


def report(base: str, seconds: float, found: float, reference: float | None) -> None:
    """One JSON line."""
    line = {"benchmark": "lora_bases", "metric": "exact_match", "base": base, "value": found, "unit": "percent"}
    line |= {} if reference is None else {"peer": "float32", "peer_value": reference, "difference": found - reference}
    record.write(line | {"seconds": round(seconds, 1)})


if __name__ == "__main__":
    main()
