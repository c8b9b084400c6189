"""Commands without a gin file: flags in place of gin, and the equivalent line of gin.

    flanx infer --checkpoint hf:google/flan-t5-small --prompts p.txt --output out.jsonl

is printed as the command with --gin_file and --gin.NAME=VALUE that does the same, and then run as that command.
"""

import argparse
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flanx import hub
from flanx.errors import UserError
from flanx.launch.job import typed
from flanx.settings import RANGES, flag, path_flag, text_flag
from flanx.storage import BUCKETS, open_storage


class Flag(NamedTuple):
    """A flag and the macro that it binds."""

    macro: str
    meaning: str
    kind: Callable[[str], Any] = str
    several: bool = False


def _number(name: str, kind: type[int] | type[float] = int) -> Callable[[str], Any]:
    return flag(kind, RANGES[name])


CHECKPOINT = Flag(
    "CHECKPOINT_PATH", "a name of the hub (hf:ORG/NAME@REVISION), a run, or what convert reads", path_flag
)
OF_MODEL = {
    "vocabulary": Flag("VOCABULARY", "'byte' or a SentencePiece model; else the checkpoint's own", path_flag),
    "dtype": Flag("ACTIVATION_DTYPE", "of activations: float32 (default) or bfloat16"),
    "partitions": Flag("NUM_PARTITIONS", "devices that share each parameter", _number("num_partitions")),
}
FLAGS: Mapping[str, Mapping[str, Flag]] = {
    "infer": {
        "checkpoint": CHECKPOINT,
        "prompts": Flag("PROMPTS", "a prompt on each line, or JSONL, CSV, TSV with `inputs`", path_flag),
        "output": Flag("INFER_OUTPUT_FILE", "the file of answers, .jsonl; or a folder for it", path_flag),
        **OF_MODEL,
        "batch_size": Flag("BATCH_SIZE", "prompts decoded together", _number("batch_size")),
        "samples": Flag("SAMPLES", "answers to each prompt", _number("samples")),
        "temperature": Flag("TEMPERATURE", "0: greedy", _number("temperature", float)),
        "top_k": Flag("TOP_K", "0: the whole vocabulary", _number("top_k")),
        "top_p": Flag("TOP_P", "1.0: the whole vocabulary", _number("top_p", float)),
        "seed": Flag("SEED", "of what is drawn", _number("seed")),
        "engine": Flag("ENGINE", "flanx (default), or ctranslate2: greedy, T5 only, on a CPU"),
        "compute_type": Flag("COMPUTE_TYPE", "of ctranslate2: float32 (default) or int8"),
    },
    "evaluate": {
        "checkpoint": CHECKPOINT,
        "suites": Flag("SUITES", "names of suites, as `flanx suites list` prints them", several=True),
        "output": Flag("OUTPUT_DIR", "folder of the scores; else out/NAME/scores", path_flag),
        **OF_MODEL,
        "data_dir": Flag("DATA_DIR", "folder of the benchmark data, or sample, hub, tfds", path_flag),
        "batch_size": Flag("EVAL_BATCH_SIZE", "prompts decoded together", _number("batch_size")),
        "self_consistency": Flag("SELF_CONSISTENCY", "samples put to the vote", _number("self_consistency")),
        "beams": Flag("BEAMS", "of a beam search", _number("beams")),
        "scorer": Flag(
            "SCORER", "of toxicity: perspective, hf:ORG/NAME, a classifier's folder, a file of scores", text_flag
        ),
    },
}
# flags that can be combined with gin files and add a binding
WITH_GIN: Mapping[str, Mapping[str, Flag]] = {
    "train": {"profile": Flag("train.profile", "first and last step of a trace for xprof, as 10:13, in MODEL_DIR")}
}
FILES = {"infer": ["runs/infer.gin"], "evaluate": ["runs/evaluate.gin", "evals/base.gin"]}
NEEDED = {"infer": ("prompts", "output"), "evaluate": ("suites",)}


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """A command's flags to combine with gin files, and those that can replace the files."""
    for name, each in WITH_GIN.get(command, {}).items():
        parser.add_argument(f"--{name}", type=each.kind, help=each.meaning, metavar=name.upper())
    if command not in FLAGS:
        return
    group = parser.add_argument_group(
        "without a gin file", "sizes, vocabulary and lengths come from the checkpoint; the gin that it is, is printed"
    )
    for name, each in FLAGS[command].items():
        more: dict[str, Any] = {"nargs": "+", "action": "extend"} if each.several else {}
        group.add_argument(f"--{name}", type=each.kind, help=each.meaning, metavar=name.upper(), **more)


