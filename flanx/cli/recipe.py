"""`flanx recipe`: list, show, diff the published recipes."""

import argparse
import dataclasses
import json

from rich.console import Console
from rich.table import Table

from flanx.sweep.published_recipes import DOUBTFUL, differences, find, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the door."""
    doors = parser.add_subparsers(dest="recipe_door", metavar="list|show|diff", required=True)
    every = doors.add_parser("list", help="the recipes, a line for each")
    show = doors.add_parser("show", help="every value of a recipe with its source; guesses are marked '?'")
    show.add_argument("name")
    diff = doors.add_parser("diff", help="where two recipes differ")
    diff.add_argument("a")
    diff.add_argument("b")
    for door in (every, show, diff):
        door.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what was asked for."""
    {"list": _list, "show": _show, "diff": _diff}[args.recipe_door](args)
    return 0


def _list(args: argparse.Namespace) -> None:
    recipes = load().values()
    if args.json:
        print(json.dumps({r.name: {"title": r.title, "gin": r.gin, "doubtful": r.doubtful} for r in recipes}, indent=1))
        return
    macros = ("MIXTURE_OR_TASK_NAME", "BATCH_SIZE", "LEARNING_RATE", "DROPOUT_RATE", "TRAIN_STEPS")
    table = _table("recipe", "row", "mixture", "batch", "rate", "dropout", "steps", "guesses")
    for recipe in recipes:
        values = [recipe.fields[macro].told for macro in macros]
        table.add_row(recipe.name, recipe.title, *values, f"{len(recipe.doubtful)} of {len(recipe.fields)}")
    _print(table)


def _show(args: argparse.Namespace) -> None:
    recipe = find(args.name)
    if args.json:
        fields = {name: dataclasses.asdict(field) for name, field in recipe.fields.items()}
        print(json.dumps({"name": recipe.name, "title": recipe.title, "gin": recipe.gin, "fields": fields}, indent=1))
        return
    table = _table("field", "value", "", "kind", "source")
    for name in sorted(recipe.fields):
        field = recipe.fields[name]
        table.add_row(name, field.told, "?" if field.kind in DOUBTFUL else "", field.kind, field.source)
    print(f"{recipe.title}: flanx train --gin_file={recipe.gin}")
    _print(table)
    print(f"{len(recipe.doubtful)} of {len(recipe.fields)} values have no source: {', '.join(sorted(recipe.doubtful))}")


def _diff(args: argparse.Namespace) -> None:
    a, b = find(args.a), find(args.b)
    found = differences(a, b)
    if args.json:
        pairs = {n: [dataclasses.asdict(f) if f else None for f in pair] for n, pair in found.items()}
        print(json.dumps({"recipes": [a.name, b.name], "fields": pairs}, indent=1))
        return
    table = _table("field", a.name, b.name)
    for name in sorted(found):
        table.add_row(
            name, *(f"{field.told}\n({field.kind}: {field.source})" if field else "-" for field in found[name])
        )
    _print(table)
    print(f"{len(found)} fields differ")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table) -> None:
    """Prints a table as wide as the terminal, or wide enough for most lines where there is none."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=200)
    console.print(table)
