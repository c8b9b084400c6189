"""Downloads one URL to one file: resumes after interruptions, retries while that helps, reports progress.

The bytes received so far are in `<file>.part`, and the server's ETag or Last-Modified in `<file>.part.mark`, so that
two versions of a file are never mixed. The file itself appears only once it is complete.
"""

import contextlib
import http.client
import ipaddress
import os
import pathlib
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections.abc import Callable
from typing import Any

TRIES = 4  # consecutive, without a single new byte
WAIT_S = 1.0  # before the second try; doubled for each further one
MOST_WAIT_S = 60.0  # whatever the server requests
TIMEOUT_S = 60  # without a byte
CONNECT_S = 10
BLOCK = 1 << 18  # bytes

Report = Callable[[int, int | None], None]  # (bytes received of the file, its size if known)


class Stopped(Exception):
    """Raised by `report` to stop a download; the bytes received so far are kept."""


_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def interrupt() -> None:
    """Aborts the reads of all downloads at once: a stalled server would block them for TIMEOUT_S."""
    for one in list(_sockets):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def without_secrets(text: str) -> str:
    """The text with user names, passwords and queries removed from its URLs."""
    return re.sub(r"(\w+://)(?:[^/\s@]*@)?([^\s?]*)\?[^\s;:)]*", r"\1\2?...", re.sub(r"(\w+://)[^/\s@]*@", r"\1", text))


def check_pointed(url: str, source: str) -> None:
    """Raises ValueError if `source`, a server's answer, points to what a server should not choose: a scheme other than
    http(s), or an address of this machine or its network. A source that is itself local may."""
    parts = urllib.parse.urlsplit(url)
    if _is_local(source):
        return
    if parts.scheme not in ("http", "https") or _is_local(url):
        raise ValueError(f"{source} points to {url}, which is not a public http address")


def _is_local(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file" or not parts.hostname:
        return True
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(parts.hostname, None)}
    except OSError:
        return False  # unreachable
    return any(not ipaddress.ip_address(one.partition("%")[0]).is_global for one in found)


class _Redirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_pointed(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _HttpConnection(http.client.HTTPConnection):
    """A connection with the connect timeout CONNECT_S, whose socket is registered for `interrupt`."""

    def connect(self) -> None:
        asked, self.timeout = self.timeout, CONNECT_S
        super().connect()
        self.sock.settimeout(asked)
        _sockets.add(self.sock)


class _HttpsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        asked, self.timeout = self.timeout, CONNECT_S
        super().connect()
        self.sock.settimeout(asked)
        _sockets.add(self.sock)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_HttpsConnection, req)


def open_url(request: str | urllib.request.Request, timeout: float = TIMEOUT_S) -> Any:
    """urllib's `urlopen` with this module's limits; `timeout`: seconds without a byte."""
    return urllib.request.build_opener(_Http, _Https, _Redirect).open(request, timeout=timeout)


def download(url: str, path: pathlib.Path, report: Report = lambda have, size: None) -> None:
    """Fetches `url` into `path`. Raises OSError (including HTTPError), EOFError or HTTPException once tries run out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, mark = (path.with_name(path.name + ending) for ending in (".part", ".part.mark"))
    failures = 0
    while True:
        before = _size(draft)
        try:
            _transfer(url, draft, mark, report)
            os.replace(draft, path)
            mark.unlink(missing_ok=True)
            return
        except urllib.error.HTTPError as e:
            e.close()
            wait = _asked_wait(e)
            if e.code == 416:  # our bytes are not a prefix of the server's file
                draft.unlink(missing_ok=True)
            elif e.code < 500 and e.code not in (408, 429):
                raise
            error: Exception = e
        except (OSError, EOFError, http.client.HTTPException) as e:
            error, wait = e, 0.0
        failures = 0 if _size(draft) > before else failures + 1
        if failures >= TRIES:
            raise error
        until = time.monotonic() + max(wait, WAIT_S * 2 ** max(0, failures - 1))
        while (left := until - time.monotonic()) > 0:
            report(_size(draft), None)
            time.sleep(min(left, 1.0))


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks us to wait."""
    asked = error.headers.get("Retry-After", "") if error.headers else ""
    return min(float(asked), MOST_WAIT_S) if asked.isdigit() else 0.0


def _transfer(url: str, draft: pathlib.Path, mark: pathlib.Path, report: Report) -> None:
    """One request; resumes after the bytes received so far, if the server still has the same content."""
    known = mark.read_text(encoding="utf-8") if mark.exists() else ""
    have = _size(draft) if known else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-", "If-Range": known} if have else {})
    with open_url(request) as reply:
        if reply.status != 206:
            have = 0
        elif reason := _other_part(reply, have, known):
            draft.unlink(missing_ok=True)
            raise OSError(f"{url}: {reason}")
        size = _total(reply, have)
        if size is not None and size - have > (free := shutil.disk_usage(draft.parent).free):
            raise ValueError(f"{url}: {size:,} bytes, and {draft.parent} has {free:,} free")
        with draft.open("ab" if have else "wb") as file:
            mark.write_text(_version(reply), encoding="utf-8")
            report(have, size)
            while block := reply.read(BLOCK):
                file.write(block)
                have += len(block)
                report(have, size)
    if size is not None and have != size:
        raise EOFError(f"{url}: {have:,} of {size:,} bytes")


def _other_part(reply: Any, have: int, known: str) -> str | None:
    """Why a partial reply does not continue what we have; None if it does."""
    said = reply.headers.get("Content-Range")
    if said is not None and not re.match(rf"bytes {have}-", said):
        return f"asked for the bytes from {have:,} on, answered with {said!r}"
    if (version := _version(reply)) and version != known:
        return "the rest is of another version of the file"
    return None


def _version(reply: Any) -> str:
    """Identifies the version of this URL's content: a strong ETag, or the last-modified date."""
    tag = reply.headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else reply.headers.get("Last-Modified") or ""


def _total(reply: Any, have: int) -> int | None:
    """The size of the file, if the reply states it."""
    length = reply.headers.get("Content-Length")
    if length and not length.isdigit():
        raise ValueError(f"{reply.url}: its Content-Length is {length[:40]!r}")
    return have + int(length) if length else None
