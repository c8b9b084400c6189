"""One model for many clients: a thread that batches their requests and streams tokens as they are decoded.

    with Engine(model.predictor, model.partitioner.scope) as engine:
        for piece in engine.stream(engine.request("Is the sea salty?")):
            print(piece.text, end="")

A request takes a row in the pool for its prompt length as soon as one is free, and decodes alongside the others,
whatever their settings. Greedy answers equal those of `flanx infer`, as do sampled ones with the same seed: an answer
depends on (prompt, method, seed, sample index) and not on other requests.
"""

import collections
import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, NamedTuple, Self

from flanx.ask.text_stream import TextStream
from flanx.data.task.row import BadRow, whole
from flanx.decoding.decode import GREEDY, Sample
from flanx.decoding.length_buckets import FULL_LENGTH, SHORTEST, bucket_lengths
from flanx.decoding.slot_pool import Progress, SlotPool
from flanx.errors import UserError
from flanx.predictor import Predictor

ROWS = 8  # requests with short prompts that decode together
WAITING = 256  # samples that may wait for a row
SECONDS = 120.0  # timeout of a request, from its arrival
PACE = 0.1  # seconds between checks for decoded tokens, unless a token takes longer


class Piece(NamedTuple):
    """A new piece of an answer.

    Attributes:
      sample: the index of the sample; text: what follows the text so far.
      finish: None while more may come; "stop": it ended by itself or at a stop text; "length": it was truncated.
      tokens: number of tokens in the answer so far.
    """

    sample: int
    text: str
    finish: Literal["stop", "length"] | None
    tokens: int


