"""OpenAI's API over our engine: answers, streams and refusals, by plain HTTP and by OpenAI's own client."""

import contextlib
import dataclasses
import http.client
import json
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import ask_case
from tests.ask_case import PROMPTS
from tests.web_case import ask, running

from flanx.ask import template  # isort: skip  (after web_case, which skips where the extra is absent)
from flanx.ask.engine import Engine
from flanx.ask.openai_api import Options
from flanx.ask.service import Service
from flanx.decoding.slot_pool import SlotPool
from flanx.web.server import Limits, Server

MODEL = "drawn"


@contextlib.contextmanager
def serving(predictor=None, defaults=None, **options):
    model = ask_case.model()
    with Engine(predictor or model.predictor, model.partitioner.scope, **{"rows": 4, **options}) as engine:
        service = Service(MODEL, template.load("qa"), defaults)
        service.start(engine)
        with running(Server(service.routes, limits=Limits(body=5000))) as server:
            yield server


@pytest.fixture(scope="module")
def server():
    with serving() as one:
        yield one


def complete(server, **body):
    return ask(server, "/v1/completions", {"model": MODEL, **body})


def chat(server, *texts, **body):
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return ask(server, "/v1/chat/completions", {"model": MODEL, "messages": messages, **body})


def events(reply):
    """The objects of a stream, which has its end."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = reply.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def wanted(prompt, stop=None):
    """The greedy answer, up to a stop text."""
    return ask_case.answers()[prompt].partition(stop or "\0")[0]


def test_a_completion_is_the_answer_of_infer(server):
    found = complete(server, prompt=PROMPTS[:3]).json
    assert [choice["text"] for choice in found["choices"]] == [wanted(prompt) for prompt in PROMPTS[:3]]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    used = found["usage"]
    assert used["prompt_tokens"] == sum(len(prompt) + 1 for prompt in PROMPTS[:3])
    assert used["completion_tokens"] == sum(len(choice["text"]) for choice in found["choices"])
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
    assert found["system_fingerprint"] == ask_case.model().predictor.fingerprint()


def test_a_stream_adds_up_to_the_answer(server):
    chunks = events(complete(server, prompt=PROMPTS[0], stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == wanted(PROMPTS[0])
    assert len(chunks) > 3 and len({chunk["id"] for chunk in chunks}) == 1
    ends = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert ends == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 24
    chunks = events(chat(server, PROMPTS[0], stream=True, n=3, **ask_case.DRAWN))
    deltas = [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"]) for chunk in chunks]
    texts = ["".join(delta["content"] for at, delta in deltas if at == index) for index in range(3)]
    assert texts == ask_case.drawn() and len(set(texts)) > 1
    assert sum("role" in delta for _, delta in deltas) == 3


def test_turns_become_the_prompt_of_the_template(server):
    rendered = "Q: a\nA: b\n\nQ: c\nA:"
    found = chat(server, "a", "b", "c", max_tokens=7).json
    message = found["choices"][0]["message"]
    assert message["content"] == wanted(rendered)[:7] and message["role"] == "assistant"
    assert found["choices"][0]["finish_reason"] == "length" and found["usage"]["prompt_tokens"] == len(rendered) + 1
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert ask(server, "/v1/prompt", {"messages": turns}).json == {"prompt": rendered, "tokens": len(rendered) + 1}


def test_a_stop_text_ends_an_answer(server):
    stop = wanted(PROMPTS[0])[5:8]
    for body in ({"stop": stop}, {"stop": ["no", stop]}):
        (choice,) = complete(server, prompt=PROMPTS[0], **body).json["choices"]
        assert choice["text"] == wanted(PROMPTS[0], stop) and choice["finish_reason"] == "stop"


def test_the_model_is_listed(server):
    (model,) = ask(server, "/v1/models").json["data"]
    assert model["id"] == MODEL and ask(server, f"/v1/models/{MODEL}").json == model
    assert ask(server, "/v1/models/other").status == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("completions", b"{", 400, "not a JSON object"),
        ("completions", {}, 400, "prompt takes a text"),
        ("completions", {"prompt": "a", "model": "gpt"}, 404, "no model \"gpt\" here: this is 'drawn'"),
        ("completions", {"prompt": "x" * 300}, 400, "the prompt has 301 tokens, the longest has 200"),
        ("completions", {"prompt": "x" * 6000}, 413, "5,000 bytes at most"),
        ("completions", {"prompt": "a\ud800"}, 400, "half a character"),
        ("completions", {"prompt": "a", "n": 2}, 400, "2 samples at temperature 0"),
        ("completions", {"prompt": "a", "max_tokens": 25}, 400, "an answer has 1 to 24"),
        ("completions", {"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias is not supported"),
        ("chat/completions", {"messages": []}, 400, "messages takes a list"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "a"}]}, 400, "not the user's"),
        ("prompt", {"messages": 3}, 400, "messages takes a list"),
    ],
)
def test_bad_requests_are_refused_in_one_line(server, path, body, status, message):
    json_type = {"content_type": "application/json"}
    refused = ask(server, f"/v1/{path}", body, **json_type)
    assert refused.status == status and message in refused.message and "\n" not in refused.message


def test_nobody_gets_in_without_the_token(server):
    for path, body in (("/", None), ("/v1/models", None), ("/v1/completions", {"prompt": "a"})):
        assert ask(server, path, body, authorization=None).status == 401
        assert ask(server, path, body, authorization="Bearer wrong").status == 401
    assert ask(server, "/v1/completions", {"prompt": "a"}, host="rebound.example").status == 400


def test_thirty_two_at_once(server):
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda prompt: complete(server, prompt=prompt, stream=True), PROMPTS))
    assert [reply.status for reply in replies] == [200] * 32
    texts = ["".join(chunk["choices"][0]["text"] for chunk in events(reply)) for reply in replies]
    assert texts == [wanted(prompt) for prompt in PROMPTS]


def test_a_request_that_takes_too_long_ends_with_a_status():
    with serving(seconds=0.0) as server:
        for stream in (False, True):
            refused = complete(server, prompt="a", stream=stream)
            assert refused.status == 504 and refused.message == "no end after 0 seconds"


@pytest.fixture(scope="module")
def slow():
    """A server whose answers take ten seconds, one at a time, and the engine's steps so far."""
    model = ask_case.model()
    endless = dataclasses.replace(model.predictor, lengths={"inputs": 64, "targets": 2000})
    step, steps = SlotPool.step, []

    def slow_step(self, count):
        steps.append(count)
        time.sleep(0.04)
        return step(self, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SlotPool, "step", slow_step)
        with serving(endless, rows=1, waiting=1) as server:
            yield server


