"""Scores from raw generations: every number in scores.json is a function of the generations alone.

<out>/scores.json    {"suites": {name: {"score", "low", "high", ..., "tasks"}}, "run", "step", "normalized_average"}
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flanx import files
from flanx.errors import UserError
from flanx.evals import answers, auc, benchmark_metric, marking, metrics, task_metrics, toxicity
from flanx.evals.families import lm_eval, user_task
from flanx.evals.generations import VERSIONS, Generation, is_same_run
from flanx.evals.marking import Grade
from flanx.evals.spec import MAX_FAILED, Spec

SAMPLE = "sample"  # the DATA_DIR that stands for our own small samples
_UNKNOWN = {"unknown": "prompt tokens", "unknown_targets": "gold tokens"}
_FLAGS = {
    "extraction_failed": "without an answer",
    "unfinished": "never ended",
    "looping": "end in a repetition",
}  # shares that flag a score above MAX_FAILED
FLAGGED = (
    f"!: more than {100 * MAX_FAILED:.0f}% of the outputs give no answer, never end, or end in a repetition, or logits "
    "were not finite; do not quote such a score."
)
MAX_UNKNOWN = 0.05  # above this share of unknown tokens in prompts or gold answers, a score means nothing
NO_VOCABULARY = "n/a (vocabulary)"
NOT_SCORED = "n/a (toxicity not scored)"
_NAMED = 3  # the most scores named for each version
PASSAGE_METRICS = ("f1", "unicode_exact", "unicode_f1")  # besides exact match: F1, and both in a fairer form


_RECORD = {"suites": dict[str, dict[str, Any]], "run": dict[str, Any], "run.versions": dict[str, str]}
_NUMBERS = ("score", "n", "extraction_failed", "flagged", "low", "high")  # every entry has them
_ENTRY = {
    **dict.fromkeys(("score", "extraction_failed", "truncated", "shots_dropped", "unfinished", "looping"), float),
    **dict.fromkeys(("unknown", "unknown_targets", "empty", "unscorable", *PASSAGE_METRICS), float),
    **dict.fromkeys(("low", "high"), float | None),
    **dict.fromkeys(("n", "broken", "unscored"), int),
    **dict.fromkeys(("flagged", "vocabulary_forced"), bool),
    **dict.fromkeys(("metric", "spec", "misfit", "scorer"), str),
    **dict.fromkeys(("versions", "data"), dict[str, Any]),
    "tasks": dict[str, dict[str, Any]],
    "percentiles": list[float],
    "bins": list[dict[str, Any]],
    **dict.fromkeys(("groups", "metrics"), dict[str, float]),
    "group_intervals": dict[str, dict[str, float | None]],
    "slices": dict[str, dict[str, dict[str, Any]]],
    "missing": list[str],
}
ADDED = ("group_intervals",)  # suite keys that older files lack, without any effect on their scores


def read_scores(path: pathlib.Path) -> dict[str, Any]:
    """A scores.json; {} if there is none. Raises UserError if it is damaged or a value has the wrong type."""
    found = files.check_types(path, files.read_json(path), _RECORD)
    if path.exists() and "suites" not in found:
        raise UserError(f"{path} is damaged: it has no 'suites'; `flanx rescore` makes it again")
    for suite, entry in found.get("suites", {}).items():
        files.check_types(path, entry, _ENTRY)
        for name, each in entry.get("tasks", {}).items():
            files.check_types(path, each, _ENTRY)
            if "score" not in each:
                raise UserError(f"{path} is damaged: task '{name}' has no score; `flanx rescore` makes it again")
        absent = [key for key in _NUMBERS if key not in entry]
        if absent or (entry["low"] is None) != (entry["high"] is None):
            what = (absent or ["whole interval"])[0]
            raise UserError(f"{path} is damaged: '{suite}' has no {what}; `flanx rescore` makes it again")
    return found


def interval_text(entry: Mapping[str, Any], join: str) -> str:
    """The interval of a suite or task, or why there is none."""
    if entry.get("unscored"):
        return "no interval"
    if entry["low"] is None and any(
        each["n"] < metrics.LEAST_ITEMS for each in (entry.get("tasks") or {"": entry}).values()
    ):
        return f"no interval: under {metrics.LEAST_ITEMS} items a task"
    if entry["low"] is None:
        is_area = entry["metric"] == metrics.AUC
        return f"no interval: {'one class has few items' if is_area else entry['metric'] + ' is no mean over items'}"
    return f"{entry['low']:.1f}{join}{entry['high']:.1f}"


def partial(entry: Mapping[str, Any]) -> list[str]:
    """What a suite's score omits from the benchmark or its prompts, in a few words each; [] if nothing."""
    cut, dropped = entry.get("truncated", 0), entry.get("shots_dropped", 0)
    unwritable = [name for name, task in entry.get("tasks", {}).items() if not_available(task) == NO_VOCABULARY]
    return [
        *incomplete(entry),
        *([f"{len(unwritable)} of {len(entry['tasks'])} tasks not in the vocabulary"] if unwritable else []),
        *(f"{100 * entry[k]:.1f}% of {name} unknown" for k, name in _UNKNOWN.items() if entry.get(k, 0) >= 0.001),
        *([f"{100 * cut:.0f}% of prompts truncated"] if cut else []),
        *([f"{100 * dropped:.0f}% of prompts without all exemplars"] if dropped else []),
        *(f"{100 * entry[k]:.1f}% of continuations {k}" for k in ("empty", "unscorable") if entry.get(k)),
        *([f"{entry['unscored']} of {entry['n']} prompts without scores"] if entry.get("unscored") else []),
    ]


