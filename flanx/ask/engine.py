"""One model for many who wait: a thread that batches their requests and hands out tokens as they come.

    with Engine(model.predictor, model.partitioner.scope) as engine:
        for piece in engine.stream(engine.request("Is the sea salty?")):
            print(piece.text, end="")

A request takes a row of the pool of its prompt's length as soon as one is free, and decodes there next to the others,
whatever their settings. A greedy answer is the one of `flanx infer`, and what is drawn is what it draws with that seed:
the answer depends on (prompt, method, seed, number of the sample) and on nobody else's request.
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

ROWS = 8  # requests of short prompts that decode together
WAITING = 256  # samples that may wait for a row
SECONDS = 120.0  # until a request is given up, from the moment it came
PACE = 0.1  # seconds between two looks at what has been decoded, if a token does not take longer


class Piece(NamedTuple):
    """Something new in an answer.

    Attributes:
      sample: which of the samples; text: what comes after the text so far.
      finish: None while more may come; "stop": it ended by itself or by a stop text; "length": it was cut.
      tokens: of the whole answer so far.
    """

    sample: int
    text: str
    finish: Literal["stop", "length"] | None
    tokens: int


class Failure(Exception):
    """Why there is no (further) answer; `kind`: of whom it is."""

    def __init__(self, kind: Literal["busy", "timeout", "closed", "error"], message: str) -> None:
        super().__init__(message)
        self.kind = kind


Deliver = Callable[[Piece | Failure], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked: a prompt's tokens, with the end of sequence, and how to answer it (`Engine.request` makes it)."""

    tokens: tuple[int, ...]
    method: Sample
    max_new: int
    stop: tuple[str, ...]
    seed: int
    samples: int


class Answer:
    """A request on its way."""

    def __init__(self, request: Request, deliver: Deliver, deadline: float) -> None:
        self.request, self.deadline = request, deadline
        self._deliver = deliver
        self.is_over = False

    def cancel(self) -> None:
        """Nobody waits any more: its rows are given to others. Nothing is delivered after it, nor is an error."""
        self.is_over = True

    def deliver(self, event: Piece | Failure) -> None:
        """Hands out a piece; or a failure, which is the last."""
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
        """Delivers what is new; whether that was all."""
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
    """The thread that decodes. `scope` is in force in it: that of the parameters' mesh.

    Attributes:
      predictor: model, vocabulary and lengths; the longest answer is lengths["targets"] tokens.
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
        """`rows`: prompts of up to 512 tokens decoded together, fewer of longer ones; `waiting`: samples in the queue;
        `seconds`: that a request may take."""
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
        self._pace = dict.fromkeys(self._pools, 1)  # steps between two looks
        self._rows: dict[tuple[int, int], _Sequence] = {}  # of (pool, row); the thread's own
        self._waiting: collections.deque[_Sequence] = collections.deque()
        self._changed = threading.Condition()  # of _waiting and _ended
        self._ended: Failure | None = None
        self._is_warm = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flanx ask", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what others call --------------------------------------------------------------------------------------------

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
        """A request for a prompt. Raises UserError for one that is empty or too long, and for what makes no sense."""
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
        """Puts a request in the queue. `deliver` is called in the thread: with pieces until each sample has had its
        last, or with one Failure. Raises Failure where the queue is full or the engine has ended."""
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
        """The pieces of an answer; what is left of it is cancelled where nobody takes them any more. Raises Failure."""
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
        """Waits until the programs of every length are compiled. Raises Failure where that failed."""
        self._is_warm.wait()
        if self._ended:
            raise self._ended

    def close(self) -> None:
        """Ends the thread; who still waits gets a Failure."""
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
        except Exception as error:  # whatever the device says: nobody may wait for an answer that cannot come
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
        """Waits for something to do; False: the end."""
        with self._changed:
            while not (self._ended or self._waiting or self._rows or cold):
                self._changed.wait()
            return self._ended is None

    def _compile(self, pool: SlotPool, length: int) -> None:
        row = pool.add((self.predictor.vocabulary.eos_id,) * length, GREEDY)
        pool.step(1)
        pool.release([row])

    def _drop(self) -> None:
        """Ends what takes too long, and frees the rows of what nobody waits for."""
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
        """Gives free rows to those who wait, in their order."""
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
        """Decodes, and delivers what came: after one step where somebody waits for a first token, else at the pace."""
        is_new = any(each.is_new for (its_length, _), each in self._rows.items() if its_length == length)
        steps = 1 if is_new else self._pace[length]
        began = time.monotonic()
        found = pool.step(steps)
        self._pace[length] = max(1, min(8, int(PACE * steps / max(time.monotonic() - began, 1e-6))))
        self._release([(length, row) for row, progress in found.items() if self._rows[length, row].take(progress)])


def pool_lengths(longest: int) -> dict[int, tuple[int, ...]]:
    """{prompts of a pool at most: the lengths that they are padded to}: pools from 128 on every fourfold, so that many
    decode together, and lengths of two to an octave, as encoding padding is what a first token waits for."""
    below = itertools.takewhile(lambda length: length < longest, (SHORTEST << 2 * n for n in itertools.count()))
    found: dict[int, tuple[int, ...]] = {}
    shorter = 0
    for length in (*below, longest):
        found[length] = tuple(each for each in bucket_lengths(length, parts=2) if each > shorter)
        shorter = length
    return found
