"""`flanx explain`: what gin files and bindings amount to, and which line set each value."""

import argparse
import dataclasses
import inspect
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flanx import config
from flanx.cli.gin_flags import add_gin_arguments, parse_gin
from flanx.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Setting:
    """A macro or a parameter, as the files and bindings of the newest `parse` leave it.

    Attributes:
      value: as it is written, macros resolved.
      places: [(place, value as it stands there)], first to last; the last holds. Empty: the parameter's own default.
      uses: what refers to the macro.
      annotation, meaning: the parameter's type and its line in the docstring; of a macro, the comment beside it.
    """

    name: str
    value: str
    places: Sequence[tuple[str, str]] = ()
    uses: Sequence[str] = ()
    annotation: str = ""
    meaning: str = ""


def settings() -> dict[str, Setting]:
    """Every macro, and every parameter of every function that the newest `parse` binds, by name."""
    scan, found = config.last_scan(), {}
    for macro in scan.defined:
        places = scan.bound[macro]
        uses = [key for key, rows in scan.bound.items() if re.search(rf"%{macro}\b", rows[-1][1])]
        found[macro] = Setting(macro, _resolved(places[-1][1]), places, uses, meaning=_comment(places))
    for selector, function in config.bound_functions().items():
        said = _said(inspect.getdoc(function) or "")
        for name, parameter in inspect.signature(function).parameters.items():
            full = f"{selector}.{name}"
            places = [row for key, rows in scan.bound.items() if "." in key and _names(key, full) for row in rows]
            empty = parameter.default is inspect.Parameter.empty
            value = _resolved(places[-1][1]) if places else "unset" if empty else repr(parameter.default)
            short = full.removeprefix("flanx.")
            found[short] = Setting(short, value, places, (), _type(parameter.annotation), said.get(name, ""))
    return found


def _names(key: str, full: str) -> bool:
    """Whether the key of a binding, scope aside, is the parameter `full` or the end of its name."""
    return f".{full}".endswith("." + key.rpartition("/")[2])


def _resolved(text: str) -> str:
    """A value with the macros in it replaced by theirs, as far as they have one."""
    bound = {macro: rows[-1][1] for macro, rows in config.last_scan().bound.items()}
    for _ in range(8):  # macros of macros; gin itself refuses circles
        text, changed = re.subn(r"%(\w+)", lambda m: bound.get(m[1], m[0]), text)
        if not changed:
            break
    return text.replace("%gin.REQUIRED", "unset")


def _comment(places: Sequence[tuple[str, str]]) -> str:
    """The comment behind the first of the places that has one."""
    for place, _ in places:
        path, _, line = place.rpartition(":")
        if path and line.isdigit():
            words = pathlib.Path(path).read_text(encoding="utf-8").splitlines()[int(line) - 1].partition("  # ")[2]
            if words:
                return words
    return ""


def _said(text: str) -> dict[str, str]:
    """What a docstring's Args or Attributes say of each name."""
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
    """Flags of the door."""
    add_gin_arguments(parser)
    parser.add_argument("name", nargs="?", help="a macro or a parameter, or the end of its name; none: all that is set")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints every setting, or all that is known of those whose name ends in `args.name`."""
    parse_gin(args, whole=False)
    every = settings()
    found = pick(every, args.name) if args.name else {n: s for n, s in every.items() if s.places}
    if args.json:
        print(json.dumps({name: dataclasses.asdict(setting) for name, setting in found.items()}, indent=1))
    elif args.name:
        print("\n\n".join(map(tell, found.values())))
    else:
        console = Console(highlight=False)
        console.print(overview(found), width=console.width if console.is_terminal else 160)
    return 0


def pick(every: Mapping[str, Setting], name: str) -> dict[str, Setting]:
    """The settings of that name, those whose name ends in it, or those of the function of that name."""
    wanted = name.removeprefix("%").removeprefix("flanx.")
    ends = {n: s for n, s in every.items() if n == wanted or n.endswith(f".{wanted}")}
    found = ends or {n: s for n, s in every.items() if f".{n}".rpartition(".")[0].endswith(f".{wanted}")}
    if not found:
        known = [*every, *(n.rpartition(".")[2] for n in every)]
        raise UserError(f"these gin files bind nothing named '{name}'{nearest(wanted, known)}")
    return found


def tell(setting: Setting) -> str:
    """A paragraph on one setting."""
    lines = [f"{setting.name} = {setting.value}"]
    lines += [f"  {setting.meaning}"] if setting.meaning else []
    lines += [f"  type: {setting.annotation}"] if setting.annotation else []
    for (place, value), word in zip(
        reversed(setting.places), ["set by", *["before"] * len(setting.places)], strict=False
    ):
        lines.append(f"  {word}: {place}: {value}")
    lines += [] if setting.places else ["  set by: nothing; this is its default"]
    lines += [f"  used by: {', '.join(setting.uses)}"] if setting.uses else []
    return "\n".join(lines)


def overview(every: Mapping[str, Setting]) -> Table:
    """A line for each setting; the places in flanx's gin folder are named as `--gin_file` takes them."""
    table, home = Table(box=None, pad_edge=False), f"{config.gin_folder()}/"
    for column in ("name", "value", "set by"):
        table.add_column(column, overflow="fold")
    for setting in every.values():
        table.add_row(setting.name, setting.value, setting.places[-1][0].removeprefix(home))
    return table
