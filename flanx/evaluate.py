"""`flanx evaluate`: a model on suites -> raw generations and scores.

suite -> prompts fitted to the model's lengths -> generation or ranking of options -> rows in JSONL -> scores.json.
Killed and started again with the same arguments it goes on with the items that are not done.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flanx import cluster
from flanx.data import vocabulary as vocabularies
from flanx.data.vocabulary import Vocabulary
from flanx.decoding import beam_search, decode, length_buckets, loglikelihood
from flanx.errors import UserError
from flanx.evals import answers, generations, registry, scores
from flanx.evals.fitting import FittedPrompt, fit
from flanx.evals.spec import Spec, Suite
from flanx.models import Model
from flanx.partition import Partitioner


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
    partitioner: Partitioner | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores a model on held-out suites, writes `generations/` and `scores.json`, and returns the scores.

    Args:
      suites: names as in `flanx.evals.registry`: "bbh_cot", "mgsm_cot[de,fr]", "mmlu_direct[:20]", "gsm8k_cot+sc".
      vocabulary: "byte", the path or URL of a SentencePiece model, or a loaded vocabulary.
      lengths: {"inputs": I, "targets": T}, tokens of the longest prompt and the longest output, as in training.
      out_dir: where results go; into its sub-folder `step_<step>` where a step is given.
      params: parameters in memory; without them they are read from `checkpoint`.
      data_dir: folder of the benchmark data (default: the environment variable FLANX_DATA_DIR); "sample" for the small
        samples that come with flanx, "hub" to download the files, "tfds" to read TFDS where it has them.
      allow_missing: sub-tasks, subjects or languages that may have no data; any other absence is an error.
      batch_size: prompts decoded together.
      self_consistency: samples put to the vote in every suite that generates; 0: as the suites' names say.
      beams: the same for beam search.
      provenance: anything to record with the scores, such as the hash of the training store.

    Raises:
      UserError: for an unknown suite, missing or malformed data, predictions of another spec in `out_dir`.
    """
    folder = pathlib.Path(out_dir) / f"step_{step}" if step is not None else pathlib.Path(out_dir)
    words = vocabularies.load(vocabulary) if isinstance(vocabulary, str) else vocabulary
    check(model, words, lengths, batch_size)
    place = data_dir or os.environ.get("FLANX_DATA_DIR", "")
    loaded = [registry.load(name, place, allow_missing) for name in _names(suites, self_consistency, beams)]
    with contextlib.ExitStack() as stack:
        if params is None:
            params = restore(stack, model, checkpoint, partitioner or Partitioner())
        more = {"training": training(checkpoint, pathlib.Path(out_dir)), **(provenance or {})}
        run = _provenance(model, params, words, lengths, seed, checkpoint, step, more)
        entries = {}
        for each in loaded:
            entries[each.spec.name] = _run_suite(model, params, words, each, lengths, folder, batch_size, seed, run)
    if cluster.is_first():
        scores.write_scores(folder, entries, run)
    cluster.meet("scores are written")
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def check(model: Model, words: Vocabulary, lengths: Mapping[str, int], batch_size: int) -> None:
    """What would fail only after the parameters are read, or not at all."""
    if not all(isinstance(lengths.get(key), int) and lengths[key] > 1 for key in ("inputs", "targets")):
        raise UserError(f"lengths are {dict(lengths)}: give 'inputs' and 'targets', two tokens or more (EVAL_LENGTHS)")
    if batch_size < 1:
        raise UserError(f"EVAL_BATCH_SIZE is {batch_size}: give 1 or more")
    if words.size > model.vocab_size:
        raise UserError(
            f"VOCABULARY {words.spec} has {words.size} ids, the model's table has {model.vocab_size} rows: "
            "take the vocabulary that it was trained with"
        )


def _names(suites: Sequence[str], self_consistency: int, beams: int) -> list[str]:
    """The suites' names, with what is asked for every suite that generates."""
    names = [suites] if isinstance(suites, str) else list(suites)
    if not names:
        raise UserError("SUITES is empty: name a suite, or include a file of gin/evals")
    if self_consistency and beams:
        raise UserError("SELF_CONSISTENCY and BEAMS exclude each other: set one of them to 0")
    how = f"+sc{self_consistency}" if self_consistency else f"+beam{beams}" if beams else ""
    generates = [how and "+" not in name and registry.resolve(name).scoring == "generate" for name in names]
    return [name + how if does else name for name, does in zip(names, generates, strict=True)]


def restore(stack: contextlib.ExitStack, model: Model, path: str | None, partitioner: Partitioner) -> Any:
    """The parameters of a checkpoint on the partitioner's mesh, which stays in force until `stack` closes."""
    from flanx.checkpoint import load_params

    if not path:
        raise UserError("nothing to evaluate: give a checkpoint (a run, a step folder or a converted checkpoint)")
    stack.enter_context(partitioner.scope())
    boxed = jax.eval_shape(model.init, jax.random.key(0))
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(nn.unbox, boxed),
        partitioner.shardings(boxed),
    )
    return load_params(path, target)


