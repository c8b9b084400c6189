"""What a mixture needs and where it comes from: `flanx tasks plan`, `flanx tasks fetch`.

A need is one download: a TFDS data set, a file behind a URL, the Parquet files of a P3 prompt-task on the Hugging Face
hub. Tasks share needs. A need that fails puts its tasks into quarantine (`quarantine.json` in the data folder, with the
reason); the others stay usable, and the exit status says so.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from flanx.data import source
from flanx.data.own import write
from flanx.data.spec import TaskSpec
from flanx.data.task_door import match_tasks
from flanx.errors import UserError

TRIES = 3
WAIT_S = 1.0  # before the second try; doubled before each further one
TIMEOUT_S = 60
PREPARE = "import sys, tensorflow_datasets as t; t.builder(sys.argv[1]).download_and_prepare()"


@dataclass
class Need:
    """One download and the tasks that wait for it."""

    name: str
    access: str
    tasks: list[TaskSpec] = field(default_factory=list)
    bytes: int | None = None
    present: bool = False


def needs(tasks: list[TaskSpec], data_dir: str | None) -> list[Need]:
    """The downloads of these tasks, each once; none for the embedded ones."""
    found: dict[str, Need] = {}
    for task in tasks:
        if task.source.startswith("suite:"):
            continue
        need = found.setdefault(task.source, Need(task.source, task.access))
        if not need.tasks:
            need.present = source.missing(task, data_dir) is None
            need.bytes = task.bytes if task.bytes is not None else tfds_bytes(task.source)
        need.tasks.append(task)
    return list(found.values())


def tfds_bytes(place: str) -> int | None:
    """Download size of a TFDS source at most, from the checksums that TFDS ships with; None where it has none."""
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


def say_bytes(size: int | None) -> str:
    """ "12.3 MB", or "?" where it is not known."""
    if size is None:
        return "?"
    value, units = float(size), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def plan(args: argparse.Namespace) -> int:
    """Prints every need of the mixture and the sums."""
    found = needs(match_tasks(args.mixture), _folder(args))
    missing = [n for n in found if not n.present]
    sums = {
        "needs": len(found),
        "present": len(found) - len(missing),
        "bytes": sum(n.bytes or 0 for n in missing if n.access != "user"),
        "unknown_size": sum(n.bytes is None for n in missing if n.access != "user"),
        "form": [n.name for n in missing if n.access == "form"],
        "user": [n.name for n in missing if n.access == "user"],
    }
    if args.json:
        rows = [
            {"need": n.name, "tasks": len(n.tasks), "bytes": n.bytes, "access": n.access, "present": n.present}
            for n in found
        ]
        print(json.dumps({"needs": rows, "sum": sums}, ensure_ascii=False))
        return 0
    for n in found:
        state = "have" if n.present else {"open": "fetch", "form": "FORM", "user": "SUPPLY"}[n.access]
        print(f"{state:7} {say_bytes(n.bytes):>10}  {n.name}  ({n.tasks[0].name}{_more(n)})")
    print(
        f"\n{sums['present']} of {sums['needs']} in place; at most {say_bytes(sums['bytes'])} to fetch, and "
        f"{sums['unknown_size']} of a size that is not known"
    )
    for title, key in (("behind a form or a manual download", "form"), ("to be supplied by you", "user")):
        for name in sums[key]:
            print(f"{title}: {name}")
    return 0


def _more(need: Need) -> str:
    return f" and {len(need.tasks) - 1} more" if len(need.tasks) > 1 else ""


def _folder(args: argparse.Namespace) -> str:
    if not args.data_dir:
        raise UserError("no data folder: give --data_dir, --gin.DATA_DIR or FLANX_DATA_DIR")
    return args.data_dir


# ---- fetching --------------------------------------------------------------------------------------------------------


def download(url: str, path: pathlib.Path) -> None:
    """One URL into one file; a broken download goes on where it was, and the file appears only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    for attempt in range(TRIES):
        try:
            _transfer(url, draft)
            os.replace(draft, path)
            return
        except urllib.error.HTTPError as e:
            e.close()
            if e.code == 416:  # the server's file is shorter than what we hold: begin again
                draft.unlink(missing_ok=True)
            elif e.code < 500 and e.code != 429:
                raise
            error: Exception = e
        except (OSError, EOFError) as e:
            error = e
        time.sleep(WAIT_S * 2**attempt)
    raise error


