"""The held-out tasks of the procedural suite, rendered by their own templates and compared character by character.

A spec's variant is one kind of task (a collection in the tables), or "held_out" for all. Kinds with written-out steps
ask for them in their own templates; "<kind>_trigger" asks the other kinds for steps, in the wording of those templates.
Either way, a plain answer counts just as one after a rationale, so that the same tasks can be compared.
"""

import functools
import pathlib

from flanx.data.task import sources, tables
from flanx.data.task.render import Renderer
from flanx.data.task.spec import TaskSpec
from flanx.evals.spec import Family, Groups, Item, Spec

# The kinds of held-out tasks; the suite "held_out" has all of them.
KINDS = (
    "suite_composition", "suite_composition_cot", "suite_frame", "suite_wording", "suite_rule", "suite_family"
)  # fmt: skip
# The held-out kinds of graded problems, and the family used to choose settings; not part of "held_out".
HOME_KINDS = (
    "home_composition", "home_depth", "home_wording", "home_frame", "home_rule", "home_language", "home_walk",
    "home_notation", "home_dev",
)  # fmt: skip
DIRECT_KINDS = tuple(kind for kind in KINDS if not kind.endswith("_cot")) + HOME_KINDS
# A table's metric -> how its answers are extracted: what follows the rationale, which must be announced, or the whole
# text. An unrequested rationale is not counted as wrong: models finetuned only on CoT data write one.
KIND = {"exact_match": "last", "final_answer": "final"}
TRIGGER = "\nstep by step"  # as in the blocks suite_steps of the templates


@functools.cache
def _table() -> dict[str, TaskSpec]:
    return {name: task for name, task in tables.load_tables().items() if task.collection in KINDS + HOME_KINDS}


@functools.cache
def specs() -> dict[str, Spec]:
    """All kinds together, each kind, and the direct kinds with the trigger."""
    rows = [
        *(Spec(name, "held_out", name, max_new=96, cot="cot" in name) for name in ("held_out", *KINDS, *HOME_KINDS)),
        *(Spec(name, "held_out", name, max_new=96, cot=True) for name in (f"{kind}_trigger" for kind in DIRECT_KINDS)),
    ]
    return {spec.name: spec for spec in rows}


def tasks(spec: Spec) -> tuple[str, ...]:
    """All tasks of the kind."""
    kind = spec.variant.removesuffix("_trigger")
    wanted = KINDS if kind == "held_out" else (kind,)
    return tuple(name for name, task in sorted(_table().items()) if task.collection in wanted)


def groups(spec: Spec) -> Groups:
    """For "held_out", the kinds; for one kind, its categories and "words": the tasks on words and lists."""
    found: dict[str, list[str]] = {}
    for name in tasks(spec):
        row = _table()[name]
        if spec.variant == "held_out":
            found.setdefault(row.collection, []).append(name)
            continue
        found.setdefault(row.category, []).append(name)
        if row.source.startswith(("suite:word.", "suite:list.")):
            found.setdefault("words", []).append(name)
    order = KINDS if spec.variant == "held_out" else sorted(found)
    return tuple((group, tuple(found[group])) for group in order)


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Always true: the tasks are generated, not read."""
    return True


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The task's rows of the spec's split, in its first prompt style."""
    row = _table()[task]
    renderer = Renderer(row, tables.load(), row.styles[0], spec.split)
    asks = spec.variant.endswith("_trigger")
    found = []
    for key, location, record in sources.rows(row, spec.split, folder):
        rendered = renderer.render(key, record)
        assert rendered is not None  # rows of the procedural suite are never skipped
        found.append(
            Item(
                task=task,
                id=f"{task}-{key}",
                query=rendered.inputs + (TRIGGER if asks else ""),
                targets=(record["answer"],),
                kind=KIND[row.metrics[0]],
                location=location,
            )
        )
        if spec.limit and len(found) == spec.limit:
            break
    return found


FAMILY = Family("held_out", tasks, has, items, specs, groups=groups, needs_data=lambda spec: False)
