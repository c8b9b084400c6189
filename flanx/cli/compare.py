"""`flanx compare A B [C ...]`: which answers people prefer, on a page of this machine; and models as judges."""

import argparse
import pathlib
from typing import Any

from flanx import files
from flanx.cli import short_form
from flanx.cli.table import print_table
from flanx.compare import ballot, candidate, pairing, result_table, tally
from flanx.compare.candidate import Candidate
from flanx.compare.pairing import Comparison
from flanx.errors import UserError
from flanx.settings import COUNT, NATURAL, Range, flag, path_flag, text_flag
from flanx.sweep import figures, preference_page

RESULTS = "results.jsonl"
BUSY = "another `flanx compare` serves {}: open its page, or end it first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `flanx compare`."""
    parser.add_argument(
        "candidate",
        nargs="*",
        type=path_flag,
        metavar="[NAME=]PATH",
        help="a run with generations, or a file of answers; none: the comparison that --output holds",
    )
    parser.add_argument("--output", type=path_flag, default="out/compare", metavar="FOLDER", help="of the comparison")
    parser.add_argument(
        "--suite", action="append", default=[], metavar="NAME", help="of runs: only this one; repeatable"
    )
    parser.add_argument("--pairs", type=flag(int, COUNT), default=0, help="so many, drawn; else all")
    parser.add_argument("--seed", type=flag(int, NATURAL), default=0, help="of order and sides")
    parser.add_argument("--export", type=path_flag, metavar="FILE.html", help="write the page as a file, serve nothing")
    parser.add_argument(
        "--read", action="append", default=[], type=path_flag, metavar="FILE", help="ballots that such a page saved"
    )
    parser.add_argument(
        "--judge", action="append", default=[], type=path_flag, metavar="[NAME=]CHECKPOINT", help="a model rates, too"
    )
    parser.add_argument("--results", action="store_true", help="print the results, serve nothing")
    parser.add_argument("--report", action="store_true", help="the same as a page with a figure; serve nothing")
    parser.add_argument("--host", type=text_flag, default="127.0.0.1", help="another one needs FLANX_TOKEN")
    parser.add_argument("--port", type=flag(int, Range(0, 65535)), default=0, help="else a free one")
    parser.epilog = (
        "The page opens by the link that is printed; any number of raters may use it, each under a name. Ctrl-C ends "
        "it and prints the results, which also go to results.jsonl in the folder."
    )


def run(args: argparse.Namespace) -> int:
    """Creates or finds the comparison, then exports, reads or judges as the flags say; else serves it."""
    folder = pathlib.Path(args.output)
    if args.export and pathlib.Path(args.export).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--export {args.export}: a page is written there, over what it holds: give FILE.html")
    if args.report:
        figures.expect_matplotlib()
    made = _comparison(args, folder)
    for name in args.read:  # so that invalid input leaves no comparison in the folder
        ballot.read_saved(made, pathlib.Path(name))
    for given in args.judge:
        short_form.of_checkpoint(_named(given)[1], None)
    if args.report and not (args.read or args.judge):
        _raters(made, folder, True)
    asked = args.read or args.judge or args.results or args.report
    server = None if asked or args.export else _server(made, folder, args.host, args.port)  # binds the port
    if args.candidate:
        _keep(made, folder)
    for name in args.read:
        with files.lock(folder / "lock", BUSY.format(folder)):  # a running server would not see them
            print(ballot.read_back(folder, made, pathlib.Path(name)))
    for given in args.judge:
        _judge(made, folder, given)
    if args.export:
        from flanx.compare import rater_page  # noqa: PLC0415

        files.write_atomic(pathlib.Path(args.export), rater_page.exported(made))
        print(f"{args.export}: {len(made.pairs)} pairs; `--read FILE` takes the ballots that it saves")
    if server is not None:
        with server, files.lock(folder / "lock", BUSY.format(folder)):
            print(f"Open {server.link}\nCtrl-C ends it; what is rated is kept.", flush=True)
            server.run()
    if asked or not args.export:
        report(made, folder, args.report)
    return 0


