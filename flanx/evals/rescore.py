"""Recomputes scores offline from the generations of a run, with this version's answer extraction."""

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from flanx.errors import UserError
from flanx.evals import generations, scores, toxicity
from flanx.evals.scorers.scorer import Scorer
from flanx.files import read_json


def evaluations(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders with generations at or below `folder`. Raises UserError if there are none."""
    found = sorted({path.parent for name in generations.FOLDERS for path in folder.rglob(name) if path.is_dir()})
    if not found:
        raise UserError(f"{folder} holds no generations/: give a folder that `flanx evaluate` wrote")
    return found


def rescore(folder: pathlib.Path, scorer: Scorer | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """({suite: its scores}, the run that made the generations) for every suite in `folder`; `scorer` first scores what
    it has not yet scored in the toxicity suites.

    Raises UserError if items or tasks are missing, or if a suite's files come from different specs or runs.
    """
    headers: dict[str, dict[str, Any]] = {}
    rows: dict[str, list[generations.Generation]] = {}
    paths: dict[str, pathlib.Path] = {}
    for path in generations.paths(folder):
        header, of_task = generations.read(path)
        name = header["spec"]["name"]
        first = headers.setdefault(name, header)
        if header["hash"] != first["hash"] or not generations.is_same_run(header["run"], first["run"]):
            what = "spec" if header["hash"] != first["hash"] else "model or seed"
            raise UserError(f"{path} is of another {what} than {paths[name]}; keep one of them")
        paths.setdefault(name, path)
        rows.setdefault(name, []).extend(of_task)
    for name, header in headers.items():
        have = {task: sum(row.task == task for row in rows[name]) for task in header["items"]}
        short = [
            f"{task} {count} of {header['items'][task]}"
            for task, count in have.items()
            if count != header["items"][task]
        ]
        if short:
            more = f" and {len(short) - 3} more tasks" if len(short) > 3 else ""
            raise UserError(f"{folder}: {name} is incomplete ({', '.join(short[:3])}{more}); run the evaluation again")
    one = next(iter(headers))
    for name, header in headers.items():
        if not generations.is_same_run(header["run"], headers[one]["run"]):
            raise UserError(
                f"{folder} holds generations of two checkpoints, seeds or versions: {paths[one].name} and "
                f"{paths[name].name}; move one of them away"
            )
    suites = {}
    for name, header in headers.items():
        spec = generations.spec_of(header, paths[name])
        joined = toxicity.join(folder, spec, rows[name], scorer)
        suites[name] = scores.summarize(spec, header["hash"], rows[name]) | {"data": header.get("data", {})} | joined
    earlier = read_json(folder / "scores.json").get("suites", {}) if (folder / "scores.json").is_file() else {}
    was_forced = {name for name, entry in earlier.items() if entry.get("vocabulary_forced")}
    found = {name: scores.forced(entry) if name in was_forced else entry for name, entry in suites.items()}
    return found, next(iter(headers.values()))["run"]


def unscored(folder: pathlib.Path) -> list[str]:
    """The texts in an evaluation's toxicity suites that no scorer has scored."""
    found: dict[str, None] = {}
    for path in generations.paths(folder):
        header, rows = generations.read(path)
        found |= dict.fromkeys(toxicity.unscored(folder, generations.spec_of(header, path), rows))
    return list(found)


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, old, new) for every place where two JSON values differ; None for a missing value.

    Floats count as equal within 1e-9 of each other: libraries may round the last bit differently.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(old, float) or isinstance(new, float):
        if not _is_close(old, new):
            yield path, old, new
    elif old != new:
        yield path, old, new


def _is_close(old: Any, new: Any) -> bool:
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    return numbers and math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-9)
