"""`flanx recipe`: list, show, diff the published recipes."""

import argparse
import dataclasses
import json

from flanx.cli.table import print_table
from flanx.sweep.published_recipes import DOUBTFUL, differences, find, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx recipe`."""
    commands = parser.add_subparsers(dest="recipe_command", metavar="list|show|diff", required=True)
    list_ = commands.add_parser("list", help="the recipes, a line for each")
    show = commands.add_parser("show", help="every value of a recipe with its source; guesses are marked '?'")
    show.add_argument("name")
    diff = commands.add_parser("diff", help="where two recipes differ")
    diff.add_argument("a")
    diff.add_argument("b")
    for command in (list_, show, diff):
        command.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Runs a subcommand."""
    {"list": _list, "show": _show, "diff": _diff}[args.recipe_command](args)
    return 0


def _list(args: argparse.Namespace) -> None:
    recipes = load().values()
    if args.json:
        print(json.dumps({r.name: {"title": r.title, "gin": r.gin, "doubtful": r.doubtful} for r in recipes}, indent=1))
        return
    macros = ("MIXTURE_OR_TASK_NAME", "BATCH_SIZE", "LEARNING_RATE", "DROPOUT_RATE", "TRAIN_STEPS")
    rows = [
        [
            recipe.name,
            recipe.title,
            *(recipe.fields[macro].text for macro in macros),
            f"{len(recipe.doubtful)} of {len(recipe.fields)}",
        ]
        for recipe in recipes
    ]
    columns = ("recipe", "row", "mixture", "batch", "rate", "dropout", "steps", "guesses")
    print_table(columns, rows, left=("row", "mixture"))


def _show(args: argparse.Namespace) -> None:
    recipe = find(args.name)
    if args.json:
        fields = {name: dataclasses.asdict(field) for name, field in recipe.fields.items()}
        print(json.dumps({"name": recipe.name, "title": recipe.title, "gin": recipe.gin, "fields": fields}, indent=1))
        return
    rows = [
        [name, field.text, "?" if field.kind in DOUBTFUL else "", field.kind, field.source]
        for name, field in sorted(recipe.fields.items())
    ]
    print(f"{recipe.title}: flanx train --gin_file={recipe.gin}")
    columns = ("field", "value", "", "kind", "source")
    print_table(columns, rows, left=columns)
    print(f"{len(recipe.doubtful)} of {len(recipe.fields)} values have no source: {', '.join(sorted(recipe.doubtful))}")


def _diff(args: argparse.Namespace) -> None:
    a, b = find(args.a), find(args.b)
    found = differences(a, b)
    if args.json:
        pairs = {n: [dataclasses.asdict(f) if f else None for f in pair] for n, pair in found.items()}
        print(json.dumps({"recipes": [a.name, b.name], "fields": pairs}, indent=1))
        return
    rows = [
        [name, *(f"{field.text} ({field.kind}: {field.source})" if field else "-" for field in found[name])]
        for name in sorted(found)
    ]
    print_table(("field", a.name, b.name), rows, left=(a.name, b.name))
    print(f"{len(found)} fields differ")
