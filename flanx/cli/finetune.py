"""`flanx finetune`: a checkpoint and a file of questions and answers -> a model, without a gin file.

Four commands in order, each printed as it would be typed: tasks add, store build, train, and what to ask it then.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shlex
from typing import Any

from flanx import files
from flanx.cli import main, short_form
from flanx.data.importers import user_file
from flanx.errors import UserError
from flanx.launch.job import typed
from flanx.settings import COUNT, RANGES, Range, flag, path_flag, text_flag

LENGTHS = {"inputs": 512, "targets": 128}
SHARE = Range(0, 1, open_low=True, open_high=True)
ASKED = "finetune.json"  # in the folder: what the task was made from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("--checkpoint", type=path_flag, required=True, help=short_form.CHECKPOINT.meaning)
    parser.add_argument("--data", type=path_flag, required=True, help="JSONL, JSON, TSV or CSV with a header")
    parser.add_argument("--inputs", type=text_flag, required=True, help="the column that the model reads")
    parser.add_argument("--targets", type=text_flag, required=True, help="the column that it shall write")
    parser.add_argument("--output", type=path_flag, help="folder of task, store and run; else out/NAME-DATA")
    parser.add_argument("--vocabulary", type=path_flag, help=short_form.OF_MODEL["vocabulary"].meaning)
    parser.add_argument("--validation_share", type=flag(float, SHARE), metavar="SHARE", help="rows to validate on: 0.1")
    parser.add_argument("--steps", type=flag(int, COUNT), default=500, help="of training (500)")
    parser.add_argument(
        "--batch_size", type=flag(int, RANGES["batch_size"]), default=8, help="packed rows of a step (8)"
    )
    parser.add_argument(
        "--learning_rate", type=flag(float, RANGES["learning_rate"]), help="constant (5e-4; 1e-3 of --lora)"
    )
    parser.add_argument(
        "--lora", type=flag(int, COUNT), metavar="RANK", help="train adapters of this rank, the checkpoint frozen"
    )
    for name, value in LENGTHS.items():
        parser.add_argument(
            f"--{name}_length", type=flag(int, RANGES["lengths"]), default=value, help=f"tokens of a row ({value})"
        )
    parser.add_argument("--dtype", help=short_form.OF_MODEL["dtype"].meaning)
    parser.add_argument("--partitions", type=flag(int, COUNT), help=short_form.OF_MODEL["partitions"].meaning)
    parser.add_argument(
        "--gin_file", action="append", type=path_flag, default=[], metavar="FILE", help="of the training; repeatable"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the commands; returns the status of the first that fails."""
    from flanx import config  # noqa: PLC0415  (imports gin, which `flanx --help` does not need)
    from flanx.data import vocabulary as vocabularies  # noqa: PLC0415

    bound = short_form.of_checkpoint(args.checkpoint, args.vocabulary)
    checkpoint = bound.pop("CHECKPOINT_PATH")
    data = files.local_path(args.data)
    stem = pathlib.PurePath(data).name.removesuffix(".gz").rpartition(".")[0]
    task = f"{user_file.COLLECTION}_{user_file.clean(stem)}"
    folder = args.output or f"out/{short_form.short_name(checkpoint)}-{user_file.clean(stem)}"
    made, tables = _of_same_data(pathlib.Path(folder), data, args), f"{folder}/task"
    of_store = {"STORE_DIR": f"{folder}/store", "VOCABULARY": bound["VOCABULARY"], "MIXTURE_OR_TASK_NAME": task}
    of_run = of_store | {"MODEL": bound["MODEL"], "INITIAL_CHECKPOINT_PATH": checkpoint, "MODEL_DIR": f"{folder}/run"}
    of_run["TASK_FEATURE_LENGTHS"] = {name: getattr(args, f"{name}_length") for name in LENGTHS}
    of_run |= {"TRAIN_STEPS": _train_steps(checkpoint, args.steps), "BATCH_SIZE": args.batch_size}
    more = (
        ("LEARNING_RATE", args.learning_rate),
        ("ACTIVATION_DTYPE", args.dtype),
        ("NUM_PARTITIONS", args.partitions),
        ("LORA_RANK", args.lora),
    )
    of_run |= {name: value for name, value in more if value is not None}
    gin_files = ["runs/train.gin", *(["runs/lora.gin"] if args.lora else []), *args.gin_file]
    config.parse(gin_files, _bindings(of_run) + args.bindings)  # rejects what training would, before creating a task
    config.value("MODEL")
    vocabularies.load(bound["VOCABULARY"])
    add = ["tasks", "add", str(data), f"--inputs={args.inputs}", f"--targets={args.targets}", f"--output={tables}"]
    add += [f"--validation_share={args.validation_share}"] if args.validation_share else []
    if not made and (status := _run(add)):
        return status
    files.write_atomic(pathlib.Path(folder, ASKED), json.dumps(_asked(data, args), indent=1) + "\n")
    known = os.environ.get("FLANX_TABLES", "")
    os.environ["FLANX_TABLES"] = os.pathsep.join(filter(None, (known, str(pathlib.Path(tables).absolute()))))
    export = f"export FLANX_TABLES={shlex.quote(os.environ['FLANX_TABLES'])}"
    print(export)
    if status := _call("store build", ["runs/store.gin"], of_store | {"STYLES": ["zsopt"]}, args.bindings):
        return status
    if status := _call("train", gin_files, of_run, args.bindings):
        return status
    run, converted, scores = (shlex.quote(f"{folder}/{name}") for name in ("run", "hf", "scores"))
    print(f"so that other commands know its task: {export}")
    if args.validation_share:
        print(f"score it: flanx evaluate --checkpoint {run} --suites {task}:validation --output {scores}")
    print(f"talk with it: flanx ask {run}")
    print(f"ask it: flanx infer --checkpoint {run} --prompts PROMPTS.txt --output answers.jsonl")
    print(f"give it away: flanx convert {run} {converted} --to hf, then flanx push {converted} hf:ORG/NAME")
    return 0


