"""The published training recipes as gin files, with the source of every value and guesses marked.

The values are in `recipes.toml`; a test compares them with the gin files in `gin/recipes/`. Nothing here imports jax,
so that `flanx recipe` starts quickly.
"""

import dataclasses
import importlib.resources
import json
import tomllib
from collections.abc import Mapping
from typing import Any

from flanx.errors import UserError, nearest

KINDS = ("paper", "checkpoint", "authors", "code", "guess", "ours", "unknown")
DOUBTFUL = ("guess", "unknown")
YOURS = "yours"  # a value that the gin file leaves to the user


@dataclasses.dataclass(frozen=True)
class Field:
    """One value of a recipe and where it comes from; `kind` is one of KINDS."""

    value: Any
    kind: str
    source: str

    @property
    def text(self) -> str:
        """The value as text; None as "None"."""
        return self.value if isinstance(self.value, str) else json.dumps(self.value)


@dataclasses.dataclass(frozen=True)
class PublishedRecipe:
    """A published row: its title, its file under gin/, and its fields in the order of recipes.toml, its own last."""

    name: str
    title: str
    gin: str
    fields: Mapping[str, Field]

    @property
    def doubtful(self) -> list[str]:
        """The fields without a source."""
        return [name for name, field in self.fields.items() if field.kind in DOUBTFUL]


def load() -> dict[str, PublishedRecipe]:
    """All recipes by name."""
    text = importlib.resources.files("flanx.sweep").joinpath("recipes.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return {name: _recipe(name, section, tables["bases"]) for name, section in tables["recipes"].items()}


def _recipe(name: str, section: Mapping[str, Any], bases: Mapping[str, Any]) -> PublishedRecipe:
    rows: dict[str, Any] = {}
    sections = [section]
    while base := sections[0].get("base"):
        sections.insert(0, bases[base])
    for each in sections:
        rows |= {field: row for field, row in each.items() if field not in ("base", "title", "gin")}
    return PublishedRecipe(name, section["title"], section["gin"], {field: Field(*row) for field, row in rows.items()})


def find(name: str) -> PublishedRecipe:
    """The named recipe, with dashes or underscores. Raises UserError with the nearest known name."""
    recipes = load()
    wanted = name.removesuffix(".gin").rpartition("/")[2].replace("-", "_")
    if wanted not in recipes:
        raise UserError(f"no recipe '{name}'{nearest(wanted, recipes)}; `flanx recipe list` prints them all")
    return recipes[wanted]


def differences(a: PublishedRecipe, b: PublishedRecipe) -> dict[str, tuple[Field | None, Field | None]]:
    """The fields whose value or source differ: {field: (in a, in b)}, None if one has no such field."""
    names = dict.fromkeys([*a.fields, *b.fields])
    return {n: (a.fields.get(n), b.fields.get(n)) for n in names if a.fields.get(n) != b.fields.get(n)}
