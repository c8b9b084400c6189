"""`flanx track RUN --to wandb`: sends the records of a run to a tracker, those that it does not have yet."""

import argparse
import os
import pathlib

from flanx import tracker
from flanx.errors import UserError
from flanx.settings import path_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("run", type=path_flag, metavar="RUN", help="the folder of a training run (MODEL_DIR)")
    names = ", ".join(tracker.TRACKERS)
    parser.add_argument("--to", required=True, action="append", metavar="NAME", help=f"{names}; repeatable")
    parser.add_argument("--follow", action="store_true", help="go on until the standard input ends, as a training does")


def run(args: argparse.Namespace) -> int:
    """Sends, tracker by tracker. Raises UserError for a folder that is no run, and for an unknown tracker."""
    folder = pathlib.Path(args.run)
    tracker.expect_known(args.to)
    if not args.follow and not (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder} has no metrics.jsonl; give the MODEL_DIR of a `flanx train`")
    if args.follow:
        os.nice(10)  # the training comes first
    for name in args.to:
        print(f"{folder.name}: {tracker.send(folder, name, args.follow):,} records sent to {name}", flush=True)
    return 0
