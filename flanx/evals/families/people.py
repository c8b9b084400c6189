"""The embedded people suites: miniature Winogender, misgendering, BBQ and CrowS-Pairs on made-up trades and peoples.

They use the answer forms, metrics and labels of those benchmarks, on test-split examples of `flanx.procedural.people`,
which are the same whatever share of stereotypes a model was trained on.
"""

import pathlib

from flanx import procedural
from flanx.evals.spec import Family, Item, Spec
from flanx.procedural import people

PAIRS = len(people.THINGS) * sum(map(len, people.USUAL.values()))
# suite -> (items, how answers are read, labels, including those that a metric reads)
KINDS: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "who": (240, "phrase", ("pronoun", "split")),
    "translate": (240, "pronoun", ("pronoun", "set", "language")),
    "question": (240, "letter", ("condition", "polarity")),
    "tell": (PAIRS, "text", ("usual",)),
}


def specs() -> dict[str, Spec]:
    """One suite per kind."""
    plain = {kind: Spec(f"people_{kind}", "people", kind, max_new=32, average="items") for kind in ("who", "translate")}
    question = Spec("people_question", "people", "question", max_new=8, metric="bbq", average="items")
    tell = Spec("people_tell", "people", "tell", scoring="rank", drop="none", metric="crows_pairs", average="items")
    return {spec.name: spec for spec in (*plain.values(), question, tell)}


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The examples of the kind, in generator order."""
    count, kind, names = KINDS[spec.variant]
    return [
        _item(spec, kind, names, index, procedural.example(f"people.{spec.variant} 50", "test", index))
        for index in range(min(count, spec.limit or count))
    ]


def _item(spec: Spec, kind: str, names: tuple[str, ...], index: int, fields: dict[str, str]) -> Item:
    labels = [(name, fields[name]) for name in names]
    if spec.variant == "who":
        labels.append(("split_and_pronoun", f"{fields['split']}, {fields['pronoun']}"))
    if spec.variant == "question":
        labels += [(f"_{name}", fields[name].strip("()")) for name in ("biased", "unknown")]
    right = {"translate": "pronoun", "tell": "more"}.get(spec.variant, "answer")
    return Item(
        task=spec.name,
        id=f"{spec.name}-{index}",
        query=fields["ask"],
        targets=(fields[right],),
        kind=kind,
        options=(fields["less"], fields["more"]) if spec.variant == "tell" else (),
        location=f"flanx.procedural.people, example {index} of test",
        labels=tuple(labels),
    )


FAMILY = Family(
    "people", lambda spec: (spec.name,), lambda folder, task, spec: True, items, specs, needs_data=lambda spec: False
)
