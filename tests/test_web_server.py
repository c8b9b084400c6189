"""What every request to a server passes: its token, its host, its limits; how it starts and stops."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

from tests import web_case
from tests.web_case import ask, running

# after web_case, which skips where the extra is absent
from starlette.requests import Request  # isort: skip
from starlette.responses import JSONResponse, PlainTextResponse, Response  # isort: skip
from starlette.routing import Route  # isort: skip

from flanx.errors import UserError
from flanx.web import server as web
from flanx.web.server import Limits, Server, read_object


async def echo(request: Request) -> Response:
    return JSONResponse(await read_object(request))


def wrong(request: Request) -> Response:
    raise UserError("line 3 is empty; remove it")


ROUTES = [
    Route("/", lambda request: PlainTextResponse("in")),
    Route("/echo", echo, methods=["POST"]),
    Route("/wrong", wrong),
    Route("/blind", lambda request: PlainTextResponse("unread"), methods=["POST"]),
]


@pytest.fixture(scope="module")
def server():
    with running(Server(ROUTES, limits=Limits(body=1000, seconds=0.3))) as one:
        yield one


def test_a_program_sends_the_token_as_a_header(server):
    assert ask(server).text == "in"
    for header in (None, "Bearer no", f"Basic {server.token}", "Bearer ", "Bearer é"):
        refused = ask(server, authorization=header and header.encode().decode("latin-1"))
        assert refused.status == 401 and "open the link" in refused.message, header
        assert server.token not in refused.text


def test_the_link_gives_the_browser_a_cookie_and_takes_the_token_out_of_the_address(server):
    moved = ask(server, f"/?token={server.token}", authorization=None)
    assert (moved.status, moved.headers["location"]) == (303, "/")
    cookie = moved.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    assert ask(server, authorization=None, cookie=cookie.partition(";")[0]).text == "in"
    name = cookie.partition("=")[0]
    for wrong_ in (f"{name}=no", f"{name}=", f"other={server.token}"):
        assert ask(server, authorization=None, cookie=wrong_).status == 401
    assert ask(server, "/?token=no", authorization=None).status == 401
    away = ask(server, f"//elsewhere.example/?token={server.token}", authorization=None)
    assert away.headers["location"].startswith("/elsewhere")


def test_another_name_for_this_machine_and_pages_of_other_sites_are_refused(server):
    port = urllib.parse.urlsplit(server.url).port
    assert ask(server, host=f"rebound.example:{port}").status == 400
    assert ask(server, host=f"localhost:{port}").status == 200
    assert ask(server, "/echo", {}, origin="http://elsewhere.example").status == 403
    assert ask(server, "/echo", {}, origin=server.url).status == 200


def test_every_answer_has_the_headers_refusals_too(server):
    for reply in (ask(server), ask(server, authorization=None), ask(server, host="x"), ask(server, "/nowhere")):
        assert reply.headers["content-security-policy"].startswith("default-src 'none'")
        assert (reply.headers["x-content-type-options"], reply.headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert "server" not in reply.headers


@pytest.mark.parametrize(
    "body, headers, status, message",
    [
        (b"{", {"content_type": "application/json"}, 400, "not a JSON object"),
        (b"[1]", {"content_type": "application/json"}, 400, "not a JSON object"),
        (b"[" * 900, {"content_type": "application/json"}, 400, "not a JSON object"),
        (b"a=1", {"content_type": "application/x-www-form-urlencoded"}, 415, "send JSON"),
        ({"a": "b" * 1000}, {}, 413, "too long: 1,000 bytes at most"),
    ],
)
def test_what_is_no_json_object_is_refused_in_a_line(server, body, headers, status, message):
    refused = ask(server, "/echo", body, **headers)
    assert refused.status == status and message in refused.message and "\n" not in refused.message
    assert ask(server, "/echo", {"a": "é"}).json == {"a": "é"}


def test_a_long_body_is_refused_before_a_handler_that_would_not_read_it(server):
    assert ask(server, "/blind", b"a" * 1000).text == "unread"
    assert ask(server, "/blind", b"a" * 1001).status == 413


def test_a_body_without_a_length_is_counted_as_it_comes(server):
    url = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
    headers = {"authorization": f"Bearer {server.token}", "content-type": "application/json"}
    connection.request("POST", "/echo", iter([b'{"a": "'] + [b"b" * 100] * 12), headers, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413 and "1,000 bytes" in json.loads(answer.read())["error"]["message"]
    connection.close()


def test_a_body_that_does_not_come_is_not_waited_for(server):
    url = urllib.parse.urlsplit(server.url)
    with socket.create_connection((url.hostname, url.port), timeout=20) as sock:
        head = f"Host: {url.netloc}\r\nAuthorization: Bearer {server.token}\r\nContent-Type: application/json"
        sock.sendall(f"POST /echo HTTP/1.1\r\n{head}\r\nContent-Length: 9\r\n\r\n{{".encode())
        assert b"408" in sock.recv(4096)


def test_a_client_that_leaves_while_it_sends_is_no_error_of_the_server(server, caplog):
    url = urllib.parse.urlsplit(server.url)
    with socket.create_connection((url.hostname, url.port), timeout=20) as sock:
        head = f"Host: {url.netloc}\r\nAuthorization: Bearer {server.token}\r\nContent-Type: application/json"
        sock.sendall(f"POST /echo HTTP/1.1\r\n{head}\r\nContent-Length: 9\r\n\r\n{{".encode())
        while not server._server.server_state.tasks:  # its handler waits for the rest
            time.sleep(0.01)
    while server._server.server_state.tasks:
        time.sleep(0.01)
    assert ask(server, "/echo", {"a": 1}).json == {"a": 1} and not caplog.records


def test_errors_of_handlers_are_lines_and_a_route_that_is_not_there_is_one(server):
    assert (ask(server, "/wrong").status, ask(server, "/wrong").message) == (400, "line 3 is empty; remove it")
    assert ask(server, "/nowhere").json["error"]["type"] == "invalid_request_error"


def test_more_connections_than_the_limit_are_refused():
    release, reached = threading.Event(), threading.Event()

    def wait(request: Request) -> Response:
        reached.set()
        release.wait(20)
        return PlainTextResponse("done")

    with running(Server([Route("/", wait)], limits=Limits(connections=2))) as server:
        first = threading.Thread(target=ask, args=(server,))
        first.start()
        assert reached.wait(20)
        assert ask(server).status == 503
        release.set()
        first.join()


def test_a_host_that_others_reach_needs_a_token_of_the_users_own(monkeypatch):
    monkeypatch.delenv(web.TOKEN, raising=False)
    with pytest.raises(UserError, match=r"can be reached from other machines.*FLANX_TOKEN"):
        Server(ROUTES, host="0.0.0.0")
    with pytest.raises(UserError, match="not an IP address"):
        Server(ROUTES, host="example.com")
    for short in ("short", "with a blank in it", "ünicode-ünicode-ünicode"):
        with pytest.raises(UserError, match="16 or more"):
            Server(ROUTES, token=short)
    monkeypatch.setenv(web.TOKEN, "a-secret-of-my-own")
    with Server(ROUTES, host="0.0.0.0") as server:
        assert server.token == "a-secret-of-my-own"
        assert "0.0.0.0" not in server.link


def test_a_port_that_is_taken_or_none_is_an_error_of_one_line():
    with Server(ROUTES) as server:
        port = urllib.parse.urlsplit(server.url).port
        for number in (port, 70000, -1):
            with pytest.raises(UserError, match="or 0 for a free one"):
                Server(ROUTES, port=number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_cleanly_and_what_follows_is_done(number):
    program = "from flanx.web.server import Server\nwith Server([]) as s:\n    print(s.url, flush=True)\n    s.run()\n"
    program += "print('after')\n"
    started = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    url = urllib.parse.urlsplit(started.stdout.readline().strip())
    while True:  # until it answers
        with socket.create_connection((url.hostname, url.port), timeout=20) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            if b"401" in sock.recv(4096):
                break
    os.kill(started.pid, number)
    assert started.communicate(timeout=20) == ("after\n", "") and started.returncode == 0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "flanx.web.server")
    with pytest.raises(UserError, match=r"uvicorn.*pip install 'flanx\[serve\]'"):
        __import__("flanx.web.server")
    assert web_case.Server is Server


def test_a_token_of_any_signs_opens_by_its_link_and_every_loopback_address_is_served():
    with running(Server(ROUTES, token='a&b#c+d%20e;f=g"h', host="127.0.0.2")) as server:
        moved = ask(server, server.link.removeprefix(server.url), authorization=None)
        assert moved.status == 303
        cookie = moved.headers["set-cookie"].partition("; HttpOnly")[0]
        assert ask(server, authorization=None, cookie=cookie).text == "in"


def test_connections_that_say_nothing_do_not_keep_others_out():
    with running(Server(ROUTES, limits=Limits(connections=3, seconds=0.2))) as server:
        url = urllib.parse.urlsplit(server.url)
        silent = [socket.create_connection((url.hostname, url.port), timeout=20) for _ in range(3)]
        for sock in silent[1:]:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        silent[2].sendall(f"Authorization: Bearer {server.token}\r\n\r\nGET".encode())  # and half a second one
        while silent[2].recv(4096):  # until it is closed
            pass
        assert [sock.recv(4096) for sock in silent[:2]] == [b"", b""]
        assert ask(server).status == 200
        for sock in silent:
            sock.close()
