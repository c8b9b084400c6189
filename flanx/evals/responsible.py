"""The responsible-AI section of `flanx report` (the paper's appendix C): tables of runs with the printed values next
to ours. Only counts and shares; texts are shown only on request (`offending`)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flanx.evals import generations, metrics, published, toxicity
from flanx.evals.families import comments, identity_terms, real_toxicity_prompts
from flanx.evals.scores import interval_text, not_available, partial
from flanx.evals.table5 import NOT_PRINTED, Line
from flanx.files import markdown_table

FIRST_SENTENCE = "_first_sentence"
PROMPTS, TERMS = real_toxicity_prompts.NAME, identity_terms.NAME
COMMENTS = tuple(name for family in (comments.CIVIL_COMMENTS, comments.JIGSAW) for name in family.specs())
LENGTH = 160  # characters shown of a text


@dataclasses.dataclass(frozen=True)
class Found:
    """One suite of one run: its scores.json entry under its full name."""

    line: Line
    suite: str
    entry: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The run, and the suite unless it is the plain one."""
        return f"{self.line.label} ({self.suite})"

    def printed(self, task: str = "") -> float | None:
        """The paper's value for the model that the run is compared with; None if it prints none."""
        name = base(self.suite).removesuffix(FIRST_SENTENCE)
        return published.responsible().get(self.line.model or "", {}).get((name, task))


@dataclasses.dataclass(frozen=True)
class Block:
    """A table of a report with a description of its numbers."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    note: str


def base(suite: str) -> str:
    """The name of a suite without its selections."""
    return suite.partition("[")[0].partition("+")[0]


def find(lines: Sequence[Line], *names: str) -> list[Found]:
    """The suites with these names in all runs."""
    return [
        Found(line, suite, entry)
        for line in lines
        for suite, entry in line.scores["suites"].items()
        if base(suite) in names
    ]


def identity_tasks(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups of an identity suite without the baseline, largest share first."""
    tasks = {name: each for name, each in entry["tasks"].items() if not name.startswith(f"{identity_terms.BASELINE}_")}
    return dict(sorted(tasks.items(), key=lambda pair: (-pair[1]["score"], pair[0])))


def identities(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The identities whose comments include both classes."""
    slices = {name: values["yes"] for name, values in entry.get("slices", {}).items() if "yes" in values}
    return {name: each for name, each in slices.items() if "misfit" not in each}


# ---- tables ----------------------------------------------------------------------------------------------------------


def _value(entry: Mapping[str, Any]) -> str:
    return not_available(entry) or f"{entry['score']:.1f} [{interval_text(entry, ', ')}]"


def _printed(value: float | None) -> str:
    return NOT_PRINTED if value is None else f"{value:g}"


def _left(found: Found) -> str:
    return "; ".join(partial(found.entry)) or "-"


def _prompts(lines: Sequence[Line]) -> Block | None:
    rows = []
    for found in find(lines, PROMPTS, PROMPTS + FIRST_SENTENCE):
        cells = [found.line.label, found.suite]
        for task in real_toxicity_prompts.TASKS:
            entry = found.entry["tasks"].get(task)
            cells += [_value(entry) if entry else "not run", _printed(found.printed(task))]
        mean = found.entry.get("metrics", {}).get("mean_toxicity")
        cells += ["-" if mean is None else f"{mean:.1f}", found.entry.get("scorer", "none"), _left(found)]
        rows.append(cells)
    head = ("run", "suite", "non-toxic prompts", "printed", "toxic prompts", "printed", "mean", "scorer", "remarks")
    note = (
        f"Percent of prompts with at least one continuation of toxicity {metrics.TOXIC} or more (Table 6), and the "
        "mean toxicity, over both kinds. Printed values are of Perspective's API: other scorers have another "
        "scale."
    )
    return Block("RealToxicityPrompts", head, rows, note) if rows else None


def _terms(lines: Sequence[Line]) -> Block | None:
    rows = []
    for found in find(lines, TERMS, TERMS + FIRST_SENTENCE):
        groups = identity_tasks(found.entry)
        unscored = not_available(found.entry)
        baseline = [each for name, each in found.entry["tasks"].items() if name not in groups]
        cells = [found.line.label, found.suite, unscored or f"{found.entry['score']:.1f}"]
        cells.append(unscored or (_value(baseline[0]) if baseline else "not run"))
        if unscored or not groups:
            cells += [unscored or "not run"] * 3
        else:
            (worst, most), *_, (best, least) = [*groups.items()] * 2
            cells += [f"{worst} {_value(most)}", f"{best} {_value(least)}", f"{most['score'] - least['score']:.1f}"]
        rows.append([*cells, str(len(groups)), found.entry.get("scorer", "none"), _left(found)])
    head = ("run", "suite", "all", "baseline", "worst group", "best group", "between", "groups", "scorer", "remarks")
    note = (
        f"Percent of continuations of toxicity {metrics.TOXIC} or more, by group (figure 13); intervals are over the "
        "group's prompts. Of many groups the worst and the best lie apart by chance too: their intervals say how far."
    )
    return Block("Identity terms", head, rows, note) if rows else None


def _comments(lines: Sequence[Line]) -> Block | None:
    rows = []
    for found in find(lines, *COMMENTS):
        known = identities(found.entry)
        lowest = min(known, key=lambda name: known[name]["score"], default="")
        worst = f"{lowest} {known[lowest]['score']:.1f} (of {len(known)})" if lowest else "-"
        rows.append(
            [found.line.label, found.suite, _value(found.entry), _printed(found.printed()), worst, _left(found)]
        )
    head = ("run", "suite", "AUC", "printed", "lowest identity", "remarks")
    note = (
        "AUC-ROC in percent of the normalised likelihood of yes, with DeLong's interval (Table 7; Perspective's API "
        "reaches 97.0 there)."
    )
    return Block("Toxic comments", head, rows, note) if rows else None


BLOCKS: tuple[Callable[[Sequence[Line]], Block | None], ...] = (_prompts, _terms, _comments)


def blocks(lines: Sequence[Line]) -> list[Block]:
    """The tables of all evaluations that any run has."""
    return [block for make in BLOCKS if (block := make(lines))]


def markdown(lines: Sequence[Line]) -> str:
    """The section in Markdown; "" if no run has any of the suites."""
    found = blocks(lines)
    parts = ["## Responsible AI"] if found else []
    for block in found:
        parts += [f"### {block.title}", markdown_table(block.head, block.rows), block.note]
    return "\n\n".join(parts)


# ---- texts, on request -----------------------------------------------------------------------------------------------


def offending(line: Line, count: int) -> str:
    """The `count` most toxic continuations of each toxicity suite of a run, with their prompts."""
    parts: list[str] = []
    kept: dict[str, list[tuple[float, str, str]]] = {}
    for path in generations.paths(line.folder):
        header, rows = generations.read(path)
        spec = generations.spec_of(header, path)
        if toxicity.join(line.folder, spec, rows):
            kept.setdefault(spec.name, []).extend(
                (value, row.prompt, text)
                for row in rows
                for value, text in zip(row.toxicity, toxicity.texts(spec, row), strict=False)
                if value is not None
            )
    for suite, texts in kept.items():
        parts.append(f"{line.label}, {suite}: the {count} of the highest toxicity; they may offend")
        for value, prompt, text in sorted(texts, reverse=True)[:count]:
            said = " ".join(f"{prompt} >>> {text}".split())
            parts.append(f"  {100 * value:.0f}  {said[:LENGTH]}")
    return "\n".join(parts)
