"""The rows of one batch, the prompts and samples that occupy them one after another, and their outputs.

Letters: B rows, n concurrent samples per prompt (its lanes), M maximum new tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flanx.decoding.length_buckets import DevicePut, fetch
from flanx.decoding.state import State, finish_samples, replace_rows, restart_samples

Stop = Callable[[list[int]], bool]
# (prompt number, {sample number: (its tokens, whether it ended)} of finished samples) -> whether the rest is not needed
Decided = Callable[[int, Mapping[int, tuple[list[int], bool]]], bool]


@dataclasses.dataclass(frozen=True)
class Output:
    """The result of one prompt.

    Attributes:
      tokens: the new tokens of each sample (or beam, best first), without end-of-sequence; for a prompt that was
        decided early, only of the samples finished by then, in their order.
      ended: whether each sample reached its end-of-sequence token or a stop text; False: truncated at max_new.
      non_finite: the logits contained a NaN or an infinity; the tokens are meaningless.
      scores: log-probabilities (natural logarithm): of beams, length-normalized; of samples, if requested, summed over
        the tokens, end-of-sequence included, at temperature 1 whatever the sampling temperature was.
    """

    tokens: list[list[int]]
    ended: list[bool]
    non_finite: bool = False
    scores: list[float] = dataclasses.field(default_factory=list)


class _Sample(NamedTuple):
    """A finished sample: its tokens, and the log-probability of each if requested."""

    tokens: list[int]
    logp: np.ndarray


class Slots:
    """The rows of one batch, the prompts that they decode, and those waiting for a free row.

    If a prompt has more samples than lanes, the next sample starts in a lane whose sample has ended.

    Attributes:
      prompt: the number of the prompt in each row; None: the row is free.
      state: the state of all rows, on the devices.
    """

    state: State

    def __init__(
        self,
        start: Callable[[Sequence[int], int], State],
        numbers: Sequence[int],
        rows: int,
        refill: int,
        shared: Any = (),
        samples: int = 1,
        decided: Decided | None = None,
    ):
        """Fills the first rows.

        Args:
          start: (prompt numbers, rows) -> the state of a batch of that many rows, with the prompts in the first ones.
          refill: how many rows must be free before waiting prompts take them.
          shared: which leaves of the cache a prompt's samples share.
          samples: samples per prompt; the lanes start with the first ones.
          decided: whether a prompt needs no samples beyond the finished ones.
        """
        self._start, self._refill, self._shared, self._samples = start, refill, shared, samples
        self._decided = decided
        self._waiting = list(reversed(numbers))
        self.prompt: list[int | None] = [None] * rows
        self._kept: list[dict[int, _Sample]] = [{} for _ in range(rows)]  # each row's finished samples, by number
        self._begun = [0] * rows
        self.fill()

    @property
    def busy(self) -> bool:
        """Whether any row is decoding a prompt."""
        return any(number is not None for number in self.prompt)

    @property
    def until(self) -> int:
        """How many rows must be free before the host has something to do."""
        return self._refill if self._waiting else len(self.prompt)

    def fill(self) -> None:
        """Assigns free rows to waiting prompts: all rows at once if all are free, else `refill` of them."""
        free, rows = [row for row, number in enumerate(self.prompt) if number is None], len(self.prompt)
        if not self._waiting or len(free) < self._refill:
            return
        count = rows if len(free) == rows else self._refill
        taken = free[: min(count, len(self._waiting))]
        for row in taken:
            self.prompt[row] = self._waiting.pop()
        new = self._start([number for row in taken if (number := self.prompt[row]) is not None], count)
        if count == rows:
            self.state = new
        else:
            places = np.asarray(taken + [rows] * (count - len(taken)), np.int32)
            self.state = replace_rows(self.state, new, places, shared=self._shared)
        for row in taken:
            self._kept[row], self._begun[row] = {}, self.state.sample.shape[1]

    def free(self, eos_id: int, stop: Stop | None, device_put: DevicePut) -> list[tuple[int, Output]]:
        """Frees rows that are done, at a stop text or otherwise, or decided; returns (prompt number, output) for each.
        Lanes that are done before their row take the next sample."""
        state = self.state
        arrays = state.done, state.out, state.length, state.non_finite, state.sample
        done, out, length, non_finite, sample = map(fetch, arrays)
        logp = fetch(state.logp) if state.logp.size else np.zeros(state.logp.shape)
        if stop and (stopped := _stopped(done, out, length, stop)).any():
            self.state, done = finish_samples(state, device_put(stopped)), done | stopped
        outputs: list[tuple[int, Output]] = []
        begins, ends, following = np.zeros_like(done), np.zeros_like(done), np.zeros_like(sample)
        for row, number in enumerate(self.prompt):
            if number is None:
                continue
            kept = self._kept[row]
            free = [lane for lane in np.flatnonzero(done[row]) if int(sample[row, lane]) not in kept]
            for lane in free:
                count = length[row, lane]
                tokens = out[row, lane, :count].tolist()
                kept[int(sample[row, lane])] = _Sample(tokens, logp[row, lane, :count].copy())
            names: Sequence[int] = range(self._samples)
            if free and not non_finite[row] and self._is_decided(number, kept, eos_id, stop):
                names, ends[row] = sorted(kept), True
            elif not non_finite[row]:
                for lane in free[: self._samples - self._begun[row]]:
                    begins[row, lane], following[row, lane] = True, self._begun[row]
                    self._begun[row] += 1
            if (done[row] | ends[row]).all() and not begins[row].any():
                whole = [kept.get(name, _Sample([], np.zeros(0))) for name in names]
                outputs.append((number, _output(whole, bool(non_finite[row]), eos_id, stop, logp.size > 0)))
                self.prompt[row] = None
        if (ends & ~done).any():
            self.state = finish_samples(self.state, device_put(ends))
        if begins.any():
            placed = device_put(begins), device_put(following)
            self.state = restart_samples(self.state, *placed, shared=self._shared)
        return outputs

    def _is_decided(self, number: int, kept: Mapping[int, _Sample], eos_id: int, stop: Stop | None) -> bool:
        """Whether a prompt's finished samples suffice, although others are not done."""
        if self._decided is None or len(kept) == self._samples:
            return False
        found = _output(list(kept.values()), False, eos_id, stop, False)
        return self._decided(number, dict(zip(kept, zip(found.tokens, found.ended, strict=True), strict=True)))