def expand(command: str, args: argparse.Namespace) -> None:
    """Adds the gin files and bindings that the flags mean to `args`, and prints the equivalent command.

    Raises UserError for a missing flag, and if the checkpoint has no vocabulary and none is given.
    """
    for name, each in WITH_GIN.get(command, {}).items():
        if (bound_to := getattr(args, name)) is not None:
            args.bindings = [*args.bindings, f"{each.macro}={bound_to!r}"]
    given = {name: value for name in FLAGS.get(command, {}) if (value := getattr(args, name)) is not None}
    if not given:
        return
    if missing := [name for name in ("checkpoint", *NEEDED[command]) if name not in given]:
        flags = ", ".join(f"--{name}" for name in missing)
        raise UserError(f"{flags} is missing: add it, or leave out --{next(iter(given))} and give a --gin_file")
    bound = of_checkpoint(given.pop("checkpoint"), given.pop("vocabulary", None))
    output = given.pop("output", None)
    if command == "infer":
        is_file = output.endswith((".jsonl", ".json"))
        if is_file and output.startswith(BUCKETS):
            raise UserError(f"--output={output}: in a bucket give a folder; its predictions.jsonl has the answers")
        bound |= {"INFER_OUTPUT_FILE": output} if is_file else {}
        bound["INFER_OUTPUT_DIR"] = f"{output}.flanx" if is_file else output
    else:
        bound["OUTPUT_DIR"] = scores_of(bound["CHECKPOINT_PATH"], output)
    bound |= {FLAGS[command][name].macro: value for name, value in given.items()}
    args.gin_file = [*FILES[command], *args.gin_file]
    args.bindings = [*(f"{name}={value!r}" for name, value in bound.items()), *args.bindings]
    print(f"this is: {typed([command, *arguments(args.gin_file, args.bindings)])}", flush=True)


def of_checkpoint(checkpoint: str, vocabulary: str | None) -> dict[str, Any]:
    """Macros derived from a checkpoint: {macro: value}. Raises UserError if it has no vocabulary and none is given."""
    from flanx.convert.architecture import lengths  # noqa: PLC0415  (jax, which `flanx --help` does not need)
    from flanx.convert.formats import detect  # noqa: PLC0415
    from flanx.data import vocabulary as vocabularies  # noqa: PLC0415

    if hub.is_name(checkpoint) and not checkpoint.startswith(hub.PREFIX):
        checkpoint = hub.PREFIX + checkpoint
    if not checkpoint.startswith(hub.PREFIX) and not open_storage(checkpoint).children():
        raise UserError(f"checkpoint {checkpoint}: no such folder, or nothing in it; a name of the hub is hf:ORG/NAME")
    if not checkpoint.startswith(hub.PREFIX):
        detect(open_storage(checkpoint))
    if vocabulary is None and vocabularies.named_in(checkpoint) is None:
        raise UserError(f"{checkpoint} has no vocabulary that flanx reads: add --vocabulary byte, or a model's path")
    bound: dict[str, Any] = {"MODEL": checkpoint, "CHECKPOINT_PATH": checkpoint}
    bound["VOCABULARY"] = vocabulary or checkpoint
    of_run = lengths(checkpoint)
    return bound | ({"TASK_FEATURE_LENGTHS": dict(of_run)} if of_run else {})


def short_name(checkpoint: str) -> str:
    """A folder name: "flan-t5-small" for "hf:google/flan-t5-small@v1", "mine" for "out/mine/run"."""
    path = pathlib.PurePosixPath(checkpoint.partition("@")[0])
    name = path.parent.name if path.name == "run" else path.name  # the name `flanx finetune` gives to all of its runs
    return re.sub(r"[^\w.-]", "", name or path.name) or "checkpoint"


def scores_of(checkpoint: str, output: str | None) -> str:
    """The folder for a checkpoint's scores, `output` or out/NAME/scores. Raises UserError if it has another
    checkpoint's scores."""
    from flanx.evals import scores  # noqa: PLC0415  (numpy)

    folder = output or f"out/{short_name(checkpoint)}/scores"
    path = pathlib.Path(folder, "scores.json")  # in a bucket another checkpoint's files are set aside, see `evaluate`
    kept = None if folder.startswith(BUCKETS) else scores.read_scores(path).get("run", {}).get("checkpoint")
    if kept and os.path.abspath(kept) != os.path.abspath(checkpoint):
        raise UserError(
            f"{folder} has the scores of {kept}: give those of {checkpoint} a folder of their own, --output"
        )
    return folder


def arguments(files: Sequence[str], bindings: Sequence[str]) -> list[str]:
    """Gin files and bindings as command-line arguments."""
    return [*(f"--gin_file={name}" for name in files), *(f"--gin.{binding}" for binding in bindings)]