def _comparison(args: argparse.Namespace, folder: pathlib.Path) -> Comparison:
    """The comparison of the named candidates; with none named, the folder's."""
    if not args.candidate:
        if idle := next((name for name in ("suite", "pairs", "seed") if getattr(args, name)), None):
            raise UserError(
                f"--{idle} only applies to a new comparison: name the runs or files to compare, or leave it out"
            )
        return pairing.read(folder)
    made = pairing.make(_in_order(candidate.read_all(args.candidate, args.suite), folder), args.seed, args.pairs)
    return pairing.expect_same(folder, made)


def _keep(made: Comparison, folder: pathlib.Path) -> None:
    """Writes a comparison, and prints what it compares."""
    pairing.write(folder, made)
    names = ", ".join(made.candidates)
    print(f"{folder}: {len(made.pairs)} pairs of {len(made.prompts)} prompts ({names}), comparison {made.id}")
    for what, count in made.left_out.items():
        print(f"  {count} {what}")


def _in_order(found: list[Candidate], folder: pathlib.Path) -> list[Candidate]:
    """The candidates in the order of the folder's comparison if it has the same names: B A is the same as A B."""
    kept = pairing.read(folder).candidates if (folder / pairing.FILE).exists() else ()
    if {each.name for each in found} != {*kept}:
        return found
    if [each.name for each in found] != [*kept]:
        print(f"note: {folder} has them as {', '.join(kept)}: A and B of the results are in that order")
    return sorted(found, key=lambda each: kept.index(each.name))


def _server(made: Comparison, folder: pathlib.Path, host: str, port: int) -> Any:
    from flanx.web.server import Server  # noqa: PLC0415  (before `site`: names the extra if missing)

    return Server(_routes(made, folder), host=host, port=port)


def _routes(made: Comparison, folder: pathlib.Path) -> list[Any]:
    from flanx.compare import site  # noqa: PLC0415  (the extra `serve`)

    return site.routes(made, folder)


def _named(given: str) -> tuple[str, str]:
    """(name, checkpoint) of "[NAME=]CHECKPOINT"."""
    name, equals, checkpoint = given.partition("=")
    if not equals or pathlib.Path(given).exists():
        return pathlib.PurePath(given).name, given
    return name, checkpoint


def _judge(made: Comparison, folder: pathlib.Path, given: str) -> None:
    """Adds a checkpoint's ballots."""
    from flanx import api  # noqa: PLC0415  (imports jax)
    from flanx.compare import judge  # noqa: PLC0415

    name, checkpoint = _named(given)
    name = ballot.check_name(f"judge {name}"[: ballot.LONGEST["rater"]])
    model = api.load(checkpoint)
    path = pathlib.Path(checkpoint)
    source = str(path.resolve()) if path.exists() else checkpoint
    busy = f"'{name}' is judging in another process: wait for it, or give this one another name (NAME=CHECKPOINT)"
    with files.lock(ballot.path_of(folder, name).with_suffix(".lock"), busy), model.partitioner.scope():
        counts = judge.judge(made, folder, name, model.predictor, source)
    print(
        f"{name}: {counts['judged']} pairs in both orders"
        + (f", {counts['before']} before" if counts["before"] else "")
        + (
            f"; {counts['too long']} not, longer than its {model.lengths['inputs']} tokens"
            if counts["too long"]
            else ""
        )
    )


def _raters(made: Comparison, folder: pathlib.Path, some: bool) -> list[ballot.Rater]:
    """The raters; with `some`, raises UserError if there are none."""
    raters = ballot.read(folder, made)
    if not raters and some:
        raise UserError(
            f"{folder} has no ballots yet, so that there is nothing to report: rate on the page (without --report), "
            "or give --read FILE or --judge CHECKPOINT"
        )
    return raters


def report(made: Comparison, folder: pathlib.Path, page: bool) -> None:
    """Prints and writes the results of all ballots; `page`: also as a page with a figure."""
    raters = _raters(made, folder, page)
    if not raters:
        print("no ballots yet")
        return
    found = tally.results(made, raters)
    for kind, rows in result_table.tables(found):
        print()
        print_table(kind.columns, rows, left=kind.left)
    head = {"what": "comparison", "id": made.id, "candidates": made.candidates, "pairs": len(made.pairs)}
    head |= {"prompts": len(made.prompts), "left_out": dict(made.left_out), "seed": made.seed}
    files.write_atomic(folder / RESULTS, "".join(map(files.json_line, [head, *found])))
    print()
    for path in [folder / RESULTS, *(preference_page.publish(made, found, folder) if page else [])]:
        print(path)
