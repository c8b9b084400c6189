"""What an evaluation leaves behind: raw generations in JSONL, and the scores made from them.

    <out>/generations/<suite>__<task>.jsonl    first line: {"spec", "hash", "items", "run", "data"}; then an item a line
    <out>/scores.json                          {"suites": {...}, "run": {...}, "normalized_average": ...}

A file is added to as items finish, so a killed evaluation goes on where it was; a half-written last line is dropped.
"""

import dataclasses
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flanx import jsonl
from flanx.errors import UserError, nearest
from flanx.evals import metrics
from flanx.evals.spec import MAX_FAILED, Spec, Suite


@dataclasses.dataclass
class Row:
    """One evaluated item.

    Attributes:
      outputs: the texts of its samples, as the model wrote them; ended: whether each reached its end of sequence.
      option_scores: log-probabilities of its options, for specs that rank; None stands for a number that is not finite.
      shots: exemplars that fitted; cut: whether tokens of the prompt had to go.
      prompt_tokens, prompt_unknown, target_tokens, target_unknown: counts, for the share of unknown tokens.
    """

    id: str
    task: str
    prompt: str
    targets: list[str]
    kind: str
    language: str
    shots: int
    cut: bool
    prompt_tokens: int
    prompt_unknown: int
    target_tokens: int
    target_unknown: int
    broken: bool = False
    outputs: list[str] = dataclasses.field(default_factory=list)
    ended: list[bool] = dataclasses.field(default_factory=list)
    options: list[str] = dataclasses.field(default_factory=list)
    option_scores: list[float | None] = dataclasses.field(default_factory=list)


_FIELDS = {field.name for field in dataclasses.fields(Row)}


def generation_path(folder: pathlib.Path, suite: str, task: str) -> pathlib.Path:
    """Where the generations of one task lie; characters that file systems dislike become dashes."""
    clean = "".join(c if c.isalnum() or c in "_-." else "-" for c in suite)
    return folder / "generations" / f"{clean}__{task}.jsonl"


