"""A published row on its road (docs/reproduce.md): its places, gin files, bindings and commands."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from flanx import config, gin_files
from flanx.errors import UserError
from flanx.evals import table5
from flanx.files import write_atomic
from flanx.launch import record
from flanx.reproduction.road import MARKS
from flanx.storage import URLS, open_storage
from flanx.sweep import published_recipes, results
from flanx.sweep.grid import RUNS, Sweep, flags

STORE = "runs/store.gin"
UNKNOWN = "CHOSEN"  # placeholder for a step that is not known yet
AVERAGE = ("normalized_average",)


@dataclasses.dataclass(frozen=True)
class Row:
    """A published row, or a size that stands in for it in a rehearsal.

    Attributes:
      name: of its folders.
      gin_files, bindings: of its training, in addition to what the road binds itself.
      after, before: models of Table 5 to print next to it, finetuned and not; "" for none.
      is_t5: whether it has a Hugging Face form.
    """

    name: str
    gin_files: Sequence[str]
    bindings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    after: str = ""
    before: str = ""
    is_t5: bool = True


def published(name: str, more_files: Sequence[str] = ()) -> Row:
    """The row of a recipe, by name. Raises UserError with the nearest name."""
    recipe = published_recipes.find(name)
    title, models = recipe.title.partition(",")[0], table5.published()
    after = next((model for model in (title, title.rpartition(" ")[0]) if model in models), "")
    before = after.removeprefix("Flan-") if after.startswith("Flan-") else ""
    return Row(
        recipe.name,
        [recipe.gin, *more_files],
        after=after,
        before=before if before in models else "",
        is_t5="_t5_" in recipe.name,
    )


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What is reproduced, from what, and where.

    Attributes:
      folder: local, for marks, pages, launches and exports.
      place: folder or URL of the store, parents, runs and scores, visible to the hosts of a launch as well.
      data_dir: of the task files; benchmarks: of the benchmarks, or "hub" or "sample".
      program, how: of `flanx launch`: its program, and the flags that say where and at what cost.
      topology: of the plan; "auto" for the smallest slice that fits.
      plan_flags: extra flags of `flanx plan`; planned: the rows to plan, () for `rows`.
      given: command-line bindings, ["NAME=TEXT"]; each goes to the commands whose gin files have the macro.
      fetched: what to fetch, by names of tasks, mixtures or patterns; () for the mixture.
      choose_by: how the checkpoint is chosen, see `flanx.sweep.grid.Sweep`.
      allow_missing: whether tasks without data are left out and recorded as missing, rather than an error.
      verify: whether conversions are compared with transformers.
      keeps_parent: whether the parent is copied; otherwise the runs read the recipe's own.
      skips_launch: whether the runs exist already.
    """

    folder: pathlib.Path
    place: str
    rows: Sequence[Row]
    data_dir: str
    benchmarks: str = "hub"
    program: str = "local"
    how: Sequence[str] = ()
    topology: str = "auto"
    plan_flags: Sequence[str] = ()
    planned: Sequence[Row] = ()
    given: Sequence[str] = ()
    fetched: Sequence[str] = ()
    choose_by: Sequence[str] = AVERAGE
    allow_missing: bool = False
    verify: bool = False
    keeps_parent: bool = True
    skips_launch: bool = False

    # ---- places ------------------------------------------------------------------------------------------------------

    def run(self, row: Row) -> str:
        """The folder of a row's run."""
        return f"{self.place}/{RUNS}/{row.name}"

    def parent(self, row: Row) -> str:
        """The folder of the copy of a row's parent."""
        return f"{self.place}/parents/{row.name}"

    def scores(self, row: Row, which: str) -> str:
        """The folder of a row's scores; `which` is "before" or "after" finetuning."""
        return f"{self.place}/scores/{row.name}_{which}"

    def export(self, row: Row) -> str:
        """The folder of the exported model."""
        return f"{self.folder}/exports/{row.name}"

    def page(self, name: str) -> str:
        """A file in the road's folder."""
        return f"{self.folder}/{name}"

    # ---- gin files and bindings --------------------------------------------------------------------------------------

    def of_store(self) -> tuple[list[str], list[str]]:
        """The gin files and bindings of the store, which the rows share."""
        values = self.values(self.rows[0])
        names = ("STORE_DIR", "VOCABULARY", "MIXTURE_OR_TASK_NAME")
        ours = {name: values[name] for name in names} | {"DATA_DIR": self.data_dir}
        known = _macros(STORE) - ours.keys()
        return [STORE], [*_texts(ours), *(text for text in self.given if _macro(text) in known)]

    def of_run(self, row: Row) -> tuple[list[str], list[str]]:
        """The gin files and bindings of a row's training."""
        ours: dict[str, Any] = {
            "STORE_DIR": f"{self.place}/store",
            "MODEL_DIR": self.run(row),
            "DATA_DIR": self.benchmarks,
        }
        ours |= {"INITIAL_CHECKPOINT_PATH": self.parent(row)} if self.keeps_parent else {}
        ours |= {"mixture.Mixture.allow_missing": True} if self.allow_missing else {}
        return [*row.gin_files], [*_texts(row.bindings), *_texts(ours), *self._given(row)]

    def of_evaluation(self, row: Row, checkpoint: str, folder: str) -> tuple[list[str], list[str]]:
        """The gin files and bindings of an evaluation: those of the training, so that nothing differs."""
        files, bindings = self.of_run(row)
        asked = {"CHECKPOINT_PATH": checkpoint, "OUTPUT_DIR": folder}
        return ["runs/evaluate.gin", *files], [*bindings, *_texts(asked)]

    def _given(self, row: Row) -> list[str]:
        of_store_alone = _macros(STORE) - _macros(*row.gin_files)
        return [text for text in self.given if _macro(text) not in of_store_alone]

    def values(self, row: Row) -> dict[str, Any]:
        """The values of a row's macros that other commands need, from its gin files and the command line."""
        config.parse(row.gin_files, [*_texts(row.bindings), *self._given(row)], whole=False)
        names = ("VOCABULARY", "MIXTURE_OR_TASK_NAME", "SUITES", "INITIAL_CHECKPOINT_PATH")
        found = {name: config.value(name) for name in names}
        is_given = any(_macro(text) == "STORE_DIR" for text in self.given)
        return found | {"STORE_DIR": config.value("STORE_DIR") if is_given else f"{self.place}/store"}

    # ---- commands ----------------------------------------------------------------------------------------------------

    def launched(self, command: str, row: Row, what: str, of: tuple[list[str], list[str]]) -> list[list[str]]:
        """A command through `flanx launch`, preceded by ending what a killed one left.

        Raises UserError if another process drives that launch.
        """
        name = f"{row.name}-{what}".replace("_", "-")[:40].strip("-")
        folder = self.folder / "launches"
        stop = []
        if (folder / name / record.FILE).exists():
            earlier = record.read(folder / name)
            if earlier.is_driven:
                raise UserError(
                    f"the launch {name} is driven by process {earlier.pid}: wait for it, or "
                    f"`flanx launch stop {name} --folder={folder}`"
                )
            stop = [["launch", "stop", name, f"--folder={folder}"]] * (earlier.stage in (record.MADE, record.LEFT))
        words = ["launch", self.program, command, *flags_of(*of), f"--name={name}", f"--folder={folder}", *self.how]
        return [*stop, words]

    def chosen(self, row: Row) -> str:
        """The checkpoint that a row's held-out scores choose; before there are any, a name with UNKNOWN in it.

        A bucket is queried only once the runs are done. Raises UserError if it gives no answer.
        """
        step = None
        with contextlib.ExitStack() as stack:
            place = self.place
            if is_url(place):
                place = stack.enter_context(tempfile.TemporaryDirectory())
                if self.skips_launch or (self.folder / MARKS / "launch.json").exists():
                    copy_scores(f"{self.run(row)}/evals", pathlib.Path(place) / RUNS / row.name / "evals")
            sweep = Sweep(place, [], {"row": {row.name: []}}, choose_by=self.choose_by)
            step = results.choices(sweep, sweep.points()).get(row.name)
        return f"{self.run(row)}/checkpoints/checkpoint_{UNKNOWN if step is None else step}"

    def evaluations(self, row: Row) -> dict[str, tuple[list[str], list[str]]]:
        """{"before" and "after": gin files and bindings} of a row's evaluations."""
        parent = self.parent(row) if self.keeps_parent else self.values(row)["INITIAL_CHECKPOINT_PATH"]
        checkpoints = {"before": parent, "after": self.chosen(row)}
        return {k: self.of_evaluation(row, path, self.scores(row, k)) for k, path in checkpoints.items()}

    def evaluate(self) -> list[list[str]]:
        """The commands of the evaluation."""
        pairs = [(row, which, of) for row in self.rows for which, of in self.evaluations(row).items()]
        return [words for row, which, of in pairs for words in self.launched("evaluate", row, which, of)]

    def table(self) -> list[str]:
        """The report that prints every score next to Table 5, with run names as short as possible."""
        shown = []
        for row in self.rows:
            for which, model in (("before", row.before), ("after", row.after)):
                folder = self.scores(row, which)
                near = folder if folder.startswith(URLS) else min(folder, os.path.relpath(folder), key=len)
                shown.append(near + (f"={model}" if model else ""))
        return ["report", *shown, f"--csv={self.page('table5.csv')}"]


