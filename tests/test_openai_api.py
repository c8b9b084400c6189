"""What a request in OpenAI's style may say, and what is refused by name."""

import pytest

from flanx.ask import openai_api
from flanx.ask.engine import Piece
from flanx.ask.openai_api import Form, Options
from flanx.ask.template import Turn, load
from flanx.errors import UserError


def read(**body):
    return openai_api.options(body, Options(temperature=0.5, seed=4), "prompt")


def test_options_take_the_place_of_the_defaults():
    assert read(prompt="x", model="m", user="u", temperature=None) == Options(temperature=0.5, seed=4)
    found = read(temperature=1, top_p=0.5, top_k=3, n=2, max_completion_tokens=5, stop="x", seed=9.0, stream=True)
    assert found == Options(1, 3, 0.5, 2, 5, "x", 9, True) and found.stops == ("x",)
    assert read(stop=["a", "b"]).stops == ("a", "b") and read(stop=None).stops == ()
    quiet = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False, "echo": False}
    assert read(**quiet, response_format={"type": "text"}, best_of=1) == Options(temperature=0.5, seed=4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"temperature": "hot"}, 'temperature is "hot"; it takes a number, 0 or more, 1,000 at most'),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0; it takes a number, above 0"),
        ({"top_k": 1.5}, "top_k is 1.5; it takes a whole number"),
        ({"n": 17}, "n is 17; it takes 1 to 16"),
        ({"n": True}, "n is true"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": 3}, "stop is 3"),
        ({"stop": ["x"] * 17}, "stop has 17 texts; it takes 16 at most"),
        ({"stream": 1}, "stream is 1; it takes True or False"),
        ({"stream_options": {"usage": True}}, "stream_options only takes include_usage"),
        ({"stream_options": {"include_usage": True}}, "stream_options needs a stream"),
        ({"echo": True}, "echo is not supported: leave it out"),
        ({"logprobs": 0}, "logprobs is not supported"),
        ({"max_tokens": 10**300}, "1 or more, 2,147,483,647 at most"),
        ({"tools": [{}]}, "tools is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"temprature": 1}, "no field 'temprature' in a request; did you mean 'temperature'"),
        ({"messages": []}, "no field 'messages'"),
    ],
)
def test_what_has_no_effect_is_refused(body, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read(**body)


def test_prompts_and_turns():
    assert openai_api.prompts({"prompt": "a"}) == ["a"] and openai_api.prompts({"prompt": ["a", "b"]}) == ["a", "b"]
    for wrong in (None, 3, [], [3], [[3]], {"a": 1}):
        with pytest.raises(UserError, match="prompt takes a text, or a list of texts"):
            openai_api.prompts({"prompt": wrong})
    with pytest.raises(UserError, match="prompt has 33 texts"):
        openai_api.prompts({"prompt": ["a"] * 33})
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": parts}]
    assert openai_api.turns({"messages": messages}) == [Turn("system", "s"), Turn("user", "ab")]
    for wrong in (
        "x",
        {},
        {"role": "user"},
        {"role": 3, "content": "x"},
        {"role": "user", "content": [{"type": "image"}]},
    ):
        with pytest.raises(UserError, match=r"messages\[0\] takes"):
            openai_api.turns({"messages": [wrong]})
    for wrong in (None, [], "x"):
        with pytest.raises(UserError, match="messages takes a list"):
            openai_api.turns({"messages": wrong})


def test_the_system_text_of_the_server_stands_before_a_conversation_without_one():
    user = Turn("user", "x")
    assert openai_api.chat_prompt(load("qa"), [user], "Be brief.") == "Be brief.\n\nx"
    assert openai_api.chat_prompt(load("qa"), [Turn("system", ""), user], "Be brief.") == "x"


def test_the_objects_of_an_answer():
    chat, text = Form("chat", "m", "f00"), Form("text", "m", None)
    whole = chat.whole(["a", ""], ["stop", "length"], {"total_tokens": 3})
    assert whole["object"] == "chat.completion" and whole["id"].startswith("chatcmpl-") and whole["usage"]
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["a", ""]
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "length"]
    assert text.whole(["a"], ["stop"], {})["choices"][0]["text"] == "a"
    first = chat.chunk(1, Piece(1, "a", None, 1), is_first=True)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "a"} and first["id"] == whole["id"]
    later = chat.chunk(1, Piece(1, "b", "stop", 2), is_first=False)["choices"][0]
    assert (later["index"], later["delta"], later["finish_reason"]) == (1, {"content": "b"}, "stop")
    assert text.chunk(0, Piece(0, "b", None, 2), is_first=False)["choices"][0]["text"] == "b"
    assert chat.last_chunk({"total_tokens": 3})["choices"] == []
