"""Greedy decoding with CTranslate2, in float32 or int8 on a CPU, in place of flanx's own decoding.

XLA's CPU backend has no fast matmul below float32 (docs/performance.md); CTranslate2's libraries have int8. Prompts,
lengths and texts are handled by flanx: CTranslate2 receives and returns ids.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from flanx import convert
from flanx.convert import ctranslate2_model
from flanx.convert.formats import fitted
from flanx.convert.lazy_tensor import flatten
from flanx.decoding import beam_search, decode, row_block
from flanx.decoding.length_buckets import Prompt
from flanx.errors import UserError
from flanx.partition import Partitioner
from flanx.predictor import Prediction, Predictor

ComputeType = Literal["float32", "int8"]
MOST_ROWS = 16  # decoded together: more are slower on a CPU (docs/performance.md)


@dataclasses.dataclass(frozen=True)
class CTranslate2Predictor(Predictor):
    """A T5 in CTranslate2. `params` stays None: the parameters are in the cache, see `ctranslate2_model.cached`.

    Attributes:
      compute_type: of the matmuls: "float32", or "int8" with weights and activations quantized per row.

    Raises:
      UserError: if CTranslate2 is not installed or does not support the model.
    """

    compute_type: ComputeType = "float32"
    translator: Any = None
    parameters: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        model = ctranslate2_model.expect_supported(self.model)
        if model.dtype != "float32":
            raise UserError(
                f"ENGINE is 'ctranslate2', which has no {model.dtype} on a CPU: set ACTIVATION_DTYPE to 'float32', "
                "and COMPUTE_TYPE to 'int8' for products of 8 bits"
            )

    def expect(self, method: decode.Sample | beam_search.Beam, samples: int, scored: bool = False) -> None:
        """Raises UserError for anything but one greedy answer per prompt."""
        if method != decode.GREEDY or samples > 1 or scored:
            what = "scores of texts" if scored else f"{samples} samples" if samples > 1 else repr(method)
            raise UserError(
                f"ENGINE is 'ctranslate2', which only decodes greedily, not with {what}: its draws, beams and scores "
                "are not flanx's; set TEMPERATURE = 0 and SAMPLES = 1, or ENGINE = 'flanx'"
            )

    @contextlib.contextmanager
    def restored(self, checkpoint: str | None, partitioner: Partitioner) -> Iterator["CTranslate2Predictor"]:
        """This predictor with the parameters of a checkpoint of any format, in CTranslate2."""
        if not checkpoint:
            raise UserError("no checkpoint: give a run, a step folder of a run or a converted checkpoint")
        if partitioner.num_partitions not in (1, "auto") or jax.process_count() > 1:
            raise UserError(
                "ENGINE is 'ctranslate2', which computes on one CPU in one process: leave out NUM_PARTITIONS and the "
                "flags of several processes"
            )
        model = dataclasses.replace(ctranslate2_model.expect_supported(self.model), scan_layers=False)
        convert.expect_model(checkpoint, model)
        wanted = flatten(jax.eval_shape(lambda key: nn.unbox(model.init(key)), jax.random.key(0)))
        params = fitted(convert.open_checkpoint(checkpoint, optimizer=False), wanted)
        folder, mark = ctranslate2_model.cached(params, model, self.vocabulary.eos_id, self.compute_type)
        yield dataclasses.replace(self, translator=translator(folder, self.compute_type), parameters=mark[:16])

    def fingerprint(self) -> str | None:
        """16 hex digits that identify the parameters."""
        return self.parameters

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
        """See `Predictor.generate`; from the shortest prompt to the longest, greedy, without stop texts."""
        self.expect(method, samples, scored)
        if stop or decided:
            raise UserError("ENGINE is 'ctranslate2', which has no stop texts: use ENGINE = 'flanx'")
        longest = self.lengths["targets"] if max_new is None else min(max_new, self.lengths["targets"])
        eos = self.vocabulary.eos_id
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        rows = min(self.batch_size, MOST_ROWS)
        for first in range(0, len(order), rows):
            numbers = order[first : first + rows]
            group = [prompts[number] for number in numbers]
            found = translate(
                self.translator, group, longest, min_decoding_length=0, return_end_token=True, return_scores=True
            )
            for number, result in zip(numbers, found, strict=True):
                tokens = list(map(int, result.hypotheses[0]))
                ended = tokens[-1:] == [eos]
                text = self.vocabulary.decode(tokens[:-1] if ended else tokens)
                yield number, Prediction([text], [ended], not math.isfinite(result.scores[0]))

    def score(
        self, prompts: Sequence[Prompt], options: Sequence[Sequence[str]], ended: bool = False
    ) -> list[np.ndarray]:
        """Raises UserError: it gives none."""
        raise UserError("ENGINE is 'ctranslate2', which gives no log-probabilities: use ENGINE = 'flanx'")

    def score_tokens(
        self, prompts: Sequence[Prompt], options: Sequence[Sequence[Prompt]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Raises UserError: it gives none."""
        raise UserError("ENGINE is 'ctranslate2', which gives no log-probabilities: use ENGINE = 'flanx'")


def translator(folder: Path, compute_type: ComputeType) -> Any:
    """CTranslate2's `Translator` for the output of `ctranslate2_model.write`, on this process's cores."""
    import ctranslate2  # noqa: PLC0415  the extra `ctranslate2`

    return ctranslate2.Translator(
        str(folder), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=row_block.cores()
    )


def translate(translator: Any, prompts: Sequence[Prompt], max_new: int, **options: Any) -> list[Any]:
    """CTranslate2's result for each prompt, decoded greedily in one batch; at most `max_new` new tokens, including the
    end; `options` are those of its `translate_batch`."""
    return translator.translate_batch(
        [list(map(str, prompt)) for prompt in prompts],
        beam_size=1,
        max_decoding_length=max_new,
        max_input_length=0,  # unlimited
        **options,
    )
