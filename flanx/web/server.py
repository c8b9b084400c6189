"""A small web server for a command: loopback by default, a token for every request, limits on size, time and number.

    with Server([Route("/", page), Route("/v1/things", things, methods=["POST"])], port=8000) as server:
        print(server.link)    # http://127.0.0.1:8000/?token=..., for a person: the browser swaps the token for a cookie
        server.run()          # until Ctrl-C, SIGTERM, or `server.stop()` in another thread

Routes are Starlette's, with sync (in threads) or async functions. A program sends `Authorization: Bearer TOKEN`. An
exception in a handler becomes `{"error": {"message", "type", "code"}}`, as OpenAI's clients expect: `UserError` has
status 400, Starlette's `HTTPException` its own. `read_object` reads a request's JSON within the limits; `page_response`
answers with a page from `flanx.web.page`.

Rejected before a handler runs: a Host that is not the server's (DNS rebinding to loopback), a missing or wrong token, a
cross-site request, a body over the limit, more connections than the limit. Requires the extra `serve` (starlette,
uvicorn).
"""

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import os
import secrets
import signal
import socket
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

from flanx.errors import UserError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.datastructures import Headers, MutableHeaders, QueryParams
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect, Request, cookie_parser
    from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise UserError(
        f"the web server needs a package that is not here ({error.name}): pip install 'flanx[serve]'"
    ) from error

TOKEN = "FLANX_TOKEN"  # the environment variable; every user of the machine can see a token on a command line
LEAST_TOKEN = 16  # characters in a user-chosen token
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
NO_TOKEN = (
    "no token, or a wrong one: open the link that the command printed, or send a header Authorization: Bearer TOKEN"
)
HEADERS = {  # for every response that does not set its own
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on clients.

    Attributes:
      body: bytes in a request body; seconds: for all headers to arrive, and for all of the body.
      connections: open at once; any more get status 503.
      stop_seconds: grace period for responses in progress when the server stops.
    """

    body: int = 1 << 20
    seconds: float = 15.0
    connections: int = 128
    stop_seconds: int = 3


class Server:
    """Routes on an address that is bound at construction.

    Attributes:
      url: "http://127.0.0.1:8000"; link: the same with the token; token: this server's.

    Raises:
      UserError: a non-loopback host without a user-chosen token, a short token, a port in use.
    """

    def __init__(
        self,
        routes: Sequence[BaseRoute],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        limits: Limits | None = None,
        lifespan: Lifespan[Starlette] | None = None,
    ) -> None:
        """`port` 0: any free port; `token`: replaces that of FLANX_TOKEN or a random one; `lifespan`: Starlette's."""
        given = token or os.environ.get(TOKEN)
        self.token = given or secrets.token_urlsafe(24)
        self._limits = limits or Limits()
        is_local = _check(host, given)
        self._socket = _listen(host, port)
        port = self._socket.getsockname()[1]
        name = socket.gethostname() if host in ("0.0.0.0", "::") else host  # all interfaces: a name others can open
        self.url = f"http://{f'[{name}]' if ':' in name else name}:{port}"
        self.link = f"{self.url}/?token={urllib.parse.quote(self.token, safe='')}"
        guards = [
            Middleware(_Headed),
            Middleware(
                TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, host] if is_local else ["*"], www_redirect=False
            ),
            Middleware(_Guard, token=self.token, cookie=f"flanx_{port}", longest=self._limits.body),
        ]
        app = Starlette(
            routes=routes,
            middleware=guards,
            exception_handlers={HTTPException: _refused, UserError: _refused},
            lifespan=lifespan,
        )
        app.state.limits = self._limits
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=self._limits.connections,
                timeout_graceful_shutdown=self._limits.stop_seconds,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def run(self) -> None:
        """Serves until stopped; Ctrl-C and SIGTERM are not errors: the code after this call still runs."""
        with contextlib.suppress(KeyboardInterrupt), _outlived(signal.SIGTERM):
            self._server.run(sockets=[self._socket])

    @property
    def is_stopping(self) -> bool:
        """Whether the server was asked to stop: streaming responses should finish."""
        return self._server.should_exit

    def stop(self) -> None:
        """Ends `run`, from any thread."""
        self._server.should_exit = True


