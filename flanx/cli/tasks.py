"""`flanx tasks`: list, show, plan, fetch, import-export, import-flan, audit, add."""

import argparse
import ast
import collections
import dataclasses
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from flanx.data.task import licence, select, spec, tables
from flanx.errors import UserError
from flanx.settings import COUNT, NATURAL, POSITIVE, Range, flag, path_flag, text_flag

if TYPE_CHECKING:
    from flanx.data.vocabulary import Vocabulary

# subcommand -> (module and function that run it, summary)
COMMANDS = {
    "list": ("flanx.cli.tasks:list_tasks", "counts of every collection; with a pattern, the tasks themselves"),
    "show": ("flanx.cli.tasks:show", "what the model sees of a task, with token counts and truncation"),
    "plan": ("flanx.data.fetch.downloads:plan", "what a mixture needs: from where, how large, what wants a form"),
    "fetch": ("flanx.data.fetch.fetch:fetch", "download and prepare what a mixture needs; resumable, parallel"),
    "import-export": (
        "flanx.data.importers.flan_export:import_export",
        "make tasks of a pre-rendered export (JSONL, gzip, Parquet)",
    ),
    "import-flan": (
        "flanx.data.importers.flan:import_flan",
        "tables from the templates in your own clone of the FLAN repository",
    ),
    "audit": ("flanx.data.contamination:audit", "overlap of training tasks with every held-out set"),
    "add": ("flanx.data.importers.user_file:add", "make a task of your own JSONL, TSV or CSV file"),
}
LENGTHS = (2048, 512)  # of inputs and targets in the paper's runs (paper.md 1.8)
PART = Range(0, 1, open_low=True, open_high=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands and their flags; `--gin.DATA_DIR` and `--data_dir` are equivalent."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=COMMANDS[name][1], description=COMMANDS[name][1])
        made.add_argument(
            "--data_dir", type=path_flag, help="folder of file sources (else --gin.DATA_DIR, else FLANX_DATA_DIR)"
        )
        return made

    def by_licence(made: argparse.ArgumentParser) -> None:
        made.add_argument("--licence", help="tasks of such data alone: permissive, share_alike or MIT,CC-BY-4.0")

    one = command("list")
    one.add_argument("pattern", nargs="?", help="a mixture, collection, group or task; * and ? allowed")
    one.add_argument("--json", action="store_true", help="one JSON object: collections, total, held_out, extra, tasks")
    by_licence(one)
    one = command("show")
    one.add_argument("name")
    one.add_argument("--style", choices=[*spec.STYLES, *(style + spec.INVERTED for style in spec.STYLES)])
    one.add_argument("--n", type=flag(int, COUNT), default=3, help="how many examples")
    one.add_argument("--split", default=None, help="train where the task has it")
    one.add_argument("--skip", type=flag(int, NATURAL), default=0, help="examples to pass over first")
    one.add_argument(
        "--rendering", type=flag(int, NATURAL), default=0, help="another number draws other templates and exemplars"
    )
    one.add_argument("--vocabulary", type=path_flag, help="'byte' or a SentencePiece model; else FLANX_VOCABULARY")
    one.add_argument("--template", help="this one only, as `nli:3` or `nli:none`, or `3` of any block of the task")
    one.add_argument("--shots", type=flag(int, COUNT), help="so many exemplars in a few-shot prompt, where they fit")
    one.add_argument("--json", action="store_true", help="one JSON object a line")
    one = command("plan")
    one.add_argument("mixture", help="a mixture, a collection, or a task; * and ? allowed")
    by_licence(one)
    one.add_argument(
        "--rate", type=flag(float, POSITIVE), help="MB/s of your line, for the hours; else that of the last fetch"
    )
    one.add_argument("--json", action="store_true")
    one = command("fetch")
    one.add_argument("mixture", help="a mixture, a collection, or a task; * and ? allowed")
    by_licence(one)
    one.add_argument("--jobs", type=flag(int, COUNT), default=4, help="how many at a time")
    one.add_argument("--verify", action="store_true", help="read what is in place too: is it as it first came?")
    one.add_argument("--allow_missing", action="store_true", help="exit 0 even if tasks are quarantined")
    one = command("import-export")
    one.add_argument("path", type=path_flag, help="a file or a folder of files")
    one.add_argument("--output", type=path_flag, required=True, help="folder for the tables; name it in FLANX_TABLES")
    one.add_argument("--collection", default="export", help="collection of the new tasks")
    one = command("import-flan")
    one.add_argument("clone", type=path_flag, help="your clone of google-research/FLAN")
    one.add_argument("--output", type=path_flag, required=True, help="folder for the tables; name it in FLANX_TABLES")
    one = command("audit")
    one.add_argument("mixture", nargs="?", default="*", help="a mixture, a collection, or a task; * and ? allowed")
    one.add_argument("--held_out", default="*", help="pattern of the held-out tasks to compare with")
    one.add_argument("--store", type=path_flag, help="audit the examples of a built store instead of the sources")
    one.add_argument("--limit", type=flag(int, NATURAL), default=0, help="examples of a task at most; 0: all")
    one.add_argument("--json", action="store_true")
    one = command("add")
    one.add_argument("file", type=path_flag, help="JSONL, TSV or CSV with a header")
    one.add_argument("--inputs", type=text_flag, required=True, help="the column that the model reads")
    one.add_argument("--targets", type=text_flag, required=True, help="the column that it shall write")
    one.add_argument(
        "--options", type=text_flag, help="a column with the options of each row: a list, in a table one|two|three"
    )
    one.add_argument(
        "--metric", type=text_flag, help=f"instead of the one that fits the answers: {', '.join(spec.METRICS)}"
    )
    for split in ("validation", "test"):
        either = one.add_mutually_exclusive_group()
        either.add_argument(f"--{split}", type=path_flag, metavar="FILE", help=f"the file of the split {split}")
        either.add_argument(
            f"--{split}_share", type=flag(float, PART), metavar="SHARE", help="or a part of the rows, as 0.1"
        )
    one.add_argument("--name", type=text_flag, help="name of the task; the file's where absent")
    one.add_argument("--output", type=path_flag, required=True, help="folder for the tables; name it in FLANX_TABLES")


def run(args: argparse.Namespace) -> int:
    """Runs a subcommand and returns its exit status."""
    if args.data_dir is None:
        args.data_dir = _binding(args, "DATA_DIR") or os.environ.get("FLANX_DATA_DIR")
    module, function = COMMANDS[args.command][0].split(":")
    return getattr(importlib.import_module(module), function)(args)


def _binding(args: argparse.Namespace, name: str) -> str | None:
    """The literal value of `--gin.NAME=VALUE`, if given."""
    for text in getattr(args, "bindings", []):
        key, _, value = text.partition("=")
        if key.strip() != name:
            raise UserError(f"--gin.{text}: `flanx tasks` takes --gin.{name} alone; leave it out")
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = 0
        if found is not None and not isinstance(found, str):
            raise UserError(f"--gin.{name}={value[:80]}: a text keeps its quotes: --gin.{name}=\"'FOLDER'\"")
        try:
            return found and path_flag(found)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--gin.{name}={error}") from None
    return None


def list_tasks(args: argparse.Namespace) -> int:
    """Prints counts, or the tasks matching a pattern."""
    counts = tables.collections()
    tasks = select.find_specs(args.pattern or "*", args.licence)
    if args.json:
        print(json.dumps({**counts, "tasks": [_row(task) for task in tasks]}, ensure_ascii=False))
        return 0
    if args.pattern:
        for task in tasks:
            size = f"{task.num_examples:,}" if task.num_examples else "?"
            under = f"{task.licence or licence.UNKNOWN:24} " if args.licence else ""
            print(f"{task.name:60} {size:>12}  {' '.join(task.styles):32} {under}{task.source}")
        return 0
    homes = collections.Counter(task.collection for task in tasks)
    for title, key in (("", "collections"), ("held out", "held_out"), ("others", "extra")):
        if title and counts[key]:
            print(f"\n{title}:")
        for name, count in counts[key].items():
            print(f"{name:24} {_left(homes[name], count, args.licence)}")
        if not title:
            print(f"{'total':24} {_left(sum(homes[name] for name in counts[key]), counts['total'], args.licence)}")
    return 0


def _left(left: int, count: int, asked: str | None) -> str:
    return f"{left:6,} of {count:6,}" if asked else f"{count:6,}"


def _row(task: spec.TaskSpec) -> dict[str, Any]:
    return {
        "name": task.name,
        "collection": task.collection,
        "group": task.group,
        "dataset": task.dataset,
        "category": task.category,
        "source": task.source,
        "splits": task.splits,
        "styles": task.styles,
        "templates": task.templates,
        "num_examples": task.num_examples,
        "cap": task.cap,
        "cot": task.cot,
        "held_out": task.held_out,
        "licence": task.licence,
        "access": task.access,
        "note": task.note,
    }


# ---- show ------------------------------------------------------------------------------------------------------------


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text


def _size(text: str, limit: int, tokenizer: "Vocabulary") -> dict[str, Any]:
    """Number of tokens with EOS, the share of unknown ones, and how many exceed the limit."""
    ids = tokenizer.encode(text)
    return {
        "tokens": len(ids) + 1,
        "unknown": ids.count(tokenizer.unk_id) / max(1, len(ids)),
        "cut": max(0, len(ids) + 1 - limit),
    }


def _size_text(size: dict[str, Any]) -> str:
    truncated = f", {size['cut']} truncated" if size["cut"] else ""
    return f"{size['tokens']} tokens, {size['unknown']:.1%} unknown{truncated}"


def show(args: argparse.Namespace) -> int:
    """Prints examples of a task as the model sees them."""
    from flanx.data import vocabulary  # noqa: PLC0415  (numpy, which `flanx tasks list` does not need)
    from flanx.data.task import render, sources  # noqa: PLC0415

    task, named_style = tables.find_task(args.name)
    style = args.style or named_style or task.styles[0]
    tokenizer = vocabulary.load(args.vocabulary or os.environ.get("FLANX_VOCABULARY", "byte"))
    split = args.split or ("train" if "train" in task.splits else next(iter(task.splits)))
    if (
        task.source.startswith("tfds:")
        and split in task.splits
        and (line := sources.missing(task, args.data_dir, split))
    ):
        raise UserError(line)  # fail early: TFDS itself takes ten seconds to say so
    if args.shots is not None:
        task = dataclasses.replace(task, shots=args.shots, worked=())
    left, skip = args.n, args.skip
    rows = render.render_rows(task, style, split, args.data_dir, args.rendering, tokenizer.count)
    for row in rows:
        if args.template and args.template not in (row.template, row.template.rpartition(":")[2]):
            continue
        if skip:
            skip -= 1
            continue
        if not left:
            break
        left -= 1
        sizes = [_size(text, limit, tokenizer) for text, limit in zip((row.inputs, row.targets), LENGTHS, strict=True)]
        if args.json:
            print(json.dumps({**vars(row), "inputs_size": sizes[0], "targets_size": sizes[1]}, ensure_ascii=False))
            continue
        print(_paint(f"{row.task}  {row.style}  {row.template}  {row.shots} shots  {row.row}", "1"))
        print(_paint(f"inputs ({_size_text(sizes[0])} of {LENGTHS[0]})", "36"))
        print(row.inputs)
        print(_paint(f"targets ({_size_text(sizes[1])} of {LENGTHS[1]})", "32"))
        print(_paint(row.targets, "32"))
        print()
    if left == args.n:
        template = f" with template {args.template}" if args.template else ""
        raise UserError(f"task {task.name}: no example of style {style} in split {split}{template}")
    return 0
