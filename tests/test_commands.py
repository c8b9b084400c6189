"""Wrong command lines, damaged files, hostile answers: each ends in status 2 and one to five lines, or makes sense."""

import json
import pathlib
import random
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from flanx.cli import main
from tests import command_case
from tests.command_case import evaluate, infer, train

WRONG = ("None", "5", "-1", "1.5", "[]", "{}", "'a'", "True", "1e400", "''", "(", r"'a\x00b'", "'~nosuchuser/x'", "5,")
COUNTS = ("BATCH_SIZE", "CHECKPOINT_PERIOD", "NUM_MICROBATCHES", "NUM_PARTITIONS", "SEED", "TRAIN_STEPS")
FITS = {  # values that are no mistake
    **{name: ("5",) for name in COUNTS},
    **{name: ("'a'",) for name in ("INFER_OUTPUT_DIR", "MODEL_DIR", "OUTPUT_DIR", "STORE_DIR")},
    "ALLOW_MISSING": ("[]",),
    "BEAMS": ("5",),
    "COT_RATIO": ("None",),
    "DATA_DIR": ("None", "''"),
    "DROPOUT_RATE": (),
    "EVAL_BATCH_SIZE": ("5",),
    "EVAL_PERIOD": ("None", "5"),
    "INITIAL_CHECKPOINT_PATH": ("None",),
    "LEARNING_RATE": ("5", "1.5"),
    "LOSS_NORMALIZING_FACTOR": ("None", "5", "1.5"),
    "MAX_BAD_ROWS": ("5",),
    "NUM_TASKS": ("None",),
    "RENDERINGS": ("5",),
    "SAMPLES": ("5",),
    "SELF_CONSISTENCY": ("5",),
    "STYLES": ("None",),
    "TEMPERATURE": ("5", "1.5"),
    "TOP_K": ("5",),
    "TOP_P": (),
    "WORKERS": ("None", "5"),
}
MACROS = {
    "train": (*COUNTS, "COT_RATIO", "DROPOUT_RATE", "EVAL_PERIOD", "INITIAL_CHECKPOINT_PATH", "LEARNING_RATE",
              "LOSS_NORMALIZING_FACTOR", "MIXTURE_OR_TASK_NAME", "MODEL_DIR", "NUM_TASKS", "STORE_DIR",
              "TASK_FEATURE_LENGTHS", "VOCABULARY"),
    "evaluate": ("ALLOW_MISSING", "BEAMS", "CHECKPOINT_PATH", "DATA_DIR", "EVAL_BATCH_SIZE", "NUM_PARTITIONS",
                 "OUTPUT_DIR", "SELF_CONSISTENCY", "SUITES", "TASK_FEATURE_LENGTHS", "VOCABULARY"),
    "infer": ("BATCH_SIZE", "CHECKPOINT_PATH", "INFER_OUTPUT_DIR", "PROMPTS", "SAMPLES", "SEED", "TEMPERATURE", "TOP_K",
              "TOP_P", "VOCABULARY"),
    "store": ("DATA_DIR", "MAX_BAD_ROWS", "MIXTURE_OR_TASK_NAME", "RENDERINGS", "STORE_DIR", "STYLES", "VOCABULARY",
              "WORKERS"),
}  # fmt: skip
NUMBERS = ("nan", "-1", "a", "1e400", "", "1.5.2", "inf")
PATHS = ("", "~nosuchuser/x", "nosuch", "{BASE}/fifo", "{BASE}/bin.gin", "a\0b", "gs:x")
FLAGS = {  # command line -> its flags that take a number, and those that take something that is there
    "tasks show suite_text_word_reverse": (("--n", "--skip", "--rendering", "--shots"), ("--vocabulary",)),
    "tasks plan cot": (("--rate",), ()),
    "tasks fetch cot_gsm8k": (("--jobs",), ()),
    "tasks audit suite_text": (("--limit",), ("--store",)),
    "doctor": (("--devices",), ("--vocabulary", "--store_dir", "--data_dir")),
    "plan --gin_file=models/t5_1_1/small.gin --estimate": (("--compilations", "--timeout", "--rows"), ()),
    "sweep --gin_file=sweeps/demo.gin --dry_run": (("--jobs", "--retries", "--retry_wait"), ()),
    "store show {BASE}/store": (("--lengths",), ()),
    "train --gin_file=runs/train.gin": (("--num_processes", "--process_id", "--cluster_timeout"), ("--gin_file",)),
    "evaluate": ((), ("--gin_file",)),
    "infer": ((), ("--gin_file",)),
    "explain": ((), ("--gin_file",)),
    "store mix {BASE}/store": ((), ("--gin_file",)),
    "convert {BASE}/run o --to=hf": ((), ("--vocabulary",)),
}
ARGUMENTS = (
    *("convert {} o", "store show {}", "store verify {}", "rescore {}", "report {}", "tasks import-flan {} --output=o"),
    *("tasks import-export {} --output=o", "tasks add {} --inputs=inputs --targets=targets --output=o"),
)


