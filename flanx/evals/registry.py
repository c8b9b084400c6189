"""Evaluation suites by name: an immutable spec, under one hash, holds everything that can change a score.

A `Spec` says which prompts (family, variant, split, shots), how they are fitted to the model (lengths, which shots are
dropped first), how an answer is produced (generation or ranking of options) and extracted (rationale or not, stop
texts), and how scores are averaged. Its family (`flanx.evals.families`) turns it into `Item`s: prompts, byte for byte.
`Suite.hash` covers the spec and every byte of every prompt and gold answer; results are keyed by it.

    load("bbh_cot", data_dir)                      the suite as in the paper
    load("bbh_direct[navigate,word_sorting]", d)   some of its tasks
    load("mmlu_direct[:20]", d)                    the first 20 items of every task
    load("gsm8k_cot+sc", d)                        with self-consistency: 40 samples, temperature 0.7, top-k 40
    load("gsm8k_cot+sc8", d)                       with 8 samples
    load("bbh_direct+beam4", d)                    with beam search, 4 beams
    load("bbh_zero_shot+likelihood", d)            likelihood of the gold answers, for models that get none right
    load("muffin_rte:validation", d)               a split of a task, see `families.task`
    load("lm_eval:gsm8k", d)                       a task of lm-evaluation-harness, see `families.lm_eval`
    load("muffin_rte:validation+rank", d)          ranks each item's options by probability, without generating

A name is either a suite that a family names (`Family.specs`) or is parsed by the first family whose form it matches
(`Family.parse`); brackets and suffixes mean the same for all.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flanx.data.task import tables
from flanx.errors import UserError, nearest
from flanx.evals import benchmark_metric, download, metrics, suite_table
from flanx.evals.families import (
    bbh,
    bbq,
    comments,
    identity_terms,
    lm_eval,
    mgsm,
    mmlu,
    open_ended,
    people,
    procedural,
    real_toxicity_prompts,
    table,
    task,
    tydiqa,
    user_task,
    winogender,
)  # fmt: skip
from flanx.evals.spec import Family, Item, Spec, Suite

SAMPLE = "sample"  # the data_dir that stands for our own small samples
SAMPLE_DIR = pathlib.Path(__file__).with_name("sample")
FAMILIES: tuple[Family, ...] = (
    bbh.FAMILY, bbq.FAMILY, mgsm.FAMILY, mmlu.FAMILY, open_ended.FAMILY, people.FAMILY, procedural.FAMILY,
    tydiqa.FAMILY, winogender.FAMILY, real_toxicity_prompts.FAMILY, identity_terms.FAMILY, comments.CIVIL_COMMENTS,
    comments.JIGSAW, table.FAMILY, lm_eval.FAMILY,
    user_task.FAMILY,  # before `task`, which rejects names of its form that the tables do not have
    task.FAMILY,
)  # fmt: skip
RENAMED = {"mgsm_direct": "mgsm_direct_8_shot"}  # old names: scores are written under the new name
NAME = re.compile(r"([^\[\]]+?)(?:\[([^\]]*)\])?(?:\+(likelihood|rank(?:_normalized)?|(?:sc|beam)(\d*)))?")


def specs() -> dict[str, tuple[Spec, Family]]:
    """The named suites, each with its family. Raises UserError if two share a name."""
    found: dict[str, tuple[Spec, Family]] = {}
    ours = {family.name for family in FAMILIES}
    for family in FAMILIES:
        for name, spec in family.specs().items():
            if name in found:
                first, of = found[name]
                both = f"{of.location(first)} and {family.location(spec)}"
                raise UserError(f"two suites are named '{name}': {both}; rename one")
            if spec.family in ours - {family.name}:
                at = family.location(spec)
                raise UserError(f"{at}: '{spec.family}' is a family of flanx's own suites; rename the file")
            found[name] = (spec, family)
    return found


def names() -> list[str]:
    """The names of all suites. Raises UserError if a suite table is invalid."""
    for error in suite_table.wrong():
        raise error
    return sorted(specs())


def find(name: str) -> tuple[Spec, Family]:
    """The spec for a name without brackets or suffix, and its family. Raises UserError with the nearest name."""
    known = specs()
    if name in known:
        spec, family = known[name]
        if family is table.FAMILY and (other := task.place_of(name)):
            raise UserError(f"two suites are named '{name}': {table.location(spec)} and the task {other}; rename one")
        return spec, family
    for family in FAMILIES:
        if parsed := family.parse(name):
            return parsed, family
    for error in suite_table.wrong():  # the suite may be in that file
        raise error
    near = nearest(name, [*known, *tables.load_tables()]) or "; `flanx suites list` prints those that have a name"
    raise UserError(f"no evaluation suite '{name}'{near}")


def resolve(name: str, allow_missing: Sequence[str] = ()) -> Spec:
    """The spec for a name with its selections (see above). Raises UserError with the nearest name."""
    return _resolve(name, allow_missing)[0]


def _resolve(name: str, allow_missing: Sequence[str]) -> tuple[Spec, Family]:
    name = name.strip()
    base = name.partition("[")[0].partition("+")[0]
    name = RENAMED.get(base, base) + name[len(base) :]
    match = NAME.fullmatch(name)
    if not match or (match[1] != base and base in specs()):
        find(base)  # report an unknown name first
        raise UserError(
            f"suite '{name}': put tasks and the number of items in one pair of brackets, the decoding method after it, "
            f"as in '{base}[task,task,:20]+sc'"
        )
    spec, family = find(match[1])
    tasks, limit = _selection(name, spec, family, match[2] or "")
    may_miss = {*allow_missing, *(set(spec.allow_missing) & {*tasks} if tasks else spec.allow_missing)}
    spec = dataclasses.replace(
        spec,
        name=name,
        limit=limit,
        tasks=tasks or spec.tasks,
        groups=family.groups(spec),
        allow_missing=tuple(sorted(may_miss & {*family.tasks(spec)})) if may_miss else (),
        **_decoding(name, spec, match[3] or "", match[4]),
    )
    return spec, family


def _selection(name: str, spec: Spec, family: Family, text: str) -> tuple[tuple[str, ...], int]:
    """(tasks, number of items per task) selected by the brackets in a name."""
    if not text:
        return (), spec.limit
    chosen, limit = [], spec.limit
    known = family.tasks(spec)
    for part in filter(None, (p.strip() for p in text.split(","))):
        if part.startswith(":"):
            if not part[1:].isdigit() or not int(part[1:]):
                raise UserError(f"suite '{name}': '{part}' needs a number of items, as in '{spec.name}[:20]'")
            limit = int(part[1:])
        elif part not in known:
            near = nearest(part, known) or (f"; the first {part} items are '{spec.name}[:{part}]'" * part.isdigit())
            raise UserError(f"suite '{name}': {spec.name} has no task '{part}'{near}")
        else:
            chosen.append(part)
    return tuple(chosen), limit


def is_voted(spec: Spec) -> bool:
    """Whether the samples of a suite that generates are voted on: in a toxicity suite each counts, and for an
    open-ended prompt the best is kept."""
    return spec.scoring == "generate" and spec.metric not in (*metrics.TOXICITY, "open_ended")


def _decoding(name: str, spec: Spec, method: str, count: str | None) -> dict[str, Any]:
    """The spec fields that a name's suffix changes: "likelihood", "rank", "sc" and "beam" with counts, "" for none."""
    if not method:
        return {}
    if count and int(count) < 2:
        raise UserError(f"suite '{name}': '+{method}' needs at least two samples or beams")
    if spec.metric in metrics.TOXICITY:
        raise UserError(f"suite '{name}': each of its {spec.samples} continuations counts; leave '+{method}' out")
    if spec.scoring != "generate":
        raise UserError(f"suite '{name}' ranks options; '+{method}' needs a suite that generates")
    is_ranked = method.startswith("rank")
    if (spec.metric in ("lm_eval", "seqio") and is_ranked) or (spec.metric == "lm_eval" and method == "likelihood"):
        raise UserError(f"suite '{name}': functions of the task score what is generated; leave '+{method}' out")
    of_benchmark = benchmark_metric.METRICS.get(spec.metric)
    is_refused = method == "likelihood" or (is_ranked and of_benchmark and of_benchmark.ranks is False)
    if of_benchmark and (is_refused or not is_voted(spec)):
        raise UserError(f"suite '{name}': {spec.metric} is scored from what is generated; leave '+{method}' out")
    if is_ranked:
        return {"scoring": method, "cot": False, "stop": ()}
    if method == "likelihood":
        return {"scoring": "likelihood", "cot": False, "stop": ()}
    if method.startswith("beam"):
        return {"beams": int(count or 4)}
    # Samples, temperature and top-k: self-consistency for PaLM-540B, paper.md section 3.2.
    return {"samples": int(count or 40), "temperature": 0.7, "top_k": 40}