def _stopped(done: np.ndarray, out: np.ndarray, length: np.ndarray, stop: Stop) -> np.ndarray:
    """Which open samples, bool[B, n], contain a stop text."""
    stopped = np.zeros_like(done)
    for row, sample in np.argwhere(~done):
        stopped[row, sample] = stop(out[row, sample, : length[row, sample]].tolist())
    return stopped


def _output(kept: Sequence[_Sample], non_finite: bool, eos_id: int, stop: Stop | None, scored: bool) -> Output:
    """One prompt's samples, in their order, as token lists with the sums of their log-probabilities."""
    ended = [bool(each.tokens) and each.tokens[-1] == eos_id for each in kept]
    lists = [each.tokens[:-1] if end else each.tokens for each, end in zip(kept, ended, strict=True)]
    counted = [len(each.tokens) for each in kept]
    for i, tokens in enumerate(lists):
        if stop and stop(tokens):  # it may have tokens past the stop text
            lists[i] = next((tokens[:n] for n in range(len(tokens)) if stop(tokens[:n])), tokens)
            ended[i], counted[i] = True, len(lists[i])
    sums = (float(each.logp[:count].sum(dtype=np.float64)) for each, count in zip(kept, counted, strict=True))
    return Output(lists, ended, non_finite, list(sums) if scored else [])


def lanes_of(samples: int) -> int:
    """Concurrent samples per prompt where an idle lane costs as much as a busy one: half of them, at least eight, so
    that the shortest do not wait for the longest. With fewer, the matrix products of a step are too small."""
    return min(samples, max(8, -(-samples // 2)))
