"""MGSM: 250 grade-school problems in each of eleven languages, with exemplars and rationales in the same language.

Layout (google-research/url-nlp): mgsm/mgsm_<language>.tsv with question and answer; mgsm/exemplars.json with
MGSM_EXEMPLARS {language: {"1": {"q", "a"}, ...}} and EXEMPLAR_NUMBER_ANSWERS [8]. Questions and answers there carry
their labels ("Question: ", "Step-by-Step Answer: "), from which the prompt takes its labels.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from flanx.errors import UserError
from flanx.evals import files
from flanx.evals.spec import Family, Item, Spec

LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
_NUMBERS = "EXEMPLAR_NUMBER_ANSWERS"
PAPER = tuple(language for language in LANGUAGES if language != "en")  # the paper leaves English out


@functools.cache
def specs() -> dict[str, Spec]:
    """Shots and languages: paper.md section 3."""
    cot = Spec("mgsm_cot", "mgsm", "cot", tasks=PAPER, shots=8, cot=True, stop=("Q:", "Question:"), max_new=512)
    direct = dataclasses.replace(cot, name="mgsm_direct_8_shot", variant="direct", cot=False, max_new=32)
    return {spec.name: spec for spec in (cot, direct)}


def tasks(spec: Spec) -> tuple[str, ...]:
    """All languages."""
    return LANGUAGES


def stops(spec: Spec, folder: pathlib.Path, present: Sequence[str]) -> tuple[str, ...]:
    """The spec's own stops, and the question labels in the languages scored, taken from their exemplars."""
    labels = [label([question for question, _, _ in exemplars(folder, task)], f"MGSM {task}") for task in present]
    return tuple(dict.fromkeys((*spec.stop, *(text.strip() for text in labels))))


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the language's file exists."""
    return files.present(folder / "mgsm" / f"mgsm_{task}.tsv")


@functools.lru_cache(maxsize=32)
def exemplars(folder: pathlib.Path, language: str) -> tuple[tuple[str, str, str], ...]:
    """(labelled question, labelled rationale, number) of each exemplar."""
    path = folder / "mgsm" / "exemplars.json"
    data, at = files.read_json(path, "MGSM exemplars"), f"{path}: {language}"
    try:
        pairs, numbers = data["MGSM_EXEMPLARS"][language], data[_NUMBERS]
        ordered = [pairs[str(number)] for number in range(1, len(pairs) + 1)]
        return tuple(
            (
                files.filled(pair, "q", at),
                files.filled(pair, "a", at),
                files.filled({_NUMBERS: number}, _NUMBERS, at),
            )
            for pair, number in zip(ordered, numbers, strict=True)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no exemplars for '{language}' ({type(error).__name__}: {error})") from None


def label(texts: list[str], path: str) -> str:
    """The label that all texts begin with, through its colon and the space after it."""
    first, last = min(texts), max(texts)  # a common prefix of these two is common to all
    common = first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
    ends = [common.find(colon) for colon in (":", "：") if colon in common]
    if not ends:
        raise UserError(f"{path}: the exemplars share no label such as 'Question: '")
    end = min(ends) + 1
    return common[: end + 1] if common[end : end + 1] == " " else common[:end]


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The language's items; variants: cot (native rationale) and direct (only the number)."""
    shots = exemplars(folder, task)
    if len(shots) < spec.shots:
        raise UserError(f"MGSM {task}: {spec.shots} exemplars needed, there are {len(shots)}")
    asks = label([q for q, _, _ in shots], f"MGSM {task}")
    if spec.variant == "cot":
        answers = label([a for _, a, _ in shots], f"MGSM {task}")
        shown = tuple(f"{q}\n{a}\n\n" for q, a, _ in shots[: spec.shots])
    else:
        answers = "A:"
        shown = tuple(f"{q}\nA: {number}\n\n" for q, _, number in shots[: spec.shots])
    rows = list(files.read_rows(folder / "mgsm" / f"mgsm_{task}.tsv", f"MGSM {task}", 2, "\t"))
    if empty := next((location for location, cells in rows if not all(map(str.strip, cells))), ""):
        raise UserError(f"MGSM {task}: {empty}: a question or an answer is empty")
    return [
        Item(
            task=task,
            id=f"{task}-{number}",
            shots=shown,
            query=f"{asks}{question}\n{answers.rstrip()}",
            targets=(answer.strip(),),
            kind="number",
            language=task,
            location=location,
        )
        for number, (location, (question, answer)) in enumerate(rows)
    ]


FAMILY = Family("mgsm", tasks, has, items, specs, stops=stops)
