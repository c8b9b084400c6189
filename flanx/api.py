"""flanx in Python: load a model, query it, score it, train one. The commands do the same, with identical output.

model = flanx.load("google/flan-t5-small")                    # or a run, or a folder of any format
model.generate(["Translate to German: yes"], max_new_tokens=32)
model.score([("Is it so?", ["yes", "no"])])                   # log-probabilities
flanx.evaluate(model, ["gsm8k_cot[:20]"], data_dir="data")
flanx.train(model="t5_1_1/tiny", mixture="suite", store_dir="out/store", vocabulary="byte", model_dir="out/run",
            task_feature_lengths={"inputs": 128, "targets": 64}, train_steps=200, batch_size=8)
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np

from flanx import hub, models, settings
from flanx.convert.architecture import architecture
from flanx.data.pipeline.mixture import Mixture
from flanx.data.task.row import BadRow, whole
from flanx.decoding import beam_search, decode
from flanx.errors import UserError
from flanx.partition import Partitioner
from flanx.predictor import Predictor

__all__ = ["Model", "evaluate", "load", "train"]


class Decoding(TypedDict, total=False):
    """Decoding options; see `Model.generate`."""

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    beams: int
    stop: Sequence[str]
    seed: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Model:
    """A model with its parameters on the devices, ready to answer, as returned by `load`.

    Attributes:
      checkpoint: the folder or name it was loaded from.
      predictor: model, parameters and vocabulary; partitioner: the mesh that the parameters are on.
      source: the name, revision and hashes of a model from the hub; otherwise empty.
    """

    checkpoint: str
    predictor: Predictor
    partitioner: Partitioner
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"flanx.Model({self.checkpoint!r}, {self.predictor.model.num_params():,} parameters)"

    @property
    def lengths(self) -> Mapping[str, int]:
        """{"inputs": I, "targets": T}: tokens of the longest prompt, and the default for the longest output."""
        return self.predictor.lengths

    @overload
    def generate(  # type: ignore[overload-overlap]  # 1 is an int too
        self, prompts: Sequence[str], *, samples: Literal[1] = 1, **decoding: Unpack[Decoding]
    ) -> list[str]: ...
    @overload
    def generate(self, prompts: Sequence[str], *, samples: int, **decoding: Unpack[Decoding]) -> list[list[str]]: ...
    def generate(
        self,
        prompts: Sequence[str],
        *,
        samples: int = 1,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        beams: int = 0,
        stop: Sequence[str] = (),
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[str] | list[list[str]]:
        """Answers prompts, in order: one text each, or a list of `samples` texts. The same as `flanx infer`.

        Args:
          samples: answers per prompt, sampled at a temperature above 0.
          max_new_tokens: per answer; None: lengths["targets"].
          temperature: 0: greedy decoding; top_k, top_p: 0 and 1: the whole vocabulary.
          beams: return the best answer of a beam search instead; 0: no beam search.
          stop: texts that end an answer; it is cut before the first of them.
          seed: the samples of a prompt depend only on it and on the prompt.
          batch_size: prompts decoded together.

        Raises:
          UserError: for a prompt that is too long, and for logits that are not finite.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        settings.checked(Model.generate, **given)
        if beams and (samples > 1 or temperature):
            raise UserError("generate: beams give one answer and draw nothing: leave out samples and temperature")
        if samples > 1 and not temperature:
            raise UserError(f"generate: {samples} samples at temperature 0 are all the same: give a temperature")
        if not all(stop):
            raise UserError("generate: stop holds an empty text, which every answer begins with: leave it out")
        tokens = [self._encode(number, prompt) for number, prompt in enumerate(prompts)]
        method = beam_search.Beam(beams) if beams else decode.Sample(temperature, top_k, top_p)
        predictor = dataclasses.replace(self.predictor, seed=seed, batch_size=batch_size)
        longest = max_new_tokens or self.lengths["targets"]
        with self.partitioner.scope():
            found = generate_texts(predictor, tokens, method, samples, longest, stop)
        return [texts[0] for texts in found] if samples == 1 else found

    def score(self, pairs: Sequence[tuple[str, Sequence[str]]], *, batch_size: int = 64) -> list[list[float]]:
        """The log-probability (natural logarithm) of each continuation of each prompt, in order.

        Args:
          pairs: (prompt, its continuations), e.g. [("Is it so?", ["yes", "no"])].

        Raises:
          UserError: for a prompt that is too long or has no continuations, and for logits that are not finite.
        """
        settings.checked(Model.score, batch_size=batch_size)
        if not isinstance(pairs, list | tuple):
            raise UserError(f"score: pairs is {pairs!r}; it takes [(prompt, [continuation, ...]), ...]")
        for number, pair in enumerate(pairs):
            if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise UserError(f"score: pair {number} is {pair!r}; it takes (prompt, [continuation, ...])")
            if not isinstance(pair[1], list | tuple) or not all(isinstance(each, str) for each in pair[1]):
                raise UserError(f"score: the continuations of prompt {number} are {pair[1]!r}; give a list of texts")
            for continuation in pair[1]:
                _whole(number, continuation)
        tokens = [self._encode(number, prompt) for number, (prompt, _) in enumerate(pairs)]
        predictor = dataclasses.replace(self.predictor, batch_size=batch_size)
        with self.partitioner.scope():
            scores = predictor.score(tokens, [continuations for _, continuations in pairs])
        for number, each in enumerate(scores):
            if not np.isfinite(each).all():
                raise _not_finite(number)
        return [each.tolist() for each in scores]

    def _encode(self, number: int, prompt: str) -> list[int]:
        """A prompt's tokens, with the end of sequence."""
        vocabulary, longest = self.predictor.vocabulary, self.lengths["inputs"]
        tokens = [*vocabulary.encode(_whole(number, prompt)), vocabulary.eos_id]
        if len(tokens) > longest:
            raise UserError(
                f"prompt {number}: {len(tokens)} tokens, the longest has {longest}; shorten it, or load the model with "
                f"lengths={{'inputs': {len(tokens)}, 'targets': {self.lengths['targets']}}}"
            )
        return tokens


