"""`flanx rescore`: computes the scores of kept generations again, offline."""

import argparse
import pathlib
from collections.abc import Sequence

from flanx import bucket, files
from flanx.errors import UserError
from flanx.evals import scores
from flanx.evals.rescore import differences, evaluations, rescore, unscored
from flanx.evals.scorers import scorer as scorers
from flanx.evals.scorers.scorer import Scorer
from flanx.files import json_line, read_json, write_atomic
from flanx.settings import path_flag, text_flag

SHOWN = 5  # differing values printed per suite


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
    parser.add_argument(
        "--scorer",
        type=text_flag,
        metavar="SCORER",
        help="scores the continuations of toxicity suites that have no score yet: perspective[:QUERIES A SECOND], "
        "hf:ORG/NAME[#LABEL], the folder of a classifier, or a file with columns text and toxicity",
    )
    parser.add_argument(
        "--texts",
        type=path_flag,
        metavar="FILE",
        help="write those that are not read yet, JSONL for a scorer of your own, and nothing else (they may offend)",
    )


def run(args: argparse.Namespace) -> int:
    """Rescores every evaluation under the given folders and prints what changed."""
    with bucket.copied(args.run) as names:
        return _run(args, names)


def _run(args: argparse.Namespace, names: Sequence[str]) -> int:
    folders = [folder for name in names for folder in evaluations(pathlib.Path(name))]
    if args.texts:
        if args.scorer or args.check:
            raise UserError(
                "--texts writes what is still to be scored, and nothing else: leave --scorer and --check out"
            )
        texts = list(dict.fromkeys(text for folder in folders for text in unscored(folder)))
        write_atomic(pathlib.Path(args.texts), "".join(json_line({"text": text, "toxicity": None}) for text in texts))
        print(f"{args.texts}: {len(texts):,} texts without a toxicity")
        return 0
    if args.scorer and args.check:
        raise UserError("--check writes nothing, and --scorer keeps what it reads: leave one of them out")
    scorer = scorers.load(args.scorer) if args.scorer is not None else None
    changed = [_rescore(folder, args.check, scorer) for folder in folders]
    if args.check:
        print(f"{len(changed)} checked: " + (f"{sum(changed)} differ" if any(changed) else "nothing differs"))
    return int(args.check and any(changed))


def _rescore(folder: pathlib.Path, check: bool, scorer: Scorer | None) -> bool:
    """Rescores one evaluation; returns whether anything in its scores.json differs."""
    path = folder / "scores.json"
    old = {"suites": {}} | read_json(path)
    suites, run_ = rescore(folder, scorer)
    print(files.shown(folder))
    changed = False
    for name in dict.fromkeys([*suites, *old["suites"]]):
        if name not in suites:
            print(f"  {name}: in scores.json, but without generations")
            changed = True
            continue
        entry, before = suites[name], old["suites"].get(name)
        known = {key: value for key, value in entry.items() if key not in scores.ADDED or key in (before or ())}
        found = list(differences(before, known)) if before else []
        note = " (new)" if before is None else ""
        if before and any(where == "score" for where, *_ in found):
            note = f" (was {scores.not_available(before) or format(before['score'], '.2f')})"
        score = scores.not_available(entry) if entry.get("unscored") else f"{entry['score']:.2f}"
        print(f"  {name}: {score}{note}, {100 * entry['extraction_failed']:.1f}% without an answer")
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