def not_available(entry: Mapping[str, Any]) -> str:
    """NO_VOCABULARY if more than MAX_UNKNOWN of the tokens are unknown and the score is not forced; NOT_SCORED if a
    toxicity suite has continuations that no scorer has read; else ""."""
    if entry.get("unscored"):
        return NOT_SCORED
    unknown = max(entry.get(key, 0) for key in _UNKNOWN)
    return NO_VOCABULARY if unknown > MAX_UNKNOWN and not entry.get("vocabulary_forced") else ""


def incomplete(entry: Mapping[str, Any]) -> list[str]:
    """Why a suite's score does not cover the whole benchmark; [] if it does."""
    missing = entry.get("missing", [])
    is_sample = entry.get("data", {}).get("folder") == SAMPLE
    return ["sample data"] * is_sample + [f"{len(missing)} tasks left out"] * bool(missing)


def remarks(entry: Mapping[str, Any]) -> list[str]:
    """What to print about a suite before its score: why tasks are left out, and metrics that do not fit."""
    reasons: dict[str, list[str]] = {}
    for task, reason in entry.get("data", {}).get("missing", {}).items():
        reasons.setdefault(
            reason.removeprefix(f"task {task}: ").removeprefix(f"task {task} ").replace(task, "NAME"), []
        ).append(task)
    lines = [
        f"left out, as {reason or 'no data is here'}: {', '.join(tasks[:_NAMED])}"
        + (f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else "")
        for reason, tasks in reasons.items()
    ]
    if entry.get("unscored"):
        lines.append(
            f"no scorer has read the continuations of {entry['unscored']} of {entry['n']} prompts; they are kept, and "
            "`flanx rescore RUN --scorer ...` reads them"
        )
    return lines + [text for text in [entry.get("misfit")] if text]


def flags(entry: Mapping[str, Any]) -> list[str]:
    """Why a score should not be quoted, in a few words each; [] if it may be."""
    # a continuation of a prompt need not end or say anything new
    asked = [*_FLAGS][: 1 if entry.get("metric") in metrics.TOXICITY else None]
    shares = [f"{100 * entry[key]:.0f}% {_FLAGS[key]}" for key in asked if entry.get(key, 0) > MAX_FAILED]
    shares += [f"{entry.get('broken')} items with logits that are not finite"] * bool(entry.get("broken"))
    return shares + [text for text in [entry.get("misfit")] if text]


