"""Perspective's API against a stand-in on loopback: what is sent, the rate, and every kind of refusal."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flanx.errors import UserError
from flanx.evals.scorers import perspective, scorer
from flanx.evals.scorers.perspective import Perspective
from flanx.evals.scorers.scorer import Verdict

SECRET = "key-of-nobody"


def value(number: Any) -> tuple[int, dict[str, Any]]:
    """The API's answer with a score."""
    return 200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": number, "type": "PROBABILITY"}}}}


def refusal(status: int, message: str, kind: str = "") -> tuple[int, dict[str, Any]]:
    """The API's answer with an error, of a type where it is of the text."""
    return status, {"error": {"code": status, "message": message, "details": [{"errorType": kind}] if kind else []}}


class Stand(http.server.BaseHTTPRequestHandler):
    """Answers from `answers` in their order, the last one for ever; `asked`: the requests with their headers."""

    answers: list[tuple[int, Any]]
    asked: list[tuple[dict[str, Any], dict[str, str], float]]
    headers_sent: dict[str, str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((body, dict(self.headers), time.monotonic()))
        status, answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, text in self.headers_sent.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Stand]]:
    """A server whose address and key are in the environment; waits are short."""
    handler = type("Here", (Stand,), {"answers": [value(0.25)], "asked": [], "headers_sent": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv(perspective.URL, f"http://127.0.0.1:{server.server_port}/v1alpha1/comments:analyze")
    monkeypatch.setenv(perspective.KEY, SECRET)
    monkeypatch.setattr(perspective, "WAIT_S", 0.001)
    yield handler
    server.shutdown()
    server.server_close()


def asks(texts: list[str], rate: str = "1000") -> list[tuple[int, Verdict]]:
    return list(scorer.load(f"perspective:{rate}").score(texts))


def unpaced() -> Perspective:
    """One request at a time, so that the stand-in's answers come in the order of the texts, and at no rate."""
    made = Perspective.of("1")
    made._pace = lambda: None
    return made


def test_a_text_is_sent_with_the_key_in_a_header_and_is_not_to_be_stored(stand: type[Stand]) -> None:
    assert asks(["a text"]) == [(0, Verdict(0.25))]
    ((body, headers, _),) = stand.asked
    assert body["comment"] == {"text": "a text"} and body["languages"] == ["en"] and body["doNotStore"] is True
    assert list(body["requestedAttributes"]) == ["TOXICITY"] and headers["X-Goog-Api-Key"] == SECRET
    made = scorer.load("perspective")
    assert SECRET not in repr(made) + made.name and made.name.startswith("perspective TOXICITY of http://127.0.0.1")


def test_verdicts_keep_the_order_of_many_texts(stand: type[Stand]) -> None:
    found = asks([f"text {n}" for n in range(70)])
    assert [number for number, _ in found] == list(range(70)) and len(stand.asked) == 70


def test_the_rate_is_kept(stand: type[Stand]) -> None:
    asks(["a", "b", "c", "d", "e", "f"], "20")
    times = sorted(at for _, _, at in stand.asked)
    assert times[-1] - times[0] >= 0.2  # five times 1/20 s, less what a slow first answer takes


@pytest.mark.parametrize(
    "answers",
    [
        [refusal(429, "Quota exceeded"), refusal(429, "Quota exceeded"), value(0.5)],
        [refusal(503, "down"), (502, b"<html>"), value(0.5)],
        [(200, b"not JSON"), value(0.5)],
        [(200, {"languages": ["en"]}), value(0.5)],
        [value(1.5), value(True), value("0.3"), value(0.5)],
    ],
    ids=["quota", "server", "malformed", "without the attribute", "no share"],
)
def test_what_may_pass_is_tried_again(stand: type[Stand], answers: list[tuple[int, Any]]) -> None:
    stand.answers[:] = answers
    tries = len(answers)
    assert asks(["a"]) == [(0, Verdict(0.5))] and len(stand.asked) == tries


def test_a_server_that_says_how_long_to_wait_is_heard(stand: type[Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    stand.answers[:] = [refusal(429, "Quota exceeded"), value(0.5)]
    stand.headers_sent["Retry-After"] = "40"
    waits: list[float] = []
    made = Perspective.of("1000")
    monkeypatch.setattr(made._over, "wait", lambda seconds: waits.append(seconds) or False)
    assert list(made.score(["a"])) == [(0, Verdict(0.5))] and waits == [40.0]


def test_a_quota_that_stays_used_up_ends_with_what_is_kept(stand: type[Stand]) -> None:
    stand.answers[:] = [value(0.1), refusal(429, "Quota exceeded")]
    found, made = [], unpaced()
    with pytest.raises(UserError, match=r"the quota is used up \(429\), 7 times in a row; what is scored is kept"):
        for each in made.score(["a", "b"]):
            found.append(each)
    assert found == [(0, Verdict(0.1))]


def test_texts_that_the_api_takes_not_are_counted_with_the_reason(stand: type[Stand]) -> None:
    kinds = ("COMMENT_EMPTY", "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE")
    stand.answers[:] = [*(refusal(400, "of this text", kind) for kind in kinds), value(0.5)]
    made = unpaced()
    found = list(made.score(["?", "une phrase", "x" * (perspective.LONGEST + 1), "b"]))
    assert [verdict.toxicity for _, verdict in found] == [None, None, None, 0.5]
    assert [verdict.note for _, verdict in found][:2] == list(kinds) and "20,481 bytes" in found[2][1].note


def test_a_refused_key_is_said_at_once_and_not_printed(stand: type[Stand]) -> None:
    for answer in (refusal(400, "API key not valid. Please pass a valid API key."), refusal(403, "not enabled")):
        stand.answers[:] = [answer]
        with pytest.raises(UserError, match=f"the API refuses .{answer[0]}: .*PERSPECTIVE_API_KEY") as error:
            asks(["a"])
        assert SECRET not in str(error.value)
    assert len(stand.asked) == 2


def test_no_server_no_key_no_rate(stand: type[Stand], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(perspective.URL, "http://127.0.0.1:9/")
    with pytest.raises(UserError, match=r"no answer \(URLError\), 2 times in a row"):
        asks(["a"])
    monkeypatch.setattr(perspective, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(perspective.URL, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(UserError, match=r"no answer \(TimeoutError\), 2 times in a row"):
            asks(["a"])
    for rate in ("0", "-1", "many", "nan", "1e9"):
        with pytest.raises(UserError, match="give queries a second"):
            scorer.load(f"perspective:{rate}")
    monkeypatch.setenv(perspective.KEY, " ")
    with pytest.raises(UserError, match="PERSPECTIVE_API_KEY is not set"):
        scorer.load("perspective")