def generate_texts(
    predictor: Predictor,
    prompts: Sequence[Sequence[int]],
    method: decode.Sample | beam_search.Beam,
    samples: int,
    longest: int,
    stop: Sequence[str] = (),
) -> list[list[str]]:
    """The texts of each prompt, in order, each cut at the first stop text and at most `longest` tokens long.

    Raises UserError for logits that are not finite.
    """

    def has_stop(text: str) -> bool:
        return any(each in text for each in stop)

    answers: dict[int, list[str]] = {}
    lengths = {**predictor.lengths, "targets": max(longest, predictor.lengths["targets"])}
    predictor = dataclasses.replace(predictor, lengths=lengths)
    ends = has_stop if stop and not isinstance(method, beam_search.Beam) else None
    for number, answer in predictor.generate(prompts, method, samples, longest, ends):
        if answer.non_finite:
            raise _not_finite(number)
        answers[number] = [text[: _first(text, stop)] for text in answer.texts]
    return [answers[number] for number in range(len(prompts))]


def _whole(number: int, text: str) -> str:
    try:
        return whole(text)
    except BadRow as error:
        raise UserError(f"prompt {number}: {error}") from None


def _not_finite(number: int) -> UserError:
    return UserError(f"prompt {number}: the logits hold a NaN or an infinity; the checkpoint is damaged")


def _first(text: str, stop: Sequence[str]) -> int:
    """The position of the first stop text; the text's end if it contains none."""
    return min((text.find(each) for each in stop if each in text), default=len(text))


