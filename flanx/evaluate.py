"""`flanx evaluate`: a model on suites -> raw generations and scores.

suite -> prompts fitted to the model's lengths -> generation or ranking of options -> rows in JSONL -> scores.json.
When killed and started again with the same arguments, it resumes with the remaining items.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import flanx
from flanx import cluster, coordination, hub, run_record
from flanx.checkpoint import FOLDER
from flanx.data import vocabulary as vocabularies
from flanx.data.vocabulary import Vocabulary
from flanx.decoding import beam_search, decode
from flanx.errors import UserError
from flanx.evals import generations, registry, scores, stops, suite_table, toxicity, writable
from flanx.evals.early_vote import EarlyVote
from flanx.evals.fitting import FittedPrompt, fit
from flanx.evals.scorers import scorer as scorers
from flanx.evals.scorers.scorer import Scorer
from flanx.evals.spec import Item, Spec, Suite
from flanx.files import local_folder
from flanx.models import Model
from flanx.partition import Partitioner
from flanx.predictor import Predictor
from flanx.storage import Storage, local_tree, open_storage

STEP = re.compile(r"checkpoint_(\d+)")


def evaluate(
    *,
    model: Model,
    suites: Sequence[str],
    vocabulary: str | Vocabulary,
    lengths: Mapping[str, int],
    out_dir: str | os.PathLike,
    params: Any = None,
    checkpoint: str | None = None,
    step: int | None = None,
    data_dir: str | None = None,
    allow_missing: Sequence[str] = (),
    batch_size: int = 64,
    seed: int = 0,
    self_consistency: int = 0,
    beams: int = 0,
    early_vote: bool = False,
    force_vocabulary: bool = False,
    scorer: str | None = None,
    partitioner: Partitioner | None = None,
    provenance: Mapping[str, Any] | None = None,
    checks_only: bool = False,
) -> dict[str, Any]:
    """Scores a model on held-out suites, writes `generations/` and `scores.json`, and returns the scores.

    Args:
      suites: names as in `flanx.evals.registry`: "bbh_cot", "mgsm_cot[de,fr]", "mmlu_direct[:20]", "gsm8k_cot+sc".
      vocabulary: "byte", the path or URL of a SentencePiece model, or a loaded vocabulary.
      lengths: {"inputs": I, "targets": T}, tokens of the longest prompt and the longest output, as in training.
      out_dir: where results go; into its sub-folder `step_<step>` if a step is given.
      params: parameters in memory; without them they are read from `checkpoint`.
      data_dir: folder of the benchmark data (default: the environment variable FLANX_DATA_DIR); "sample" for the small
        samples that come with flanx, "hub" to download the files, "tfds" to read TFDS if it has them.
      allow_missing: sub-tasks, subjects or languages that may have no data; any other absence is an error.
      batch_size: prompts decoded together.
      self_consistency: samples that vote in every suite that generates; 0: as the suites' names say.
      beams: the same for beam search.
      early_vote: skip the samples that can no longer change a vote (`flanx.evals.early_vote`): the answers are
        the same, and kept generations say how many are missing.
      force_vocabulary: show scores of suites that the vocabulary cannot write (`scores.MAX_UNKNOWN`), too.
      scorer: what scores the continuations of toxicity suites, by name (`flanx.evals.scorers.scorer`); None: they
        are kept, and `flanx rescore --scorer` scores them later.
      provenance: anything to record with the scores, such as the hash of the training store.
      checks_only: read the vocabulary and the suites, refuse what is wrong with them, and return {}.

    Raises:
      UserError: for an unknown suite, missing or malformed data, predictions of another spec in `out_dir`.
    """
    results = local_folder(out_dir)
    folder = results / f"step_{step}" if step is not None else results
    loaded_vocabulary = vocabularies.load(vocabulary) if isinstance(vocabulary, str) else vocabulary
    predictor = Predictor(model, params, loaded_vocabulary, lengths, batch_size, seed)
    loaded = [
        suite.with_line_breaks(loaded_vocabulary.line_break)
        for suite in load_suites(suites, data_dir, allow_missing, self_consistency, beams)
    ]
    for suite in loaded:
        _expect_room(predictor, suite)
    reader = scorers.load(scorer) if scorer is not None else None
    if checks_only:
        return {}
    with contextlib.ExitStack() as stack:
        if params is None:
            predictor = stack.enter_context(predictor.restored(checkpoint, partitioner or Partitioner()))
        run = _run_metadata(predictor, checkpoint, step)
        run |= {"training": training(checkpoint, results), **hub.record(checkpoint), **(provenance or {})}
        if cluster.is_first():
            generations.set_others_aside(folder, run)
        entries = {
            suite.spec.name: _run_suite(predictor, suite, folder, run, force_vocabulary, reader, early_vote)
            for suite in loaded
        }
    if cluster.is_first():
        scores.write_scores(folder, entries, run)
    cluster.barrier("scores are written")
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def load_suites(
    suites: Sequence[str],
    data_dir: str | None = None,
    allow_missing: Sequence[str] = (),
    self_consistency: int = 0,
    beams: int = 0,
) -> list[Suite]:
    """The suites of an evaluation with their items, see `evaluate`."""
    for error in suite_table.wrong() if cluster.is_first() else ():
        print(f"note: {error}; its suites are left out")
    data = local_tree(data_dir or os.environ.get("FLANX_DATA_DIR", ""))
    names = suite_names(suites, self_consistency, beams)
    registry.expect_tasks(allow_missing, names)
    return [registry.load(name, data, allow_missing) for name in names]


def suite_names(suites: Sequence[str], self_consistency: int, beams: int) -> list[str]:
    """The suites' names, with the options for every suite that generates. Raises UserError for an unknown suite."""
    names = [suites] if isinstance(suites, str) else list(suites)
    if not names:
        raise UserError("SUITES is empty: name a suite, or include a file of gin/evals")
    if self_consistency and beams:
        raise UserError("SELF_CONSISTENCY and BEAMS exclude each other: set one of them to 0")
    how = f"+sc{self_consistency}" if self_consistency else f"+beam{beams}" if beams else ""
    generates = [how and "+" not in name and registry.is_voted(registry.resolve(name)) for name in names]
    return [name + how if does else name for name, does in zip(names, generates, strict=True)]


