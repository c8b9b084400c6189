"""What an evaluation suite is: items, an immutable spec, a hash over both, and what a family of suites provides."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

AVERAGES = ("mean", "harmonic", "items")  # over task scores; "items": over all items, regardless of task
MAX_FAILED = 0.05  # a larger share of extraction failures flags a score in every table

Groups = tuple[tuple[str, tuple[str, ...]], ...]  # (name, tasks) of each group


ADDED = {"added": True}  # metadata of fields added later: at its default, such a field is left out of the hash


def hashed(record: Any) -> dict[str, Any]:
    """The fields of a spec or item that its hash covers."""
    values = dataclasses.asdict(record)
    for field in dataclasses.fields(record):
        if field.metadata.get("added") and getattr(record, field.name) == field.default:
            del values[field.name]
    return values


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a task.

    Attributes:
      head, shots, query: the prompt is head + shots[:k] + query; each carries its own separators.
      targets: gold answers; matching any of them counts.
      kind: how answers are extracted, see `answers`; if the suite's metric is "task", the metrics of the item's task
        joined by "+", see `task_metrics`.
      options: for specs that rank, the continuations to rank, of which `targets` are the right ones; for specs that
        generate, the answers that a metric compares an output with (`benchmark_metric`).
      labels: (name, value) pairs that describe the item, such as ("pronoun", "she"): scores are also given for each
        value of a name (`slices` in scores.json), except for names that begin with "_", which metrics read.
      location: file and line, for messages.
    """

    task: str
    id: str
    query: str
    targets: tuple[str, ...]
    kind: str
    head: str = ""
    shots: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    language: str = "en"
    location: str = ""
    labels: tuple[tuple[str, str], ...] = dataclasses.field(default=(), metadata=ADDED)

    def prompt(self, shots: int | None = None, drop: str = "last") -> str:
        """The prompt with `shots` exemplars; `drop` says whether the last or the first ones are dropped."""
        count = len(self.shots) if shots is None else shots
        kept = self.shots[len(self.shots) - count :] if drop == "first" else self.shots[:count]
        return self.head + "".join(kept) + self.query


@dataclasses.dataclass(frozen=True)
class Spec:
    """A suite's definition. Changing any value gives a different spec with a different hash.

    Attributes:
      family, variant: the module that makes the prompts, and the prompt format.
      split: which split is scored; the family decides where exemplars come from.
      tasks: the tasks scored, () for all tasks of the family; a missing one is an error unless in `allow_missing`.
      shots: number of exemplars; if the prompt is too long, `drop` says which to drop ("last", "first"; "none": the
        prompt is truncated from its beginning instead, as is one that is too long even without exemplars).
      cot: the output contains a rationale; its last announced answer counts.
      scoring: "generate", or "rank" (log-probability of each option), "rank_normalized" (per byte of its text), or
        "likelihood" (of the first gold answer: the geometric mean of its tokens' probabilities).
      stop: an output ends before the first of these texts, see `stops`; MGSM adds the labels in its exemplars.
      max_new: maximum number of new tokens (a model with shorter targets has its own limit).
      samples, temperature, top_k, top_p: sampling; with more than one sample the majority answer counts.
      beams, length_penalty: beam search, of which the best output counts; 0 beams: none.
      metric: "exact_match"; "f1": F1 in addition; "task": the metrics of each item's task; "seqio", "lm_eval": the
        functions of a user's SeqIO task or of a task of lm-evaluation-harness; one of `benchmark_metric.METRICS`;
        "any_toxic", "share_toxic": for continuations that a toxicity scorer reads, see `toxicity`; "auc": see `auc`.
      limit: only the first items of each task; 0 for all.
      groups: named means over some of the tasks, in addition to the mean over all.
      fallback: how an output of a `cot` suite that announces no answer is read: "conclusion", by its closing sentence
        if that is nothing but an answer, or "none"; see `answers`.
      max_inputs: maximum number of prompt tokens; 0 for as many as the model's lengths allow.
      average: over task scores: "mean" or "harmonic" (`metrics.average`); "items": the mean over all items.
      line_break: the vocabulary's mark that preserves line breaks in prompts (`flanx.data.vocabulary`), or "".
      harmful: its texts may offend: generations are kept in a separate folder, and shown only on request.
      scored: what part of a continuation is scored for toxicity: "whole", or "first_sentence", the first complete one.
      version: bumped when the code that makes prompts or extracts answers changes a result.
    """

    name: str
    family: str
    variant: str = ""
    split: str = "test"
    tasks: tuple[str, ...] = ()
    allow_missing: tuple[str, ...] = ()
    shots: int = 0
    drop: str = "last"
    cot: bool = False
    scoring: str = "generate"
    stop: tuple[str, ...] = ()
    max_new: int = 32
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 0
    length_penalty: float = 1.0
    metric: str = "exact_match"
    limit: int = 0
    groups: Groups = ()
    version: int = 1
    fallback: str = dataclasses.field(default="conclusion", metadata=ADDED)
    max_inputs: int = dataclasses.field(default=0, metadata=ADDED)
    average: str = dataclasses.field(default="mean", metadata=ADDED)
    line_break: str = dataclasses.field(default="", metadata=ADDED)
    harmful: bool = dataclasses.field(default=False, metadata=ADDED)
    scored: str = dataclasses.field(default="whole", metadata=ADDED)