def load(
    checkpoint: str | os.PathLike,
    *,
    partitions: int = 1,
    dtype: str | None = None,
    lengths: Mapping[str, int] | None = None,
    vocabulary: str | None = None,
    model: models.Model | None = None,
    partitioner: Partitioner | None = None,
) -> Model:
    """Loads a model from a run, a step's folder, output of `flanx convert`, T5X's or Hugging Face's form, or the hub.

    The model, its vocabulary and its lengths are determined from the files next to the parameters (run.json,
    config.json, tokenizer files); no code in a checkpoint is run.

    Args:
      checkpoint: a folder or gs:// URL, or a name on the hub: "google/flan-t5-small", "hf:ORG/NAME@REVISION".
      partitions: devices that each parameter is split over; the others process other prompts.
      dtype: of activations, "float32" or "bfloat16"; None: as in training, float32 if no run records it.
      lengths: {"inputs": I, "targets": T}, tokens of the longest prompt and answer; None: those of training, or
        Flan-T5's, 2,048 and 512.
      vocabulary: "byte", or the path or URL of a SentencePiece model; None: the one stored with the parameters.
      model: sizes and options, for parameters without a description; None: as described.
      partitioner: mesh and rules, in place of `partitions`.

    Raises:
      UserError: if there is no checkpoint, or it does not determine what is not given.
    """
    given = dict(locals())
    if not isinstance(checkpoint, str | os.PathLike):
        settings.checked(load, checkpoint=checkpoint)
    name = os.fspath(checkpoint)
    snapshot = hub.fetch(name) if hub.is_name(name) else None
    taken = settings.checked(load, **{**given, "checkpoint": snapshot.folder if snapshot else name})
    path = os.fspath(taken["checkpoint"])
    made = architecture(path, model, taken["vocabulary"], dtype)
    partitioner = partitioner or Partitioner(partitions)
    empty = Predictor(made.model, None, made.vocabulary, dict(lengths or made.lengths))
    with empty.restored(path, partitioner) as predictor:
        return Model(name, predictor, partitioner, snapshot.record() if snapshot else {})


def evaluate(
    model: Model | str | os.PathLike,
    suites: Sequence[str],
    *,
    data_dir: str | None = None,
    out_dir: str | os.PathLike | None = None,
    allow_missing: Sequence[str] = (),
    batch_size: int = 64,
    seed: int = 0,
    self_consistency: int = 0,
    beams: int = 0,
    force_vocabulary: bool = False,
    scorer: str | None = None,
    early_vote: bool = False,
) -> dict[str, Any]:
    """Scores a model on suites, and returns what `flanx evaluate` writes as scores.json.

    Args:
      model: what `load` returned, or what it accepts.
      suites: as in `flanx.evals.registry`: ["bbh_cot", "mmlu_direct[:20]", "gsm8k_cot+sc8"].
      data_dir: folder of benchmark data; None: FLANX_DATA_DIR; "sample", "hub", "tfds": see docs/evaluation.md.
      out_dir: where generations and scores.json are written, and resumed from; None: they are not kept.
      batch_size, seed, self_consistency, beams, allow_missing, force_vocabulary, scorer, early_vote: see
        `flanx.evaluate.evaluate`.

    Raises:
      UserError: for an unknown suite, and for missing data.
    """
    given = {name: value for name, value in locals().items() if name != "model"}
    settings.checked(evaluate, **given)
    if out_dir and pathlib.Path(out_dir).exists() and not pathlib.Path(out_dir).is_dir():
        raise UserError(f"evaluate: out_dir is {os.fspath(out_dir)!r}, a file; give a folder")
    from flanx.evaluate import evaluate as run_evaluation  # noqa: PLC0415  (metrics, which loading does without)

    loaded = model if isinstance(model, Model) else load(model)
    predictor = loaded.predictor
    with contextlib.ExitStack() as stack:
        folder = out_dir or stack.enter_context(tempfile.TemporaryDirectory(prefix="flanx-"))
        stack.enter_context(loaded.partitioner.scope())
        return run_evaluation(
            **{**given, "out_dir": folder},
            model=predictor.model,
            params=predictor.params,
            checkpoint=loaded.checkpoint,
            vocabulary=predictor.vocabulary,
            lengths=predictor.lengths,
            provenance=loaded.source,
        )