def _run_metadata(predictor: Predictor, checkpoint: str | None, step: int | None) -> dict[str, Any]:
    """What a result depends on in addition to its spec. Two runs that agree here may share generations."""
    return {
        "model": repr(predictor.model),
        "checkpoint": str(checkpoint) if checkpoint else None,
        "step": step if step is not None else checkpoint_step(checkpoint),
        "parameters": predictor.fingerprint(),
        "vocabulary": predictor.vocabulary.fingerprint,
        "lengths": dict(predictor.lengths),
        "seed": predictor.seed,
        "versions": {name: importlib.metadata.version(name) for name in ("flanx", "jax", "flax", "numpy")},
    }


def checkpoint_step(checkpoint: str | None) -> int | None:
    """The step of a run's newest checkpoint, or of a step's folder; None for any other checkpoint."""
    if not checkpoint or checkpoint.startswith((hub.PREFIX, "http")):
        return None
    folder = open_storage(checkpoint)
    names = [folder.name] if folder.parent.name == FOLDER else (folder / FOLDER).children()
    return max((int(hit[1]) for hit in map(STEP.fullmatch, names) if hit), default=None)


def training(checkpoint: str | None, out_dir: pathlib.Path) -> dict[str, Any] | None:
    """The record of the run that trained the parameters (run.json: store, mixture, missing tasks), if there is one."""
    folders: list[Storage] = [open_storage(out_dir.parent)]
    if checkpoint and not checkpoint.startswith((hub.PREFIX, "http")):
        folders = [each := open_storage(checkpoint), each.parent, each.parent.parent]
    for folder in folders:
        if record := run_record.read_stored_run(folder):
            (record.get("data") or {}).pop("content", None)  # a digest per task, which only a resume compares
            return record
    return None


# --- one suite -------------------------------------------------------------------------------------------------------


def _longest(predictor: Predictor, spec: Spec) -> int:
    """The maximum tokens in a prompt of a suite."""
    return min(predictor.lengths["inputs"], spec.max_inputs or predictor.lengths["inputs"])


def _fitted(predictor: Predictor, spec: Spec, items: Sequence[Item]) -> Iterator[FittedPrompt]:
    """The prompts of items as the model receives them, one by one."""
    vocabulary, longest = predictor.vocabulary, _longest(predictor, spec)
    count = functools.lru_cache(maxsize=4096)(vocabulary.count)
    return (fit(item, spec, vocabulary, longest, count) for item in items)


def _expect_room(predictor: Predictor, suite: Suite) -> None:
    """Raises UserError if every prompt of a suite would be truncated; stops at the first that would not."""
    spec, vocabulary, longest = suite.spec, predictor.vocabulary, _longest(predictor, suite.spec)
    if suite.items and all(prompt.cut for prompt in _fitted(predictor, spec, suite.items)):
        setting = "EVAL_LENGTHS" if longest == predictor.lengths["inputs"] else "max_inputs"
        shortest = 1 + min(vocabulary.count(item.prompt(0)) for item in suite.items)
        raise UserError(
            f"{spec.name}: every prompt would be truncated; the shortest takes {shortest} tokens alone, and "
            f"{setting} has {longest}: raise {setting}, or leave the suite out of SUITES"
        )


