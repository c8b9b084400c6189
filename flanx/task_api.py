"""`flanx.tasks` in Python: what `flanx tasks` does on the command line, without SeqIO and TensorFlow.

    flanx.tasks.list("cot_*")                                  # the rows of the tables
    flanx.tasks.show("cot_gsm8k", n=2)                         # examples as a model sees them
    flanx.tasks.add("my.jsonl", inputs="question", targets="answer", output="mine")

`import flanx.tasks` also registers every task with SeqIO; that module has these functions too.
"""

import argparse
import builtins
import itertools
import os
import pathlib
from typing import Any

from flanx import settings
from flanx.data.importers import user_file
from flanx.data.task import render, select, tables
from flanx.data.task.render import Rendered
from flanx.data.task.spec import TaskSpec
from flanx.errors import UserError


def list(pattern: str = "*", licence: str | None = None) -> builtins.list[TaskSpec]:
    """The tasks of a mixture, collection, group or pattern such as "cot_*".

    Args:
      licence: only tasks whose data are under these licences: "permissive", "MIT,CC-BY-4.0".

    Raises:
      UserError: for an unknown name, with the nearest known one.
    """
    settings.checked(list, pattern=pattern, licence=licence)
    return select.find_specs(pattern, licence)


def show(
    name: str, n: int = 3, style: str | None = None, split: str | None = None, data_dir: str | None = None
) -> builtins.list[Rendered]:
    """The first `n` examples of a task as a model sees them.

    Args:
      style: a prompt style, "zsopt" for zero-shot with options; None: the one that the name ends in, else the first.
      split: None: train, if the task has it.
      data_dir: the folder of file sources; None: FLANX_DATA_DIR.

    Raises:
      UserError: for an unknown task, style or split, and for missing data.
    """
    settings.checked(show, name=name, n=n, style=style, split=split, data_dir=data_dir)
    task, named_style = tables.find_task(name)
    split = split or ("train" if "train" in task.splits else next(iter(task.splits)))
    folder = data_dir or os.environ.get("FLANX_DATA_DIR")
    return [*itertools.islice(render.render_rows(task, style or named_style or task.styles[0], split, folder), n)]


def add(
    file: str | os.PathLike,
    *,
    inputs: str,
    targets: str,
    output: str | os.PathLike,
    name: str | None = None,
    options: str | None = None,
    metric: str | None = None,
    validation: str | os.PathLike | None = None,
    validation_share: float | None = None,
    test: str | os.PathLike | None = None,
    test_share: float | None = None,
) -> str:
    """Makes a task from a JSONL, JSON, TSV or CSV file and returns its name; the same as `flanx tasks add`.

    The tables are written to the folder `output`, to which FLANX_TABLES points from then on in this process.

    Args:
      inputs, targets: the columns that the model reads and writes; options: a column with the options of each row.
      name: None: the file's name.
      metric: None: the one that fits the answers.
      validation, test: a file of the split, or a share of the rows, 0 to 1.

    Raises:
      UserError: for a missing file or column, and for a name that is taken.
    """
    given: dict[str, Any] = dict(locals())
    given |= settings.checked(add, **given)
    for key in ("validation_share", "test_share"):
        if given[key] is not None and not 0 < given[key] < 1:
            raise UserError(f"add: {key} is {given[key]}; it takes a share of the rows, above 0 and below 1")
        if given[key] is not None and given[key.removesuffix("_share")] is not None:
            raise UserError(f"add: {key.removesuffix('_share')} and {key} exclude each other: give one of them")
    user_file.add(argparse.Namespace(**given))
    folder = pathlib.Path(output).expanduser().absolute()
    named = [part for part in os.environ.get("FLANX_TABLES", "").split(os.pathsep) if part]
    if folder not in [pathlib.Path(part).expanduser().absolute() for part in named]:
        os.environ["FLANX_TABLES"] = os.pathsep.join([*named, os.fspath(folder)])
    stem = pathlib.PurePath(file).name.removesuffix(".gz").rpartition(".")[0]
    return f"{user_file.COLLECTION}_{user_file.clean(name or stem)}"


def __getattr__(name: str) -> Any:
    """`store_mixture`, as in the module that `import flanx.tasks` returns."""
    if name == "store_mixture":
        from flanx.seqio.store_task import store_mixture  # noqa: PLC0415  (SeqIO, which all else does without)

        return store_mixture
    raise AttributeError(f"module 'flanx.tasks' has no attribute '{name}'")
