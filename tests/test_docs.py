"""Every command and code block of the README and the docs: understood here, and run in the slow lane.

A block that cannot run on a machine without accelerators, network or own files has a line `<!-- needs: ... -->`
before it; its commands are still checked against the program's flags and gin files.
"""

import argparse
import dataclasses
import importlib
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from flanx import config
from flanx.cli import gin_flags, short_form

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "launch" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = re.compile(r"<!-- needs: (.+?) -->")
PROGRAMS = ("flanx", "python", "pip", "make", "export", "kubectl", "mkdir", "printf")
GIN = ("train", "evaluate", "infer")


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code: where it begins, its text, what it needs that a plain machine does not have ("" for nothing)."""

    page: pathlib.Path
    line: int
    text: str
    needs: str

    @property
    def is_python(self) -> bool:
        return bool(re.match(r"(import|from) \w", self.text))

    @property
    def commands(self) -> list[str]:
        """The shell commands, continuation lines joined; [] for a block that is something else."""
        lines = [line.removeprefix("$ ") for line in self.text.replace("\\\n", " ").splitlines()]
        return [line for line in lines if line.partition(" ")[0] in PROGRAMS]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: pathlib.Path) -> list[Block]:
    """The fenced and the indented blocks of a page."""
    found, lines, i, needs = [], page.read_text(encoding="utf-8").splitlines(), 0, ""
    while i < len(lines):
        start = i
        if match := NEEDS.match(lines[i]):
            needs = match[1]
        elif lines[i].startswith("```"):
            i += 1
            while not lines[i].startswith("```"):
                i += 1
            found.append(Block(page, start + 2, "\n".join(lines[start + 1 : i]), needs))
            needs = ""
        elif lines[i].startswith("    ") and (not i or not lines[i - 1].strip()):
            while i + 1 < len(lines) and (lines[i + 1].startswith("    ") or not lines[i + 1].strip()):
                i += 1
            found.append(Block(page, start + 1, "\n".join(line[4:] for line in lines[start : i + 1]).rstrip(), needs))
            needs = ""
        elif lines[i].strip():
            needs = ""
        i += 1
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [
    pytest.param(command, id=f"{block}:{n}")
    for block in BLOCKS
    for n, command in enumerate(block.commands)
    if command.startswith("flanx ") and "..." not in command and "run:" not in command
]


def test_the_pages_hold_the_commands_that_they_are_about():
    assert len(COMMANDS) > 40
    assert any(block.is_python for block in BLOCKS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_flags_and_gin_files_that_exist(command, monkeypatch):
    words = shlex.split(command, comments=True)[1:]
    if "|" in words or "tran.gin" in command:  # a line of usage; the README's wrong name
        return
    parser = argparse.ArgumentParser()
    name = words.pop(0)
    if name in GIN:
        gin_flags.add_gin_arguments(parser)
        short_form.add_arguments(parser, name)
    else:
        importlib.import_module(f"flanx.cli.{name}").add_arguments(parser)
    bindings = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
    args = parser.parse_args([word for word in words if not word.startswith("--gin.")])
    if getattr(args, "gin_file", None):
        config.parse(args.gin_file, bindings, [], whole=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_with_dots_for_the_readers_own_flags_says_what_it_needs(page):
    dots = [block for block in blocks(page) if any("..." in command.split() for command in block.commands)]
    assert all(block.needs for block in dots), [str(block) for block in dots if not block.needs]


PYTHON = [pytest.param(block, id=str(block)) for block in BLOCKS if block.is_python]


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks_compile(block):
    compile(block.text, str(block), "exec")


RUN = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_one_after_another(page, tmp_path, data_dir):
    replaced = {"path/to/data": str(data_dir), "/data/": f"{tmp_path}/data/", "/mnt/github": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {  # one device
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "FLANX_DATA_DIR": str(data_dir),
    }
    for block in blocks(page):
        if block.needs or not (block.commands or block.is_python):
            continue
        text = block.text if block.is_python else "\n".join(["set -e", *block.commands])
        for old, new in replaced.items():
            text = text.replace(old, new)
        program = [sys.executable, "-c", text] if block.is_python else ["bash", "-c", text]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


PATHS = re.compile(
    r"(?<![\w./-])((?:flanx|tests|tasks|benchmarks|launch|docs|gin)/[\w./-]*\w|(?:sweeps|runs|mixtures|evals|recipes)/\w+\.gin)"
)


ELSEWHERE = (
    "flanx/gin",
    "runs/tran.gin",
    "tasks/mmlu/default",
    "tasks/mmlu/continuation",
)  # in a wheel, a wrong name, paths of lm-evaluation-harness


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in (match[1] for match in PATHS.finditer(text) if text[match.end() : match.end() + 1] not in ("<", "*")):
        known = any((folder / name).exists() for folder in (ROOT, ROOT / "gin"))
        assert known or name in ELSEWHERE, name
