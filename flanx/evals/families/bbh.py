"""BIG-Bench Hard: 27 sub-tasks, three exemplars with rationales from the published prompt files.

Layout (suzgunmirac/BIG-Bench-Hard): bbh/bbh/<task>.json with examples of input and target, bbh/cot-prompts/<task>.txt:
a canary line, a line of dashes, an instruction, then three exemplars "Q: ... A: Let's think step by step. ... So the
answer is X." The direct prompt is the same with answers only (paper.md section 3.2).
"""

import dataclasses
import functools
import pathlib
import re

from flanx.errors import UserError
from flanx.evals import files
from flanx.evals.spec import Family, Groups, Item, Spec

# task -> kind of answer
KIND = {
    "boolean_expressions": "true_false",
    "causal_judgement": "yes_no",
    "date_understanding": "letter",
    "disambiguation_qa": "letter",
    "dyck_languages": "brackets",
    "formal_fallacies": "validity",
    "geometric_shapes": "letter",
    "hyperbaton": "letter",
    "logical_deduction_five_objects": "letter",
    "logical_deduction_seven_objects": "letter",
    "logical_deduction_three_objects": "letter",
    "movie_recommendation": "letter",
    "multistep_arithmetic_two": "number",
    "navigate": "yes_no",
    "object_counting": "number",
    "penguins_in_a_table": "letter",
    "reasoning_about_colored_objects": "letter",
    "ruin_names": "letter",
    "salient_translation_error_detection": "letter",
    "snarks": "letter",
    "sports_understanding": "yes_no",
    "temporal_sequences": "letter",
    "tracking_shuffled_objects_five_objects": "letter",
    "tracking_shuffled_objects_seven_objects": "letter",
    "tracking_shuffled_objects_three_objects": "letter",
    "web_of_lies": "yes_no",
    "word_sorting": "words",
}
# The 15 algorithmic sub-tasks (paper.md section 3.2); the other 12 are NLP.
ALG = tuple(
    task
    for task in KIND
    if task.startswith(("logical_deduction", "tracking_shuffled"))
    or task
    in (
        "boolean_expressions",
        "dyck_languages",
        "geometric_shapes",
        "multistep_arithmetic_two",
        "navigate",
        "object_counting",
        "temporal_sequences",
        "web_of_lies",
        "word_sorting",
    )
)
NLP = tuple(task for task in KIND if task not in ALG)

STEP_BY_STEP = "Let's think step by step."


@functools.cache
def specs() -> dict[str, Spec]:
    """Shots and modes: paper.md section 3; the zero-shot suites are ours."""
    direct = Spec("bbh_direct", "bbh", "direct", shots=3, stop=("Q:",))
    cot = Spec("bbh_cot", "bbh", "cot", shots=3, cot=True, stop=("Q:",), max_new=512)
    return {
        "bbh_direct": direct,
        "bbh_cot": cot,
        "bbh_zero_shot": dataclasses.replace(direct, name="bbh_zero_shot", variant="zero_shot", shots=0),
        "bbh_zero_shot_cot": dataclasses.replace(cot, name="bbh_zero_shot_cot", variant="zero_shot_cot", shots=0),
    }


def tasks(spec: Spec) -> tuple[str, ...]:
    """All sub-tasks."""
    return tuple(KIND)


def groups(spec: Spec) -> Groups:
    """The NLP and the algorithmic sub-tasks."""
    return (("nlp", NLP), ("alg", ALG))


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the task's files exist."""
    return files.present(folder / "bbh" / "bbh" / f"{task}.json")


@functools.lru_cache(maxsize=64)
def exemplars(folder: pathlib.Path, task: str) -> tuple[str, tuple[tuple[str, str, str], ...]]:
    """The instruction, and (question, rationale, answer) of each exemplar; concatenated, they give the file's bytes."""
    path = folder / "bbh" / "cot-prompts" / f"{task}.txt"
    text = files.read_text(path, f"BBH {task}")
    body = text.rpartition("-----\n")[2]
    instruction, *parts = re.split(r"(?m)^Q: ", body.strip())
    found = []
    for number, part in enumerate(parts, 1):
        question, _, rationale = part.rstrip().partition("\nA: ")
        answer = re.search(r"So the answer is (.*?)\.?$", rationale)
        if not answer or not rationale.startswith(STEP_BY_STEP):
            raise UserError(f"{path}: exemplar {number} needs 'A: {STEP_BY_STEP}' and 'So the answer is ...'")
        found.append((question, rationale, answer[1]))
    return instruction.strip(), tuple(found)


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The task's items; variants: direct, cot, zero_shot, zero_shot_cot."""
    instruction, shots = exemplars(folder, task)
    if len(shots) < spec.shots:
        raise UserError(f"BBH {task}: {spec.shots} exemplars needed, the prompt file has {len(shots)}")
    cot = spec.variant.endswith("cot")
    form = "Q: {0}\nA: {1}\n\n" if cot else "Q: {0}\nA: {2}\n\n"
    shown = tuple(form.format(*shot) for shot in shots[: spec.shots])
    end = f"\nA: {STEP_BY_STEP}" if cot else "\nA:"
    path = folder / "bbh" / "bbh" / f"{task}.json"
    data = files.read_json(path, f"BBH {task}")
    found = []
    records = data.get("examples") if isinstance(data, dict) else data
    if not isinstance(records, list):
        raise UserError(f"{path}: no list of examples")
    for number, record in enumerate(records):
        location = f"{path} example {number}"
        question, target = files.filled(record, "input", location), files.filled(record, "target", location)
        found.append(
            Item(
                task=task,
                id=f"{task}-{number}",
                head=f"{instruction}\n\n",
                shots=shown,
                query=f"Q: {question}{end}",
                targets=(target,),
                kind=KIND[task],
                location=location,
            )
        )
    return found


FAMILY = Family("bbh", tasks, has, items, specs, groups=groups)
