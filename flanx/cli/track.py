"""`flanx track RUN --to wandb`: sends the records of a run to a tracker, those that it does not have yet."""

import argparse
import os
import pathlib
import sys

from flanx import bucket, files, tracker
from flanx.errors import UserError
from flanx.settings import path_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("run", type=path_flag, metavar="RUN", help="the folder or bucket of a training run (MODEL_DIR)")
    names = ", ".join(tracker.TRACKERS)
    parser.add_argument("--to", required=True, action="append", metavar="NAME", help=f"{names}; repeatable")
    parser.add_argument(
        "--follow", action="store_true", help="continue until the standard input ends, as a training does"
    )


def run(args: argparse.Namespace) -> int:
    """Sends to each tracker; 1 if one failed. Raises UserError for a folder that is not a run, an unknown tracker, and
    if the only tracker fails."""
    tracker.expect_known(args.to)
    if args.follow:
        os.nice(10)  # training has priority
    with bucket.copied([args.run]) as (name,):
        folder = pathlib.Path(name)
        if not args.follow and not (folder / "metrics.jsonl").exists():
            raise UserError(f"{folder} has no metrics.jsonl; give the MODEL_DIR of a `flanx train`")
        failed = 0
        for to in dict.fromkeys(args.to):
            try:
                print(f"{folder.name}: {tracker.send(folder, to, args.follow):,} records sent to {to}", flush=True)
            except UserError as error:
                if len(args.to) == 1:
                    raise
                print(f"flanx track: {files.shown(str(error))}", file=sys.stderr, flush=True)
                failed += 1
    return min(failed, 1)
