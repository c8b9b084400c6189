"""GSM8K test: 1,319 grade-school problems; the eight exemplars are MGSM's English ones, which are the usual eight.

Layout (openai/grade-school-math): gsm8k/test.jsonl with question and answer; the number follows "#### ".
"""

import pathlib
from collections.abc import Sequence

from flanx.errors import UserError
from flanx.evals import files
from flanx.evals.families import mgsm
from flanx.evals.spec import Groups, Item, Spec

STEP_BY_STEP = "Let's think step by step."


def tasks(spec: Spec) -> tuple[str, ...]:
    """One task."""
    return ("gsm8k",)


def groups(spec: Spec) -> Groups:
    """None."""
    return ()


def stops(spec: Spec, folder: pathlib.Path, present: Sequence[str]) -> tuple[str, ...]:
    """The spec's own."""
    return spec.stop


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the file is there."""
    return files.present(folder / "gsm8k" / f"{spec.split}.jsonl")


def exemplars(folder: pathlib.Path) -> list[tuple[str, str]]:
    """(question, rationale) without labels."""
    shots = mgsm.exemplars(folder, "en")
    asks = mgsm.label([q for q, _, _ in shots], "MGSM en")
    answers = mgsm.label([a for _, a, _ in shots], "MGSM en")
    return [(q.removeprefix(asks), a.removeprefix(answers)) for q, a, _ in shots]


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The items; variants: cot, zero_shot, zero_shot_cot."""
    shots = exemplars(folder) if spec.shots else []
    if len(shots) < spec.shots:
        raise UserError(f"GSM8K: {spec.shots} exemplars needed, there are {len(shots)}")
    end = f"\nA: {STEP_BY_STEP}" if spec.variant == "zero_shot_cot" else "\nA:"
    path = folder / "gsm8k" / f"{spec.split}.jsonl"
    found = []
    for number, (location, record) in enumerate(files.read_lines(path, "GSM8K")):
        question, answer = files.value(record, "question", location), files.value(record, "answer", location)
        if "#### " not in answer:
            raise UserError(f"{location}: the answer has no '#### ' before its number")
        found.append(
            Item(
                task=task,
                id=f"gsm8k-{spec.split}-{number}",
                shots=tuple(f"Q: {q}\nA: {a}\n\n" for q, a in shots[: spec.shots]),
                query=f"Q: {question}{end}",
                targets=(answer.rpartition("#### ")[2].strip(),),
                kind="number",
                location=location,
            )
        )
    return found