def train(
    *,
    model: str,
    mixture: str | Sequence[Any] | Mixture,
    store_dir: str | os.PathLike,
    vocabulary: str,
    model_dir: str | os.PathLike,
    task_feature_lengths: Mapping[str, int],
    train_steps: int,
    gin_files: Sequence[str] = (),
    bindings: Mapping[str, Any] | None = None,
    **macros: Any,
) -> pathlib.Path:
    """Trains a model and returns the run's folder, which `load` accepts; the same run as that of `flanx train`.

    Every keyword is the macro of the same name in capitals in gin/runs/train.gin, with the same default: `batch_size`,
    `learning_rate`, `seed`, `num_tasks`, `cot_ratio`, `initial_checkpoint_path`, `checkpoint_period`, `eval_period`.
    A run that was stopped resumes with the same call.

    Args:
      model: a file of gin/models, "t5_1_1/small", the path of a gin file, or a checkpoint whose sizes to take: a folder
        or "hf:ORG/NAME".
      mixture: a mixture, collection or task by name, a list of them, [("cot", 0.3), ("niv2", 0.7)] with rates, or a
        `flanx.Mixture`.
      store_dir, vocabulary: those of `flanx.build_store`.
      task_feature_lengths: {"inputs": I, "targets": T}, tokens of a packed row.
      gin_files: further files, after those of the run and the model: ["evals/held_out.gin"], ["runs/scratch.gin"].
      bindings: {parameter: value} for parameters without a macro: {"train.log_period": 1}.

    Raises:
      UserError: for a macro or value that `flanx train` would reject.
      Preempted: after Ctrl-C or SIGTERM, with the state saved.
    """
    settings.checked(train, model=model, gin_files=gin_files, bindings=bindings)
    from flanx import config  # noqa: PLC0415  (gin and optimizers, which loading does without)
    from flanx.train import train as run_training  # noqa: PLC0415

    by_name = model.startswith(hub.PREFIX) or os.path.isdir(model)
    file = model if model.endswith(".gin") else f"models/{model}.gin"
    bound: dict[str, Any] = {name.upper(): value for name, value in macros.items()}
    bound |= {"MODEL": model} if by_name else {}
    if isinstance(mixture, Mixture):
        for field in dataclasses.fields(mixture)[1:]:
            if (value := getattr(mixture, field.name)) != field.default:
                macro = field.name in ("num_tasks", "cot_ratio")
                bound[field.name.upper() if macro else f"mixture.Mixture.{field.name}"] = value
        mixture = mixture.name
    bound |= {
        "MIXTURE_OR_TASK_NAME": mixture,
        "STORE_DIR": store_dir,
        "VOCABULARY": vocabulary,
        "MODEL_DIR": model_dir,
        "TASK_FEATURE_LENGTHS": task_feature_lengths,
        "TRAIN_STEPS": train_steps,
    }
    texts = [f"{name}={_literal(name, value)}" for name, value in {**bound, **(bindings or {})}.items()]
    try:
        config.parse(["runs/train.gin", *([] if by_name else [file]), *gin_files], texts)
    except UserError as error:
        raise UserError(str(error).replace("the command line", "the call")) from None
    folder = pathlib.Path(config.value("MODEL_DIR"))
    config.call(run_training, folder)
    return folder


def _literal(name: str, value: Any) -> str:
    """A value in gin's syntax."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(name, key)}: {_literal(name, item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        items = ", ".join(_literal(name, item) for item in value)
        return f"[{items}]" if isinstance(value, list) else f"({items},)" if value else "()"
    if not isinstance(value, str | int | float | bool | None):
        raise UserError(f"train: {name.lower()} is {value!r}; it takes texts, numbers, lists and dicts of them")
    return repr(value)