def wrong_commands(base: pathlib.Path) -> Iterator[list[str]]:
    """Command lines with one mistake each: values, unknown macros, flags, absent and odd files."""
    bound = ("STORE_DIR='st'", "VOCABULARY='byte'", "MIXTURE_OR_TASK_NAME='suite_text_word_reverse'")
    build = ["store", "build", "--quiet", *(f"--gin.{each}" for each in bound)]
    lines = {"train": train(base), "evaluate": evaluate(base), "infer": infer(base), "store": build}
    for command, names in MACROS.items():
        for name in names:
            yield from (
                [*lines[command], f"--gin.{name}={value}"] for value in WRONG if value not in FITS.get(name, ())
            )
            yield [*lines[command], f"--gin.{name}X=1"]
    for line, (numbers, paths) in FLAGS.items():
        words = line.replace("{BASE}", str(base)).split()
        yield from ([*words, f"{flag}={value}"] for flag in numbers for value in NUMBERS)
        yield from ([*words, f"{flag}={value}".replace("{BASE}", str(base))] for flag in paths for value in PATHS)
    for line in ARGUMENTS:
        yield from (
            [value.replace("{BASE}", str(base)) if word == "{}" else word for word in line.split()] for value in PATHS
        )
    for command in main.COMMANDS:
        yield from ([command, "nosuch"], [command, "--nosuch"], [command, "--gin_file=nosuch.gin"], [command, "\n"])
    for file in ("bin.gin", "dir.gin", "self.gin", "deep.gin", "notutf.gin", "import.gin", "t5x.gin", "syn.gin"):
        for command in ("train", "evaluate", "infer", "sweep", "explain", "plan", "report"):
            path = f"{base}/{file}"
            yield [command, path if command == "report" else f"--gin_file={path}"]


def cases(commands: Sequence[Sequence[str]], folder: pathlib.Path) -> list[dict[str, Any]]:
    """Each command as a case in an empty folder of its own, which a refused one leaves empty."""
    found = []
    for number, argv in enumerate(commands):
        own = folder / str(number)
        own.mkdir()
        found.append({"id": str(number), "argv": list(argv), "folder": str(own), "wrong": True})
    return found


def show(results: Sequence[dict[str, Any]], what: str) -> list[str]:
    """Prints how many came out right; a line for each that did not."""
    found = [f"{r['mistake']}: {' '.join(r['argv'])}: {r['err'][-300:]}" for r in results if r["mistake"]]
    print(f"{len(results) - len(found)} of {len(results)} {what} right")
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("commands") / "base"
    command_case.make_base(folder)
    return folder


def test_a_sample_of_wrong_commands(tmp_path):
    """Those that need neither a store nor a run."""
    base = tmp_path / "base"
    command_case.make_odd_files(base)
    every = list(wrong_commands(base))
    random.Random(0).shuffle(every)
    for case in cases(every[:60], tmp_path):
        result = command_case.run(case["argv"], pathlib.Path(case["folder"]))
        assert result.status == 2 and not result.mistake(), (case["argv"], result)
        assert not any(pathlib.Path(case["folder"]).iterdir()), case["argv"]


@pytest.mark.slow
def test_hundreds_of_wrong_commands(base, tmp_path):
    before = command_case.listing(base)
    every = list(wrong_commands(base))
    assert len(every) >= 500
    found = show(command_case.run_all(cases(every, tmp_path), tmp_path), "wrong command lines")
    assert command_case.listing(base) == before
    assert len(found) <= len(every) / 100, "\n".join(found)


@pytest.mark.slow
def test_the_command_lines_of_others(cases_dir, base, tmp_path):
    """commands.jsonl: lines that were tried by hand; those of a value that makes sense may succeed."""
    for name in ("st_unread", "st_unread2"):
        shutil.copytree(base / "store", base / name)
    for name in ("run", "ev"):
        shutil.copytree(base / name, base / "priv" / name)
    lines = [json.loads(line) for line in (cases_dir / "commands.jsonl").read_text().splitlines()]
    every = cases([[word.replace("{BASE}", str(base)) for word in line["argv"]] for line in lines], tmp_path)
    results = command_case.run_all([{**case, "wrong": False} for case in every], tmp_path)
    found = show(results, "command lines of commands.jsonl")
    assert len(found) <= len(every) / 100, "\n".join(found)
