"""Compares the logits of flanx and transformers for the same checkpoint on fixed prompts."""

import dataclasses
import importlib.util
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flanx.convert import hf
from flanx.convert.formats import OpenCheckpoint
from flanx.convert.lazy_tensor import nest, parameters
from flanx.convert.t5_shapes import T5Sizes
from flanx.errors import UserError
from flanx.models import t5
from flanx.storage import Storage

GOLDEN = "parity.npz"  # prompts and transformers' logits, kept next to a result for machines without transformers
TOLERANCE = 1e-4  # of the largest |logit|: float32 sums reorder; a wrong transpose or scale gives about 1
_LENGTHS = ((24, 10), (17, 7), (24, 3), (5, 10))  # (inputs, targets) of each prompt; unequal, so that masks matter


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far apart two sets of logits are, over the positions that hold targets.

    Attributes:
      difference: max |a - b|.
      largest: max |b|.
      agreement: share of positions with the same argmax.
      reference: where b came from.
    """

    difference: float
    largest: float
    agreement: float
    reference: str

    @property
    def holds(self) -> bool:
        """Whether the two are equal up to the order of sums. A value that is not finite is never equal."""
        return self.difference <= TOLERANCE * max(1.0, self.largest) and self.agreement == 1.0

    def __str__(self) -> str:
        verdict = "the same" if self.holds else "NOT the same"
        return (
            f"logits against {self.reference}: max |difference| {self.difference:.3g}, max |logit| {self.largest:.3g}, "
            f"argmax agreement {self.agreement:.2%}: {verdict}"
        )


def prompts(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Fixed inputs [prompts, 24] and targets [prompts, 10], int32, padded with 0, spread over the vocabulary."""
    rows, width = len(_LENGTHS), max(n for n, _ in _LENGTHS)
    ids = (7919 * np.arange(1, rows * width * 2 + 1) % (vocab_size - 3) + 3).astype(np.int32).reshape(2, rows, width)
    inputs, targets = ids[0], ids[1, :, : max(n for _, n in _LENGTHS)]
    for row, (inputs_length, targets_length) in enumerate(_LENGTHS):
        inputs[row, inputs_length - 1], inputs[row, inputs_length:] = 1, 0  # EOS, padding
        targets[row, targets_length:] = 0
    return inputs, targets


def shifted(targets: np.ndarray) -> np.ndarray:
    """Decoder inputs: 0, then all targets but the last."""
    return np.pad(targets, ((0, 0), (1, 0)))[:, :-1]


def model(sizes: T5Sizes, config: dict[str, Any]) -> t5.T5:
    """flanx's T5 of these sizes; `config` is Hugging Face's config.json as far as known."""
    if sizes.num_buckets != 32:
        raise UserError("flanx's T5 has 32 relative-position buckets up to distance 128; this checkpoint has others")
    activations = hf.ACTIVATIONS[config.get("feed_forward_proj", "gated-gelu" if sizes.gated else "relu")]
    return dataclasses.replace(sizes.model(activations), decoder_start_token_id=hf.start_token(config))


def flanx_logits(
    checkpoint: OpenCheckpoint, config: dict[str, Any], inputs: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Logits of flanx's T5, float32 [prompts, targets, vocab]."""
    params = nest({name: tensor.read().astype(np.float32) for name, tensor in parameters(checkpoint.tensors).items()})
    batch = {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": (inputs > 0).astype(np.int32),
        "decoder_input_tokens": shifted(targets),
        "decoder_segment_ids": (targets > 0).astype(np.int32),
    }
    with jax.default_matmul_precision("float32"):
        return np.asarray(jax.jit(model(checkpoint.t5_sizes(), config).logits)(params, batch))


def has_transformers() -> bool:
    """Whether transformers and torch are installed (extra `hf`)."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def transformers_logits(folder: Path, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Logits of transformers' model in `folder`, whose config.json names the first decoder token."""
    import torch  # noqa: PLC0415  the extra `hf`
    import transformers  # noqa: PLC0415

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it warns about every untied head, such as T5.1.1's
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, teacher = torch.from_numpy(inputs).long(), torch.from_numpy(shifted(targets)).long()
    teacher[:, 0] = reference.config.decoder_start_token_id or 0
    with torch.no_grad():
        result = reference(input_ids=tokens, attention_mask=(tokens > 0).long(), decoder_input_ids=teacher)
    return result.logits.float().numpy()


def compare(ours: np.ndarray, theirs: np.ndarray, targets: np.ndarray, reference: str) -> Parity:
    """Compares logits at the target positions."""
    if ours.shape != theirs.shape:
        raise UserError(
            f"{reference}: logits {list(theirs.shape)}, flanx has {list(ours.shape)}; it belongs to another checkpoint"
        )
    ours, theirs = ours[targets > 0], theirs[targets > 0]
    agreement = float(np.mean(ours.argmax(-1) == theirs.argmax(-1)))
    return Parity(float(np.max(np.abs(ours - theirs))), float(np.max(np.abs(theirs))), agreement, reference)


def expect_reference(golden: Storage) -> None:
    """Raises UserError if there is nothing to compare with: neither transformers nor the file `golden`."""
    if not has_transformers() and golden.name not in golden.parent.children():
        raise UserError(
            f"--verify needs transformers (pip install 'flanx[hf]'), or a golden that a conversion left on a machine "
            f"that has it: no file {golden}"
        )


def verify(written: OpenCheckpoint, folder: Path, config: dict[str, Any], golden: Storage) -> tuple[Parity, dict]:
    """Compares flanx on `written` with transformers on `folder`, or with the file `golden` if that is not installed.

    Returns the parity, and what to keep as a golden: inputs, targets, logits (empty if a golden was read).
    """
    if has_transformers():
        inputs, targets = prompts(written.t5_sizes().vocab_size)
        theirs = transformers_logits(folder, inputs, targets)
        kept = {"inputs": inputs, "targets": targets, "logits": theirs}
        return compare(flanx_logits(written, config, inputs, targets), theirs, targets, "transformers"), kept
    try:
        with np.load(io.BytesIO(golden.parent.read(golden.name))) as file:
            inputs, targets, theirs = file["inputs"], file["targets"], file["logits"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{golden} is not a golden of --verify ({error}); give another with --golden") from error
    return compare(flanx_logits(written, config, inputs, targets), theirs, targets, str(golden)), {}