@contextlib.contextmanager
def _outlived(number: signal.Signals) -> Iterator[None]:
    """uvicorn re-raises the signal that stopped it; keeps that from ending the process."""
    if threading.current_thread() is not threading.main_thread():  # handlers can only be set in the main thread
        yield
        return
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)


def _check(host: str, token: str | None) -> bool:
    """Whether the host is loopback. Raises UserError if it is not and no token was chosen."""
    if token is not None and (
        len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token
    ):
        raise UserError(f"a token has {LEAST_TOKEN} or more printable ASCII characters and no blank ({TOKEN})")
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise UserError(f"host '{host}' is not an IP address: give one, or leave it out for 127.0.0.1") from None
    if not is_local and token is None:
        raise UserError(
            f"host {host} can be reached from other machines, without encryption: set {TOKEN} to a secret of your own "
            "if that is meant, or leave the host out and tunnel (ssh -L)"
        )
    return is_local


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError if the address cannot be bound."""
    address = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if not 0 <= port < 1 << 16:
        raise UserError(f"{port} is not a port number: choose one from 1024 to 65535, or 0 for a free one")
    try:
        return socket.create_server((address, port), family=family, backlog=256)
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror}; choose another port, or 0 for a free one") from None


class _Protocol(H11Protocol):
    """uvicorn's protocol, plus closing connections without a next request: idle ones would use up the limit."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def _expect_request(self) -> None:
        limits: Limits = cast(Starlette, self.config.app).state.limits
        self.loop.call_later(limits.seconds, self._end_if_silent, self.cycle)

    def _end_if_silent(self, last: Any) -> None:
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.close()


# ---- applied to every request ----------------------------------------------------------------------------------------


class _Headed:
    """Adds `HEADERS` to every response, including rejections."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, headed)


class _Guard:
    """Passes requests of at most `longest` bytes with the token: in the header, in the cookie, or once in a link, which
    sets the cookie."""

    def __init__(self, app: ASGIApp, token: str, cookie: str, longest: int) -> None:
        self.app, self.token, self.cookie, self.longest = app, token, cookie, longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answer(scope) if scope["type"] == "http" else None
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.longest:
                raise HTTPException(413, self._too_long())
            return message

        await (answer or self.app)(scope, counted, send)

    def _too_long(self) -> str:
        return f"the request is too long: {self.longest:,} bytes at most"

    def _answer(self, scope: Scope) -> ASGIApp | None:
        """The response in place of the handler's; None: the request passes."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin not in (None, f"http://{host}"):
            return _error(403, "a page of another site sent this request")
        by_link = QueryParams(scope["query_string"]).get("token")
        if by_link is not None and scope["method"] == "GET" and self._is_token(by_link):
            moved = RedirectResponse("/" + scope["path"].lstrip("/"), status_code=303)
            moved.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
            return moved
        kind, _, by_header = headers.get("authorization", "").partition(" ")
        by_cookie = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        if (kind.lower() == "bearer" and self._is_token(by_header.strip())) or self._is_token(by_cookie):
            said = headers.get("content-length", "")
            return _error(413, self._too_long()) if said.isdigit() and int(said) > self.longest else None
        refused = _error(401, NO_TOKEN)
        refused.headers["www-authenticate"] = "Bearer"
        return refused

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self.token.encode())


def _error(status: int, message: str) -> JSONResponse:
    kind = "server_error" if status >= 500 else "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)


def _refused(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return _error(error.status_code, error.detail)
    return _error(400, str(error))


def page_response(text: str) -> HTMLResponse:
    """A page from `flanx.web.page`, which carries its own policy."""
    return HTMLResponse(text, headers={"content-security-policy": "frame-ancestors 'none'"})


async def read_object(request: Request, mends: bool = False) -> dict[str, Any]:
    """The JSON object in a request. HTTPException: 413 too long, 408 too slow or gone, 415 and 400 for anything else.

    `mends`: replace lone surrogates, which no response or file could hold, by "?"."""
    limits: Limits = request.app.state.limits
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, with 'Content-Type: application/json'")
    try:
        async with asyncio.timeout(limits.seconds):
            body = await request.body()
    except TimeoutError:
        raise HTTPException(408, f"the request did not arrive within {limits.seconds:g} seconds") from None
    except ClientDisconnect:  # nobody reads the response, but it is not a server error either
        raise HTTPException(408, "the client left before its request was whole") from None
    try:
        found = json.loads(body)
        if mends:
            found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "the request is not a JSON object")
    return found
