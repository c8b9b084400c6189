"""Tasks of lm-evaluation-harness (extra `lm-eval`) as suites: its prompts, filters and metrics on our decoding.

    lm_eval:gsm8k                    a task, group or tag of the installed package
    lm_eval:my_tasks/mine.yaml       your own task file, or a folder of them
    lm_eval:mmlu[mmlu_law,:20]       tasks of a group, 20 items each

Data are read from local files and the cache of the package `datasets`; nothing is downloaded. The first metric under
the first filter is the score; a group's score is the mean over its tasks. `flanx rescore` calls the task's filters and
metrics again, so it needs the task, too. Code that a task file names with `!function` is run, as in lm-eval.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import io
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flanx.errors import UserError, nearest
from flanx.evals import metrics
from flanx.evals.generations import Generation
from flanx.evals.spec import Family, Item, Spec

PREFIX = "lm_eval:"
SEED = 1234  # for exemplars, as in lm-eval's own programs
MAX_LENGTHS = (
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
)  # the first that exists is used
KNOWN = (*MAX_LENGTHS, "until", "do_sample", "temperature", "top_k", "top_p", "num_beams")
SCORINGS = {"generate_until": "generate", "multiple_choice": "rank"}


def parse(name: str) -> Spec | None:
    """The spec of "lm_eval:TASK". Raises UserError for an unknown task, missing data, or unsupported requests."""
    if not name.startswith(PREFIX):
        return None
    tasks = _load(name.removeprefix(PREFIX))
    specs = [_spec(name, tuple(tasks), task) for task in tasks.values()]
    if other := next((task for task, spec in zip(tasks, specs, strict=True) if spec != specs[0]), None):
        raise UserError(
            f"suite '{name}': its tasks decode in different ways ({other} is another); name them one by one"
        )
    return specs[0]


def _spec(name: str, names: tuple[str, ...], task: Any) -> Spec:
    """The spec of a task: how the model is queried."""
    kind, version = task.get_config("output_type"), f"lm_eval {importlib.metadata.version('lm_eval')}"
    if kind not in SCORINGS or getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
        raise UserError(
            f"suite '{name}': {task.task_name} is of the kind {kind}, or takes images or runs code: flanx scores "
            f"{' and '.join(SCORINGS)} here; `python -m flanx.lm_eval` also loglikelihood"
        )
    common = Spec(name, "lm_eval", version, "", names, drop="none", scoring=SCORINGS[kind], metric="lm_eval")
    if kind == "multiple_choice":
        return common
    asked = generation(task.get_config("generation_kwargs") or {})
    return dataclasses.replace(
        common,
        # our decoding treats a stop that begins with a letter as a label, which would match more than the exact text
        stop=tuple(text for text in asked.until if not text[:1].isalpha()),
        max_new=asked.longest,
        samples=task.get_config("repeats") or 1,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        beams=asked.beams,
    )


class Asked(NamedTuple):
    """What lm-eval's generation_kwargs ask for: stop texts, maximum tokens, and sampling."""

    until: tuple[str, ...]
    longest: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 0


def generation(kwargs: Mapping[str, Any], longest: int = 256) -> Asked:
    """generation_kwargs in our terms; `longest` is the default length. Raises UserError for what flanx lacks."""
    for name in kwargs:
        if name not in KNOWN:
            raise UserError(
                f"generation_kwargs: flanx has no '{name}'{nearest(name, KNOWN)}; it has {', '.join(KNOWN)}"
            )
    until = kwargs.get("until") or []
    stop = tuple(filter(None, [until] if isinstance(until, str) else until))
    longest = int(next((kwargs[name] for name in MAX_LENGTHS if kwargs.get(name) is not None), longest))
    temperature = float(kwargs.get("temperature") or 0.0)
    draws = kwargs.get("do_sample", temperature > 0)
    if (beams := int(kwargs.get("num_beams") or 1)) > 1:
        if draws:
            raise UserError("generation_kwargs: num_beams draws nothing: leave out do_sample or num_beams")
        return Asked(stop, longest, beams=beams)
    if not draws:
        return Asked(stop, longest)
    top_k, top_p = int(kwargs.get("top_k") or 0), float(kwargs.get("top_p") or 1.0)
    return Asked(stop, longest, temperature or 1.0, top_k, top_p)


