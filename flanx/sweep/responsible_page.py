"""`flanx report RUN... --figures FOLDER`: appendix C's toxicity evaluations as a page with figures, ours in colour and
the paper's printed values in grey.

    FOLDER/responsible.html, responsible.md, responsible_*.svg, responsible_*.png
"""

import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flanx.evals import responsible
from flanx.evals.families import comments, identity_terms, real_toxicity_prompts
from flanx.evals.responsible import COMMENTS, FIRST_SENTENCE, PROMPTS, TERMS, Found
from flanx.evals.scores import not_available
from flanx.evals.table5 import Line
from flanx.files import write_atomic
from flanx.sweep import document
from flanx.sweep.document import Document, Section, Table
from flanx.sweep.figures import COLOURS, GREY, MARKERS, moved, plotting, save, side_by_side

Draw = Callable[[Any, Sequence[Found]], None]  # draws on one pyplot panel


def publish(lines: Sequence[Line], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the page and its figures; returns their paths, [] if no run has any of the suites."""
    tables = responsible.blocks(lines)
    if not tables:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written: list[pathlib.Path] = []
    sections = []
    for block in tables:
        rows = [[document.Cell([document.Span(text)]) for text in row] for row in block.rows]
        sections.append(Section(block.title, notes=[block.note], tables=[Table(block.head, rows)]))
    for title, suites, draw, note in FIGURES:
        found = [each for each in responsible.find(lines, *suites) if not not_available(each.entry)]
        if not found:
            continue
        path = folder / f"responsible_{title.lower().replace(' ', '_')}.svg"
        with plotting(path.stem) as pyplot:
            canvas, spot = pyplot.subplots(figsize=(7.6, 4.4))
            draw(spot, found)
            spot.set_title(title, fontsize=11)
            spot.grid(alpha=0.25)
            spot.spines[["top", "right"]].set_visible(False)
            below = 0.47 / (spot.get_position().height * canvas.get_figheight())  # inches, regardless of height
            spot.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -below), ncols=2)
            save(canvas, path)
            pyplot.close(canvas)
        written += [path, path.with_suffix(".png")]
        sections.append(Section(title, figure=path, notes=[note]))
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes")
    notes = [f"Read on {now}. No text of a model is on this page; intervals are 95%."]
    page = Document("Responsible AI", notes, sections, folder)
    for name, text in {"responsible.md": document.markdown(page), "responsible.html": document.page(page)}.items():
        write_atomic(folder / name, text)
        written.insert(0, folder / name)
    return written


# ---- figures ---------------------------------------------------------------------------------------------------------


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _error(entry: Mapping[str, Any]) -> list[list[float]] | None:
    """The lengths of an error bar."""
    if entry["low"] is None:
        return None
    return [[max(entry["score"] - entry["low"], 0.0)], [max(entry["high"] - entry["score"], 0.0)]]


def _bars(spot: Any, columns: Sequence[str], runs: Sequence[tuple[str, Sequence[tuple[Any, float | None]]]]) -> None:
    """Draws runs' bars side by side in every column; `runs`: (label, (entry or None, printed value) per column)."""
    width = 0.8 / len(runs)
    is_printed = False
    for index, (label, values) in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        for place, (entry, printed) in enumerate(values):
            at = place + (index - (len(runs) - 1) / 2) * width
            if entry:
                spot.bar(at, entry["score"], width * 0.9, color=colour)
                spot.errorbar(at, entry["score"], _error(entry), color="#333333", capsize=3)
            if printed is not None:
                spot.plot([at - width * 0.45, at + width * 0.45], [printed] * 2, color=GREY, linewidth=2.5)
                is_printed = True
        spot.bar([0], [0], color=colour, label=label)
    if is_printed:
        spot.plot([], [], color=GREY, linewidth=2.5, label="printed in the paper")
    spot.set_xticks(range(len(columns)), columns)
    spot.set_ylim(0, 100)


def _any_toxic(spot: Any, found: Sequence[Found]) -> None:
    tasks = real_toxicity_prompts.TASKS
    runs = [(each.label, [(each.entry["tasks"].get(task), each.printed(task)) for task in tasks]) for each in found]
    _bars(spot, [f"{task.replace('_', '-')} prompts" for task in tasks], runs)
    spot.set_ylabel("prompts with a toxic continuation (%)")


def _bins(spot: Any, found: Sequence[Found]) -> None:
    runs = [[((record["from"] + record["to"]) / 2, record) for record in each.entry.get("bins", [])] for each in found]
    shifts = side_by_side({index: [(at, record["score"]) for at, record in bins] for index, bins in enumerate(runs)})
    for index, (each, bins) in enumerate(zip(found, runs, strict=True)):
        look, place = _look(index), moved(spot, spot.transData, shifts[index])
        scores = [record["score"] for _, record in bins]
        spot.plot([at for at, _ in bins], scores, label=each.label, transform=place, **look)
        banded = [(at, record) for at, record in bins if record["low"] is not None]
        low, high = ([record[key] for _, record in banded] for key in ("low", "high"))
        spot.fill_between([at for at, _ in banded], low, high, color=look["color"], alpha=0.15, linewidth=0)
    spot.set_xlim(0, 1)
    spot.set_ylim(bottom=0)
    spot.set_xlabel("toxicity of the prompt")
    spot.set_ylabel("mean toxicity of continuations (%)")


def _by_group(found: Sequence[Found]) -> list[str]:
    """The groups in all runs, by dimension in suite order, baseline first."""
    names = dict.fromkeys(name for each in found for name in each.entry["tasks"])
    return sorted(names, key=lambda name: (not name.startswith(identity_terms.BASELINE), name))


def _points(
    spot: Any, names: Sequence[str], runs: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]], what: str
) -> None:
    """Draws a row per name, top to bottom, with a point and interval per run; `runs`: (label, {name: entry})."""
    spot.figure.set_size_inches(7.6, 1.6 + 0.23 * len(names))
    for index, (label, entries) in enumerate(runs):
        shift = (index - (len(runs) - 1) / 2) * 0.7 / len(runs)
        for place, name in enumerate(names):
            entry = entries.get(name)
            if entry:
                error, look = _error(entry), _look(index)
                spot.errorbar(entry["score"], place + shift, xerr=error, markersize=4.5, capsize=2, **look)
        spot.plot([], [], linestyle="", label=label, **_look(index))
    spot.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    spot.set_ylim(len(names) - 0.4, -0.6)
    spot.set_xlabel(what)
    spot.xaxis.set_label_position("top")
    spot.xaxis.tick_top()


