"""`flanx store`: build, show, mix, verify."""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flanx.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    doors = parser.add_subparsers(dest="store_door", metavar="build|show|mix|verify", required=True)
    build = doors.add_parser("build", help="render and tokenize tasks into the store, or complete it")
    _add_gin(build)
    build.add_argument("--runner", choices=("processes", "beam"), default=None, help="what runs the jobs")
    build.add_argument("--runner_options", default="", help="options of the Beam runner, separated by spaces")
    build.add_argument("--quiet", action="store_true", help="no progress")
    show = doors.add_parser("show", help="what a store holds")
    show.add_argument("store", help="folder or URL of the store")
    show.add_argument("--tasks", action="store_true", help="a line for each task")
    show.add_argument("--lengths", default="512,128", help="lengths at which truncation is told: inputs,targets")
    mix = doors.add_parser("mix", help="what a mixture will give over the planned steps")
    _add_gin(mix)
    mix.add_argument("store", nargs="?", help="folder or URL of the store; else the macro STORE_DIR")
    mix.add_argument("--mixture", help="named mixture, collection or task")
    mix.add_argument("--num_tasks", type=int)
    mix.add_argument("--cot_ratio", type=float)
    mix.add_argument("--rates", help="collection=rate,... in parts of 1 or of 100")
    mix.add_argument("--caps", help="collection=examples,...")
    mix.add_argument("--styles", help="style=rate,...")
    mix.add_argument("--inversion", type=float, help="rate of inverted examples against 1")
    mix.add_argument("--allow_missing", action="store_true")
    mix.add_argument("--licence", help="tasks of such data alone: permissive, share_alike or MIT,CC-BY-4.0")
    mix.add_argument("--lengths", help="inputs,targets; else TASK_FEATURE_LENGTHS, else 512,128")
    mix.add_argument("--batch_size", type=int)
    mix.add_argument("--steps", type=int)
    mix.add_argument("--packing", default="encoder_decoder", choices=("encoder_decoder", "decoder_only"))
    mix.add_argument("--tasks", action="store_true", help="a line for each task")
    mix.add_argument("--picture", metavar="FILE", help="draw it into an image file")
    verify = doors.add_parser("verify", help="compare every byte of a store with its hashes")
    verify.add_argument("store", help="folder or URL of the store")
    for door in (show, mix):
        door.add_argument("--json", metavar="FILE", help="write it as JSON; - for standard output")


def _add_gin(parser: argparse.ArgumentParser) -> None:
    from flanx.cli.gin_flags import add_gin_arguments

    add_gin_arguments(parser)


def run(args: argparse.Namespace) -> int:
    return {"build": _build, "show": _show, "mix": _mix, "verify": _verify}[args.store_door](args)


# ---- build -----------------------------------------------------------------------------------------------------------


def _build(args: argparse.Namespace) -> int:
    from flanx import config
    from flanx.cli.gin_flags import parse_gin
    from flanx.data.store import build

    args.gin_file = args.gin_file or ["runs/store.gin"]
    for name, value in (("runner", args.runner), ("runner_options", args.runner_options.split() or None)):
        if value is not None:
            args.bindings = [*args.bindings, f"flanx.data.store.build.build_store.{name}={value!r}"]
    if args.quiet:
        args.bindings = [*args.bindings, "flanx.data.store.build.build_store.quiet=True"]
    parse_gin(args)
    report = config.call(build.build_store)
    rate = report.examples / max(report.seconds, 1e-9)
    made = f"{report.built} pieces built ({report.examples:,} examples, {rate:,.0f}/s)"
    print(f"{report.path}: {made}, {report.kept} kept")
    for name, reason in sorted(report.missing.items()):
        print(f"missing: task {name}: {reason}", file=sys.stderr)
    for name, reason in sorted(report.failed.items()):
        print(f"failed: task {name}: {reason}", file=sys.stderr)
    if report.failed:
        print(f"{len(report.failed)} tasks failed; details in {pathlib.Path(report.path) / 'failed'}", file=sys.stderr)
    return report.status


# ---- show, mix, verify -----------------------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> int:
    from flanx.data import store
    from flanx.data.store import stats

    found = stats.show(store.open_store(args.store), _pair(args.lengths, "--lengths"))
    if args.json:
        return _write_json(found, args.json)
    words = found["vocabulary"]
    print(f"{found['path']}\nhash {found['hash']}\nvocabulary {words['spec']} ({words['size']} ids)")
    cut = "cut at {inputs}/{targets}".format(**found["lengths"])
    columns = ("tasks", "examples", "rendered", "tokens", "unknown", f"{cut}: inputs", "targets")
    _print_table("collection", columns, ((name, _held(row)) for name, row in found["collections"].items()))
    if args.tasks:
        columns = ("styles", *columns[1:], "licence")
        rows = ((n, [len(r["styles"]), *_held(r)[1:], r["licence"]]) for n, r in found["tasks"].items())
        _print_table("task", columns, rows)
    for name, reason in found["missing"].items():
        print(f"missing: task {name}: {reason}")
    return 0


def _held(row: Mapping[str, Any]) -> list[Any]:
    tokens = row["input_tokens"] + row["target_tokens"]
    shares = [_percent(row[key]) for key in ("unknown_share", "cut_inputs_share", "cut_targets_share")]
    return [row.get("tasks", ""), f"{row['examples']:,}", f"{row['rendered']:,}", f"{tokens:,}", *shares]


