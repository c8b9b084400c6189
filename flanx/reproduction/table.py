"""The table of stages of a reproduction: what each runs, depends on and produces (docs/reproduce.md)."""

from flanx.convert.flanx_format import NOTE
from flanx.data.store.format import MANIFEST
from flanx.reproduction.row import UNKNOWN, Reproduction, flags_of, settings
from flanx.reproduction.stage import Stage


def stages(asked: Reproduction) -> list[Stage]:
    """The stages in order; their names are those of --skip and --redo."""
    rows, values = asked.rows, asked.values(asked.rows[0])
    names = values["MIXTURE_OR_TASK_NAME"]
    mixture = [names] if isinstance(names, str) else [name if isinstance(name, str) else name[0] for name in names]
    data = [f"--data_dir={asked.data_dir}"]
    missing = ["--allow_missing"] * asked.allow_missing
    verify = ["--verify"] * asked.verify
    sources = {row.name: asked.values(row)["INITIAL_CHECKPOINT_PATH"] for row in rows}
    store = {"store": f"{values['STORE_DIR']}/{MANIFEST}"}
    parents = {f"parent {row.name}": f"{asked.parent(row)}/{NOTE}" for row in rows} if asked.keeps_parent else {}
    runs = {f"run {row.name}": f"{asked.run(row)}/done.json" for row in rows}
    scored = {
        f"scores {row.name}, {which}": f"{asked.scores(row, which)}/scores.json"
        for row in rows
        for which in ("before", "after")
    }
    data_of = {"mixture": mixture, "data_dir": asked.data_dir}
    unchosen = (
        f"no checkpoint has {' and '.join(asked.choose_by)} among its held-out scores, by which one is chosen: look "
        f"at evals/ in {' and '.join(map(asked.run, rows))}, and give --gin.SUITES what it needs"
    )
    kind = "hf" if all(row.is_t5 for row in rows) else "t5x"
    return [
        Stage(
            "data",
            lambda: [["tasks", "plan", name, *data] for name in mixture],
            lambda: data_of,
            page=asked.page("data.txt"),
        ),
        Stage(
            "fetch",
            lambda: [["tasks", "fetch", name, *data, *missing] for name in asked.fetched or mixture],
            lambda: data_of | {"fetched": list(asked.fetched or mixture)},
        ),
        Stage(
            "benchmarks",
            lambda: [["suites", "show", suite, f"--data_dir={asked.benchmarks}"] for suite in values["SUITES"]],
            lambda: {"benchmarks": asked.benchmarks, "suites": values["SUITES"]},
            page=asked.page("benchmarks.txt"),
        ),
        Stage(
            "store",
            lambda: [["store", "build", *flags_of(*asked.of_store())]],
            lambda: settings(*asked.of_store()),
            reads={"data": f"{asked.data_dir}/quarantine.json"},
            makes=[values["STORE_DIR"]],
        ),
        Stage(
            "mixture",
            lambda: [
                *(["store", "mix", *flags_of(*asked.of_run(row))] for row in rows[:1]),
                ["tasks", "audit", f"--store={values['STORE_DIR']}", *data],
            ],
            lambda: settings(*asked.of_run(rows[0])),
            reads=store,
            page=asked.page("mixture.txt"),
        ),
        Stage(
            "plan",
            lambda: [
                ["plan", *flags_of(*asked.of_run(row)), f"--topology={asked.topology}", *asked.plan_flags]
                for row in asked.planned or rows
            ],
            lambda: of_rows(asked) | {"topology": asked.topology},
            page=asked.page("plan.txt"),
        ),
        Stage(
            "parent",
            lambda: [
                ["convert", sources[row.name], asked.parent(row), "--drop-optimizer", *verify]
                for row in (rows if asked.keeps_parent else ())
            ],
            lambda: sources,
            makes=[asked.parent(row) for row in rows],
            is_resumed=False,
        ),
        Stage(
            "launch",
            lambda: [words for row in rows for words in asked.launched("train", row, "train", asked.of_run(row))],
            lambda: of_rows(asked),
            reads=store | parents,
            makes=[asked.run(row) for row in rows],
        ),
        Stage(
            "evaluation",
            asked.evaluate,
            lambda: {
                f"{row.name} {which} {name}": text
                for row in rows
                for which, of in asked.evaluations(row).items()
                for name, text in settings(*of).items()
            },
            reads=parents | runs,
            makes=[asked.scores(row, which) for row in rows for which in ("before", "after")],
            unknown=(UNKNOWN, unchosen),
        ),
        Stage(
            "curves",
            lambda: [["report", *(asked.run(row) for row in rows), f"--output={asked.folder}"]],
            lambda: {},
            reads=runs,
            page=asked.page("curves.txt"),
        ),
        Stage(
            "report",
            lambda: [asked.table()],
            lambda: {"models": [(row.before, row.after) for row in rows]},
            reads=scored,
            page=asked.page("report.md"),
        ),
        Stage(
            "card",
            lambda: [
                ["convert", asked.chosen(row), asked.export(row), f"--to={kind}", "--drop-optimizer",
                 f"--scores={asked.scores(row, 'after')}", *verify]
                for row in rows
            ],
            lambda: {"to": kind, **{row.name: asked.chosen(row) for row in rows}},
            reads=scored,
            makes=[asked.export(row) for row in rows],
            is_resumed=False,
            unknown=(UNKNOWN, unchosen),
        ),
    ]  # fmt: skip


def of_rows(asked: Reproduction) -> dict[str, str]:
    """The training settings of every row, by "ROW NAME"."""
    return {f"{row.name} {name}": text for row in asked.rows for name, text in settings(*asked.of_run(row)).items()}
