"""flanx as a model of lm-evaluation-harness (extra `lm-eval`): its tasks, prompts and metrics over our decoding.

    python -m flanx.lm_eval --model flanx --model_args checkpoint=out/my_run --tasks gsm8k --limit 20
    lm_eval --model flanx --model_args checkpoint=out/my_run --tasks gsm8k --limit 20

The second needs a release of lm-eval that discovers models of installed packages (entry point `lm_eval.models`); 0.4.13
does not. The first registers the model and then runs `lm_eval` itself. `flanx.evals.families.lm_eval` is the reverse: a
task of lm-eval as a suite.
"""

import dataclasses
import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import flanx
from flanx import api
from flanx.decoding import beam_search, decode
from flanx.errors import UserError
from flanx.evals.families import lm_eval

try:
    from lm_eval.api.model import LM
except ImportError:  # the extra `lm-eval`; the class says so when it is instantiated
    LM: Any = object  # type: ignore[no-redef]

NAME = "flanx"
INSTALL = "lm-eval is not installed: pip install 'flanx[lm-eval]'"
CLASSES = (1, 16, 64, 256)  # tokens in a continuation: those of one class are scored together


class FlanxLM(LM):
    """What lm-eval requires of a model: log-likelihoods of continuations, and texts up to a stop text.

    A prompt ends with the end of sequence, as in training; one that is too long is truncated at its beginning.

    Args:
      checkpoint, partitions, dtype, vocabulary: as in `flanx.load`.
      max_length: tokens of the longest prompt; max_gen_toks: of an answer, if the task does not specify it.
      batch_size: prompts per batch; "auto" and None: 64.
      max_batch_size, device: always passed by lm-eval, "cuda:0" on any machine; JAX_PLATFORMS selects the devices.
      seed: for sampling.

    Raises:
      UserError: for a checkpoint that cannot be loaded.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        vocabulary: str | None = None,
        partitions: int = 1,
        dtype: str | None = None,
        max_length: int = 2048,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        if LM is object:
            raise UserError(INSTALL)
        super().__init__()
        if not checkpoint:
            raise UserError("no checkpoint: --model_args checkpoint=out/my_run")
        size = 64 if batch_size in (None, "auto") else int(batch_size)  # type: ignore[arg-type]
        self.max_gen_toks = max_gen_toks
        lengths = {"inputs": max_length, "targets": max_gen_toks}
        self.loaded = api.load(checkpoint, vocabulary=vocabulary, partitions=partitions, dtype=dtype, lengths=lengths)
        self.predictor = dataclasses.replace(self.loaded.predictor, batch_size=size, seed=seed)
        self.batch_size = size

    # ---- scores ------------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether it is the greedy one) of each (context, continuation).

        The continuations of a context share its encoding.
        """
        encode = self.predictor.vocabulary.encode
        by_context: dict[str, dict[str, tuple[int, ...]]] = {}
        pairs = [_without_blanks_at_end(*request.args) for request in requests]
        for context, continuation in pairs:
            options = by_context.setdefault(context, {})
            options[continuation] = options.get(continuation) or tuple(encode(continuation))
        found: dict[tuple[str, str], tuple[float, bool]] = {}
        kinds: dict[tuple[int, int], list[str]] = {}
        for context, options in by_context.items():
            longest = max(map(len, options.values()))
            size = next((each for each in CLASSES if longest <= each), longest)
            kinds.setdefault((1 << (len(options) - 1).bit_length(), size), []).append(context)
        with self.loaded.partitioner.scope():
            for contexts in kinds.values():
                named = [{text: ids for text, ids in by_context[context].items() if ids} for context in contexts]
                asked = [(context, options) for context, options in zip(contexts, named, strict=True) if options]
                prompts = [self._prompt(context) for context, _ in asked]
                scores = self.predictor.score_tokens(prompts, [list(options.values()) for _, options in asked])
                for (context, options), (sums, greedy) in zip(asked, scores, strict=True):
                    for text, value, is_greedy in zip(options, sums, greedy, strict=True):
                        found[context, text] = (float(value), bool(is_greedy))
        results = [found.get(pair, (0.0, True)) for pair in pairs]  # an empty continuation is certain
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, in windows of max_length tokens, for a decoder-only model.

        Raises UserError for an encoder-decoder.
        """
        if self.predictor.model.packing != "decoder_only":
            raise UserError(
                "loglikelihood_rolling: an encoder-decoder gives the probability of a continuation, not of a whole "
                "text; take tasks with contexts, or a decoder-only model (PaLM)"
            )
        longest, results = self.predictor.lengths["inputs"], []
        for request in requests:
            tokens = self.predictor.vocabulary.encode(request.args[0])
            windows = [tokens[start : start + longest] for start in range(0, len(tokens), longest)]
            contexts = [tokens[max(0, start - 1) : start] for start in range(0, len(tokens), longest)]
            with self.loaded.partitioner.scope():
                scores = self.predictor.score_tokens(contexts, [[window] for window in windows]) if tokens else []
            results.append(float(sum(sums[0] for sums, _ in scores)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    # ---- texts -------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context up to its first stop text; equal sampled requests get different samples."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        results: dict[int, str] = {}
        for numbers in groups.values():
            asked = lm_eval.generation(requests[numbers[0]].args[1], self.max_gen_toks)
            method: decode.Sample | beam_search.Beam = decode.Sample(asked.temperature, asked.top_k, asked.top_p)
            if asked.beams:
                method = beam_search.Beam(asked.beams)
            same: dict[str, list[int]] = {}
            for number in numbers:
                same.setdefault(requests[number].args[0], []).append(number)
            draws = asked.temperature > 0
            counts: dict[int, list[str]] = {}
            for context, repeats in same.items():
                counts.setdefault(len(repeats) if draws else 1, []).append(context)
            for count, contexts in counts.items():
                texts = self._generate(contexts, asked.until, asked.longest, method, count)
                for context, each in zip(contexts, texts, strict=True):
                    repeats = same[context]
                    results |= dict(zip(repeats, each if draws else each * len(repeats), strict=True))
        ordered = [results[number] for number in range(len(requests))]
        for request, text in zip(requests, ordered, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return ordered

    def _generate(
        self,
        contexts: Sequence[str],
        until: Sequence[str],
        longest: int,
        method: decode.Sample | beam_search.Beam,
        samples: int,
    ) -> list[list[str]]:
        """`samples` texts for each context."""
        prompts = [self._prompt(context) for context in contexts]
        with self.loaded.partitioner.scope():
            return api.generate_texts(self.predictor, prompts, method, samples, longest, until)

    def _prompt(self, context: str) -> list[int]:
        """The last tokens of a context, with the end of sequence."""
        vocabulary, longest = self.predictor.vocabulary, self.predictor.lengths["inputs"]
        return [*vocabulary.encode(context)[-(longest - 1) :], vocabulary.eos_id]

    # ---- what lm-eval records ----------------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Raises UserError: flanx's models have no chat template."""
        raise UserError("flanx's models have no chat template: leave --apply_chat_template out")

    @property
    def tokenizer_name(self) -> str:
        """The vocabulary's fingerprint."""
        return self.predictor.vocabulary.fingerprint

    def get_model_info(self) -> dict[str, Any]:
        """The information that lm-eval writes with its results."""
        model = self.predictor.model
        record = {"model_num_parameters": model.num_params(), "model_dtype": getattr(model, "dtype", "")}
        return {**record, "flanx": flanx.__version__, "model_sha": self.loaded.source.get("revision", "")}


def _without_blanks_at_end(context: str, continuation: str) -> tuple[str, str]:
    """Moves trailing blanks of a context to its continuation, as lm-eval does for encoder-decoders."""
    kept = context.rstrip()
    return (kept, context[len(kept) :] + continuation) if kept else (context, continuation)


def main(argv: Iterable[str] | None = None) -> int:
    """Runs `lm_eval` with flanx among its models; returns its exit status, 2 for bad input."""
    if LM is object:
        print(f"flanx.lm_eval: {INSTALL}", file=sys.stderr)
        return 2
    importlib.import_module("lm_eval.models")  # fills the registry if it is empty
    from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415  (the extra `lm-eval`)
    from lm_eval.api.registry import model_registry  # noqa: PLC0415

    if NAME not in model_registry:
        model_registry.register(NAME, target=f"flanx.lm_eval:{FlanxLM.__name__}")
    if argv is not None:
        sys.argv = ["lm_eval", *argv]
    try:
        cli_evaluate()
    except UserError as error:
        print(f"flanx.lm_eval: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
