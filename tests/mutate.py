"""`make mutate`: breaks flanx in the places of mutations.toml, one at a time, and counts what the quick suite catches.

A break is a text of one file that is replaced by another; the text must be there exactly once. The tests tried are
the one that docs/mutation.md names, then those of the broken module (tests/test_house.py says which), then all others
that import it. A break counts as caught by a test that fails with it and passes without it.

    python -m tests.mutate [--only PATTERN] [--jobs 2] [--out docs/mutation.md]
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import fnmatch
import functools
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests import test_house

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs" / "mutation.md"
LIMIT = 600  # seconds for the tests of one break
TOO_LONG = "no end in time"
SHARED = {  # where tests find real data: the variable, and the folder in shared/ next to the repository
    "FLANX_CASES_DIR": "cases",
    "FLANX_DATA_DIR": "data",
    "FLANX_GOLDEN_DIR": "golden",
    "FLANX_REFERENCE_DIR": "reference",
}
FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+)", re.MULTILINE)  # a test of several cases counts as one


@dataclass(frozen=True)
class Break:
    """One entry of mutations.toml: `find` in `file` becomes `replace`; `what` says in words what is then wrong."""

    file: str
    find: str
    replace: str
    what: str

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def load() -> list[Break]:
    """The breaks, each checked against the code as it is; ends the program where a text is not there once."""
    table = tomllib.loads((ROOT / "tests" / "mutations.toml").read_text(encoding="utf-8"))
    breaks = [Break(**entry) for entry in table["break"]]
    for each in breaks:
        count = (ROOT / each.file).read_text(encoding="utf-8").count(each.find)
        if count != 1:
            sys.exit(f"tests/mutations.toml: '{each.what}': its text is {count} times in {each.file}, not once")
    return breaks


@functools.cache
def imported_by() -> dict[str, list[str]]:
    """{module: test files that import it or something of it}."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").glob("test_*.py")):
        for name in test_house.imports(file):
            found.setdefault(name, []).append(f"tests/{file.name}")
    return found


@functools.cache
def caught_before() -> dict[str, str]:
    """{what is broken: the test that caught it when docs/mutation.md was written, where that test is still there}."""
    rows = re.findall(r"^\| `[^`]+` \| (.+) \| `(test_\w+\.py)::(\w+)` \|$", RESULT.read_text(encoding="utf-8"), re.M)
    files = {name: (ROOT / "tests" / name) for _, name, _ in rows}
    texts = {name: file.read_text(encoding="utf-8") if file.is_file() else "" for name, file in files.items()}
    return {what: f"tests/{name}::{test}" for what, name, test in rows if f"def {test}(" in texts[name]}


def tests_of(each: Break) -> list[list[str]]:
    """Tests to try: the one that caught it before, then the module's files, then others that import it."""
    last = each.module.rpartition(".")[2]
    listed = test_house.TESTED_IN.get(each.module.removeprefix("flanx."), "").split()
    patterns = [f"test_{last}.py", f"test_*_{last}.py", *(f"{name}.py" for name in listed)]
    first = [f"tests/{file.name}" for pattern in patterns for file in sorted((ROOT / "tests").glob(pattern))]
    others = [file for file in imported_by().get(each.module, []) if file not in first]
    before = [caught_before()[each.what]] if each.what in caught_before() else []
    return [group for group in (before, first, others) if group]


def run(folder: pathlib.Path, tests: Iterable[str], *options: str, limit: int | None = LIMIT) -> list[str]:
    """The tests that fail in a copy of the repository; TOO_LONG where they take more than `limit` seconds.

    Raises RuntimeError where pytest cannot run them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *options, *tests]
    paths = {name: os.environ.get(name, str(ROOT.parent / "shared" / sub)) for name, sub in SHARED.items()}
    environment = os.environ | paths | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return [TOO_LONG]
    failed = FAILED.findall(done.stdout)
    is_left_out = done.returncode == 5 or (done.returncode == 4 and " skipped in " in done.stdout)
    # no test of the quick suite is among them, or their file is skipped here, as without an extra
    if done.returncode and not is_left_out and not failed:
        raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return failed


@dataclass(frozen=True)
class Verdict:
    """What became of a break: the test that caught it, "" where none did, and the seconds that it took."""

    by: str
    seconds: float


class Copies:
    """Copies of the repository, one for each thread."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._local = threading.local()

    def mine(self) -> pathlib.Path:
        """This thread's copy."""
        if not hasattr(self._local, "folder"):
            self._local.folder = target = self._folder / str(threading.get_ident())
            listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
            for file in filter(None, listed.split("\n")):
                if (ROOT / file).is_file():
                    (target / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / file, target / file)
        return self._local.folder

    def judge(self, each: Break) -> Verdict:
        """Breaks a copy, runs the tests until one fails, mends the copy."""
        start, path = time.monotonic(), self.mine() / each.file
        whole = path.read_text(encoding="utf-8")
        path.write_text(whole.replace(each.find, each.replace), encoding="utf-8")
        failed: list[str] = []
        try:
            for tests in tests_of(each):
                failed = failed or run(self.mine(), tests, "-x")
        finally:
            path.write_text(whole, encoding="utf-8")
        return Verdict(failed[0] if failed else "", time.monotonic() - start)

    def sound(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """The verdicts without the tests that also fail where nothing is broken."""
        tests = sorted({verdict.by for verdict in verdicts} - {"", TOO_LONG})
        failed = run(self.mine(), tests, limit=None) if tests else []
        return [dataclasses.replace(v, by="") if v.by in failed else v for v in verdicts]


def page(breaks: Sequence[Break], verdicts: Sequence[Verdict]) -> str:
    """The result as Markdown."""
    caught = sum(bool(v.by) for v in verdicts)
    lines = [
        "# Mutation check",
        "",
        f"{caught} of {len(breaks)} breaks are caught by the quick suite ({100 * caught / len(breaks):.0f}%).",
        f"`make mutate`, {datetime.date.today()}, Python {platform.python_version()}.",
        "",
        "Each line is a fault put into the code by itself (tests/mutations.toml), and the test that fails with it.",
        "",
        "| module | fault | caught by |",
        "|---|---|---|",
    ]
    for each, verdict in zip(breaks, verdicts, strict=True):
        by = f"`{verdict.by.removeprefix('tests/')}`" if verdict.by else "**nothing**"
        lines.append(f"| `{each.module}` | {each.what} | {by} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="pattern of files or of what is broken")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, help="write the result there, when every break was tried")
    args = parser.parse_args()
    breaks = [b for b in load() if fnmatch.fnmatch(b.file, args.only) or fnmatch.fnmatch(b.what, args.only)]
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(args.jobs) as threads:
        copies, verdicts = Copies(pathlib.Path(folder)), []
        for each, verdict in zip(breaks, threads.map(copies.judge, breaks), strict=True):
            verdicts.append(verdict)
            print(f"{verdict.by or 'NOT CAUGHT'}  {verdict.seconds:.0f} s  {each.file}: {each.what}", flush=True)
        verdicts = copies.sound(verdicts)
    caught = sum(bool(v.by) for v in verdicts)
    print(f"{caught} of {len(breaks)} caught")
    if args.out and args.only == "*":
        args.out.write_text(page(breaks, verdicts), encoding="utf-8")
    return int(caught < 0.9 * len(breaks))


if __name__ == "__main__":
    sys.exit(main())