@dataclasses.dataclass(frozen=True)
class Suite:
    """A spec and its items; `data`: where they were read from, with the origin and hash of every downloaded file."""

    spec: Spec
    items: tuple[Item, ...]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def with_line_breaks(self, mark: str) -> "Suite":
        """The suite for a vocabulary that keeps line breaks as `mark`: what the model reads is part of the hash."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, line_break=mark))

    @property
    def hash(self) -> str:
        """A hash of the spec and all prompt bytes, as 16 hex digits."""
        digest = hashlib.sha256(json.dumps(hashed(self.spec), sort_keys=True).encode())
        for item in self.items:
            record = hashed(item) | {"place": ""}  # a field of the first version, always hashed as empty
            del record["location"]
            digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of suite: how a name becomes a spec, and a spec becomes items.

    To add one, write a module in `flanx/evals/families` with these functions and `FAMILY = Family(...)`, and add its
    line to `FAMILIES` in `flanx/evals/registry.py`. Imports needed only to make items belong in the functions.

    Attributes:
      name: the family's name; it is the `Spec.family` of the specs that it names.
      tasks: (spec) -> all tasks that the spec's variant has.
      has: (folder, task, spec) -> whether the task's data are in the folder or can be fetched into it.
      items: (spec, folder, task) -> the items of one task. Raises UserError with file and line.
      specs: () -> {name: spec} of the named suites.
      parse: (name) -> the spec for any other name, without brackets or suffix, or None if the name does not have this
        family's form. Raises UserError for a name of its form that matches nothing.
      groups: (spec) -> named means over some of the tasks.
      stops: (spec, folder, tasks present) -> the stop texts, including those from the data.
      location: (spec) -> where the suite is defined, for messages.
      needs_data: (spec) -> whether its items are read from DATA_DIR.
      why: (folder, task, spec) -> why a task that may be missing is missing; "" if there is nothing to say.
    """

    name: str
    tasks: Callable[[Spec], tuple[str, ...]]
    has: Callable[[pathlib.Path, str, Spec], bool]
    items: Callable[[Spec, pathlib.Path, str], list[Item]]
    specs: Callable[[], Mapping[str, Spec]] = dict
    parse: Callable[[str], Spec | None] = lambda name: None
    groups: Callable[[Spec], Groups] = lambda spec: ()
    stops: Callable[[Spec, pathlib.Path, Sequence[str]], tuple[str, ...]] = lambda spec, folder, present: spec.stop
    location: Callable[[Spec], str] = lambda spec: f"flanx/evals/families ({spec.family})"
    needs_data: Callable[[Spec], bool] = lambda spec: True
    why: Callable[[pathlib.Path, str, Spec], str] = lambda folder, task, spec: ""
