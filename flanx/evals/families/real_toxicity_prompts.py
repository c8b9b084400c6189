"""RealToxicityPrompts (Gehman et al. 2020, arXiv 2009.11462; Apache-2.0): how toxic a model's continuations are.

Layout (allenai/real-toxicity-prompts): real_toxicity_prompts/prompts.jsonl with filename, begin, end, challenging, and
prompt.text, prompt.toxicity. Protocol of paper.md section 6, C.1: 10,000 prompts drawn uniformly, 25 continuations
each, top-k 40, temperature 1, at most 128 tokens; a base model never ends its text, so the suite for base models scores
the first complete sentence of each continuation. A prompt is toxic from a toxicity of 0.5 on; its toxicity, the item's
target, is not an answer. Prompts without a toxicity in the file are counted but not drawn.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

from flanx.errors import UserError
from flanx.evals import files, metrics
from flanx.evals.spec import Family, Item, Spec

NAME, PROMPTS = "real_toxicity_prompts", 10_000
TASKS = ("non_toxic", "toxic")
Prompt = tuple[str, str, float, bool, str]  # id, text, toxicity, whether it is challenging, location


def specs() -> dict[str, Spec]:
    """A suite for finetuned models and one for base models."""
    whole = Spec(
        NAME,
        NAME,
        "whole",
        "train",
        samples=25,
        temperature=1.0,
        top_k=40,
        max_new=128,
        metric="any_toxic",
        harmful=True,
    )
    first = dataclasses.replace(whole, name=f"{NAME}_first_sentence", variant="base", scored="first_sentence")
    return {spec.name: spec for spec in (whole, first)}


def tasks(spec: Spec) -> tuple[str, ...]:
    """Non-toxic and toxic prompts."""
    return TASKS


def _path(folder: pathlib.Path) -> pathlib.Path:
    return folder / NAME / "prompts.jsonl"


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the prompts exist."""
    return files.present(_path(folder))


def _toxicity(prompt: dict[str, Any], location: str) -> float:
    """A prompt's toxicity; NaN if the file has none. Raises UserError for a value that is not a share."""
    found = prompt.get("toxicity", "absent")
    if found is None or (isinstance(found, float) and math.isnan(found)):
        return math.nan
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        raise UserError(f"{location}: prompt.toxicity is {str(found)[:40]!r}; it is a number from 0 to 1, or null")
    return float(found)


@functools.lru_cache(maxsize=2)
def _drawn(path: pathlib.Path, stamp: tuple[int, int]) -> dict[str, list[Prompt]]:
    """{task: its prompts} for the prompts drawn, in draw order."""
    known: list[Prompt] = []
    without = 0
    for location, record in files.read_lines(path, "RealToxicityPrompts"):
        prompt = record.get("prompt")
        if not isinstance(prompt, dict):
            raise UserError(f"{location}: no object 'prompt' with text and toxicity (there is: {', '.join(record)})")
        text, toxicity = files.value(prompt, "text", location), _toxicity(prompt, location)
        if not text.strip():
            raise UserError(f"{location}: prompt.text is empty; remove the line")
        name = "-".join(files.value(record, key, location) for key in ("filename", "begin", "end"))
        without += math.isnan(toxicity)
        if not math.isnan(toxicity):
            known.append((name, text, toxicity, record.get("challenging") is True, location))
    if without:
        print(f"note: {path}: {without:,} prompts without a toxicity are not drawn")
    drawn = sorted(known, key=lambda each: files.draw(each[0]))[:PROMPTS]
    return {task: [each for each in drawn if TASKS[each[2] >= metrics.TOXIC] == task] for task in TASKS}


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The drawn prompts of a task; the model reads only the prompt."""
    path = _path(folder)
    stamp = files.stamp(path, "RealToxicityPrompts")
    return [
        Item(
            task=task,
            id=name,
            query=text,
            targets=(f"{toxicity:.6g}",),
            kind="text",
            location=location,
            labels=(("challenging", "yes" if challenging else "no"),),
        )
        for name, text, toxicity, challenging, location in _drawn(path, stamp)[task]
    ]


FAMILY = Family(NAME, tasks, has, items, specs)
