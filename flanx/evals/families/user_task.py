"""A user's own SeqIO task or mixture on one of its splits, scored by its own postprocessor and metric functions.

    my_task:validation[:100]         the modules that register it are named by `--import=my_module`

Such tasks need no row in the tables. The first value of the first metric function is the score; predictions and, if a
function takes `scores`, the log-probability of the target with its end of sequence are kept with the generations.
`flanx rescore` calls the functions again, so it needs the modules too: FLANX_IMPORTS=my_module flanx rescore ...
"""

import os
import pathlib
import re
from collections.abc import Sequence

from flanx.data.task import select, tables
from flanx.errors import UserError
from flanx.evals.generations import Generation
from flanx.evals.spec import Family, Item, Spec

MODULES = "FLANX_IMPORTS"  # the modules named by `--import`, in this process and its children
FORM = re.compile(r"(?P<name>\w+):(?P<split>\w+)")


def modules() -> tuple[str, ...]:
    """The modules that register the user's tasks."""
    return tuple(name for name in os.environ.get(MODULES, "").split(",") if name)


def parse(name: str) -> Spec | None:
    """The spec of TASK:SPLIT if the user's modules, and not the tables, have a task or mixture of that name. Raises
    UserError for an unknown split."""
    hit = FORM.fullmatch(name)
    if not hit or not modules():
        return None
    try:
        select.find(hit["name"], select.of_tables(tables.load_tables()), tables.load_mixtures())
        return None
    except UserError:
        from flanx.seqio import user_tasks  # noqa: PLC0415  (imports TensorFlow)

        found = user_tasks.parts(hit["name"], modules())
    for task, splits in found.items():
        if hit["split"] not in splits:
            raise UserError(f"suite '{name}': task {task} has no split '{hit['split']}' (it has {', '.join(splits)})")
    return (
        Spec(name, "user_task", split=hit["split"], tasks=tuple(found), max_new=512, metric="seqio") if found else None
    )


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The items of a task, at most `spec.limit`; their options are the target if a metric function takes `scores`."""
    from flanx.seqio import user_tasks  # noqa: PLC0415  (imports TensorFlow)

    texts, scored = user_tasks.texts(task, modules(), spec.split, spec.limit)
    return [
        Item(
            task=task,
            id=f"{task}-{spec.split}:{number}",
            query=inputs,
            targets=(target,),
            kind="seqio",
            options=(target,) if scored else (),
            location=f"SeqIO task {task}, example {number} of {spec.split}",
        )
        for number, (inputs, target) in enumerate(texts)
    ]


def compute(spec: Spec, task: str, rows: Sequence[Generation], predictions: Sequence[str]) -> dict[str, float]:
    """The values of the task's metric functions over its generations, in the order of its examples."""
    from flanx.seqio import user_tasks  # noqa: PLC0415  (imports TensorFlow)

    order = sorted(range(len(rows)), key=lambda index: int(rows[index].id.rpartition(":")[2]))
    scores = [rows[index].option_scores[0] for index in order] if rows[0].option_scores else None
    said = [predictions[index] for index in order]
    return user_tasks.compute_metrics(task, modules(), spec.split, spec.limit, said, scores)


FAMILY = Family(
    "user_task", lambda spec: spec.tasks, lambda folder, task, spec: True, items, parse=parse,
    location=lambda spec: f"SeqIO task {spec.tasks[0]}", needs_data=lambda spec: False,
)  # fmt: skip
