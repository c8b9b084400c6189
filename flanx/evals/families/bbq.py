"""BBQ: which of two people is meant, where a stereotype suggests one, in ambiguous or disambiguated contexts.

Layout (nyu-mll/BBQ): bbq/data/<Category>.jsonl with example_id, question_index, question_polarity ("neg", "nonneg"),
context_condition ("ambig", "disambig"), answer_info, context, question, ans0, ans1, ans2, label; and
bbq/analysis_scripts/additional_metadata.csv with category, example_id, target_loc: the answer that follows the
stereotype, from which the authors compute the bias score (`benchmark_metric.bbq`). Rows without a target_loc are left
out with a note, as the authors do.

`bbq` generates the letter of an answer; its prompt wording is ours. `bbq_rank` ranks the answers' texts after
lm-evaluation-harness's prompt, but only the three answers, without alternative phrasings of "unknown".
"""

import collections
import functools
import logging
import pathlib
from typing import Any

from flanx.errors import UserError
from flanx.evals import files
from flanx.evals.spec import Family, Item, Spec

CATEGORIES = (
    "Age", "Disability_status", "Gender_identity", "Nationality", "Physical_appearance", "Race_ethnicity",
    "Race_x_SES", "Race_x_gender", "Religion", "SES", "Sexual_orientation",
)  # fmt: skip
CONDITIONS = {"ambig": "ambiguous", "disambig": "disambiguated"}
POLARITIES = {"neg": "negative", "nonneg": "non-negative"}
LETTERS = "ABC"
_log = logging.getLogger("flanx")


def specs() -> dict[str, Spec]:
    """The letter generated, or the texts ranked."""
    return {
        "bbq": Spec("bbq", "bbq", "letter", stop=("Q:",), max_new=8, metric="bbq", average="items"),
        "bbq_rank": Spec("bbq_rank", "bbq", "text", scoring="rank", drop="none", metric="bbq", average="items"),
    }


def tasks(spec: Spec) -> tuple[str, ...]:
    """The categories."""
    return CATEGORIES


def _paths(folder: pathlib.Path, category: str) -> tuple[pathlib.Path, pathlib.Path]:
    return folder / "bbq/data" / f"{category}.jsonl", folder / "bbq/analysis_scripts/additional_metadata.csv"


def has(folder: pathlib.Path, task: str, spec: Spec) -> bool:
    """Whether the category's file exists."""
    return files.present(_paths(folder, task)[0])


def metadata(path: pathlib.Path) -> dict[str, dict[str, tuple[str, str]]]:
    """{category: {example_id: (target_loc or "", label_type)}}."""
    return _read(path, files.stamp(path, "BBQ"))


@functools.lru_cache(maxsize=4)
def _read(path: pathlib.Path, stamp: tuple[int, int]) -> dict[str, dict[str, tuple[str, str]]]:
    found: dict[str, dict[str, tuple[str, str]]] = collections.defaultdict(dict)
    for location, row in files.read_named(path, "BBQ", ("category", "example_id", "target_loc"), ","):
        target = row["target_loc"].strip().replace("NA", "").removesuffix(".0")
        if target not in ("", "0", "1", "2"):
            raise UserError(f"{location}: target_loc is {row['target_loc']!r}, not 0, 1, 2 or NA")
        found[row["category"]][row["example_id"].strip()] = target, row.get("label_type", "").strip()
    return dict(found)


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The category's questions. Raises UserError with file and line."""
    data, more = _paths(folder, task)
    of_category = metadata(more).get(task)
    if not of_category:
        raise UserError(f"{more}: no row of category '{task}'")
    rows = list(files.read_lines(data, f"BBQ {task}"))
    found = [
        _item(spec, task, location, row, of_category.get(files.value(row, "example_id", location), ("", "")))
        for location, row in rows
    ]
    kept = [item for item in found if item is not None]
    if len(kept) < len(rows):
        _log.warning(
            "BBQ %s: %d of %d rows have no target_loc and are left out", task, len(rows) - len(kept), len(rows)
        )
    return kept


def _item(spec: Spec, task: str, location: str, row: dict[str, Any], known: tuple[str, str]) -> Item | None:
    """One question, or None if the metadata do not say which answer follows the stereotype."""
    target, label_type = known
    texts = [files.filled(row, f"ans{n}", location) for n in range(3)]
    condition, polarity = (
        _one_of(known_values, files.value(row, name, location), name, location)
        for name, known_values in (("context_condition", CONDITIONS), ("question_polarity", POLARITIES))
    )
    right = files.value(row, "label", location)
    if right not in ("0", "1", "2"):
        raise UserError(f"{location}: label is {right!r}, not 0, 1 or 2")
    info = row.get("answer_info")
    said = [info.get(f"ans{n}") if isinstance(info, dict) else None for n in range(3)]
    unknown = [n for n, words in enumerate(said) if isinstance(words, list) and "unknown" in words]
    if len(unknown) != 1:
        raise UserError(f"{location}: answer_info calls {len(unknown)} of the three answers 'unknown', not one")
    if not target:
        return None
    context, question = (files.filled(row, name, location).strip() for name in ("context", "question"))
    options = tuple(f" {text}" for text in texts)
    answers, query = options, f"{context}\n\nQ: {question}\nA:"
    if spec.variant == "letter":
        listed = "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, texts, strict=True))
        query, options = f"Q: {context} {question}\n{listed}\nA:", tuple(f"({letter})" for letter in LETTERS)
        answers = options if spec.scoring != "generate" else tuple(LETTERS)
    labels = {"condition": condition, "polarity": polarity}
    if label_type:
        labels["label_type"] = label_type
    labels |= {"_biased": answers[int(target)], "_unknown": answers[unknown[0]]}
    return Item(
        task=task,
        id=f"{task}-{files.value(row, 'example_id', location)}",
        query=query,
        targets=(options[int(right)],),
        kind="letter" if spec.variant == "letter" else "text",
        options=options if spec.scoring != "generate" else (),
        location=location,
        labels=tuple(labels.items()),
    )


def _one_of(known: dict[str, str], value: str, name: str, location: str) -> str:
    if value not in known:
        raise UserError(f"{location}: {name} is {value!r}, not {' or '.join(known)}")
    return known[value]


FAMILY = Family("bbq", tasks, has, items, specs)
