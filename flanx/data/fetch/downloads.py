"""The downloads that a mixture needs, with sizes and conditions: `flanx tasks plan`.

A download is a TFDS data set, a file at a URL, or the Parquet files of a P3 prompt-task on the Hugging Face hub. Tasks
may share downloads.
"""

import argparse
import importlib.util
import json
import pathlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from flanx.data.fetch import checksums
from flanx.data.task import select, sources
from flanx.data.task.spec import TaskSpec
from flanx.data.task.tables import load_mixtures, load_tables
from flanx.errors import UserError


@dataclass
class Download:
    """One download and the tasks that read it."""

    name: str
    access: str
    tasks: list[TaskSpec] = field(default_factory=list)
    bytes: int | None = None
    present: bool = False
    receipt: dict[str, Any] = field(default_factory=dict)  # {split: rows and sha256 of its examples}, see checksums.py


def find_downloads(tasks: list[TaskSpec], data_dir: str | None) -> list[Download]:
    """The downloads of these tasks, without duplicates; embedded tasks have none."""
    downloads: dict[str, Download] = {}
    for task in tasks:
        if task.source.startswith("suite:"):
            continue
        download = downloads.setdefault(task.source, Download(task.source, task.access))
        if not download.tasks:
            download.present = sources.missing(task, data_dir) is None
            download.bytes = task.bytes if task.bytes is not None else tfds_bytes(task.source)
        download.tasks.append(task)
    return list(downloads.values())


def tfds_bytes(place: str) -> int | None:
    """Upper bound on the download size of a TFDS source, from TFDS's bundled checksums; None if it has none."""
    if not place.startswith("tfds:"):
        return None
    name, _, config = place[5:].partition("/")
    package = importlib.util.find_spec("tensorflow_datasets")
    if package is None or not package.submodule_search_locations:
        return None
    root = pathlib.Path(package.submodule_search_locations[0])
    for path in (root / "url_checksums" / f"{name}.txt", root / "datasets" / name / "checksums.tsv"):
        if path.is_file():
            found = re.findall(r"^(\S+)\s+(\d+)\s+([0-9a-f]{64})", path.read_text(encoding="utf-8"), re.MULTILINE)
            words = [w for w in re.split(r"\W+", config.lower()) if len(w) > 1]
            # a later line with the same file name is a newer version of that file
            own = {url.rsplit("/", 1)[-1]: int(size) for url, size, _ in found if any(w in url.lower() for w in words)}
            return sum(own.values()) or sum({digest: int(size) for _, size, digest in found}.values()) or None
    return None


def format_bytes(size: int | None) -> str:
    """ "12.3 MB", or "?" if unknown."""
    if size is None:
        return "?"
    value, units = float(size), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def plan(args: argparse.Namespace) -> int:
    """Prints every download of the mixture, the totals, and the hours if a rate is known."""
    found = find_downloads(select.find_specs(args.mixture, args.licence), folder(args))
    missing = [n for n in found if not n.present]
    sums: dict[str, Any] = {
        "needs": len(found),
        "present": len(found) - len(missing),
        "bytes": sum(n.bytes or 0 for n in missing if n.access != "user"),
        "unknown_size": sum(n.bytes is None for n in missing if n.access != "user"),
        "form": [n.name for n in missing if n.access == "form"],
        "user": [n.name for n in missing if n.access == "user"],
    }
    rate = args.rate * 1e6 if args.rate else checksums.read(args.data_dir)["bytes_per_second"]
    sums |= {"bytes_per_second": rate, "hours": round(sums["bytes"] / rate / 3600, 2) if rate else None}
    if args.json:
        rows = [
            {"need": n.name, "tasks": len(n.tasks), "bytes": n.bytes, "access": n.access, "present": n.present}
            for n in found
        ]
        print(json.dumps({"needs": rows, "sum": sums}, ensure_ascii=False))
        return 0
    for n in found:
        state = "have" if n.present else {"open": "fetch", "form": "FORM", "user": "SUPPLY"}[n.access]
        print(f"{state:7} {format_bytes(n.bytes):>10}  {n.name}  ({n.tasks[0].name}{_more(n)})")
    ready = {task.name for n in found if n.present for task in n.tasks}
    for line in shares(args.mixture, ready):
        print(line)
    print(
        f"\n{sums['present']} of {sums['needs']} in place; at most {format_bytes(sums['bytes'])} to fetch, and "
        f"{sums['unknown_size']} of a size that is not known"
    )
    if rate:
        whose = "your line" if args.rate else "the last fetch"
        print(
            f"{sums['hours']:.1f} hours for the known sizes at {format_bytes(round(rate))}/s ({whose}), "
            "TFDS's work not included"
        )
    else:
        print("hours: give --rate MB/s of your line, or fetch something first")
    for title, key in (("behind a form or a manual download", "form"), ("to be supplied by you", "user")):
        for name in sums[key]:
            print(f"{title}: {name}")
    return 0


def shares(mixture: str, ready: Collection[str]) -> list[str]:
    """What a named mixture becomes with only the tasks that are ready: tasks and rate of each collection, as lines.

    A collection keeps its rate while it has a task left; the rates of empty ones are redistributed to the others."""
    mixtures = load_mixtures()
    if mixture not in mixtures:
        return []
    tasks = select.of_tables(load_tables())
    present = {name for name, task in tasks.items() if name in ready or task["source"].startswith("suite:")}
    known = {name: task if name in present else {**task, "missing": "no data"} for name, task in tasks.items()}
    asked = select.MixtureSpec(mixture, allow_missing=True)
    full = select.resolve(asked, tasks, mixtures)
    home = {share.task: share.collection for share in full.shares}
    now = select.resolve(asked, known, mixtures).collections() if present & home.keys() else {}
    lines = [f"\n{'collection':24} {'tasks':>13} {'rate':>8} {'now':>8}"]
    for name, rate in full.collections().items():
        members = {task for task, collection in home.items() if collection == name}
        share = f"{100 * now[name]:8.1f}" if name in now else "       -"
        lines.append(f"{name:24} {len(members & present):5,} of {len(members):5,} {100 * rate:8.1f} {share}")
    return lines


def _more(download: Download) -> str:
    return f" and {len(download.tasks) - 1} more" if len(download.tasks) > 1 else ""


def folder(args: argparse.Namespace) -> str:
    if not args.data_dir:
        raise UserError("no data folder: give --data_dir, --gin.DATA_DIR or FLANX_DATA_DIR")
    return args.data_dir
