"""Evaluations of a model that repeats its prompt, on our sample data."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from flanx.data import vocabulary
from flanx.evals import registry
from flanx.evaluate import evaluate

BYTES = vocabulary.load("byte")
LENGTHS = {"inputs": 400, "targets": 24}


@dataclasses.dataclass(frozen=True)
class Echo:
    """A model that says its prompt again from the first capital letter of the last line on; "~" makes it fail."""

    vocab_size: int = 259
    packing: str = "encoder_decoder"
    shares_prefix: bool = False

    def prefill(self, params: Any, inputs: jax.Array, max_new: int) -> tuple[Any, jax.Array]:
        length = (inputs > 0).sum(axis=1)
        start = jnp.maximum(length - 9, 0)
        return {"inputs": inputs, "at": start}, jnp.zeros_like(length)

    def decode_step(self, params: Any, cache: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        said = jnp.take_along_axis(cache["inputs"], cache["at"][:, None], axis=1)[:, 0]
        logits = 9.0 * jax.nn.one_hot(said, self.vocab_size) * params["scale"]
        broken = (cache["inputs"] == ord("~") + 3).any(axis=1)
        return jnp.where(broken[:, None], jnp.nan, logits), cache | {"at": cache["at"] + 1}


def score(out: pathlib.Path, *names: str, scale: float = 1.0, **options: Any) -> dict[str, Any]:
    """Evaluates the echo on our samples."""
    given = {"data_dir": registry.SAMPLE, "vocabulary": BYTES, "lengths": LENGTHS, "batch_size": 16} | options
    return evaluate(
        model=Echo(), params={"scale": jnp.float32(scale)}, suites=names or ("gsm8k_zero_shot",), out_dir=out, **given
    )


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
