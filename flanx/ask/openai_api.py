"""OpenAI-style completion and chat requests: which settings are accepted or rejected, and the JSON of answers.

A table here lists what a request may contain; anything else is rejected by name, so no setting is silently ignored.
"""

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flanx import settings
from flanx.ask.engine import Engine, Piece, Request
from flanx.ask.template import Template, Turn
from flanx.decoding.decode import Sample
from flanx.errors import UserError, nearest

MOST_SAMPLES = 16  # per prompt
MOST_PROMPTS = 32  # per request
MOST_STOPS = 16
IGNORED = ("metadata", "safety_identifier", "store", "user")  # about the client, not the answer
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {  # unsupported setting -> the values that have no effect
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),  # in completions, 0 requests those of the tokens
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Decoding options, under OpenAI's names plus `top_k`. Greedy by default, like `flanx infer`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    n: int = 1
    max_tokens: int | None = None
    stop: str | Sequence[str] = ()
    seed: int = 0
    stream: bool = False
    stream_options: Mapping[str, bool] = dataclasses.field(default_factory=dict)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def request(self, engine: Engine, prompt: str, stop: Sequence[str] = ()) -> Request:
        """A request for a prompt with these options; `stop`: additional stop texts. Raises UserError."""
        method = Sample(self.temperature, self.top_k, self.top_p)
        return engine.request(
            prompt, method, max_new=self.max_tokens, stop=(*self.stops, *stop), seed=self.seed, samples=self.n
        )


def options(body: Mapping[str, Any], defaults: Options, of_content: str) -> Options:
    """The options of a request whose content is in the field `of_content`. Raises UserError naming the field."""
    given = {name: value for name, value in body.items() if value is not None}
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    known = [field.name for field in dataclasses.fields(Options)]
    found = {}
    for name, value in given.items():
        if name in known:
            found[name] = option(name, value)
        elif name in UNSUPPORTED:
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in UNSUPPORTED[name]):
                raise UserError(f"{name} is not supported: leave it out")
        elif name not in (*IGNORED, "model", of_content):
            raise UserError(f"no field '{name[:100]}' in a request{nearest(name, [*known, of_content])}")
    asked = dataclasses.replace(defaults, **found)
    if asked.stream_options and not asked.stream:
        raise UserError("stream_options needs a stream: add stream, or leave it out")
    return asked


def option(name: str, value: Any) -> Any:
    """The value of one option. Raises UserError for an invalid value."""
    try:
        value = settings.check(Options, name, value)
    except settings.Wrong as wrong:
        raise UserError(f"{name} is {json.dumps(value)[:80]}; it takes {wrong}") from None
    if name == "n" and not 1 <= value <= MOST_SAMPLES:
        raise UserError(f"n is {value}; it takes 1 to {MOST_SAMPLES}")
    if name == "stop" and not isinstance(value, str) and len(value) > MOST_STOPS:
        raise UserError(f"stop has {len(value)} texts; it takes {MOST_STOPS} at most")
    if name == "stream_options" and set(value) - {"include_usage"}:
        raise UserError("stream_options only takes include_usage")
    return value


def prompts(body: Mapping[str, Any]) -> list[str]:
    """The prompts of a completion. Raises UserError."""
    found = body.get("prompt")
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError("prompt takes a text, or a list of texts; tokens are not supported")
    if len(texts) > MOST_PROMPTS:
        raise UserError(f"prompt has {len(texts)} texts; it takes {MOST_PROMPTS} at most")
    return texts


def turns(body: Mapping[str, Any]) -> list[Turn]:
    """The turns of a chat. Raises UserError."""
    found = body.get("messages")
    if not isinstance(found, list) or not found:
        raise UserError('messages takes a list: [{"role": "user", "content": "..."}]')
    return [_turn(number, message) for number, message in enumerate(found)]


def _turn(number: int, message: Any) -> Turn:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):  # parts, of which only text is supported
        parts = [
            each.get("text") if isinstance(each, dict) and each.get("type") == "text" else None for each in content
        ]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(content, str) or not isinstance(role, str):
        raise UserError(f'messages[{number}] takes {{"role": "user", "content": "..."}}, texts alone')
    return Turn(role, content)


def chat_prompt(template: Template, said: Sequence[Turn], system: str) -> str:
    """The prompt of a conversation; `system`: the server's default system text, if the conversation has none."""
    if system and said and said[0].role == "user":
        said = [Turn("system", system), *said]
    return template.render(said)


@dataclasses.dataclass(frozen=True)
class Form:
    """The JSON objects of one answer; `kind`: which of OpenAI's two APIs."""

    kind: Literal["chat", "text"]
    model: str
    fingerprint: str | None
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12))
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, texts: Sequence[str], finishes: Sequence[str | None], usage: Mapping[str, int]) -> dict[str, Any]:
        """All choices at once."""
        choices = []
        for index, (text, finish) in enumerate(zip(texts, finishes, strict=True)):
            content: dict[str, Any] = {"text": text}
            if self.kind == "chat":
                content = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choices.append({"index": index, **content, "logprobs": None, "finish_reason": finish})
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": choices, "usage": dict(usage)}

    def chunk(self, index: int, piece: Piece, is_first: bool) -> dict[str, Any]:
        """A new piece of choice `index`; `is_first`: it is the choice's first."""
        content: dict[str, Any] = {"text": piece.text}
        if self.kind == "chat":
            content = {"delta": {**({"role": "assistant"} if is_first else {}), "content": piece.text}}
        choice = {"index": index, **content, "logprobs": None, "finish_reason": piece.finish}
        return {**self._head(self._chunk), "choices": [choice]}

    def last_chunk(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """The usage chunk for `stream_options: {"include_usage": true}`."""
        return {**self._head(self._chunk), "choices": [], "usage": dict(usage)}

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _head(self, name: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        head = {"id": f"{prefix}-{self.id}", "object": name, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": self.fingerprint}


def usage(requests: Sequence[Request], tokens: Sequence[int]) -> dict[str, int]:
    """Token counts of all prompts and all answers."""
    prompt, answers = sum(len(request.tokens) for request in requests), sum(tokens)
    return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}
