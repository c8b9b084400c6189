"""A server of `flanx.web.server` in a thread, and plain HTTP to it."""

import contextlib
import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from flanx.web.server import Server


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def message(self) -> str:
        """What an error says."""
        return self.json["error"]["message"]


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server, answering until the block ends."""
    thread = threading.Thread(target=server.run)
    with server:
        thread.start()
        while thread.is_alive() and not server._server.started:
            time.sleep(0.005)
        try:
            yield server
        finally:
            server.stop()
            thread.join(timeout=20)
            assert not thread.is_alive()


def ask(server: Server, path: str = "/", body: Any = None, **headers: str | None) -> Reply:
    """GET, or POST of a body (an object as JSON); the token is in the header unless `authorization` says otherwise.

    `_` in the name of a header stands for `-`, None leaves one out.
    """
    url = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=20)
    given: dict[str, str | None] = {"authorization": f"Bearer {server.token}", **headers}
    if body is not None and not isinstance(body, bytes):
        body, given = json.dumps(body).encode(), {"content_type": "application/json", **given}
    sent = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, sent)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read().decode())
