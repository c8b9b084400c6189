"""`flanx rescore`: score kept generations again, offline."""

import argparse
import json
import pathlib

from flanx.evals import generations
from flanx.evals.rescore import evaluations, rescore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The door's flags."""
    parser.add_argument("run", nargs="+", help="folders that hold generations/, or folders of such folders")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a score differs")


def run(args: argparse.Namespace) -> int:
    """Scores every evaluation below the given folders again and prints old and new."""
    folders = [folder for name in args.run for folder in evaluations(pathlib.Path(name))]
    changed = False
    for folder in folders:
        path = folder / "scores.json"
        old = json.loads(path.read_text(encoding="utf-8"))["suites"] if path.exists() else {}
        suites, origin = rescore(folder)
        print(folder)
        for name, entry in suites.items():
            before = old.get(name, {}).get("score")
            differs = before is not None and abs(before - entry["score"]) > 1e-9
            changed |= differs
            note = f" (was {before:.2f})" if differs else " (new)" if before is None else ""
            print(f"  {name}: {entry['score']:.2f}{note}, {100 * entry['extraction_failed']:.1f}% without an answer")
        if not args.check:
            generations.write_scores(folder, suites, origin)
    return int(args.check and changed)
