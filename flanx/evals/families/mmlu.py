"""MMLU: 57 subjects of four-way questions; exemplars from `dev`, with rationales from `mmlu-cot.json`.

Layout (hendrycks/test): mmlu/data/<split>/<subject>_<split>.csv without a header, columns question, A, B, C, D, letter;
mmlu/mmlu-cot.json (jasonwei20/flan-2): {subject: prompt}, used verbatim, damaged escapes included.

Variants, whose scores differ by up to 7 points on the same model:
    flan_paper      subject in the instruction, "(A)" options on one line, "A: (B)"; the letter is generated
    flan_paper_cot  the prompts of mmlu-cot.json, then the question in the same form
    hendrycks       "A. ..." lines and "Answer:", first-token logits of the letters, shots dropped until the prompt fits
    lm_eval         the same lines, question stripped, log-probability of " A" to " D", too long a prompt is cut
                    (EleutherAI/lm-evaluation-harness, tasks/mmlu/default; its own mean is over items, not subjects)
    text            "Question: ..." and "Answer:" without options, log-probability of each option's text
                    (lm-evaluation-harness's tasks/mmlu/continuation)
"""

import dataclasses
import functools
import pathlib
import re
from typing import Any

from flanx.errors import UserError
from flanx.evals import files
from flanx.evals.spec import Family, Item, Spec

LETTERS = "ABCD"
STEP_BY_STEP = "Let's think step by step."
_SUBJECTS = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
    econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
    high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
    high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
    human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory
    professional_accounting professional_law professional_medicine professional_psychology public_relations
    security_studies sociology us_foreign_policy virology world_religions"""
SUBJECTS = tuple(_SUBJECTS.split())

Row = tuple[str, list[str]]  # location, [question, A, B, C, D, letter]


@functools.cache
def specs() -> dict[str, Spec]:
    """Every variant on `val`, which Table 5 uses, and on `test`. Shots and modes: paper.md section 3."""
    rows: list[Spec] = []
    for split, prefix in (("val", "mmlu"), ("test", "mmlu_test")):
        direct = Spec(f"{prefix}_direct", "mmlu", "flan_paper", split, shots=5, stop=("Q:",))
        rank = dataclasses.replace(direct, scoring="rank", stop=())
        rows += [
            direct,
            dataclasses.replace(direct, name=f"{prefix}_cot", variant="flan_paper_cot", cot=True, max_new=512),
            dataclasses.replace(direct, name=f"{prefix}_zero_shot", shots=0),
            dataclasses.replace(rank, name=f"{prefix}_hendrycks", variant="hendrycks"),
            dataclasses.replace(rank, name=f"{prefix}_lm_eval", variant="lm_eval", drop="none"),
            dataclasses.replace(rank, name=f"{prefix}_text", variant="text"),
            dataclasses.replace(rank, name=f"{prefix}_text_normalized", variant="text", scoring="rank_normalized"),
        ]
    return {spec.name: spec for spec in rows}


def tasks(spec: Spec) -> tuple[str, ...]:
    """All subjects."""
    return SUBJECTS


def _path(folder: pathlib.Path, split: str, subject: str) -> pathlib.Path:
    return folder / "mmlu" / "data" / split / f"{subject}_{split}.csv"


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the subject's files exist."""
    return files.present(_path(folder, spec.split, task))


@functools.lru_cache(maxsize=256)
def rows(folder: pathlib.Path, split: str, subject: str) -> tuple[Row, ...]:
    """The rows of a file, checked."""
    found = []
    for location, row in files.read_rows(_path(folder, split, subject), f"MMLU {subject}", 6, ","):
        if row[5].strip() not in LETTERS or not row[5].strip():
            raise UserError(f"MMLU {subject}: {location}: the last column is '{row[5]}', expected one of A, B, C, D")
        if not all(option.strip() for option in row[1:5]):
            raise UserError(f"MMLU {subject}: {location}: an option is empty")
        found.append((location, [*row[:5], row[5].strip()]))
    return tuple(found)


def _flan(row: list[str], answer: str) -> str:
    options = " ".join(f"({letter}) {text.strip()}" for letter, text in zip(LETTERS, row[1:5], strict=True))
    return f"Q: {row[0].strip()}\n{options}\nA:{answer}"


def _lines(row: list[str], answer: str, strip: bool) -> str:
    question = row[0].strip() if strip else row[0]
    options = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, row[1:5], strict=True))
    return f"{question}{options}\nAnswer:{answer}"


def _question(row: list[str]) -> str:
    return f"Question: {row[0].strip()}\nAnswer:"


@functools.lru_cache(maxsize=8)
def _cot_prompts(folder: pathlib.Path) -> Any:
    return files.read_json(folder / "mmlu" / "mmlu-cot.json", "MMLU rationales")


def cot_exemplars(folder: pathlib.Path, subject: str) -> tuple[str, tuple[str, ...]]:
    """The head and the exemplars ("Q: ...\\nA: ...\\n\\n" each) of a subject's published prompt."""
    prompts = _cot_prompts(folder)
    if not isinstance(prompts, dict) or not isinstance(prompts.get(subject), str):
        raise UserError(f"{folder / 'mmlu' / 'mmlu-cot.json'}: no prompt for '{subject}'")
    head, *parts = re.split(r"(?m)^Q: ", prompts[subject].strip())
    return head, tuple(f"Q: {part.rstrip()}\n\n" for part in parts)


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The subject's items in the spec's variant."""
    subject = task.replace("_", " ")
    dev = (
        [row for _, row in rows(folder, "dev", task)][: spec.shots] if spec.shots and "cot" not in spec.variant else []
    )
    kind = "questions" if spec.variant == "text" else "multiple choice questions"
    head = f"The following are {kind} (with answers) about {subject}.\n\n"
    options: tuple[str, ...] = ()
    if spec.variant == "flan_paper_cot":
        head, shots = cot_exemplars(folder, task)
        shots, end = shots[: spec.shots], f" {STEP_BY_STEP}"
    elif spec.variant == "flan_paper":
        shots, end = tuple(_flan(row, f" ({row[5]})\n\n") for row in dev), ""
    elif spec.variant == "text":
        shots, end = tuple(_question(row) + f" {row[1 + LETTERS.index(row[5])]}\n\n" for row in dev), ""
    else:
        strip = spec.variant == "lm_eval"
        shots, end = tuple(_lines(row, f" {row[5]}\n\n", strip) for row in dev), ""
        options = tuple(f" {letter}" if strip else letter for letter in LETTERS)
        if not strip:  # the original joins "about " and " abstract algebra"
            head = head.replace("about ", "about  ")
    if spec.shots and not shots:
        raise UserError(f"MMLU {task}: no exemplars for {spec.shots} shots")
    found = []
    for number, (location, row) in enumerate(rows(folder, spec.split, task)):
        if spec.variant == "text":
            query, options = _question(row), tuple(f" {text.strip()}" for text in row[1:5])
        else:
            query = _lines(row, "", spec.variant == "lm_eval") if options else _flan(row, end)
        target = options[LETTERS.index(row[5])] if options else f"({row[5]})"
        found.append(
            Item(
                task=task,
                id=f"{task}-{spec.split}-{number}",
                head=head,
                shots=shots,
                query=query,
                targets=(target,),
                kind="letter",
                options=options,
                location=location,
            )
        )
    return found


FAMILY = Family("mmlu", tasks, has, items, specs)
