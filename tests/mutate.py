"""`make mutate`: breaks flanx in the places of mutations.toml, one at a time, and counts what the quick suite catches.

A break is a text of one file that is replaced by another; the text must be there exactly once. The tests tried are
those that import the broken module, the one of its name first. A break counts as caught by a test that fails with it
and passes without it.

    python tests/mutate.py [--only PATTERN] [--jobs 2] [--out docs/mutation.md]
"""

import argparse
import ast
import concurrent.futures
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
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMIT = 600  # seconds for the tests of one break
CODE = re.compile(r"(?:FAILED|ERROR) (\S+)")


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
        names: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        for name in names:
            found.setdefault(name, []).append(f"tests/{file.name}")
    return found


def tests_of(each: Break) -> list[str]:
    """Test files to try, the one of the module's name first."""
    last = each.module.rpartition(".")[2]
    files = imported_by().get(each.module, [])
    named = [f"tests/test_{last}.py", *(f"tests/{f.name}" for f in (ROOT / "tests").glob(f"test_*_{last}.py"))]
    first = [f for f in named if (ROOT / f).is_file()]
    return list(dict.fromkeys([*first, *files]))


def run(folder: pathlib.Path, tests: list[str]) -> tuple[int, list[str]]:
    """pytest's status over `tests` in a copy of the repository (-1: it took too long), and the tests that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    shared = {"FLANX_DATA_DIR": "data", "FLANX_GOLDEN_DIR": "golden", "FLANX_REFERENCE_DIR": "reference"}
    paths = {name: os.environ.get(name, str(ROOT.parent / "shared" / sub)) for name, sub in shared.items()}
    environment = os.environ | paths | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, []
    return done.returncode, CODE.findall(done.stdout)


@dataclass(frozen=True)
class Verdict:
    """What became of a break: the test that caught it, "" where none did, and the seconds that it took."""

    by: str
    seconds: float


class Pool:
    """Copies of the repository, one for each thread; and one that is never broken."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._local = threading.local()
        self._lock = threading.Lock()
        self._sound: dict[str, bool] = {}
        self._made = 0
        self.plain = self._copy("plain")

    def _copy(self, name: str) -> pathlib.Path:
        target = self._folder / name
        listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
        for file in filter(None, listed.split("\n")):
            if (ROOT / file).is_file():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, target / file)
        return target

    def mine(self) -> pathlib.Path:
        if not hasattr(self._local, "folder"):
            with self._lock:
                self._made += 1
                self._local.folder = self._copy(f"copy{self._made}")
        return self._local.folder

    def passes(self, test: str) -> bool:
        """Whether a test passes where nothing is broken."""
        with self._lock:
            if test not in self._sound:
                self._sound[test] = run(self.plain, [test])[0] == 0
            return self._sound[test]

    def judge(self, each: Break) -> Verdict:
        """Breaks a copy, runs the tests, mends the copy."""
        start, path = time.monotonic(), self.mine() / each.file
        whole = path.read_text(encoding="utf-8")
        path.write_text(whole.replace(each.find, each.replace), encoding="utf-8")
        try:
            status, failed = run(self.mine(), tests_of(each))
        finally:
            path.write_text(whole, encoding="utf-8")
        by = "" if status == 0 or not tests_of(each) else next((t for t in failed if self.passes(t)), "")
        return Verdict(by or ("no end in time" if status == -1 else ""), time.monotonic() - start)


def page(breaks: list[Break], verdicts: list[Verdict], seconds: float) -> str:
    """The result as Markdown."""
    caught = sum(bool(v.by) for v in verdicts)
    lines = [
        "# Mutation check",
        "",
        f"{caught} of {len(breaks)} breaks are caught by the quick suite ({100 * caught / len(breaks):.0f}%).",
        f"`make mutate`, {datetime.date.today()}, Python {platform.python_version()}, {seconds / 60:.0f} minutes.",
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
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(args.jobs) as threads:
        pool, verdicts = Pool(pathlib.Path(folder)), []
        for each, verdict in zip(breaks, threads.map(pool.judge, breaks), strict=True):
            verdicts.append(verdict)
            print(f"{verdict.by or 'NOT CAUGHT'}  {verdict.seconds:.0f} s  {each.file}: {each.what}", flush=True)
    caught = sum(bool(v.by) for v in verdicts)
    print(f"{caught} of {len(breaks)} caught")
    if args.out and args.only == "*":
        args.out.write_text(page(breaks, verdicts, time.monotonic() - start), encoding="utf-8")
    return int(caught < 0.9 * len(breaks))


if __name__ == "__main__":
    sys.exit(main())