class Failure(Exception):
    """Why there is no (further) answer; `kind`: its category."""

    def __init__(self, kind: Literal["busy", "timeout", "closed", "error"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


Deliver = Callable[[Piece | Failure], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt's tokens, including end of sequence, and how to answer it (made by `Engine.request`)."""

    tokens: tuple[int, ...]
    method: Sample
    max_new: int
    stop: tuple[str, ...]
    seed: int
    samples: int


class Answer:
    """A request in progress."""

    def __init__(self, request: Request, deliver: Deliver, deadline: float) -> None:
        self.request, self.deadline = request, deadline
        self._deliver = deliver
        self.is_over = False

    def cancel(self) -> None:
        """Abandons the request: its rows go to others, and nothing more is delivered, not even an error."""
        self.is_over = True

    def deliver(self, event: Piece | Failure) -> None:
        """Delivers a piece, or a failure, which ends the answer."""
        if not self.is_over:
            self.is_over = isinstance(event, Failure)
            self._deliver(event)


class _Sequence:
    """One sample of an answer."""

    def __init__(self, answer: Answer, sample: int, length: int, text: TextStream) -> None:
        self.answer, self.sample, self.length = answer, sample, length
        self._text = text

    @property
    def is_new(self) -> bool:
        return not self._text.count

    def take(self, progress: Progress) -> bool:
        """Delivers what is new; returns whether the sample is complete."""
        if progress.non_finite:
            self.answer.deliver(Failure("error", "the logits hold a NaN or an infinity; the checkpoint is damaged"))
            return True
        most = self.answer.request.max_new
        tokens, is_cut = progress.tokens[:most], len(progress.tokens) >= most
        is_last = progress.done or is_cut
        text = self._text.feed(tokens, is_last)
        has_ended = self._text.stopped or (progress.ended and not is_cut)
        finish: Any = "stop" if has_ended else "length" if is_last else None
        if text or finish:
            self.answer.deliver(Piece(self.sample, text, finish, self._text.count))
        return finish is not None


class Engine:
    """The thread that decodes, inside `scope`, that of the parameters' mesh.

    Attributes:
      predictor: model, vocabulary and lengths; answers have at most lengths["targets"] tokens.
    """

    def __init__(
        self,
        predictor: Predictor,
        scope: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        *,
        rows: int = ROWS,
        waiting: int = WAITING,
        seconds: float = SECONDS,
    ) -> None:
        """`rows`: prompts of up to 512 tokens decoded together, fewer for longer ones; `waiting`: queue capacity in
        samples; `seconds`: timeout per request."""
        self.predictor = predictor
        self._scope, self._most, self._seconds = scope, waiting, seconds
        self._pools = {
            length: SlotPool(
                predictor.model,
                predictor.params,
                rows=max(1, min(rows, rows * FULL_LENGTH // length)),
                lengths=lengths,
                max_new=predictor.lengths["targets"],
                eos_id=predictor.vocabulary.eos_id,
                device_put=predictor.device_put,
            )
            for length, lengths in pool_lengths(predictor.lengths["inputs"]).items()
        }
        self._pace = dict.fromkeys(self._pools, 1)  # steps between checks
        self._rows: dict[tuple[int, int], _Sequence] = {}  # by (pool, row); used only by the thread
        self._waiting: collections.deque[_Sequence] = collections.deque()
        self._changed = threading.Condition()  # guards _waiting and _ended
        self._ended: Failure | None = None
        self._is_warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flanx ask", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- called by other threads -------------------------------------------------------------------------------------

    def request(
        self,
        prompt: str,
        method: Sample = GREEDY,
        *,
        max_new: int | None = None,
        stop: tuple[str, ...] = (),
        seed: int = 0,
        samples: int = 1,
    ) -> Request:
        """A request for a prompt. Raises UserError for an empty or too long prompt, and for invalid settings."""
        longest = self.predictor.lengths
        if not prompt.strip():
            raise UserError("the prompt is empty: write something")
        try:
            tokens = (*self.predictor.vocabulary.encode(whole(prompt)), self.predictor.vocabulary.eos_id)
        except BadRow as error:
            raise UserError(f"the prompt: {error}") from None
        if len(tokens) > longest["inputs"]:
            raise UserError(
                f"the prompt has {len(tokens):,} tokens, the longest has {longest['inputs']:,}: shorten it, or leave "
                "earlier turns out"
            )
        if max_new is not None and not 1 <= max_new <= longest["targets"]:
            raise UserError(f"{max_new:,} new tokens are asked for; an answer has 1 to {longest['targets']:,}")
        if samples > 1 and not method.draws:
            raise UserError(f"{samples} samples at temperature 0 are all the same: give a temperature")
        if not all(stop):
            raise UserError("a stop text is empty, and every answer begins with that: leave it out")
        return Request(tokens, method, max_new or longest["targets"], tuple(stop), seed, samples)

    def submit(self, request: Request, deliver: Deliver) -> Answer:
        """Queues a request. `deliver` is called in the engine's thread: with pieces until every sample is complete, or
        with one Failure. Raises Failure if the queue is full or the engine has ended."""
        vocabulary = self.predictor.vocabulary
        answer = Answer(request, deliver, time.monotonic() + self._seconds)
        length = next(length for length in self._pools if length >= len(request.tokens))
        samples = [
            _Sequence(answer, n, length, TextStream(vocabulary.decode, request.stop, vocabulary.line_break))
            for n in range(request.samples)
        ]
        with self._changed:
            if self._ended:
                raise self._ended
            if len(self._waiting) + len(samples) > self._most:
                raise Failure("busy", f"{len(self._waiting)} answers are waiting: try again in a while")
            self._waiting += samples
            self._changed.notify()
        return answer

    def stream(self, request: Request) -> Generator[Piece, None, None]:
        """The pieces of an answer; closing the generator cancels the rest. Raises Failure."""
        events: queue.SimpleQueue[Piece | Failure] = queue.SimpleQueue()
        answer, left = self.submit(request, events.put), request.samples
        try:
            while left:
                event = events.get()
                if isinstance(event, Failure):
                    raise event
                left -= event.finish is not None
                yield event
        finally:
            answer.cancel()

    def warm(self) -> None:
        """Waits until the programs for all lengths are compiled. Raises Failure if that fails."""
        self._is_warm.wait()
        if self._ended:
            raise self._ended

    def close(self) -> None:
        """Ends the thread; pending requests get a Failure."""
        self._end(Failure("closed", "the server is stopping"))
        self._thread.join()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        cold = [(pool, length) for pool in self._pools.values() for length in pool.lengths]
        try:
            with self._scope():
                while self._has_work(cold):
                    if cold and not (self._waiting or self._rows):
                        self._compile(*cold.pop(0))
                        if not cold:
                            self._is_warm.set()
                    self._drop()
                    self._fill()
                    for length, pool in self._pools.items():
                        if pool.is_busy:
                            self._step(length, pool)
        except Exception as error:  # any device error: nobody should wait for an answer that cannot come
            text = (str(error).strip().splitlines() or [""])[0][:300]
            self._end(Failure("error", f"decoding failed, start the command again ({type(error).__name__}: {text})"))
        finally:
            for sequence in (*self._waiting, *self._rows.values()):
                sequence.answer.deliver(self._ended or Failure("closed", "the server has stopped"))
            self._is_warm.set()

    def _end(self, why: Failure) -> None:
        with self._changed:
            self._ended = self._ended or why
            self._changed.notify()

    def _has_work(self, cold: Sequence[object]) -> bool:
        """Waits for something to do; False means the engine has ended."""
        with self._changed:
            while not (self._ended or self._waiting or self._rows or cold):
                self._changed.wait()
            return self._ended is None

    def _compile(self, pool: SlotPool, length: int) -> None:
        row = pool.add((self.predictor.vocabulary.eos_id,) * length, GREEDY)
        pool.step(1)
        pool.release([row])

    def _drop(self) -> None:
        """Times out slow requests, and frees the rows of abandoned ones."""
        now = time.monotonic()
        with self._changed:
            waiting = list(self._waiting)
        for sequence in (*waiting, *self._rows.values()):
            if now > sequence.answer.deadline:
                sequence.answer.deliver(Failure("timeout", f"no end after {self._seconds:g} seconds"))
        with self._changed:
            self._waiting = collections.deque(each for each in self._waiting if not each.answer.is_over)
        self._release([place for place, sequence in self._rows.items() if sequence.answer.is_over])

    def _release(self, places: list[tuple[int, int]]) -> None:
        for place in places:
            del self._rows[place]
        for length, of_pool in itertools.groupby(sorted(places), key=lambda place: place[0]):
            self._pools[length].release([row for _, row in of_pool])

    def _fill(self) -> None:
        """Gives free rows to waiting samples, in order."""
        for length, pool in self._pools.items():
            while pool.has_room and (sequence := self._next(length)):
                asked = sequence.answer.request
                row = pool.add(asked.tokens, asked.method, asked.seed, sequence.sample)
                self._rows[length, row] = sequence

    def _next(self, length: int) -> _Sequence | None:
        with self._changed:
            found = next((each for each in self._waiting if each.length == length), None)
            if found:
                self._waiting.remove(found)
            return found

    def _step(self, length: int, pool: SlotPool) -> None:
        """Decodes and delivers: after one step if a first token is awaited, else at the pace."""
        is_new = any(each.is_new for (its_length, _), each in self._rows.items() if its_length == length)
        steps = 1 if is_new else self._pace[length]
        began = time.monotonic()
        found = pool.step(steps)
        self._pace[length] = max(1, min(8, int(PACE * steps / max(time.monotonic() - began, 1e-6))))
        self._release([(length, row) for row, progress in found.items() if self._rows[length, row].take(progress)])


def pool_lengths(longest: int) -> dict[int, tuple[int, ...]]:
    """{longest prompt of a pool: the lengths that prompts are padded to}: pools grow fourfold from 128, so that many
    requests decode together, with two lengths per octave, since encoding padding delays the first token."""
    below = itertools.takewhile(lambda length: length < longest, (SHORTEST << 2 * n for n in itertools.count()))
    found: dict[int, tuple[int, ...]] = {}
    shorter = 0
    for length in (*below, longest):
        found[length] = tuple(each for each in bucket_lengths(length, parts=2) if each > shorter)
        shorter = length
    return found