def _shares(spot: Any, found: Sequence[Found]) -> None:
    _points(spot, _by_group(found), [(each.label, each.entry["tasks"]) for each in found], "toxic continuations (%)")
    for index, each in enumerate(found):
        for name, entry in each.entry["tasks"].items():
            if name.startswith(identity_terms.BASELINE):
                spot.axvline(entry["score"], color=_look(index)["color"], linestyle=":", linewidth=1)
    spot.set_xlim(left=0)


def _quartiles(spot: Any, found: Sequence[Found]) -> None:
    names = _by_group(found)
    spot.figure.set_size_inches(7.6, 1.6 + 0.23 * len(names))
    for index, each in enumerate(found):
        shift, colour = (index - (len(found) - 1) / 2) * 0.8 / len(found), _look(index)["color"]
        for name, task in each.entry["tasks"].items():
            if "percentiles" in task:
                at, height = names.index(name) + shift, 0.6 / len(found)
                least, low, middle, high, most = task["percentiles"]
                spot.plot([least, most], [at, at], color=colour, linewidth=1)
                spot.barh(at, high - low, height, low, color=colour, alpha=0.5)
                spot.plot([middle] * 2, [at - height / 2, at + height / 2], color="black", linewidth=1.4)
        spot.plot([], [], "s", color=colour, alpha=0.5, label=each.label)
    spot.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    spot.set_ylim(len(names) - 0.4, -0.6)
    spot.set_xlim(0, 100)
    spot.set_xlabel("toxicity of continuations (%)")
    spot.xaxis.set_label_position("top")
    spot.xaxis.tick_top()


def _areas(spot: Any, found: Sequence[Found]) -> None:
    suites = list(dict.fromkeys(responsible.base(each.suite) for each in found))
    runs = []
    for line in dict.fromkeys(each.line.label for each in found):
        own = {responsible.base(each.suite): each for each in found if each.line.label == line}
        runs.append((line, [(own[s].entry, own[s].printed()) if s in own else (None, None) for s in suites]))
    _bars(spot, suites, runs)
    spot.axhline(50, color="black", linewidth=0.6)
    spot.set_ylabel("AUC-ROC (%)")


def _identities(spot: Any, found: Sequence[Found]) -> None:
    runs = [(each.label, responsible.identities(each.entry)) for each in found]
    _points(spot, sorted({name for _, known in runs for name in known}), runs, "AUC-ROC (%)")


FIGURES: tuple[tuple[str, tuple[str, ...], Draw, str], ...] = (
    (
        "At least one toxic continuation", (PROMPTS, PROMPTS + FIRST_SENTENCE), _any_toxic,
        "The paper's Table 6: of 25 continuations at least one with a toxicity of 0.5 or more.",
    ),
    (
        "Toxicity by prompt", (PROMPTS, PROMPTS + FIRST_SENTENCE), _bins,
        "The paper's figure 12: mean toxicity of continuations by tenths of their prompt's; bands are over "
        "prompts. The paper prints no numbers of it.",
    ),
    (
        "Toxic continuations by group", (TERMS, TERMS + FIRST_SENTENCE), _shares,
        "The paper's figure 13: the share of continuations with a toxicity of 0.5 or more; dotted: the baseline. "
        "Terms and templates are our own, the paper prints no numbers.",
    ),
    (
        "Distribution by group", (TERMS, TERMS + FIRST_SENTENCE), _quartiles,
        "The paper's figure 14: quartiles of the continuations' toxicity, whiskers from 5% to 95%.",
    ),
    (
        "Toxic comments", COMMENTS, _areas,
        "The paper's Table 7: AUC-ROC of the normalised likelihood of yes; the line is chance.",
    ),
    ("Toxic comments by identity", tuple(comments.CIVIL_COMMENTS.specs()), _identities,
     "AUC-ROC among the comments that mention the identity; those of one class have none."),
)  # fmt: skip
