"""A model ready to answer prompts, which evaluation, inference and training's evaluator call for predictions."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np

from flanx import coordination
from flanx.checkpoint import load_params
from flanx.data.vocabulary import Vocabulary
from flanx.decoding import beam_search, decode, loglikelihood
from flanx.decoding.length_buckets import Batching, Prompt, bucket_lengths
from flanx.errors import UserError
from flanx.models import Model, Params
from flanx.partition import Partitioner


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer to one prompt.

    Attributes:
      texts: of each sample (those that were done, if a prompt was decided early); of beams only the best.
      ended: whether each text ended by itself or at a stop text; False: truncated at the longest output.
      non_finite: the logits contained a NaN or an infinity; the texts are meaningless.
      scores: the log-probability of each sample, if requested (`decode.Output.scores`).
    """

    texts: list[str]
    ended: list[bool]
    non_finite: bool
    scores: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model, its parameters and vocabulary, and the shapes it decodes in.

    Attributes:
      params: on the devices, with their mesh active; None until `restored` reads them.
      lengths: {"inputs": I, "targets": T}, tokens of the longest prompt and of the longest output.
      batch_size: prompts decoded together.
      seed: for sampling.

    Raises:
      UserError: for unusable lengths or batch size, and for a vocabulary larger than the model's embedding.
    """

    model: Model
    params: Params
    vocabulary: Vocabulary
    lengths: Mapping[str, int]
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        lengths, vocabulary = self.lengths, self.vocabulary
        if not all(isinstance(lengths.get(key), int) and lengths[key] > 1 for key in ("inputs", "targets")):
            raise UserError(
                f"lengths are {dict(lengths)}: give 'inputs' and 'targets', two tokens or more (EVAL_LENGTHS)"
            )
        if self.batch_size < 1:
            raise UserError(f"EVAL_BATCH_SIZE is {self.batch_size}: give 1 or more")
        if vocabulary.size > self.model.vocab_size:
            raise UserError(
                f"VOCABULARY {vocabulary.spec} has {vocabulary.size} ids, the model's table has "
                f"{self.model.vocab_size} rows: take the vocabulary that it was trained with"
            )

    @contextlib.contextmanager
    def restored(self, checkpoint: str | None, partitioner: Partitioner) -> Iterator["Predictor"]:
        """This predictor with the parameters of a checkpoint, on the partitioner's mesh, which is active inside."""
        if not checkpoint:
            raise UserError("no checkpoint: give a run, a step folder of a run or a converted checkpoint")
        with partitioner.scope():
            boxed = jax.eval_shape(self.model.init, jax.random.key(0))
            target = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                jax.eval_shape(nn.unbox, boxed),
                partitioner.shardings(boxed),
            )
            yield dataclasses.replace(self, params=load_params(checkpoint, target, self.model))

    def fingerprint(self) -> str | None:
        """16 hex digits that identify the parameters (a sample of large ones); None if they are on several hosts."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            if not getattr(leaf, "is_fully_addressable", True):
                return None
            flat = np.asarray(leaf).ravel()
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(flat[:: max(1, flat.size // 2**16)]).tobytes())
        return digest.hexdigest()[:16]

    def generate(
        self,
        prompts: Sequence[Prompt],
        method: decode.Sample | beam_search.Beam = decode.GREEDY,
        samples: int = 1,
        max_new: int | None = None,
        stop: Callable[[str], bool] | None = None,
        scored: bool = False,
        decided: Callable[[int, Mapping[int, tuple[str, bool]]], bool] | None = None,
    ) -> Iterator[tuple[int, Prediction]]:
        """Yields (prompt number, its prediction) as prompts finish, in no fixed order.

        Args:
          prompts: token lists of at most lengths["inputs"], with their end-of-sequence token.
          method: greedy or sampling, or beam search, which has one sample and no stop texts.
          max_new: tokens of the longest output; at most lengths["targets"], the default for None.
          stop: whether a text so far contains something that ends it; it is cut to the shortest that does.
          scored: whether samples come with their log-probabilities.
          decided: (prompt number, {sample number: (text, whether it ended)} of the finished samples) -> whether the
            remaining ones are not needed.
        """
        longest = self.lengths["targets"] if max_new is None else min(max_new, self.lengths["targets"])
        eos_id, decoded = self.vocabulary.eos_id, self.vocabulary.decode
        if isinstance(method, beam_search.Beam):
            samples, batching = 1, self._batching(method.beams)
            outputs = beam_search.stream(
                self.model, self.params, prompts, max_new=longest, method=method, eos_id=eos_id, batching=batching
            )
        else:
            outputs = decode.stream(
                self.model,
                self.params,
                prompts,
                max_new=longest,
                method=method,
                samples=samples,
                seed=self.seed,
                eos_id=eos_id,
                stop=stop and (lambda tokens: stop(decoded(tokens))),
                decided=decided
                and (lambda n, done: decided(n, {k: (decoded(t), end) for k, (t, end) in done.items()})),
                scored=scored,
                batching=self._batching(samples),
            )
        for number, output in outputs:
            texts = [decoded(tokens) for tokens in output.tokens[:samples]]
            scores = [] if isinstance(method, beam_search.Beam) else output.scores
            yield number, Prediction(texts, output.ended[:samples], output.non_finite, scores)

    def score(
        self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]], ended: bool = False
    ) -> list[np.ndarray]:
        """For each prompt, the log-probability (f64[O], natural logarithm) of each of its options as a continuation;
        with `ended`, followed by the end of sequence."""
        end = [self.vocabulary.eos_id] if ended else []
        encoded = [[[*self.vocabulary.encode(option), *end] for option in each] for each in options]
        return loglikelihood.score(self.model, self.params, prompts, encoded, batching=self._batching())

    def score_tokens(
        self, prompts: Sequence[Prompt], options: Sequence[Sequence[Prompt]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """`score` for tokenized options, and whether greedy decoding would produce each (bool[O])."""
        return loglikelihood.score_and_match(self.model, self.params, prompts, options, batching=self._batching())

    def _batching(self, parallel: int = 1) -> Batching:
        """Batching for `parallel` samples or beams per prompt: fewer prompts if each has many."""
        size = self.batch_size if parallel == 1 else max(8, self.batch_size // parallel)
        return Batching(size, bucket_lengths(self.lengths["inputs"]), device_put=self.device_put)

    def device_put(self, array: np.ndarray) -> jax.Array:
        """Places a batch, its rows split over the data axis of the parameters' mesh if divisible by it, else
        replicated."""
        coordination.count_batch()
        sharding = getattr(jax.tree.leaves(self.params)[0], "sharding", None)
        if not isinstance(sharding, jax.sharding.NamedSharding):
            return jax.numpy.asarray(array)
        data = sharding.mesh.shape.get("data", 1)
        over = ("data",) if data > 1 and array.shape[0] % data == 0 else ()
        return jax.device_put(array, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*over)))
