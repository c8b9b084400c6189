"""Decoding over the Model protocol: prefill, then cached steps under jit; greedy, sampling, n samples per prompt.

Letters: B rows (prompts in flight), n concurrent samples per prompt, S prompt length, M maximum new tokens, V
vocabulary.

The cache is a pytree with B on axis 0; n samples share one encoding of their prompt, saving both memory and time
(`flanx/decoding/kv_cache.py`).

What is sampled for a prompt depends only on (prompt, seed, sample number), never on its row, batch, bucket or mesh.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flanx.decoding import kv_cache, largest, row_block
from flanx.decoding import prefix as prefixes
from flanx.decoding.length_buckets import DEFAULT_BATCHING, Batching, Prompt, pad_rows, rows_of
from flanx.decoding.slot import Decided, Output, Slots, Stop, lanes_of
from flanx.decoding.state import State, advance_rows, start_rows
from flanx.errors import UserError
from flanx.models import Model, Params

STOP_PERIOD = 8  # steps between checks for stop texts and for lanes free to take another sample


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sample:
    """How the next token is sampled. temperature 0 is greedy; top_k 0 and top_p 1 keep the whole vocabulary."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"{self}: needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1")

    @property
    def draws(self) -> bool:
        return self.temperature > 0

    def pick(self, logits: jax.Array, keys: jax.Array) -> jax.Array:
        if self.temperature == 0:
            return largest.argmax(logits)
        width = self.top_k if 0 < self.top_k < logits.shape[-1] else logits.shape[-1]
        if width == logits.shape[-1] and self.top_p == 1:
            values, tokens = logits / self.temperature, None
        else:  # sorted by descending probability, for nucleus sampling
            values, tokens = largest.top_k(logits / self.temperature, width)
        if self.top_p < 1:  # keep tokens until the nucleus is full; the first is always kept
            share = jax.nn.softmax(values, axis=-1)
            values = jnp.where(jnp.cumsum(share, axis=-1) - share < self.top_p, values, -jnp.inf)
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (values.shape[-1],))))(keys)
        choice = largest.argmax(values + noise)
        if tokens is None:
            return choice
        return jnp.take_along_axis(tokens, choice[..., None], axis=-1)[..., 0].astype(jnp.int32)


GREEDY = Sample()


def prompt_key(prompt: Prompt, seed: int) -> np.ndarray:
    """u32[2] derived from the prompt's tokens and the seed."""
    digest = hashlib.sha256(np.asarray([seed, *prompt], np.int64).tobytes()).digest()
    return np.frombuffer(digest[:8], "<u4")


def stream(
    model: Model,
    params: Params,
    prompts: Sequence[Prompt],
    *,
    max_new: int,
    method: Sample = GREEDY,
    samples: int = 1,
    seed: int = 0,
    eos_id: int = 1,
    stop: Stop | None = None,
    decided: Decided | None = None,
    scored: bool = False,
    batching: Batching = DEFAULT_BATCHING,
) -> Iterator[tuple[int, Output]]:
    """Decodes every prompt and yields (prompt number, Output) as prompts finish, in no particular order.

    Args:
      prompts: token lists as the model expects them (with an end-of-sequence token if it was trained with one).
      max_new: maximum number of new tokens, end-of-sequence included.
      stop: whether the output so far contains a stop text; an output is cut to its shortest prefix that does.
      decided: called when samples of a prompt finish; True: it needs no more, and its output has only those.
      scored: whether outputs carry the log-probabilities of their samples.
    """
    shared = kv_cache.shared_leaves(model, params, max_new) if samples > 1 else ()
    advance = functools.partial(advance_rows, model, params, method=method, eos_id=eos_id, shared=shared)
    lanes = lanes_of(samples) if row_block.on_one_cpu() else samples
    steps = np.int32(STOP_PERIOD if stop or decided or lanes < samples else max_new)

    def start(group: prefixes.Group, known: Any, length: int, places: Sequence[int], rows: int) -> State:
        numbers = [group.numbers[place] for place in places]
        keys = np.zeros((rows, 2), np.uint32)
        keys[: len(numbers)] = [prompt_key(prompts[number], seed) for number in numbers]
        numbered = np.broadcast_to(np.arange(lanes, dtype=np.int32), (rows, lanes))
        rest = [prompts[number][len(group.prefix) :] for number in numbers]
        arrays = pad_rows(rest, rows, length), keys, np.arange(rows) < len(numbers), numbered
        placed = map(batching.device_put, arrays)
        kept = {"scored": scored, "restarts": lanes < samples}
        return start_rows(model, params, *placed, max_new=max_new, shared=shared, prefix=known, **kept)

    for group in prefixes.groups_of(model, prompts):
        known = prefixes.read(model, params, group.prefix, batching.device_put)
        rest = [prompts[number][len(group.prefix) :] for number in group.numbers]
        for length, places in batching.buckets(rest).items():
            rows = rows_of(len(places), batching.size * samples // lanes, length)
            refill = batching.refill or (max(rows // 4, 1) if max_new >= 64 else rows)
            begin = functools.partial(start, group, known, length)
            of_group = functools.partial(_of_group, decided, group.numbers) if decided else None
            slots = Slots(begin, places, rows, min(refill, rows), shared, samples, of_group)
            while slots.busy:
                slots.state = advance(slots.state, np.int32(slots.until), steps)
                for place, output in slots.free(eos_id, stop, batching.device_put):
                    yield group.numbers[place], output
                slots.fill()


def _of_group(
    decided: Decided, numbers: Sequence[int], place: int, samples: Mapping[int, tuple[list[int], bool]]
) -> bool:
    return decided(numbers[place], samples)


def generate(model: Model, params: Params, prompts: Sequence[Prompt], **options: Any) -> list[Output]:
    """`stream`, collected in prompt order."""
    outputs = dict(stream(model, params, prompts, **options))
    return [outputs[number] for number in range(len(prompts))]
