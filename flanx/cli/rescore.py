"""`flanx rescore`: computes the scores of kept generations again, offline."""

import argparse
import pathlib

from flanx.evals import scores
from flanx.evals.rescore import differences, evaluations, rescore
from flanx.files import read_json
from flanx.settings import path_flag

SHOWN = 5  # differing values named for each suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx rescore`."""
    parser.add_argument(
        "run", nargs="+", type=path_flag, help="folders that hold generations/, or folders of such folders"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 where any value of scores.json is not the one that the generations give",
    )


def run(args: argparse.Namespace) -> int:
    """Scores every evaluation below the given folders again and prints what changed."""
    folders = [folder for name in args.run for folder in evaluations(pathlib.Path(name))]
    changed = [_rescore(folder, args.check) for folder in folders]
    return int(args.check and any(changed))


def _rescore(folder: pathlib.Path, check: bool) -> bool:
    """Scores one evaluation again; whether anything in its scores.json differs."""
    path = folder / "scores.json"
    old = {"suites": {}} | read_json(path)
    suites, run_ = rescore(folder)
    print(folder)
    changed = False
    for name in dict.fromkeys([*suites, *old["suites"]]):
        if name not in suites:
            print(f"  {name}: in scores.json, but without generations")
            changed = True
            continue
        entry, before = suites[name], old["suites"].get(name)
        found = list(differences(before, entry)) if before else []
        note = " (new)" if before is None else ""
        if before and any(where == "score" for where, *_ in found):
            note = f" (was {before['score']:.2f})"
        print(f"  {name}: {entry['score']:.2f}{note}, {100 * entry['extraction_failed']:.1f}% without an answer")
        for where, was, now in found[:SHOWN]:
            print(f"    {where}: {was} -> {now}")
        if len(found) > SHOWN:
            print(f"    and {len(found) - SHOWN} more values")
        changed |= before is None or bool(found)
    average, was = scores.headline(old["suites"] | suites), old.get("normalized_average")
    for where, old_average, new_average in differences(was, average, "normalized_average"):
        print(f"  {where}: {old_average} -> {new_average}")
        changed = True
    if not check:
        scores.write_scores(folder, suites, run_)
    return changed