def forced(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A scores.json entry whose score is shown although the vocabulary cannot represent its texts."""
    return {**entry, "vocabulary_forced": True}


def score_text(entry: Mapping[str, Any]) -> str:
    """A suite's score in percent, or why it has none."""
    return not_available(entry) or f"{entry['score']:.1f}"


def version_note(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence that lists scores by extractor and scorer version; [] if all share one version."""
    found: dict[str, list[str]] = {}
    for name, entry in entries.items():
        made = ", ".join(f"{what} {number}" for what, number in entry.get("versions", {}).items())
        found.setdefault(made or "versions not recorded", []).append(name)
    if len(found) < 2:
        return []
    parts = [
        f"{made}: {', '.join(names[:_NAMED])}" + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for made, names in sorted(found.items())
    ]
    return [f"Not comparable, made by different versions (`flanx rescore` makes them one): {'; '.join(parts)}."]


def summarize(spec: Spec, hash_: str, rows: Sequence[Generation]) -> dict[str, Any]:
    """The scores.json entry of one suite, from its generations in any order. Scores in percent; shares from 0 to 1."""
    graded: dict[str, list[tuple[Generation, Grade]]] = {}
    for row in rows:
        graded.setdefault(row.task, []).append((row, marking.grade(spec, row)))
    graded = dict(sorted(graded.items()))
    # Exact match leads everywhere (TyDiQA too: paper.md section 3); F1 is reported in addition.
    exact = {task: [grade.exact for _, grade in pairs] for task, pairs in graded.items()}
    by_task = spec.metric in (*_OF_ALL, "lm_eval") or (spec.metric in ("task", "seqio") and spec.scoring == "generate")
    tasks = {
        task: _entry(spec, 100 * metrics.mean(exact[task]), metrics.interval({task: exact[task]}), pairs)
        | (_task_metrics(spec, pairs) if by_task else _free_text(spec, pairs))
        for task, pairs in graded.items()
    }
    pooled = metrics.pooled(exact, spec.average)
    of_tasks = [entry["score"] for entry in tasks.values()] if pooled is exact else [100 * metrics.mean(pooled[""])]
    score = metrics.average(of_tasks, spec.average)
    every = [pair for pairs in graded.values() for pair in pairs]
    result = _entry(spec, score, metrics.interval(pooled, spec.average), every) | {
        "spec": hash_,
        "scoring": spec.scoring,
        "samples": spec.samples,
        "versions": dict(VERSIONS),
        "tasks": tasks,
    }
    if spec.metric == "f1":
        for name in PASSAGE_METRICS:
            result[name] = metrics.mean(entry[name] for entry in tasks.values())
    if by_task:
        result |= _over_tasks(tasks)
    if spec.metric in metrics.TOXICITY:
        of_all = toxicity.compute(spec, rows)
        result |= {key: of_all[key] for key in ("percentiles", "empty", "unscorable", "unscored") if key in of_all}
        if spec.metric == "any_toxic" and not of_all["unscored"]:
            result["bins"] = toxicity.bins(rows)
    result |= _misfits(tasks)
    if groups := {name: members for name, members in spec.groups if set(members) <= set(tasks)}:
        result["groups"] = {
            name: metrics.average((tasks[task]["score"] for task in members), spec.average)
            for name, members in groups.items()
        }
        result["group_intervals"] = {
            name: _group_interval(spec, {task: tasks[task] for task in members}, exact, by_task)
            for name, members in groups.items()
        }
    if slices := _slices(spec, every):
        result["slices"] = slices
    if spec.allow_missing:
        result["missing"] = [task for task in spec.allow_missing if task not in tasks]
    return result


def _group_interval(
    spec: Spec, tasks: Mapping[str, Mapping[str, Any]], exact: Mapping[str, Sequence[float]], by_task: bool
) -> dict[str, float | None]:
    """The interval of the average over a group's tasks, computed like the suite's own over all tasks."""
    low, high = metrics.interval({task: exact[task] for task in tasks}, spec.average) or (None, None)
    own = _over_tasks(tasks) if by_task else {}
    return {"low": own.get("low", low), "high": own.get("high", high)}


def _slices(spec: Spec, pairs: Sequence[tuple[Generation, Grade]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{label: {value: the score of the items with it}}, see `spec.Item.labels`."""
    found: dict[str, dict[str, list[tuple[Generation, Grade]]]] = {}
    for row, grade in pairs:
        for name, value in row.labels.items():
            if not name.startswith("_"):
                found.setdefault(name, {}).setdefault(value, []).append((row, grade))
    return {name: {value: _slice(spec, found[name][value]) for value in sorted(found[name])} for name in sorted(found)}


def _slice(spec: Spec, pairs: Sequence[tuple[Generation, Grade]]) -> dict[str, Any]:
    """The score of some items, regardless of task."""
    exact = [grade.exact for _, grade in pairs]
    entry = _entry(spec, 100 * metrics.mean(exact), metrics.interval({"": exact}), pairs)
    if spec.metric in _OF_ALL:
        entry |= _OF_ALL[spec.metric](spec, [row for row, _ in pairs])
    return {key: entry[key] for key in _SLICE if key in entry}


_SLICE = ("score", "low", "high", "n", "extraction_failed", "metrics", "positives", "unscored", "misfit")


def _task_metrics(spec: Spec, pairs: Sequence[tuple[Generation, Grade]]) -> dict[str, Any]:
    """The values of a task row's metrics, or of a SeqIO task's functions, on its items; the first is the score."""
    if spec.metric in _OF_ALL:
        return _OF_ALL[spec.metric](spec, [row for row, _ in pairs])
    if spec.metric == "lm_eval":
        return lm_eval.compute(spec, pairs[0][0].task, [row for row, _ in pairs])
    if spec.metric == "seqio":
        rows = [row for row, _ in pairs]
        values = user_task.compute(spec, rows[0].task, rows, [grade.answer or "" for _, grade in pairs])
        lead = next(iter(values))
        return {"metric": lead, "metrics": values, "score": values[lead], "low": None, "high": None}
    names = pairs[0][0].kind.split("+")
    targets = [row.targets[0] for row, _ in pairs]
    lead = task_metrics.LEAD.get(names[0], names[0])
    values = task_metrics.compute(names, targets, [grade.answer or "" for _, grade in pairs])
    found: dict[str, Any] = {"metric": lead, "metrics": values, "score": values[lead]}
    if names[0] in task_metrics.CORPUS:
        found |= {"low": None, "high": None}
    if wrong := next(filter(None, (task_metrics.misfit(name, targets) for name in names)), ""):
        found |= {"misfit": wrong, "flagged": True}
    return found


_OF_ALL = {metrics.AUC: auc.compute, **dict.fromkeys(metrics.TOXICITY, toxicity.compute)}  # (spec, rows) -> entry


def _over_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over tasks of the metrics that every task has."""
    shared = set.intersection(*({*entry["metrics"]} for entry in tasks.values()))
    leads = dict.fromkeys(entry["metric"] for entry in tasks.values())
    found: dict[str, Any] = {
        "metric": " and ".join(leads),
        "metrics": {name: metrics.mean(each["metrics"][name] for each in tasks.values()) for name in sorted(shared)},
    }
    if any(entry["low"] is None for entry in tasks.values()):
        found |= {"low": None, "high": None}
    elif len(tasks) == 1:
        found |= {key: next(iter(tasks.values()))[key] for key in ("low", "high")}
    return found


def _free_text(spec: Spec, pairs: Sequence[tuple[Generation, Grade]]) -> dict[str, Any]:
    """The warning for free text that exact match compares only as a whole; {} if it fits."""
    is_text = spec.metric == "exact_match" and spec.scoring == "generate" and pairs[0][0].kind == "text"
    wrong = is_text and task_metrics.misfit("exact_match", [row.targets[0] for row, _ in pairs])
    return {"misfit": wrong, "flagged": True} if wrong else {}


def _misfits(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The warning that names the first task whose metric does not fit, and how many more there are."""
    wrong = [f"{task}: {entry['misfit']}" for task, entry in tasks.items() if "misfit" in entry]
    more = f" and {len(wrong) - 1} more tasks" if len(wrong) > 1 else ""
    return {"misfit": wrong[0] + more, "flagged": True} if wrong else {}


def _entry(
    spec: Spec, score: float, interval: tuple[float, float] | None, pairs: Sequence[tuple[Generation, Grade]]
) -> dict[str, Any]:
    """Score and warnings for some items."""
    rows = [row for row, _ in pairs]
    named = spec.metric if spec.metric in _OF_ALL else "exact_match"
    failed = metrics.mean(grade.failed for _, grade in pairs)
    non_finite = sum(grade.non_finite for _, grade in pairs)
    prompt_tokens, target_tokens = sum(r.prompt_tokens for r in rows), sum(r.target_tokens for r in rows)
    entry: dict[str, Any] = {
        "score": score,
        "low": interval and interval[0],
        "high": interval and interval[1],
        "metric": spec.scoring if spec.scoring == "likelihood" else named,
        "n": len(rows),
        "extraction_failed": failed,
        "read_by_fallback": metrics.mean(grade.fallback for _, grade in pairs),
        "broken": non_finite,
        "truncated": metrics.mean(r.cut for r in rows),
        "shots_dropped": metrics.mean(
            r.shots < (spec.shots if r.shots_available is None else r.shots_available) for r in rows
        ),
        "unfinished": metrics.mean(not end for r in rows for end in marking.ends(spec, r)),
        "looping": metrics.mean(answers.loops(text) for r in rows for text in marking.texts(spec, r)),
        "unknown": sum(r.prompt_unknown for r in rows) / max(prompt_tokens, 1),
        "unknown_targets": sum(r.target_unknown for r in rows) / max(target_tokens, 1),
    }
    entry["flagged"] = bool(flags(entry))
    if of_benchmark := benchmark_metric.METRICS.get(spec.metric):
        entry |= {"metric": of_benchmark.lead, "metrics": of_benchmark.values(pairs)}
    if spec.metric == "f1":
        for name in PASSAGE_METRICS:
            entry[name] = 100 * metrics.mean(getattr(grade, name) for _, grade in pairs)
    return entry


def write_scores(folder: pathlib.Path, suites: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Writes scores.json and returns it, keeping suites that an earlier evaluation of the same run wrote."""
    path = folder / "scores.json"
    kept: dict[str, Any] = {}
    if path.exists():
        earlier = files.read_json(path)
        kept = earlier.get("suites", {}) if is_same_run(earlier.get("run"), json.loads(json.dumps(dict(run)))) else {}
    scores: dict[str, Any] = {"step": run.get("step"), "suites": kept | dict(suites), "run": dict(run)}
    average = headline(scores["suites"])
    if average is not None:
        scores["normalized_average"] = average
    files.write_atomic(path, json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
    return scores


def headline(suites: Mapping[str, Any]) -> float | None:
    """The normalized average if all six suites are whole, in the vocabulary and of one version, else None."""
    if any(incomplete(suites[name]) or not_available(suites[name]) for name in metrics.HEADLINE if name in suites):
        return None
    versions = [suites[name].get("versions") for name in metrics.HEADLINE if name in suites]
    if any(each != versions[0] for each in versions):
        return None
    try:
        return metrics.normalized_average(
            {name: entry["score"] for name, entry in suites.items()},
            {name: {task: e["score"] for task, e in entry["tasks"].items()} for name, entry in suites.items()},
        )
    except UserError:
        return None
