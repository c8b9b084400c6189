"""Open-ended prompts, structured as in the paper's section 6, for human comparison with `flanx compare`.

190 prompts in our own wording (flanx/evals/open_ended.toml): twenty of each of five kinds; sixty more, from three of
them plus a phrase that asks for a rationale; thirty with exemplars. Of five samples at temperature 0.7, the best by
log-probability is kept, excluding repetitions (`sample_choice`). The paper does not state the answer length; here it is
512 tokens, the longest finetuning target.
"""

import functools
import pathlib
import tomllib
from collections.abc import Collection
from typing import Any

from flanx.evals.spec import Family, Groups, Item, Spec

FILE = pathlib.Path(__file__).parent.parent / "open_ended.toml"
KINDS = ("creativity", "reasoning_over_contexts", "complex_reasoning", "planning", "explanation")
FEW_SHOT, TRIGGER = "few_shot", "_cot"


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


@functools.cache
def specs() -> dict[str, Spec]:
    """The one suite."""
    spec = Spec(
        "open_ended",
        "open_ended",
        metric="open_ended",
        samples=5,
        temperature=0.7,
        max_new=512,
        stop=(_table()["separator"],),
    )
    return {spec.name: spec}


def tasks(spec: Spec) -> tuple[str, ...]:
    """The plain kinds, the kinds with the trigger, and the prompts with exemplars."""
    return (*KINDS, *(kind + TRIGGER for kind in _table()["triggered"]), FEW_SHOT)


def groups(spec: Spec) -> Groups:
    """The three parts of the paper's layout."""
    found = parts(tasks(spec))
    return (("zero_shot", found["zero_shot"]), ("cot_trigger", found["cot_trigger"]), (FEW_SHOT, (FEW_SHOT,)))


def parts(known: Collection[str]) -> dict[str, tuple[str, ...]]:
    """{part: its tasks} for the parts that the paper reports, of those complete in `known`; {} if any is not ours.

    "without_trigger" and "cot_trigger" are the same prompts without and with the phrase.
    """
    every = tasks(specs()["open_ended"])
    triggered = tuple(_table()["triggered"])
    found = {"zero_shot": KINDS, "without_trigger": triggered, "cot_trigger": tuple(t + TRIGGER for t in triggered)}
    return {name: each for name, each in found.items() if {*each} <= {*known}} if {*known} <= {*every} else {}


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Always true: the prompts ship with flanx."""
    return True


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The prompts of a kind; none has a right answer."""
    table = _table()
    if task == FEW_SHOT:
        return [_few_shot(each, n) for each in table[FEW_SHOT] for n in range(len(each["queries"]))]
    end = f"\n{table['trigger']}" if task.endswith(TRIGGER) else ""
    return [_item(task, f"{task}-{n}", text + end) for n, text in enumerate(table[task.removesuffix(TRIGGER)])]


def _few_shot(table: dict[str, Any], n: int) -> Item:
    between = f"\n{_table()['separator']}\n"
    shots = tuple(f"{shot}{between}" for shot in table["shots"].split("\n\n"))
    return _item(FEW_SHOT, f"{table['name']}-{n}", table["query"].format(table["queries"][n]), shots)


def _item(task: str, name: str, query: str, shots: tuple[str, ...] = ()) -> Item:
    return Item(task, name, query, ("",), "exact", shots=shots, location=f"{FILE.name}: {name}")


FAMILY = Family("open_ended", tasks, has, items, specs, groups=groups, needs_data=lambda spec: False)
