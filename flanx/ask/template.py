"""Renders the turns of a conversation to one prompt, by a table of texts with a placeholder for each turn's text."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from flanx import files
from flanx.errors import UserError, nearest

BUILT_IN = pathlib.Path(__file__).with_name("templates.toml")
DEFAULT = "qa"
PLACE = "{text}"
SYSTEM = ("system", "developer")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message of a conversation; `role`: "system", "developer", "user" or "assistant"."""

    role: str
    text: str


@dataclasses.dataclass(frozen=True)
class Template:
    """The texts of `templates.toml`, whose header documents them; a turn's text replaces "{text}"."""

    first: str = PLACE
    system: str = f"{PLACE}\n"
    user: str = f"{PLACE}\n"
    assistant: str = f"{PLACE}\n"
    answer: str = ""
    stop: tuple[str, ...] = ()
    only_last: bool = False

    def render(self, turns: Sequence[Turn]) -> str:
        """The prompt. Raises UserError if the last turn is not the user's, or a system turn comes late."""
        count = next((n for n, turn in enumerate(turns) if turn.role not in SYSTEM), len(turns))
        system, said = turns[:count], turns[count:]
        for number, turn in enumerate(said, count):
            if turn.role not in ("user", "assistant"):
                raise UserError(f"messages[{number}] is of '{turn.role}': first system's, then user's and assistant's")
        if not said or said[-1].role != "user":
            raise UserError("the last message is not the user's: there is nothing to answer")
        if self.only_last:
            said = said[-1:]
        head = "".join(_fill(self.system, turn.text) for turn in system if turn.text)
        if len(said) == 1:
            return head + _fill(self.first, said[0].text)
        parts = [_fill(self.user if turn.role == "user" else self.assistant, turn.text) for turn in said]
        return head + "".join(parts) + self.answer


def _fill(form: str, text: str) -> str:
    before, _, after = form.partition(PLACE)
    return f"{before}{text}{after}"


def load(name: str) -> Template:
    """The template with a built-in name, or from a TOML file. Raises UserError for anything else."""
    built_in = tomllib.loads(BUILT_IN.read_text(encoding="utf-8"))
    if name in built_in:
        return _read(built_in[name], name)
    path = files.local_path(name)
    if not path.is_file():
        raise UserError(
            f"no template '{name}'{nearest(name, built_in)} (built in: {', '.join(built_in)}), nor a TOML file of it"
        )
    return _read(files.read_toml(path), str(path))


def _read(found: Mapping[str, Any], where: str) -> Template:
    """A template from a table, with every key checked."""
    kinds = {field.name: field for field in dataclasses.fields(Template)}
    for key, value in found.items():
        if key not in kinds:
            raise UserError(f"{where}: no '{key}' in a template{nearest(key, kinds)} (keys: {', '.join(kinds)})")
        if key == "stop":
            if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
                raise UserError(f"{where}: stop is {value!r}; it takes a list of texts that are not empty")
        elif key == "only_last":
            if not isinstance(value, bool):
                raise UserError(f"{where}: only_last is {value!r}; it takes true or false")
        elif not isinstance(value, str) or value.count(PLACE) != (key != "answer"):
            places = "no" if key == "answer" else "one"
            raise UserError(f"{where}: {key} is {value!r}; it takes a text with {places} {PLACE}")
    values: dict[str, Any] = {key: tuple(value) if key == "stop" else value for key, value in found.items()}
    return Template(**values)
