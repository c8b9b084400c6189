"""`flanx rescore RUN`: scores made again from the generations of a run, offline, with this version's extractors."""

import pathlib
from typing import Any

from flanx.errors import UserError
from flanx.evals import generations


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
    rows: dict[str, list[generations.Row]] = {}
    paths: dict[str, pathlib.Path] = {}
    for path in generations.generation_files(folder):
        header, found = generations.read(path)
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
        name: generations.summarize(generations.spec_of(header, paths[name]), header["hash"], rows[name])
        | {"data": header.get("data", {})}
        for name, header in headers.items()
    }
    return suites, next(iter(headers.values()))["run"]
