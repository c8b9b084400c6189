"""The routes of `flanx ask --serve`: a page, and OpenAI's completion and chat APIs for programs.

Requests are parsed here, answered by the engine's thread, and cancelled when their client disconnects.
"""

import asyncio
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flanx.ask import engine as engines
from flanx.ask import openai_api
from flanx.ask.engine import Engine, Failure, Piece
from flanx.ask.openai_api import Form, Options
from flanx.ask.template import Template
from flanx.web.page import page
from flanx.web.server import page_response, read_object

STATUS = {"busy": 503, "timeout": 504, "closed": 503, "error": 500}
LOOK = 0.25  # seconds between checks that the client is still connected
FILES = pathlib.Path(__file__).parent


class Service:
    """One model behind HTTP.

    Attributes:
      name: the model's name in requests.
      defaults: options that a request does not set; system: the system text of a conversation without one.
      engine: what answers, set by `start`.
    """

    engine: Engine

    def __init__(self, name: str, template: Template, defaults: Options | None = None, system: str = "") -> None:
        self.name, self.template, self.system = name, template, system
        self.defaults = defaults or Options()

    def start(self, engine: Engine, is_stopping: Callable[[], bool] = lambda: False) -> None:
        """Answers with this engine until the server `is_stopping`; call it before the first request."""
        self.engine, self._is_stopping = engine, is_stopping
        self._fingerprint = engine.predictor.fingerprint()
        self._page = page(
            self.name,
            (FILES / "page.html").read_text(encoding="utf-8"),
            style=(FILES / "page.css").read_text(encoding="utf-8"),
            script=(FILES / "page.js").read_text(encoding="utf-8"),
            data={
                "model": self.name,
                "parameters": engine.predictor.model.num_params(),
                "lengths": dict(engine.predictor.lengths),
                "defaults": {**dataclasses.asdict(self.defaults), "stop": list(self.defaults.stops)},
                "system": self.system,
                "forgets": self.template.only_last,
            },
        )

    @property
    def routes(self) -> list[Route]:
        """The routes for `flanx.web.server.Server`."""
        return [
            Route("/", self.show_page),
            Route("/v1/models", self.list_models),
            Route("/v1/models/{name:path}", self.show_model),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/prompt", self.show_prompt, methods=["POST"]),
        ]

    async def show_page(self, request: Request) -> Response:
        """The chat page."""
        return page_response(self._page)

    async def list_models(self, request: Request) -> Response:
        """Lists the one model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def show_model(self, request: Request) -> Response:
        """The model by its name."""
        self._expect_model(request.path_params["name"])
        return JSONResponse(self._model())

    async def show_prompt(self, request: Request) -> Response:
        """The prompt that a chat's turns render to, as the model reads it, and its token count."""
        body = await read_object(request)
        prompt = openai_api.chat_prompt(self.template, openai_api.turns(body), self.system)
        asked = await run_in_threadpool(self.engine.request, prompt)
        return JSONResponse({"prompt": prompt, "tokens": len(asked.tokens)})

    async def complete(self, request: Request) -> Response:
        """OpenAI's completions: each prompt verbatim."""
        body = await read_object(request)

        def read() -> tuple[list[engines.Request], Options]:
            asked = openai_api.options(body, self.defaults, "prompt")
            return [asked.request(self.engine, prompt) for prompt in openai_api.prompts(body)], asked

        self._expect_model(self.name if body.get("model") is None else body["model"])
        return await self._answer(request, "text", *await run_in_threadpool(read))

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat: the template renders the turns to one prompt."""
        body = await read_object(request)

        def read() -> tuple[list[engines.Request], Options]:
            asked = openai_api.options(body, self.defaults, "messages")
            prompt = openai_api.chat_prompt(self.template, openai_api.turns(body), self.system)
            return [asked.request(self.engine, prompt, self.template.stop)], asked

        self._expect_model(self.name if body.get("model") is None else body["model"])
        return await self._answer(request, "chat", *await run_in_threadpool(read))

    def _model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "flanx"}

    def _expect_model(self, name: Any) -> None:
        if name != self.name:
            raise HTTPException(404, f"no model {json.dumps(name)[:100]} here: this is '{self.name}'")

    async def _answer(self, request: Request, kind: Any, asked: Sequence[engines.Request], how: Options) -> Response:
        form = Form(kind, self.name, self._fingerprint)
        pieces = _pieces(self.engine, asked, request, self._is_stopping)
        count = sum(each.samples for each in asked)
        texts, tokens = [""] * count, [0] * count
        finishes: list[str | None] = [None] * count
        try:
            if how.stream:
                first = await anext(pieces)  # a failure before it gets its own status
                with_usage = how.stream_options.get("include_usage", False)
                events = _events(form, first, pieces, asked if with_usage else ())
                return StreamingResponse(events, media_type="text/event-stream")
            async for index, piece in pieces:
                texts[index] += piece.text
                finishes[index], tokens[index] = piece.finish, piece.tokens
        except Failure as error:
            raise HTTPException(STATUS[error.kind], str(error)) from None
        except ClientDisconnect:
            return Response(status_code=499)  # the client is gone
        return JSONResponse(form.whole(texts, finishes, openai_api.usage(asked, tokens)))


async def _pieces(
    engine: Engine, asked: Sequence[engines.Request], request: Request, is_stopping: Callable[[], bool]
) -> AsyncGenerator[tuple[int, Piece], None]:
    """(choice index, piece) of all requests as they arrive. Raises Failure and ClientDisconnect; however it ends, the
    rest is cancelled."""
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece | Failure]]()

    def deliver(first: int, event: Piece | Failure) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and its clients with it
            loop.call_soon_threadsafe(inbox.put_nowait, (first, event))

    answers, left = [], 0
    try:
        for each in asked:
            answers.append(engine.submit(each, functools.partial(deliver, left)))
            left += each.samples
        look = loop.time() + LOOK
        while left:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look):
                    first, event = await inbox.get()
                if isinstance(event, Failure):
                    raise event
                left -= event.finish is not None
                yield first + event.sample, event
            if loop.time() >= look:
                look = loop.time() + LOOK
                if is_stopping():
                    raise Failure("closed", "the server is stopping")
                if await request.is_disconnected():
                    raise ClientDisconnect
    finally:
        for answer in answers:
            answer.cancel()


async def _events(
    form: Form,
    first: tuple[int, Piece],
    pieces: AsyncGenerator[tuple[int, Piece], None],
    counted: Sequence[engines.Request],
) -> AsyncIterator[str]:
    """Server-sent events: a chunk per piece, one with the usage of the `counted` requests, and the end marker."""
    tokens: dict[int, int] = {}
    index, piece = first
    try:
        async with contextlib.aclosing(pieces):
            yield _event(form.chunk(index, piece, is_first=True))
            tokens[index] = piece.tokens
            async for index, piece in pieces:
                yield _event(form.chunk(index, piece, is_first=index not in tokens))
                tokens[index] = piece.tokens
        if counted:
            yield _event(form.last_chunk(openai_api.usage(counted, list(tokens.values()))))
        yield "data: [DONE]\n\n"
    except Failure as error:
        yield _event({"error": {"message": str(error), "type": "server_error", "code": STATUS[error.kind]}})
    except ClientDisconnect:
        return


def _event(data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"