@functools.lru_cache(maxsize=8)
def _load(name: str) -> dict[str, Any]:
    """lm-eval's tasks for a name, file or folder. Raises UserError if there are none or their data are missing."""
    try:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415  (the extra `lm-eval`)
    except ImportError as error:
        raise UserError(f"suite '{PREFIX}{name}': lm-eval is not installed: pip install 'flanx[lm-eval]'") from error
    path = pathlib.Path(name).expanduser()
    is_own = path.suffix in (".yaml", ".yml") or os.sep in name
    if is_own and not path.exists():
        raise UserError(f"suite '{PREFIX}{name}': no task file or folder '{path}'")
    folder = (path if path.is_dir() else path.parent) if is_own else None
    manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)
    wanted = [name]
    if is_own:
        index = {each: str(entry.yaml_path) for each, entry in manager.task_index.items()}
        wanted = [each for each in manager.all_subtasks if path.is_dir() or index[each] == str(path)]
        if not wanted:
            raise UserError(f"suite '{PREFIX}{name}': no task is defined in '{path}' (a key 'task' with its name)")
    elif not manager.match_tasks(wanted):
        here = f"; the folder of that name is '{PREFIX}./{name}'" if path.is_dir() else ""
        raise UserError(f"suite '{PREFIX}{name}': lm-eval has no such task{here or nearest(name, manager.all_tasks)}")
    try:
        with _offline():
            found = dict(manager.load(wanted)["tasks"])
    except Exception as error:  # anything that datasets, jinja and a task's own functions raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"suite '{PREFIX}{name}': its task or data cannot be read here ({type(error).__name__}: {line}); data come "
            "from local files or the cache of the package datasets: load them there once with a network"
        ) from error
    for task in found.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return found


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Restricts the package `datasets` to its cache and local files."""
    modules = [importlib.import_module(name) for name in ("datasets.config", "huggingface_hub.constants")]
    places = [(module, key) for module in modules for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")]
    kept = [(place, key, getattr(place, key)) for place, key in places if hasattr(place, key)]
    try:
        for place, key, _ in kept:
            setattr(place, key, True)
        yield
    finally:
        for place, key, value in kept:
            setattr(place, key, value)


def _requests(spec: Spec, task: str) -> dict[int, list[Any]]:
    """lm-eval's requests for each document of a task, at most `spec.limit` documents."""
    made = _load(_reference(spec))[task]
    with contextlib.redirect_stderr(io.StringIO()), _offline():  # its progress bar
        made.build_all_requests(limit=spec.limit or None, rank=0, world_size=1)
    found: dict[int, list[Any]] = {}
    for request in made.instances:
        found.setdefault(request.doc_id, []).append(request)
    return {number: sorted(each, key=lambda request: request.idx) for number, each in found.items()}


def _reference(spec: Spec) -> str:
    """TASK in the suite's name."""
    return spec.name.removeprefix(PREFIX).partition("[")[0].partition("+")[0]


def items(spec: Spec, folder: pathlib.Path, task: str) -> list[Item]:
    """The items of a task: requests to generate text, or questions with choices."""
    made, found = _load(_reference(spec))[task], []
    for number, requests in _requests(spec, task).items():
        context, said = requests[0].args[0], [request.args[1] for request in requests]
        options: tuple[str, ...] = ()
        target = made.doc_to_target(requests[0].doc)
        if spec.scoring == "rank":
            if any(request.args[0] != context for request in requests):
                raise UserError(
                    f"suite {spec.name}: the choices of {task} have different contexts; score it in lm-eval"
                )
            kept = context.rstrip()  # trailing spaces belong to the continuation, as in lm-eval
            options = tuple(context[len(kept) :] + text for text in said)
            context = kept
            right = target if isinstance(target, list) else [target]
            targets = [options[each] if isinstance(each, int) else str(each) for each in right]
        else:
            targets = [str(each) for each in (target if isinstance(target, list) else [target])]
        item = Item(
            task=task,
            id=f"{task}-{number}",
            query=context,
            targets=tuple(targets) or ("",),
            kind="lm_eval",
            options=options,
            location=f"lm-eval's {task}, document {number}",
        )
        found.append(item)
    return found


def compute(spec: Spec, task: str, rows: Sequence[Generation]) -> dict[str, Any]:
    """Applies the task's filters and metrics to its generations; returns the fields of its scores.json entry."""
    made, by_document = _load(_reference(spec))[task], {int(row.id.rpartition("-")[2]): row for row in rows}
    requests = {number: each for number, each in _requests(spec, task).items() if number in by_document}
    until = generation(made.get_config("generation_kwargs") or {}).until
    for number, each in requests.items():
        row = by_document[number]
        if spec.scoring == "rank":
            for request, score in zip(each, row.option_scores, strict=True):
                request.resps = [(-math.inf if score is None else score, False)]
        else:
            each[0].resps = [
                min((text.split(stop)[0] for stop in until), key=len, default=text) for text in row.outputs
            ]
    made._instances = [request for each in requests.values() for request in each]
    made.apply_filters()
    found: dict[str, list[Any]] = {}
    for name in made._instances[0].filtered_resps:
        for each in requests.values():
            values = made.process_results(each[0].doc, [request.filtered_resps[name] for request in each])
            for metric, value in values.items():
                found.setdefault(metric if name == "none" else f"{metric},{name}", []).append(value)
    aggregations, values = made.aggregation(), {}
    for key, each in found.items():
        aggregate = aggregations[key.partition(",")[0]]
        values[key] = float(aggregate(each)) * (100 if _are_shares(aggregate.__name__, each) else 1)
    lead = next(iter(values))
    shares = [float(x) for x in found[lead]] if aggregations[lead.partition(",")[0]].__name__ == "mean" else []
    low, high = metrics.interval({task: shares}) or (None, None) if shares and max(shares) <= 1 else (None, None)
    return {"metric": lead, "metrics": values, "score": values[lead], "low": low, "high": high}


def _are_shares(aggregation: str, values: Sequence[Any]) -> bool:
    """Whether a metric is an accuracy-like share: a mean of numbers from 0 to 1, or of lists of booleans."""
    if aggregation == "mean":
        return all(isinstance(x, int | float) and 0 <= x <= 1 for x in values)
    return all(isinstance(each, list) and all(isinstance(x, bool) for x in each) for each in values)


FAMILY = Family(
    "lm_eval", lambda spec: spec.tasks, lambda folder, task, spec: True, items, parse=parse,
    location=lambda spec: f"lm-eval's {_reference(spec)}", needs_data=lambda spec: False,
)  # fmt: skip