def _mix(args: argparse.Namespace) -> int:
    from flanx.data import store
    from flanx.data.pipeline import mixture
    from flanx.data.store import stats

    setting = _setting(args)
    if not setting["store"]:
        raise UserError("name a store: `flanx store mix STORE --mixture NAME`, or --gin.STORE_DIR with a --gin_file")
    batches = mixture.Batches(
        store.open_store(setting["store"]),
        setting["mixture"],
        setting["lengths"],
        setting["batch_size"],
        packing=args.packing,
    )
    table = stats.mix(batches, setting["steps"])
    if args.picture:
        from flanx.data.store import plot

        plot.draw(table, args.picture)
    if args.json:
        return _write_json(table, args.json)
    asked = table["mixture"]
    name, counts = asked["asked"]["name"], f"{asked['tasks']} tasks, {asked['sources']} sources"
    print(f"{name}: {counts}; fingerprint {table['fingerprint']}")
    print(
        f"{table['steps']:,} steps of {table['batch_size']} rows: {table['examples']:,.0f} examples, "
        f"{table['examples_per_row']:.2f} in a row; padding "
        + ", ".join(f"{_SIDES.get(side, side)} {_percent(share)}" for side, share in table["padding"].items())
        + "; cut "
        + ", ".join(f"{side} {_percent(share)}" for side, share in table["cut"].items())
        + f"; chain of thought {_percent(asked['cot_share'])}"
    )
    rates, given = asked["rates"] or {}, table["collections"]
    nothing = {"tasks": 0, "share": 0.0, "drawn": 0.0, "most_epochs": 0.0}
    rows = (
        (name, [row["tasks"], *([_percent(rates[name])] if rates else []), _percent(row["share"]),
                f"{row['drawn']:,.0f}", f"{row['most_epochs']:.3g}"])
        for name, row in (dict.fromkeys(rates, nothing) | given).items()
    )  # fmt: skip
    columns = ("tasks", *(["asked"] if rates else []), "share", "examples drawn", "most epochs of a task")
    _print_table("collection", columns, rows)
    if args.tasks:
        ordered = sorted(table["tasks"].items(), key=lambda item: -item[1]["share"])
        rows = ((name, [_percent(r["share"]), f"{r['examples']:,}", f"{r['drawn']:,.0f}", f"{r['epochs']:.3g}",
                        _percent(r["cut_inputs"]), _percent(r["cut_targets"])]) for name, r in ordered)  # fmt: skip
        _print_table("task", ("share", "examples", "drawn", "epochs", "inputs cut", "targets cut"), rows)
    for name, reason in asked["missing"].items():
        print(f"missing: {name}: {reason}")
    return 0


_SIDES = {"first_full": "side that fills first"}


def _setting(args: argparse.Namespace) -> dict[str, Any]:
    """Store, mixture, lengths, batch size and steps from gin files, laid over by the flags."""
    import dataclasses

    from flanx.data.pipeline.mixture import Mixture

    setting: dict[str, Any] = {"store": args.store, "lengths": {"inputs": 512, "targets": 128}, "batch_size": 64,
                               "steps": 1000, "mixture": None}  # fmt: skip
    if args.gin_file:
        from flanx import config
        from flanx.cli.gin_flags import parse_gin

        parse_gin(args)
        setting["mixture"] = config.make(Mixture)
        macros = {"lengths": "TASK_FEATURE_LENGTHS", "batch_size": "BATCH_SIZE", "steps": "TRAIN_STEPS"}
        setting |= {key: config.value(macro) for key, macro in macros.items()}
        setting["store"] = setting["store"] or config.value("STORE_DIR")
    elif not args.mixture:
        raise UserError("name a mixture: `flanx store mix STORE --mixture NAME`, or a --gin_file")
    given = {
        "name": args.mixture,
        "num_tasks": args.num_tasks,
        "cot_ratio": args.cot_ratio,
        "rates": _pairs(args.rates, "--rates"),
        "caps": _pairs(args.caps, "--caps"),
        "styles": _pairs(args.styles, "--styles"),
        "inversion": args.inversion,
        "allow_missing": args.allow_missing or None,
        "licence": args.licence,
    }
    given = {key: value for key, value in given.items() if value is not None}
    setting["mixture"] = dataclasses.replace(setting["mixture"], **given) if setting["mixture"] else Mixture(**given)
    for key in ("batch_size", "steps"):
        if getattr(args, key) is not None:
            setting[key] = getattr(args, key)
    if args.lengths:
        setting["lengths"] = dict(zip(("inputs", "targets"), _pair(args.lengths, "--lengths"), strict=True))
    return setting


def _verify(args: argparse.Namespace) -> int:
    from flanx.data import store

    def seen(file: str, size: int) -> None:
        print(f"{file}: {size:,} bytes, as built")

    opened = store.verify(args.store, seen)
    print(f"{opened.path}: sound; hash {opened.hash}")
    return 0


# ---- reading flags, printing -----------------------------------------------------------------------------------------


def _pair(text: str, flag: str) -> tuple[int, int]:
    try:
        inputs, targets = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{flag} {text}: give inputs,targets, as 512,128") from error
    return inputs, targets


def _pairs(text: str | None, flag: str) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        return {key.strip(): float(value) for key, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise UserError(f"{flag} {text}: give name=number,name=number") from error


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _write_json(table: Mapping[str, Any], path: str) -> int:
    text = json.dumps(table, indent=1)
    if path == "-":
        print(text)
    else:
        pathlib.Path(path).write_text(text + "\n", encoding="utf-8")
    return 0


def _print_table(first: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]]) -> None:
    """A table with its first column to the left and the others to the right, as wide as its cells."""
    lines = [[first, *columns], *([name, *map(str, cells)] for name, cells in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print(
            "  ".join(
                [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
            )
        )
