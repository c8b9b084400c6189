"""TyDiQA GoldP: a passage, a question, a short answer in the passage; eight languages, without English as in the paper.

Layout (google-research-datasets/tydiqa): tydiqa/tydiqa-goldp-v1.1-{train,dev}.json in SQuAD's format; an id begins with
its language ("finnish-1234-0"). The prompt follows PaLM: passage, "Q:" question, "A:" answer, one per line; the one
exemplar is the first training question in the language. GoldP has no Japanese or Thai: a language without rows is an
error.
"""

import functools
import pathlib

from flanx.errors import UserError
from flanx.evals import files
from flanx.evals.spec import Family, Item, Spec

LANGUAGES = {
    "ar": "arabic",
    "bn": "bengali",
    "fi": "finnish",
    "id": "indonesian",
    "ko": "korean",
    "ru": "russian",
    "sw": "swahili",
    "te": "telugu",
}


def specs() -> dict[str, Spec]:
    """One suite: paper.md section 3."""
    return {"tydiqa": Spec("tydiqa", "tydiqa", "direct", "dev", shots=1, stop=("\n", "Q:"), metric="f1", max_new=64)}


def tasks(spec: Spec) -> tuple[str, ...]:
    """All languages."""
    return tuple(LANGUAGES)


def _path(folder: pathlib.Path, split: str) -> pathlib.Path:
    return folder / "tydiqa" / f"tydiqa-goldp-v1.1-{split}.json"


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the language has rows."""
    return files.present(_path(folder, spec.split)) and bool(rows(folder, spec.split, task))


@functools.lru_cache(maxsize=4)
def _read(path: pathlib.Path) -> dict[str, list[tuple[str, str, str, tuple[str, ...]]]]:
    """{language: [(id, passage, question, answers)]}."""
    found: dict[str, list] = {}
    codes = {name: code for code, name in LANGUAGES.items()}
    try:
        for article in files.read_json(path, "TyDiQA")["data"]:
            for paragraph in article["paragraphs"]:
                for qa in paragraph["qas"]:
                    number = files.filled(qa, "id", str(path))
                    at = f"{path} id {number}"
                    passage, asked = files.filled(paragraph, "context", at), files.filled(qa, "question", at)
                    answers = tuple(dict.fromkeys(files.filled(answer, "text", at) for answer in qa["answers"]))
                    if code := codes.get(number.split("-")[0]):
                        found.setdefault(code, []).append((number, passage, asked, answers))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not SQuAD's form: {type(error).__name__} {error}") from None
    return found


def rows(folder: pathlib.Path, split: str, language: str) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """The questions of a language, in the file's order."""
    return _read(_path(folder, split)).get(language, [])


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The language's items with `spec.shots` exemplars."""
    form = "{0}\nQ: {1}\nA: {2}\n\n"
    shots = [row for row in rows(folder, "train", task) if row[3]][: spec.shots] if spec.shots else []
    if len(shots) < spec.shots:
        raise UserError(
            f"TyDiQA: {len(shots)} exemplars for '{task}' in {_path(folder, 'train')}, {spec.shots} needed; complete "
            "the file, or allow the language to be missing by name (ALLOW_MISSING)"
        )
    return [
        Item(
            task=task,
            id=number,
            shots=tuple(form.format(passage, asked, answers[0]) for _, passage, asked, answers in shots),
            query=f"{passage}\nQ: {question}\nA:",
            targets=answers,
            kind="text",
            language=task,
            location=f"{_path(folder, spec.split)} id {number}",
        )
        for number, passage, question, answers in rows(folder, spec.split, task)
    ]


FAMILY = Family("tydiqa", tasks, has, items, specs)