def _transfer(url: str, draft: pathlib.Path) -> None:
    have = draft.stat().st_size if draft.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        goes_on = have and reply.status == 206
        length = reply.headers.get("Content-Length")
        with draft.open("ab" if goes_on else "wb") as file:
            done = 0
            while block := reply.read(1 << 20):
                file.write(block)
                done += len(block)
    if length is not None and done < int(length):
        raise EOFError(f"{url}: {done} of {length} bytes")


def _fetch_url(task: TaskSpec, split: str, data_dir: str) -> None:
    (path,) = source.files(task, split, data_dir)
    if path.is_file():
        return
    other = re.search(r"spelled (\S+)", task.note)  # NIV2 names with hyphens in some releases
    names = [path.name, *([f"{other[1]}{path.suffix}"] if other else [])]
    for name in names:
        try:
            return download(task.url.replace("{file}", name), path)
        except urllib.error.HTTPError as e:
            if e.code != 404 or name == names[-1]:
                raise


def _fetch_p3(task: TaskSpec, split: str, data_dir: str) -> None:
    """The Parquet files of one split, as the hub lists them for a data set's configuration."""
    kind, config = task.source.split(":", 1)
    name = task.splits[split].split("[")[0]
    listing = task.url.replace("{config}", config).replace("{split}", name)
    with urllib.request.urlopen(listing, timeout=TIMEOUT_S) as reply:
        urls = json.load(reply)
    for number, url in enumerate(urls):
        path = pathlib.Path(data_dir) / kind / config / f"{name}-{number:05d}.parquet"
        if not path.is_file():
            download(url, path)


def _fetch(need: Need, data_dir: str) -> str | None:
    """Fetches one need; the reason where it fails."""
    task = need.tasks[0]
    if need.present:
        return None
    try:
        if task.source.startswith("tfds:"):
            command = [sys.executable, "-c", PREPARE, task.source[5:]]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            )
            if done.returncode:
                lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
                return (lines or ["no message"])[-1][:300]
        elif not task.url:
            return f"{need.access}: you supply it; {task.note or 'see the layout in flanx/data/source.py'}"
        else:
            for split in task.splits:
                (_fetch_p3 if task.source.startswith("p3:") else _fetch_url)(task, split, data_dir)
    except (OSError, EOFError, ValueError, UserError) as e:
        return f"{type(e).__name__}: {e}"
    return source.missing(task, data_dir)


def fetch(args: argparse.Namespace) -> int:
    """Fetches every need; names what failed. Exit status 1 where a task is quarantined, unless that is allowed."""
    folder = _folder(args)
    found = needs(match_tasks(args.mixture), folder)
    failed: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(max(1, args.jobs)) as pool:
        waiting = {pool.submit(_fetch, need, folder): need for need in found}
        for number, done in enumerate(concurrent.futures.as_completed(waiting), 1):
            need, reason = waiting[done], done.result()
            if not need.present or reason:
                print(f"[{number}/{len(found)}] {need.name}: {reason or 'fetched'}", flush=True)
            failed |= {task.name: reason for task in need.tasks if reason}
    record(folder, [task.name for need in found for task in need.tasks], failed)
    ready = sum(len(need.tasks) for need in found) - len(failed)
    print(f"{ready} tasks ready, {len(failed)} in quarantine" + (f" ({folder}/quarantine.json)" if failed else ""))
    return 1 if failed and not args.allow_missing else 0


def record(folder: str, tried: list[str], failed: dict[str, str]) -> None:
    """Writes the quarantine anew: tasks that were tried and failed come in, those that were tried and went well go."""
    path = pathlib.Path(folder) / "quarantine.json"
    old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = {name: reason for name, reason in old.items() if name not in tried} | failed
    if kept or old:
        write(path, json.dumps(kept, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