def _provenance(
    model: Model, params: Any, words: Vocabulary, lengths: Mapping[str, int], seed: int, checkpoint: str | None,
    step: int | None, more: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What a result depends on beside its spec. Two runs that agree here may share their generations."""
    versions = {name: importlib.metadata.version(name) for name in ("flanx", "jax", "flax", "numpy")}
    return {
        "model": repr(model),
        "checkpoint": str(checkpoint) if checkpoint else None,
        "step": step,
        "parameters": fingerprint(params),
        "vocabulary": words.fingerprint,
        "lengths": dict(lengths),
        "seed": seed,
        "versions": versions,
        **more,
    }


def training(checkpoint: str | None, out_dir: pathlib.Path) -> dict[str, Any] | None:
    """What the run that made the parameters says of itself (run.json: store, mixture, missing tasks), where it does."""
    folders = (
        [pathlib.Path(checkpoint), *list(pathlib.Path(checkpoint).parents)[:2]] if checkpoint else [out_dir.parent]
    )
    for folder in folders:
        if (folder / "run.json").is_file():
            return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return None


def fingerprint(params: Any) -> str | None:
    """16 hexadecimal digits of the parameters (a sample of each large one); None where they lie on several hosts."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not getattr(leaf, "is_fully_addressable", True):
            return None
        flat = np.asarray(leaf).ravel()
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(flat[:: max(1, flat.size // 2**16)]).tobytes())
    return digest.hexdigest()[:16]


# --- one suite -------------------------------------------------------------------------------------------------------


def _run_suite(
    model: Model, params: Any, words: Vocabulary, loaded: Suite, lengths: Mapping[str, int], folder: pathlib.Path,
    batch_size: int, seed: int, run: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Evaluates what is not done yet, then scores everything."""
    spec, began = loaded.spec, time.monotonic()
    count = functools.lru_cache(maxsize=4096)(lambda text: len(words.encode(text)))
    with cluster.first_alone(f"{spec.name}: kept generations are read"):
        writer = generations.Writer(folder, loaded, run)
    with contextlib.closing(writer):
        items = [item for item in loaded.items if (item.task, item.id) not in writer.done]
        requests = [fit(item, spec, words, lengths["inputs"], count) for item in items]
        for row in _answer(model, params, words, spec, requests, lengths, batch_size, seed):
            if cluster.is_first():
                writer.add(row)
    cluster.meet(f"{spec.name}: every generation is written")
    rows = [row for path in writer.paths.values() for row in generations.read(path)[1]]
    if len(rows) != len(loaded.items):
        raise UserError(
            f"{folder}: {len(rows)} predictions of {len(loaded.items)} items of {spec.name}; evaluate again"
        )
    result = scores.summarize(spec, loaded.hash, rows) | {"data": dict(loaded.data)}
    seconds = time.monotonic() - began
    if cluster.is_first():
        print(
            f"{spec.name}: {result['score']:.1f} ({result['low']:.1f} to {result['high']:.1f}), "
            f"{100 * result['extraction_failed']:.1f}% without an answer; "
            f"{len(items)} items in {seconds:.1f} s, {len(items) / max(seconds, 1e-9):.1f} items/s"
            + (f", {len(rows) - len(items)} done before" if len(rows) > len(items) else "")
        )
    return result


def _answer(
    model: Model, params: Any, words: Vocabulary, spec: Spec, requests: Sequence[FittedPrompt],
    lengths: Mapping[str, int], batch_size: int, seed: int,
) -> Iterator[generations.Generation]:  # fmt: skip
    """The rows of the requests, as they finish."""
    if not requests:
        return
    prompts = [request.tokens for request in requests]
    place = placement(params)
    common = {"lengths": length_buckets.bucket_lengths(lengths["inputs"]), "place": place}
    if spec.scoring != "generate":
        options = [[words.encode(option) for option in request.item.options] for request in requests]
        found = loglikelihood.score(model, params, prompts, options, batch_size=batch_size, **common)
        for request, sums in zip(requests, found, strict=True):
            row = request.generation(words)
            row.options = list(request.item.options)
            row.option_scores = [float(value) if np.isfinite(value) else None for value in sums]
            row.broken = None in row.option_scores
            yield row
        return
    stop = (lambda tokens: answers.has_stop(words.decode(tokens), spec.stop)) if spec.stop else None
    common |= {"max_new": min(spec.max_new, lengths["targets"]), "eos_id": words.eos_id}
    common |= {"batch_size": max(8, batch_size // max(spec.samples, spec.beams))}
    if spec.beams:
        method = beam_search.Beam(spec.beams, spec.length_penalty)
        outputs = beam_search.stream(model, params, prompts, method=method, **common)
    else:
        drawn = decode.Sample(spec.temperature, spec.top_k, spec.top_p)
        outputs = decode.stream(
            model, params, prompts, method=drawn, samples=spec.samples, seed=seed, stop=stop, **common
        )
    for number, output in outputs:
        row = requests[number].generation(words)
        count = 1 if spec.beams else spec.samples  # of beams the best
        row.outputs = [words.decode(tokens) for tokens in output.tokens[:count]]
        row.ended, row.broken = output.ended[:count], output.broken
        yield row


def placement(params: Any) -> length_buckets.Place:
    """How rows are placed: over the data axis of the parameters' mesh where they divide, else everywhere."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return jax.numpy.asarray
    mesh = sharding.mesh
    data = mesh.shape.get("data", 1)

    def place(array: np.ndarray) -> jax.Array:
        over = ("data",) if data > 1 and array.shape[0] % data == 0 else ()
        return jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*over)))

    return place
