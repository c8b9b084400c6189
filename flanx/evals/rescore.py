"""`flanx rescore RUN`: scores made again from the generations of a run, offline, with this version's extractors."""

import argparse
import json
import pathlib
from typing import Any

from flanx.errors import UserError
from flanx.evals import record


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
            record.write_scores(folder, suites, origin)
    return int(args.check and changed)


def evaluations(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders with generations at or below `folder`."""
    found = sorted(path.parent for path in folder.rglob("generations") if path.is_dir())
    if not found:
        raise UserError(f"{folder} holds no generations/: give a folder that `flanx evaluate` wrote")
    return found


def rescore(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores of every suite in `folder`, and what they were made with.

    Raises UserError where items or tasks lack, or files of one suite are of different specs or runs.
    """
    headers: dict[str, dict[str, Any]] = {}
    rows: dict[str, list[record.Row]] = {}
    paths: dict[str, pathlib.Path] = {}
    for path in record.generation_files(folder):
        header, found = record.read(path)
        name = header["spec"]["name"]
        first = headers.setdefault(name, header)
        if header["hash"] != first["hash"] or header["run"] != first["run"]:
            what = "spec" if header["hash"] != first["hash"] else "model or seed"
            raise UserError(f"{path} is of another {what} than {paths[name]}; keep one of them")
        paths.setdefault(name, path)
        rows.setdefault(name, []).extend(found)
    for name, header in headers.items():
        have = {task: sum(row.task == task for row in rows[name]) for task in header["items"]}
        short = [
            f"{task} {count} of {header['items'][task]}"
            for task, count in have.items()
            if count != header["items"][task]
        ]
        if short:
            more = f" and {len(short) - 3} tasks more" if len(short) > 3 else ""
            raise UserError(f"{folder}: {name} is not whole ({', '.join(short[:3])}{more}); evaluate it to the end")
    suites = {
        name: record.summarize(record.spec_of(header, paths[name]), header["hash"], rows[name])
        | {"data": header.get("data", {})}
        for name, header in headers.items()
    }
    return suites, next(iter(headers.values()))["run"]