def expect_tasks(names: Sequence[str], suites: Sequence[str]) -> None:
    """Raises UserError for a name in ALLOW_MISSING that is not a task of any suite: it would have no effect."""
    if not names:
        return
    known: set[str] = set()
    for spec, family in itertools.chain((_resolve(name, ()) for name in suites), specs().values()):
        with contextlib.suppress(UserError):  # for a table whose rows are not available
            known.update(family.tasks(spec))
        if known.issuperset(names):
            return
    unknown = next(name for name in names if name not in known)
    raise UserError(f"ALLOW_MISSING names '{unknown}', which is a task of no suite{nearest(unknown, known)}")


def load(name: str, data_dir: str, allow_missing: Sequence[str] = ()) -> Suite:
    """The named suite. Raises UserError for a missing file or task, an invalid row, a duplicate id, an empty option."""
    spec, family = _resolve(name, allow_missing)
    if not data_dir and family.needs_data(spec):
        raise UserError(
            f"suite {name}: no folder of benchmark data; set DATA_DIR (or FLANX_DATA_DIR) to one, or DATA_DIR to "
            f'"{download.HUB}", "{download.TFDS}" or "{SAMPLE}"'
        )
    wanted = spec.tasks or family.tasks(spec)
    if data_dir == SAMPLE:
        folder = SAMPLE_DIR
        present = [t for t in wanted if family.has(folder, t, spec)]
        spec = dataclasses.replace(spec, tasks=tuple(present), allow_missing=())
    else:
        is_source = data_dir in (download.HUB, download.TFDS)
        folder = download.folder(data_dir) if is_source else pathlib.Path(data_dir)
        if data_dir and not is_source and not folder.is_dir():
            raise UserError(f"DATA_DIR {data_dir}: no such folder; give the one that holds the benchmark files")
        present = [t for t in wanted if t not in spec.allow_missing or family.has(folder, t, spec)]
    if spec.stop:
        spec = dataclasses.replace(spec, stop=family.stops(spec, folder, present))
    items: list[Item] = []
    for each in present:
        rows = family.items(spec, folder, each)
        items += rows[: spec.limit] if spec.limit else rows
    missing = {each: family.why(folder, each, spec) for each in wanted if each not in present}
    if spec.scoring == "likelihood":
        items = [dataclasses.replace(item, options=item.targets[:1]) for item in items]
    _check(spec, present, items, missing, folder)
    files = {name: e for name, e in download.recorded(folder).items() if name.startswith(f"{spec.family}/")}
    named = "" if data_dir == SAMPLE and not family.needs_data(spec) else data_dir
    return Suite(spec, tuple(items), {"folder": named, "files": files} | ({"missing": missing} if missing else {}))