# ---- gin -------------------------------------------------------------------------------------------------------------


def _texts(bindings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in bindings.items()]


def flags_of(files: Sequence[str], bindings: Sequence[str]) -> list[str]:
    """gin files and bindings as command-line flags."""
    return [*flags(files, {}, ""), *(f"--gin.{binding}" for binding in bindings)]


def _macro(binding: str) -> str:
    return binding.partition("=")[0].strip()


@functools.cache
def _macros(*files: str) -> frozenset[str]:
    """The macros that gin files define or refer to."""
    scan = gin_files.Scan([str(config.gin_folder())])
    for name in files:
        scan.read(name, "the command line")
    return frozenset({*scan.defined, *scan.referenced})


def settings(files: Sequence[str], bindings: Sequence[str]) -> dict[str, str]:
    """{macro or parameter: its value} of the whole resolved config."""
    config.parse(files, bindings)
    return config.assignments(config.text())


def platform() -> list[str]:
    """The flags of a launch on this machine: the platform that jax finds, not the CPU that `local` defaults to."""
    return [f"--env=JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"]


def copy_scores(evals: str, folder: pathlib.Path) -> None:
    """Copies every scores.json of a run's evaluations from a URL into a folder."""
    for key in open_storage(evals).keys():  # noqa: SIM118  (a method of ours, not of a dict)
        if key.endswith("/scores.json"):
            parent, _, name = f"{evals}/{key}".rpartition("/")
            write_atomic(folder / key, open_storage(parent).read(name))


def is_url(place: str) -> bool:
    """Whether the hosts of a cluster can read it."""
    return place.startswith(URLS)
