"""Requests of many at once are answered as `flanx infer` answers each, and end when they should."""

import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flanx.ask.engine import Engine, Failure, Piece, pool_lengths
from flanx.decoding.decode import Sample
from flanx.decoding.slot_pool import SlotPool
from flanx.errors import UserError
from tests import ask_case
from tests.ask_case import PROMPTS


@functools.cache
def predictor() -> Any:
    return ask_case.model().predictor


def start(**options: Any) -> Engine:
    return Engine(options.pop("predictor", predictor()), ask_case.model().partitioner.scope, **options)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with start(rows=4) as one:
        yield one


class Inbox:
    """What is delivered for a request."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.failure: Failure | None = None
        self.has_come, self.is_done = threading.Event(), threading.Event()

    def __call__(self, event: Piece | Failure) -> None:
        if isinstance(event, Failure):
            self.failure = event
        else:
            self.pieces.append(event)
        self.has_come.set()
        if self.failure or self.pieces[-1].finish:
            self.is_done.set()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def texts(pieces: Sequence[Piece], samples: int = 1) -> list[str]:
    return ["".join(piece.text for piece in pieces if piece.sample == n) for n in range(samples)]


def test_a_crowd_gets_the_answers_that_each_would_get_alone(engine: Engine) -> None:
    inboxes = [Inbox() for _ in PROMPTS]
    for prompt, inbox in zip(PROMPTS, inboxes, strict=True):
        engine.submit(engine.request(prompt), inbox)
    assert all(inbox.is_done.wait(60) for inbox in inboxes)
    assert [inbox.text for inbox in inboxes] == list(ask_case.answers().values())
    ends = [inbox.pieces[-1] for inbox in inboxes]
    assert {end.finish for end in ends} == {"stop", "length"}
    for inbox, end in zip(inboxes, ends, strict=True):
        assert end.tokens == len(inbox.text) and (end.tokens == 24) == (end.finish == "length")
        assert len(inbox.pieces) > 1 or end.tokens < 8  # as it comes, not at its end


def test_what_is_drawn_is_what_infer_draws(engine: Engine) -> None:
    method = {name: value for name, value in ask_case.DRAWN.items() if name != "seed"}
    request = engine.request(PROMPTS[0], Sample(**method), samples=3, seed=ask_case.DRAWN["seed"])
    found = texts(list(engine.stream(request)), 3)
    assert found == ask_case.drawn() and len(set(found)) > 1


def test_an_answer_ends_at_a_stop_text_and_at_its_own_limit(engine: Engine) -> None:
    whole = ask_case.answers()[PROMPTS[0]]
    stop = (whole[5:8], "never that")
    pieces = list(engine.stream(engine.request(PROMPTS[0], stop=stop)))
    assert texts(pieces) == [whole[: whole.find(whole[5:8])]]
    assert pieces[-1].finish == "stop" and not pieces[0].finish
    pieces = list(engine.stream(engine.request(PROMPTS[0], max_new=6)))
    assert texts(pieces) == [whole[:6]] and (pieces[-1].finish, pieces[-1].tokens) == ("length", 6)


def test_a_row_is_free_again_when_nobody_waits_for_it() -> None:
    endless = dataclasses.replace(predictor(), lengths={"inputs": 64, "targets": 2000})
    with start(predictor=endless, rows=1) as engine:
        prompt = next(p for p in PROMPTS if len(ask_case.answers()[p]) == 24)
        first, second = Inbox(), Inbox()
        answer = engine.submit(engine.request(prompt), first)
        engine.submit(engine.request(PROMPTS[1], max_new=3), second)
        assert first.has_come.wait(60) and not second.is_done.wait(0.2)
        answer.cancel()
        count = len(first.pieces)
        assert second.is_done.wait(60) and second.pieces[-1].tokens <= 3
        assert len(first.pieces) <= count + 1 and not first.failure
        pieces = engine.stream(engine.request(prompt))
        next(pieces)
        pieces.close()  # as at Ctrl-C in a terminal
        assert texts(list(engine.stream(engine.request(PROMPTS[1], max_new=3)))) == [second.text]


def test_who_waits_too_long_is_told() -> None:
    with start(rows=4, seconds=0.0) as engine, pytest.raises(Failure, match="no end after 0 seconds") as caught:
        list(engine.stream(engine.request(PROMPTS[0])))
    assert caught.value.kind == "timeout"


def test_a_full_queue_refuses_and_a_stopped_engine_tells_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    may_go = threading.Event()
    step = SlotPool.step
    monkeypatch.setattr(SlotPool, "step", lambda self, steps: may_go.wait(60) and step(self, steps))
    engine = start(rows=4, waiting=2)
    inbox = Inbox()
    for _ in range(2):
        engine.submit(engine.request(PROMPTS[0]), inbox)
    with pytest.raises(Failure, match="2 answers are waiting") as caught:
        engine.submit(engine.request(PROMPTS[0]), inbox)
    assert caught.value.kind == "busy"
    threading.Timer(0.1, may_go.set).start()
    engine.close()
    assert inbox.failure and inbox.failure.kind == "closed"
    with pytest.raises(Failure, match="stopping"):
        engine.submit(engine.request(PROMPTS[0]), inbox)


def test_what_the_device_says_reaches_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: SlotPool, steps: int) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")

    monkeypatch.setattr(SlotPool, "step", fail)
    with start(rows=4) as engine:
        with pytest.raises(Failure, match=r"decoding failed.*\(RuntimeError: RESOURCE_EXHAUSTED: out of memory\)"):
            engine.warm()
        with pytest.raises(Failure, match="out of memory"):
            list(engine.stream(engine.request(PROMPTS[0])))


def test_a_damaged_checkpoint_is_named() -> None:
    spoiled = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), predictor().params)
    with start(predictor=dataclasses.replace(predictor(), params=spoiled), rows=4) as engine:
        for prompt in PROMPTS[:5]:  # one more than rows: each is given back
            with pytest.raises(Failure, match="the checkpoint is damaged"):
                list(engine.stream(engine.request(prompt)))


def test_requests_that_make_no_sense(engine: Engine) -> None:
    for message, given in {
        "the prompt is empty": {"prompt": " \n"},
        "the prompt has 301 tokens, the longest has 200": {"prompt": "x" * 300},
        "half a character": {"prompt": "a\ud800"},
        "25 new tokens are asked for; an answer has 1 to 24": {"prompt": "x", "max_new": 25},
        "0 new tokens": {"prompt": "x", "max_new": 0},
        "2 samples at temperature 0": {"prompt": "x", "samples": 2},
        "a stop text is empty": {"prompt": "x", "stop": ("",)},
    }.items():
        with pytest.raises(UserError, match=message):
            engine.request(**given)


def test_few_lengths_are_compiled() -> None:
    assert pool_lengths(2048) == {
        128: (128,),
        512: (192, 256, 384, 512),
        2048: (768, 1024, 1536, 2048),
    }
    assert pool_lengths(100) == {100: (100,)} and pool_lengths(200) == {128: (128,), 200: (192, 200)}
    assert pool_lengths(600) == {128: (128,), 512: (192, 256, 384, 512), 600: (600,)}