class Writer:
    """Adds rows to the generation files of a suite; knows which items are done."""

    def __init__(self, folder: pathlib.Path, suite: Suite, run: Mapping[str, Any]) -> None:
        counts = dict(sorted(Counter(item.task for item in suite.items).items()))
        self.header = {"spec": dataclasses.asdict(suite.spec), "hash": suite.hash, "items": counts, "run": dict(run)}
        self.header["data"] = dict(suite.data)
        self.paths = {task: generation_path(folder, suite.spec.name, task) for task in {i.task for i in suite.items}}
        (folder / "generations").mkdir(parents=True, exist_ok=True)
        self.done: set[tuple[str, str]] = set()
        self._files: dict[str, Any] = {}
        replaced = sum([self._resume(task, path) for task, path in self.paths.items()])
        if replaced:
            print(f"{suite.spec.name}: {replaced} files of another checkpoint, seed or version are begun anew")

    def _resume(self, task: str, path: pathlib.Path) -> bool:
        """Takes over what an earlier run of the same spec, model and seed left; True where it was another's."""
        header, *rows = jsonl.records(path) or [None]
        if header is not None and header.get("hash") != self.header["hash"]:
            raise UserError(
                f"{path} holds predictions of another spec ({header.get('hash')}, now {self.header['hash']}); "
                "give another folder, or delete it"
            )
        if header is None or header.get("run") != json.loads(json.dumps(self.header["run"])):
            path.unlink(missing_ok=True)
            return header is not None
        jsonl.mend(path)
        self.done |= {(task, row.get("id")) for row in rows}
        return False

    def add(self, row: Row) -> None:
        """Writes one item."""
        if row.task not in self._files:
            path = self.paths[row.task]
            fresh = not path.exists()
            self._files[row.task] = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in `close`
            if fresh:
                self._line(row.task, self.header)
        self._line(row.task, dataclasses.asdict(row))

    def _line(self, task: str, record: Mapping[str, Any]) -> None:
        self._files[task].write(jsonl.line(record))
        self._files[task].flush()

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def read(path: pathlib.Path) -> tuple[dict[str, Any], list[Row]]:
    """The header and rows of a generation file. Raises UserError with the line of whatever is wrong."""
    rows: list[Row] = []
    header: dict[str, Any] = {}
    seen: set[str] = set()
    for number, line in enumerate(jsonl.lines(path), 1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON ({error.msg}); was the run killed? Evaluate again") from None
        if not header:
            if not isinstance(record, dict) or {"spec", "hash", "items", "run"} - set(record):
                raise UserError(f"{path}:1: no header with spec, hash, items and run; not a generation file of flanx")
            header = record
            continue
        wrong = sorted(set(record) ^ _FIELDS) if isinstance(record, dict) else ["?"]
        if wrong:
            raise UserError(f"{path}:{number}: unexpected or absent column '{wrong[0]}'" + nearest(wrong[0], _FIELDS))
        if record["id"] in seen:
            raise UserError(f"{path}:{number}: id '{record['id']}' stands twice")
        seen.add(record["id"])
        rows.append(Row(**record))
    if not header:
        raise UserError(f"{path} is empty; evaluate again")
    return header, rows


def spec_of(header: Mapping[str, Any], path: pathlib.Path) -> Spec:
    """The spec of a header. Raises UserError where this version of flanx has other fields."""
    known = {field.name for field in dataclasses.fields(Spec)}
    wrong = sorted(set(header["spec"]) ^ known)
    if wrong:
        raise UserError(
            f"{path}: its spec and this flanx differ in '{wrong[0]}'; rescore with the version that wrote it"
        )
    values = {k: tuple(map(_tuple, v)) if isinstance(v, list) else v for k, v in header["spec"].items()}
    return Spec(**values)


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def mark(spec: Spec, row: Row) -> metrics.Mark:
    """Marks one row by its spec."""
    if spec.scoring == "likelihood":
        return metrics.mark_likelihood(row.option_scores[0], row.target_tokens)
    if spec.scoring != "generate":
        by_length = spec.scoring == "rank_normalized"
        return metrics.mark_ranked(row.option_scores, row.options, row.targets, by_length)
    texts = [stopped(text, spec.stop) for text in row.outputs]
    return metrics.mark_generated(texts, row.targets, row.kind, spec.cot, row.language, row.broken, spec.metric == "f1")


def holds(text: str, stop: Sequence[str]) -> bool:
    """Whether one of the stop texts stands in the text."""
    return any(s in text.lstrip() for s in stop)


def stopped(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop texts; one that stands at its very beginning ends nothing."""
    text = text.lstrip()
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def summarize(spec: Spec, hash_: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The scores of one suite, as they stand in scores.json. Percentages; shares between 0 and 1."""
    tasks: dict[str, list[tuple[Row, metrics.Mark]]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append((row, mark(spec, row)))
    # Exact match leads everywhere (TyDiQA too: paper.md section 3); F1 stands beside it.
    exact = {task: [m.exact for _, m in pairs] for task, pairs in tasks.items()}
    per_task = {task: _entry(exact[task], pairs, f"{hash_} {task}", spec) for task, pairs in sorted(tasks.items())}
    every = [pair for pairs in tasks.values() for pair in pairs]
    low, high = metrics.interval(exact, hash_)
    result = _entry([], every, hash_, spec) | {
        "score": metrics.mean([entry["score"] for entry in per_task.values()]),
        "low": low,
        "high": high,
        "spec": hash_,
        "scoring": spec.scoring,
        "samples": spec.samples,
        "tasks": per_task,
    }
    if spec.metric == "f1":
        result["f1"] = metrics.mean([entry["f1"] for entry in per_task.values()])
    if groups := {name: _group(names, per_task) for name, names in spec.groups if set(names) <= set(per_task)}:
        result["groups"] = groups
    if spec.allow_missing:
        result["missing"] = [task for task in spec.allow_missing if task not in tasks]
    return result


def _group(names: Sequence[str], tasks: Mapping[str, Any]) -> float:
    return metrics.mean([tasks[name]["score"] for name in names])


def _entry(exact: Sequence[float], pairs: Sequence[tuple[Row, metrics.Mark]], seed: str, spec: Spec) -> dict[str, Any]:
    """Score and warnings over some items."""
    rows = [row for row, _ in pairs]
    failed = metrics.mean([m.failed for _, m in pairs])
    broken = sum(m.broken for _, m in pairs)
    prompt_tokens, target_tokens = sum(r.prompt_tokens for r in rows), sum(r.target_tokens for r in rows)
    low, high = metrics.interval({"": exact}, seed) if exact else (0.0, 0.0)
    entry = {
        "score": 100 * metrics.mean(exact),
        "low": low,
        "high": high,
        "metric": "likelihood" if spec.scoring == "likelihood" else "exact_match",
        "n": len(rows),
        "extraction_failed": failed,
        "flagged": failed > MAX_FAILED or broken > 0,
        "broken": broken,
        "truncated": metrics.mean([r.cut for r in rows]),
        "shots_dropped": metrics.mean([r.shots < spec.shots for r in rows]),
        "unfinished": metrics.mean([not all(r.ended) for r in rows]),
        "unknown": sum(r.prompt_unknown for r in rows) / max(prompt_tokens, 1),
        "unknown_targets": sum(r.target_unknown for r in rows) / max(target_tokens, 1),
    }
    if spec.metric == "f1":
        entry["f1"] = 100 * metrics.mean([m.f1 for _, m in pairs])
    return entry


def write_scores(folder: pathlib.Path, suites: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Writes scores.json in one go (suites that stand in it already and are not in `suites` stay) and returns it."""
    path = folder / "scores.json"
    kept = {}
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        kept = earlier["suites"] if earlier.get("run") == json.loads(json.dumps(dict(run))) else {}
    scores: dict[str, Any] = {"step": run.get("step"), "suites": kept | dict(suites), "run": dict(run)}
    average = headline(scores["suites"])
    if average is not None:
        scores["normalized_average"] = average
    draft = path.with_suffix(".json.tmp")
    draft.write_text(json.dumps(scores, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
    return scores


def headline(suites: Mapping[str, Any]) -> float | None:
    """The normalized average where all six scores are there and whole, else None."""
    try:
        return metrics.normalized_average(
            {name: entry["score"] for name, entry in suites.items()},
            {name: {task: e["score"] for task, e in entry["tasks"].items()} for name, entry in suites.items()},
        )
    except UserError:
        return None


def generation_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """All generation files of a run."""
    yield from sorted((folder / "generations").glob("*.jsonl"))
