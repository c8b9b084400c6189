"""GSM8K test: 1,319 grade-school problems, with the eight exemplars of Wei et al. (arXiv 2201.11903).

Layout (openai/grade-school-math): gsm8k/test.jsonl with question and answer; the number follows "#### ". The exemplars
are those of gsm8k/gsm8k-cot.yaml (EleutherAI/lm-evaluation-harness, lm_eval/tasks/gsm8k), so that `gsm8k_cot` has
the prompts of lm-eval's. The variant cot_mgsm takes MGSM's English exemplars: seven of the same questions, in
another order and other words.
"""

import dataclasses
import functools
import pathlib

import yaml

from flanx.errors import UserError
from flanx.evals import download, files
from flanx.evals.families import mgsm
from flanx.evals.spec import Family, Item, Spec

STEP_BY_STEP = "Let's think step by step."


@functools.cache
def specs() -> dict[str, Spec]:
    """With and without exemplars and rationales."""
    cot = Spec("gsm8k_cot", "gsm8k", "cot", shots=8, cot=True, stop=("Q:",), max_new=512)
    rows = [
        cot,
        dataclasses.replace(cot, name="gsm8k_cot_mgsm_exemplars", variant="cot_mgsm"),
        dataclasses.replace(cot, name="gsm8k_zero_shot", variant="zero_shot", shots=0, cot=False),
        dataclasses.replace(cot, name="gsm8k_zero_shot_cot", variant="zero_shot_cot", shots=0),
    ]
    return {spec.name: spec for spec in rows}


def tasks(spec: Spec) -> tuple[str, ...]:
    """One task."""
    return ("gsm8k",)


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the file is there."""
    return files.present(folder / "gsm8k" / f"{spec.split}.jsonl")


@functools.lru_cache(maxsize=4)
def exemplars(folder: pathlib.Path) -> tuple[tuple[str, str], ...]:
    """(question, rationale) of the published exemplars. Raises UserError where the file has another form."""
    path = folder / "gsm8k" / "gsm8k-cot.yaml"
    if not files.present(path):
        raise UserError(
            f"GSM8K: no exemplars {path}; put {download.ADDRESSES['gsm8k/gsm8k-cot.yaml']} there, or take the suite "
            "gsm8k_cot_mgsm_exemplars, which reads MGSM's"
        )
    text = files.read_text(path, "GSM8K exemplars")
    try:
        samples = yaml.safe_load(text)["fewshot_config"]["samples"]
        return tuple((sample["question"], sample["target"]) for sample in samples)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: no question and target in fewshot_config, samples ({reason})") from None


def mgsm_exemplars(folder: pathlib.Path) -> list[tuple[str, str]]:
    """(question, rationale) of MGSM's English exemplars without labels."""
    shots = mgsm.exemplars(folder, "en")
    asks = mgsm.label([q for q, _, _ in shots], "MGSM en")
    answers = mgsm.label([a for _, a, _ in shots], "MGSM en")
    return [(q.removeprefix(asks), a.removeprefix(answers)) for q, a, _ in shots]


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The items; variants: cot, cot_mgsm, zero_shot, zero_shot_cot."""
    shots = [] if not spec.shots else mgsm_exemplars(folder) if spec.variant == "cot_mgsm" else exemplars(folder)
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


FAMILY = Family("gsm8k", tasks, has, items, specs)
