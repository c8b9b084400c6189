"""What gin files define, reference and import, read with gin's own parser before gin binds anything.

Nothing that a file names is run or imported here, so that an unknown file, macro or module is reported with its
location, and an untrusted module is rejected.
"""

import ast
import functools
import importlib
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from gin import config_parser

from flanx.errors import UserError, nearest

open_text = functools.partial(open, encoding="utf-8-sig")  # with or without a byte order mark, whatever the locale
IMPORTS = ("flanx", "jax", "seqio")  # what a gin file may import by default
MODULES = (".MIXTURE_OR_TASK_MODULE", ".build_store.imports", ".Mixture.module")  # bindings that name modules
IMPORTS_VARIABLE = "FLANX_IMPORTS"  # what --import allows in addition; the runs of a sweep inherit it


class Reference(str):
    """A %macro or @function in a value of a gin file, printed as written there."""

    __repr__ = str.__str__


class Recorder(config_parser.ParserDelegate):
    """Records the macros that a statement references, instead of binding them."""

    def __init__(self) -> None:
        self.references: list[str] = []
        self.scopes: set[str] = set()

    # gin's base class is annotated to return None, but any value is meant
    def configurable_reference(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, scoped_configurable_name: str, evaluate: bool
    ) -> str:
        self.scopes.add(scoped_configurable_name.rpartition("/")[0])
        return Reference(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name: str) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.references.append(macro_name)
        return Reference("%" + macro_name)


def _location(location: config_parser.Location | None) -> str:
    if location is None:
        return "the command line"
    return f"{location.filename}:{location.line_num}" if location.filename else "the command line"


class Scan:
    """What gin files define and reference, in reading order.

    Attributes:
      defined, referenced: {macro: file and line of the first occurrence}.
      bound: {macro or "module.function.parameter": [(file and line, value as written there)]}; the last one wins.
      scopes: the scopes in which something is called, except "".
      files: the files read; reading: those being read, an included one after its includer.
    """

    def __init__(self, search_paths: Sequence[str]) -> None:
        self.search_paths = list(search_paths)
        self.defined: dict[str, str] = {}
        self.referenced: dict[str, str] = {}
        self.bound: dict[str, list[tuple[str, str]]] = {}
        self.scopes: set[str] = set()
        self.files: list[str] = []
        self.reading: list[pathlib.Path] = []

    def read(self, name: str, location: str) -> None:
        path = self._find(name, location)
        if path.resolve() in self.reading:
            raise UserError(f"gin file '{name}' includes itself ({location}); remove the include")
        self.files.append(str(path))
        self.reading.append(path.resolve())
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(
                f"gin file {path} is not UTF-8 ({error.reason} at byte {error.start}); convert it"
            ) from error
        if "\0" in text:
            raise UserError(f"gin file {path} is not a text: it holds a zero byte; is it another file?")
        with open_text(path) as file:
            self.read_statements(file)
        self.reading.pop()

    def read_statements(self, text: Any) -> None:
        recorder = Recorder()
        for statement in config_parser.ConfigParser(text, recorder):
            location = _location(statement.location)
            for macro in recorder.references:
                self.referenced.setdefault(macro, location)
            recorder.references.clear()
            self.scopes |= recorder.scopes
            if isinstance(statement, config_parser.IncludeStatement):
                self.read(statement.filename, location)
            elif isinstance(statement, config_parser.ImportStatement):
                _check_import(statement, location)
            elif isinstance(statement, config_parser.BindingStatement):
                scope = f"{statement.scope}/" if statement.scope else ""
                key = scope + ".".join(filter(None, (statement.selector, statement.arg_name)))
                self.bound.setdefault(key, []).append((location, repr(statement.value)))
                if not statement.arg_name:
                    self.defined.setdefault(statement.selector, location)

    def _find(self, name: str, location: str) -> pathlib.Path:
        for folder in ["", *self.search_paths]:
            if (path := pathlib.Path(folder, name)).is_file():
                return path
        known = [p.relative_to(f).as_posix() for f in map(pathlib.Path, self.search_paths) for p in f.rglob("*.gin")]
        raise UserError(
            f"no gin file '{name}' ({location}; searched ., {', '.join(self.search_paths)})" + nearest(name, known)
        )


def allow_imports(modules: Sequence[str]) -> None:
    """Allows gin files to import these modules, here and in every process that this one starts."""
    kept = [name for name in os.environ.get(IMPORTS_VARIABLE, "").split(",") if name]
    os.environ[IMPORTS_VARIABLE] = ",".join(dict.fromkeys([*kept, *modules]))


def import_hint(name: str) -> str:
    """How to bind what no gin file references, e.g. "optim.adamw_8bit", if flanx has it; "" for any other name."""
    module, _, function = name.rpartition("/")[2].rpartition(".")
    known = module.isidentifier() and importlib.util.find_spec(f"flanx.{module}") is not None
    if not known or not hasattr(importlib.import_module(f"flanx.{module}"), function):
        return ""
    return (
        "; the command line knows what a gin file refers to: put this line into one of yours, --gin_file, behind 'from "
        f"__gin__ import dynamic_registration' and 'from flanx import {module}'"
    )


def expect_allowed(module: str, location: str) -> None:
    """Raises UserError for a module that neither flanx nor --import allows gin files to import."""
    allowed = [*IMPORTS, *filter(None, os.environ.get(IMPORTS_VARIABLE, "").split(","))]
    if not any(f"{module}.".startswith(f"{name}.") for name in allowed):
        raise UserError(
            f"the gin file imports '{module}' ({location}), which runs its code: if you trust it, add "
            f"--import={module.partition('.')[0]}"
        )


def take_modules(scan: Scan) -> None:
    """Checks the task modules that MODULES name, which are imported when a task is looked up, and allows their import
    here and in every process that this one starts. Raises UserError for one that --import does not allow."""
    for name, rows in scan.bound.items():
        if not f".{name}".endswith(MODULES):
            continue
        location, text = rows[-1]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # a macro or a function's result: its own value is checked
            continue
        named = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        for module in filter(None, (each for each in named if isinstance(each, str))):
            expect_allowed(module, location)
            allow_imports([module])


def _check_import(statement: config_parser.ImportStatement, location: str) -> None:
    """Raises UserError for an import of a module that does not exist, before gin tries it."""
    root = statement.module.partition(".")[0]
    if root == "__gin__":
        return
    if root in ("t5x", "__main__"):
        raise UserError(
            f"'{statement.module}' ({location}) is T5X's, and flanx runs without it: include runs/train.gin "
            "and a file of models/ instead; the macros have T5X's names"
        )
    expect_allowed(statement.module, location)
    parent, _, _ = statement.module.rpartition(".")
    try:
        exists = importlib.util.find_spec(statement.module) is not None
        siblings = []
        if not exists and parent:
            package = importlib.util.find_spec(parent)
            folders = list(package.submodule_search_locations or []) if package else []
            siblings = [f"{parent}.{p.stem}" for folder in folders for p in pathlib.Path(folder).glob("*")]
    except ImportError:
        exists, siblings = False, []
    if not exists:
        raise UserError(f"no module '{statement.module}' ({location})" + nearest(statement.module, siblings))