def _run_suite(
    predictor: Predictor,
    suite: Suite,
    folder: pathlib.Path,
    run: Mapping[str, Any],
    force_vocabulary: bool,
    reader: Scorer | None,
    early: bool,
) -> dict[str, Any]:
    """Evaluates the remaining items, then scores all of them."""
    spec, vocabulary, began = suite.spec, predictor.vocabulary, time.monotonic()
    texts = {text for item in suite.items for text in (item.head, *item.shots, item.query, *item.targets)}
    unwritable = writable.unwritable(vocabulary, texts)
    if unwritable and cluster.is_first():
        print(f"{spec.name}: the vocabulary cannot write {', '.join(unwritable)}")
    with cluster.first_alone(f"{spec.name}: kept generations are read"):
        writer = generations.Writer(folder, suite, run)
    with contextlib.closing(writer):
        items = [item for item in suite.items if (item.task, item.id) not in writer.done]
        prompts = list(_fitted(predictor, spec, items))
        predict = functools.partial(_generate, early=early) if spec.scoring == "generate" else _rank
        for row in predict(predictor, spec, prompts) if prompts else ():
            if cluster.is_first():
                writer.add(row)
    coordination.position["stage"] = "scores"  # only the first process does this, and it may take a while
    cluster.barrier(f"{spec.name}: every generation is written")
    rows = [row for path in writer.paths.values() for row in generations.read(path)[1]]
    if len(rows) != len(suite.items):
        raise UserError(f"{folder}: {len(rows)} predictions of {len(suite.items)} items of {spec.name}; evaluate again")
    with cluster.first_alone(f"{spec.name}: continuations are scored"):
        joined = toxicity.join(folder, spec, rows, reader if cluster.is_first() else None)
    result: dict[str, Any] = {**scores.summarize(spec, suite.hash, rows), "data": dict(suite.data), **joined}
    if force_vocabulary:
        result = scores.forced(result)
    seconds = time.monotonic() - began
    if cluster.is_first():
        name = (
            f"{spec.name} (split {spec.split}, {result['metric']})" if spec.metric in ("task", "seqio") else spec.name
        )
        for line in scores.remarks(result):
            print(f"{spec.name}: {line}")
        print(
            f"{name}: {scores.score_text(result)} ({scores.interval_text(result, ' to ')}), "
            + "".join(f"{what}, " for what in scores.partial(result))
            + f"{100 * result['extraction_failed']:.1f}% without an answer; "
            f"{len(items)} items in {seconds:.1f} s, {len(items) / max(seconds, 1e-9):.1f} items/s"
            + (f", {len(rows) - len(items)} done before" if len(rows) > len(items) else "")
        )
    return result


def _generate(
    predictor: Predictor, spec: Spec, prompts: Sequence[FittedPrompt], early: bool
) -> Iterator[generations.Generation]:
    """The rows of a suite that generates, as prompts finish; `early`: skips samples that cannot change a vote."""
    method: decode.Sample | beam_search.Beam = decode.Sample(spec.temperature, spec.top_k, spec.top_p)
    if spec.beams:
        method = beam_search.Beam(spec.beams, spec.length_penalty)
    tokens = [prompt.tokens for prompt in prompts]
    stop = functools.partial(stops.has_stop, stop=spec.stop) if spec.stop and not spec.beams else None
    with_scores = spec.metric == "seqio"  # a SeqIO task's metric functions may need the log-probability of the target
    scored = {n: prompt.item.options for n, prompt in enumerate(prompts) if prompt.item.options and with_scores}
    sums = predictor.score([tokens[number] for number in scored], list(scored.values()), ended=True)
    of_options = dict(zip(scored, sums, strict=True))
    by_score = spec.metric == "open_ended"  # which sample is the answer
    rows = [prompt.generation(predictor.vocabulary) for prompt in prompts]
    decided = EarlyVote(spec, rows).decided if early and spec.samples > 1 and not spec.beams else None
    for number, prediction in predictor.generate(tokens, method, spec.samples, spec.max_new, stop, by_score, decided):
        row = rows[number]
        row.undrawn = spec.samples - len(prediction.texts) if decided else 0
        row.outputs, row.ended, row.broken = prediction.texts, prediction.ended, prediction.non_finite
        row.options = list(prompts[number].item.options)
        if number in of_options:
            row.option_scores = list(map(float, of_options[number]))
        if by_score:
            row.option_scores = [score if np.isfinite(score) else None for score in prediction.scores]
        yield row


def _rank(predictor: Predictor, spec: Spec, prompts: Sequence[FittedPrompt]) -> Iterator[generations.Generation]:
    """The rows of a suite that ranks options."""
    options = [prompt.item.options for prompt in prompts]
    sums_of_options = predictor.score([prompt.tokens for prompt in prompts], options)
    for prompt, sums in zip(prompts, sums_of_options, strict=True):
        row = prompt.generation(predictor.vocabulary)
        row.options = list(prompt.item.options)
        row.option_scores = [float(value) if np.isfinite(value) else None for value in sums]
        row.broken = None in row.option_scores
        yield row


flanx.call_as_function(__name__)
