"""What an evaluation suite is: items, an immutable spec, the hash over both, and what a family of suites provides."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

AVERAGES = ("mean", "harmonic", "items")  # of the scores of tasks; "items": of all items, whatever their task
MAX_FAILED = 0.05  # a larger share of extraction failures flags a score in every table

Groups = tuple[tuple[str, tuple[str, ...]], ...]  # (name, tasks) of each group


ADDED = {"added": True}  # metadata of a field added later: at its default it is not part of the hash


def hashed(record: Any) -> dict[str, Any]:
    """The fields of a spec or an item that its hash covers."""
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
      targets: gold answers; any of them counts.
      kind: how answers are extracted, see `answers`; where the suite's metric is "task", the metrics of the item's task
        with "+" between them, see `task_metrics`.
      options: continuations to rank, for specs that rank, and `targets` the right ones among them; for specs that
        generate, the answers that a metric compares an output with (`benchmark_metric`).
      labels: (name, value) of what the item is about, as ("pronoun", "she"): the score is also given for each value of
        a name (`slices` of scores.json), but for names that begin with "_", which a metric reads.
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
        """The prompt with `shots` exemplars; `drop` says whether the last or the first ones are left out."""
        count = len(self.shots) if shots is None else shots
        kept = self.shots[len(self.shots) - count :] if drop == "first" else self.shots[:count]
        return self.head + "".join(kept) + self.query


@dataclasses.dataclass(frozen=True)
class Spec:
    """A suite's definition. Changing any value makes another spec with another hash.

    Attributes:
      family, variant: the module that makes the prompts, and the form of the prompt.
      split: which split is scored; exemplars come from where the family says.
      tasks: the tasks scored, () for all that the family has; a missing one is an error unless in `allow_missing`.
      shots: exemplars; where the prompt is too long, `drop` says which are left out ("last", "first"; "none": the
        prompt is truncated instead, from its beginning, as one is that is too long even without exemplars).
      cot: the output holds a rationale; its last announced answer counts.
      scoring: "generate", or "rank" (log-probability of each option), "rank_normalized" (per byte of its text), or
        "likelihood" (of the first gold answer: the geometric mean of its tokens' probabilities).
      stop: an output ends before the first of these texts, see `stops`; MGSM adds the labels of its exemplars.
      max_new: new tokens at most (a model with shorter targets has its own limit).
      samples, temperature, top_k, top_p: with more than one sample the majority answer counts.
      beams, length_penalty: the best output of a beam search; 0 beams: none.
      metric: "exact_match", or "f1" in addition to it; "task": those of each item's task; "seqio", "lm_eval": the
        functions of a user's SeqIO task, or of one of lm-evaluation-harness; or one of `benchmark_metric.METRICS`;
        "any_toxic", "share_toxic": of continuations that a toxicity scorer reads, see `toxicity`; "auc": see `auc`.
      limit: only the first items of each task; 0 for all.
      groups: named means over some of the tasks, in addition to the mean over all.
      fallback: how an output of a `cot` suite that announces no answer is read: "conclusion", by its closing sentence
        where that is nothing but an answer, or "none"; see `answers`.
      max_inputs: tokens of a prompt at most, 0 for as many as the model's lengths allow.
      average: of the tasks' scores: "mean", or "harmonic" (`metrics.average`); "items": the mean over all items.
      line_break: the mark that keeps line breaks of prompts, from the vocabulary (`flanx.data.vocabulary`), or "".
      harmful: its texts may offend: generations are kept in a folder of their own, and shown only where that is asked.
      scored: what of a continuation is read for toxicity: "whole", or "first_sentence", up to its first complete one.
      version: raised when the code that makes prompts or extracts answers changes a result.
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
    """A spec and its items; `data`: where they were read, with the origin and hash of every downloaded file."""

    spec: Spec
    items: tuple[Item, ...]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def with_line_breaks(self, mark: str) -> "Suite":
        """The suite for a vocabulary that keeps line breaks by `mark`: what the model reads is part of the hash."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, line_break=mark))

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over the spec and all prompt bytes."""
        digest = hashlib.sha256(json.dumps(hashed(self.spec), sort_keys=True).encode())
        for item in self.items:
            record = hashed(item) | {"place": ""}  # a field of the first version, always hashed empty
            del record["location"]
            digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of suites: how a name becomes a spec of it, and a spec its items.

    To add one: a module in `flanx/evals/families` with these functions and `FAMILY = Family(...)`, and its line in
    `FAMILIES` of `flanx/evals/registry.py`. What is asked for only while items are made is imported there.

    Attributes:
      name: of the family; for those whose specs it names, their `Spec.family`.
      tasks: (spec) -> all tasks that the spec's variant has.
      has: (folder, task, spec) -> whether the task's data are in the folder or can be fetched there.
      items: (spec, folder, task) -> the items of one task. Raises UserError with file and line.
      specs: () -> {name: spec} of the suites that have a name.
      parse: (name) -> the spec of any other name, without brackets and suffix, or None where the name is not of this
        family's form. Raises UserError for one of its form that names nothing.
      groups: (spec) -> named means over some of the tasks.
      stops: (spec, folder, tasks present) -> the stop texts, those of the data included.
      location: (spec) -> where the suite is defined, as a message says it.
      needs_data: (spec) -> whether its items are read from DATA_DIR.
      why: (folder, task, spec) -> why a task that may be missing is; "" where there is nothing to say.
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
