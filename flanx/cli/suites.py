"""`flanx suites`: list, show."""

import argparse
import collections
import fnmatch
import os
import sys

from flanx.cli.table import print_table
from flanx.errors import UserError, nearest
from flanx.evals import registry, suite_table
from flanx.settings import COUNT, flag, path_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands and their flags."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    what = "the suites that have a name, and where each is defined"
    one = commands.add_parser("list", help=what, description=what)
    one.add_argument("pattern", nargs="?", default="*", help="of names; * and ? allowed")
    what = "what a model would read of a suite: settings, hash, items of each task, prompts"
    one = commands.add_parser("show", help=what, description=what)
    one.add_argument("name", help="as in SUITES: gsm8k_cot, 'mgsm_cot[de,:20]', own_task:validation")
    one.add_argument("--n", type=flag(int, COUNT), default=1, help="prompts of each task")
    one.add_argument(
        "--show_text",
        action="store_true",
        help="print prompts of a suite whose texts may offend; else they are counted",
    )
    one.add_argument("--data_dir", type=path_flag, help="folder of benchmark data, hub or sample (else FLANX_DATA_DIR)")


def run(args: argparse.Namespace) -> int:
    """Prints; 0."""
    return list_suites(args) if args.command == "list" else show(args)


def list_suites(args: argparse.Namespace) -> int:
    """One line per suite."""
    known = registry.specs()
    found = {name: known[name] for name in sorted(known) if fnmatch.fnmatchcase(name, args.pattern)}
    for error in suite_table.wrong():
        print(f"note: {error}; its suites are left out", file=sys.stderr)
    if not found:
        raise UserError(f"no evaluation suite '{args.pattern}'" + nearest(args.pattern, known))
    print_table(
        ("suite", "family", "split", "shots", "scoring", "defined in"),
        (
            (name, spec.family, spec.split, spec.shots, spec.scoring, family.location(spec))
            for name, (spec, family) in found.items()
        ),
        left=("family", "split", "scoring", "defined in"),
    )
    return 0


def show(args: argparse.Namespace) -> int:
    """The suite's settings, and the first prompts of each task with the right answers; for a suite with potentially
    offensive texts only the numbers of items, unless the texts are requested."""
    suite = registry.load(args.name, args.data_dir or os.environ.get("FLANX_DATA_DIR", ""))
    spec, counts = suite.spec, collections.Counter(item.task for item in suite.items)
    print(f"{spec.name}: {len(suite.items)} items, hash {suite.hash}")
    settings = {"scoring": spec.scoring, "metric": spec.metric, "average": spec.average, "stop": list(spec.stop)}
    print(
        "  ".join(f"{key} = {value}" for key, value in {**settings, "max_new": spec.max_new, "cot": spec.cot}.items())
    )
    if spec.harmful and not args.show_text:
        for task, count in counts.items():
            print(f"{task}: {count} items")
        print("its texts may offend: --show_text prints the first of them")
        return 0
    shown: collections.Counter[str] = collections.Counter()
    for item in suite.items:
        shown[item.task] += 1
        if shown[item.task] <= args.n:
            print(f"\n--- {item.task}, {counts[item.task]} items: {item.id} ({item.location})\n{item.prompt()}")
            options = f" of {list(item.options)}" if item.options else ""
            print(f"--- right: {' | '.join(item.targets)}{options}")
    return 0