LONG = next(prompt for prompt, text in ask_case.answers().items() if len(prompt) < 60 and len(text) == 24)
ENDED = next(prompt for prompt, text in ask_case.answers().items() if len(text) < 24)


def begin(server, **body):
    """A connection with a request on it, of which the answer is not read."""
    url = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
    headers = {"authorization": f"Bearer {server.token}", "content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps({"prompt": LONG, **body}), headers)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_makes_room_for_the_next(slow, stream):
    left = begin(slow, stream=stream)
    if stream:
        answer = left.getresponse()
        assert answer.status == 200 and answer.readline().startswith(b"data: {")
        answer.close()
    left.sock.close() if left.sock else left.close()
    began = time.monotonic()
    assert complete(slow, prompt=PROMPTS[1], max_tokens=2).status in (200, 503)
    while (reply := complete(slow, prompt=PROMPTS[1], max_tokens=2)).status == 503:
        time.sleep(0.05)
    assert reply.status == 200 and time.monotonic() - began < 5


def test_a_full_queue_is_a_status_and_no_error(slow):
    with contextlib.closing(begin(slow, stream=True)) as one:
        assert one.getresponse().status == 200
        with contextlib.closing(begin(slow)):  # waits for the row
            time.sleep(0.2)
            refused = complete(slow, prompt="a")
            assert refused.status == 503 and "1 answers are waiting" in refused.message


def test_a_failure_in_a_stream_is_told_in_it():
    model = ask_case.model()
    endless = dataclasses.replace(model.predictor, lengths={"inputs": 64, "targets": 2000})
    with serving(endless, rows=1, seconds=1.0) as server, pytest.MonkeyPatch.context() as patch:
        complete(server, prompt=LONG, max_tokens=1)  # compiled
        step = SlotPool.step
        patch.setattr(SlotPool, "step", lambda self, count: time.sleep(0.1) or step(self, count))
        reply = complete(server, prompt=LONG, stream=True)
        last = reply.text.split("\n\n")[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["message"] == "no end after 1 seconds"


def test_the_page_is_ours_and_holds_no_script_but_its_own(server):
    page = ask(server)
    assert page.status == 200 and "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert '<script type="application/json" id="data">' in page.text and '"model": "drawn"' in page.text
    assert server.token not in page.text


def test_defaults_of_the_server_are_those_of_a_request_that_says_nothing():
    stop = ask_case.drawn()[0][4:6]
    with serving(defaults=Options(**ask_case.DRAWN, stop=(stop,))) as server:
        (choice,) = complete(server, prompt=PROMPTS[0]).json["choices"]
        assert choice["text"] == ask_case.drawn()[0].partition(stop)[0]
        (choice,) = complete(server, prompt=PROMPTS[0], temperature=0, stop=[]).json["choices"]
        assert choice["text"] == wanted(PROMPTS[0])


def test_the_client_of_openai(server):
    openai = pytest.importorskip("openai", reason="OpenAI's client, as a peer: pip install openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
        asked = {"model": MODEL, "prompt": PROMPTS[0]}
        assert client.completions.create(**asked).choices[0].text == wanted(PROMPTS[0])
        pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
        assert "".join(pieces) == wanted(PROMPTS[0]) and len(pieces) > 1
        talk = {"model": MODEL, "messages": [{"role": "user", "content": PROMPTS[0]}]}
        given = {name: value for name, value in ask_case.DRAWN.items() if name != "top_k"}
        drawn = client.chat.completions.create(**talk, n=3, **given, extra_body={"top_k": ask_case.DRAWN["top_k"]})
        assert [choice.message.content for choice in drawn.choices] == ask_case.drawn()
        talk["messages"] = [{"role": "user", "content": ENDED}]
        with client.chat.completions.stream(**talk, stream_options={"include_usage": True}) as stream:
            stream.until_done()
            whole = stream.get_final_completion()
        assert whole.choices[0].message.content == wanted(ENDED) and whole.usage.completion_tokens > 0
        with pytest.raises(openai.NotFoundError, match="no model"):
            client.completions.create(model="gpt", prompt="a")
        with pytest.raises(openai.BadRequestError, match="the longest has 200"):
            client.completions.create(model=MODEL, prompt="x" * 300)
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_threads_of_the_server_end_with_it():
    before = set(threading.enumerate())
    with serving():
        assert len(threading.enumerate()) > len(before)
    assert not {thread.name for thread in set(threading.enumerate()) - before if not thread.name.startswith("AnyIO")}