def _asked(data: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """What identifies the task."""
    with files.open_regular(data) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return {"data": str(data.absolute()), "inputs": args.inputs, "targets": args.targets,
            "validation_share": args.validation_share, "sha256": digest}  # fmt: skip


def _of_same_data(folder: pathlib.Path, data: pathlib.Path, args: argparse.Namespace) -> bool:
    """Whether the folder already has the task. Raises UserError if it has one for other data."""
    recorded = files.read_json(folder / ASKED)
    asked = _asked(data, args)
    optional = {"sha256"}  # an earlier version did not record it
    changed = [n for n in asked if recorded.get(n) != asked[n] and (n in recorded or n not in optional)]
    if recorded and changed:
        name = changed[0]
        raise UserError(
            f"{folder} was made with {name} {recorded.get(name)!r}, now it is {asked[name]!r}: give another --output, "
            "or the same data"
        )
    return bool(recorded)


def _train_steps(checkpoint: str, steps: int) -> int:
    """TRAIN_STEPS for `steps` steps of finetuning: a value above the parent's steps includes those."""
    from flanx import convert  # noqa: PLC0415  (jax)

    parents = convert.open_checkpoint(checkpoint, optimizer=False).step
    return steps if steps <= parents else parents + steps


def _call(command: str, gin_files: list[str], bound: dict[str, Any], extra: list[str]) -> int:
    """Runs a command with gin files and bindings."""
    bindings = _bindings(bound)
    bindings += extra if command == "train" else []
    return _run([*command.split(), *short_form.arguments(gin_files, bindings)])


def _bindings(bound: dict[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in bound.items()]


def _run(words: list[str]) -> int:
    print(typed(words), flush=True)
    return main.main(words)
