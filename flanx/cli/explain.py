"""`flanx explain`: what gin files and bindings set, and which line set each value."""

import argparse
import dataclasses
import inspect
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flanx import config
from flanx.cli.gin_flags import add_gin_arguments, parse_gin
from flanx.cli.table import print_table
from flanx.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Setting:
    """A macro or a parameter, as set by the files and bindings of the latest `parse`.

    Attributes:
      value: as written, macros resolved.
      locations: [(file and line, value as written there)], in order; the last one wins. Empty: the parameter's default.
      uses: what refers to the macro.
      annotation, meaning: the parameter's type and its line in the docstring; for a macro, the comment on its line.
    """

    name: str
    value: str
    locations: Sequence[tuple[str, str]] = ()
    uses: Sequence[str] = ()
    annotation: str = ""
    meaning: str = ""


def read_settings() -> dict[str, Setting]:
    """Every macro, and every parameter of every function bound by the latest `parse`, by name."""
    scan, settings = config.last_scan(), {}
    for macro in scan.defined:
        locations = scan.bound[macro]
        uses = [key for key, rows in scan.bound.items() if re.search(rf"%{macro}\b", rows[-1][1])]
        settings[macro] = Setting(macro, _resolved(locations[-1][1]), locations, uses, meaning=_comment(locations))
    for selector, function in config.bound_functions().items():
        docs = _parameter_docs(inspect.getdoc(function) or "")
        for name, parameter in inspect.signature(function).parameters.items():
            full = f"{selector}.{name}"
            locations = [row for key, rows in scan.bound.items() if "." in key and _names(key, full) for row in rows]
            empty = parameter.default is inspect.Parameter.empty
            value = _resolved(locations[-1][1]) if locations else "unset" if empty else repr(parameter.default)
            short = full.removeprefix("flanx.")
            settings[short] = Setting(short, value, locations, (), _type(parameter.annotation), docs.get(name, ""))
    return settings


def _names(key: str, full: str) -> bool:
    """Whether a binding's key, ignoring scope, is the parameter `full` or a suffix of its name."""
    return f".{full}".endswith("." + key.rpartition("/")[2])


def _resolved(text: str) -> str:
    """A value with its macros replaced by their values, if they have one."""
    bound = {macro: rows[-1][1] for macro, rows in config.last_scan().bound.items()}
    for _ in range(8):  # nested macros; gin itself rejects cycles
        text, changed = re.subn(r"%(\w+)", lambda m: bound.get(m[1], m[0]), text)
        if not changed:
            break
    return text.replace("%gin.REQUIRED", "unset")


def _comment(locations: Sequence[tuple[str, str]]) -> str:
    """The trailing comment of the first line that has one."""
    for location, _ in locations:
        path, _, line = location.rpartition(":")
        if path and line.isdigit():
            comment = pathlib.Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1].partition("  # ")[2]
            if comment:
                return comment
    return ""


def _parameter_docs(text: str) -> dict[str, str]:
    """The entries of a docstring's Args or Attributes, by name."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.partition("Args:")[2].splitlines() or text.partition("Attributes:")[2].splitlines():
        entry = re.match(r"  ([\w, *]+): (.*)", line)
        if line and not line.startswith("  "):
            break
        if entry:
            names = re.findall(r"\w+", entry[1])
        for name in names:
            found[name] = f"{found.get(name, '')} {entry[2] if entry else line.strip()}".strip()
    return found


def _type(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation.__name__ if isinstance(annotation, type) else re.sub(r"\b(\w+\.)+", "", str(annotation))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_gin_arguments(parser)
    parser.add_argument("name", nargs="?", help="a macro or a parameter, or the end of its name; none: all that is set")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints every setting, or the details of those whose name ends in `args.name`."""
    parse_gin(args, whole=False)
    every = read_settings()
    chosen = pick(every, args.name) if args.name else {n: s for n, s in every.items() if s.locations}
    if args.json:
        print(json.dumps({name: dataclasses.asdict(setting) for name, setting in chosen.items()}, indent=1))
    elif args.name:
        print("\n\n".join(map(paragraph, chosen.values())))
    else:  # locations in flanx's gin folder are printed as `--gin_file` accepts them
        home = f"{config.gin_folder()}/"
        rows = [(s.name, s.value, s.locations[-1][0].removeprefix(home)) for s in chosen.values()]
        print_table(("name", "value", "set by"), rows, left=("value", "set by"))
    return 0


def pick(every: Mapping[str, Setting], name: str) -> dict[str, Setting]:
    """The settings with this name, those whose name ends in it, or those of the function with this name."""
    wanted = name.removeprefix("%").removeprefix("flanx.")
    ends = {n: s for n, s in every.items() if n == wanted or n.endswith(f".{wanted}")}
    found = ends or {n: s for n, s in every.items() if f".{n}".rpartition(".")[0].endswith(f".{wanted}")}
    if not found:
        known = [*every, *(n.rpartition(".")[2] for n in every)]
        raise UserError(f"these gin files bind nothing named '{name}'{nearest(wanted, known)}")
    return found


def paragraph(setting: Setting) -> str:
    """A paragraph on one setting."""
    lines = [f"{setting.name} = {setting.value}"]
    lines += [f"  {setting.meaning}"] if setting.meaning else []
    lines += [f"  type: {setting.annotation}"] if setting.annotation else []
    for (location, value), word in zip(
        reversed(setting.locations), ["set by", *["before"] * len(setting.locations)], strict=False
    ):
        lines.append(f"  {word}: {location}: {value}")
    lines += [] if setting.locations else ["  set by: nothing; this is its default"]
    lines += [f"  used by: {', '.join(setting.uses)}"] if setting.uses else []
    return "\n".join(lines)