def _check(
    spec: Spec, present: Sequence[str], items: Sequence[Item], missing: Mapping[str, str], folder: pathlib.Path
) -> None:
    """Raises UserError for tasks without items, duplicate ids, empty or missing options, missing gold answers."""
    with_items = {item.task for item in items}
    if absent := [each for each in present if each not in with_items]:
        more = f" and {len(absent) - 3} more tasks" if len(absent) > 3 else ""
        raise UserError(
            f"suite {spec.name}: {folder} has no items of {', '.join(absent[:3])}{more}; allow them to be missing by "
            "name (ALLOW_MISSING), or select the others"
        )
    if not items:
        first = next(filter(None, missing.values()), "")
        raise UserError(f"suite {spec.name}: none of its tasks has data here" + (f"; {first}" if first else ""))
    seen: dict[tuple[str, str], str] = {}
    for item in items:
        if (item.task, item.id) in seen:
            both = f"{seen[item.task, item.id]}, {item.location}"
            raise UserError(f"suite {spec.name}: id '{item.id}' of {item.task} occurs twice ({both})")
        seen[item.task, item.id] = item.location
        if spec.scoring.startswith("rank") and len(item.options) < 2:
            raise UserError(f"suite {spec.name}: item '{item.id}' has no options to rank ({item.location})")
        if not all(option.strip() for option in item.options):
            raise UserError(f"suite {spec.name}: an option of item '{item.id}' is empty ({item.location})")
        if not item.targets:
            raise UserError(f"suite {spec.name}: item '{item.id}' has no gold answer ({item.location})")
