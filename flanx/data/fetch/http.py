"""One URL into one file: resumed after a break, retried while that helps, with reports of progress.

The bytes received so far are in `<file>.part`, and the server's ETag or Last-Modified in `<file>.part.mark`: bytes of
two versions of a file are never joined. The file itself appears when it is complete.
"""

import http.client
import os
import pathlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

TRIES = 4  # in a row without one new byte
WAIT_S = 1.0  # before the second try; doubled before each further one
MOST_WAIT_S = 60.0  # whatever the server asks for
TIMEOUT_S = 60
BLOCK = 1 << 18  # bytes

Report = Callable[[int, int | None], None]  # (bytes of the file that are received, its size where known)


class Stopped(Exception):
    """What `report` raises to stop a download; the bytes received so far stay."""


def download(url: str, path: pathlib.Path, report: Report = lambda have, size: None) -> None:
    """Fetches `url` into `path`. Raises OSError (HTTPError is one), EOFError or HTTPException when tries are over."""
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
            if e.code == 416:  # our bytes are not a beginning of the server's file
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
    """Seconds that the server asks to wait."""
    asked = error.headers.get("Retry-After", "") if error.headers else ""
    return min(float(asked), MOST_WAIT_S) if asked.isdigit() else 0.0


def _transfer(url: str, draft: pathlib.Path, mark: pathlib.Path, report: Report) -> None:
    """One request; resumes after the bytes received so far, if the server still has the same content."""
    known = mark.read_text(encoding="utf-8") if mark.exists() else ""
    have = _size(draft) if known else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-", "If-Range": known} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        if reply.status != 206:
            have = 0
        size = _total(reply, have)
        with draft.open("ab" if have else "wb") as file:
            mark.write_text(_version(reply), encoding="utf-8")
            report(have, size)
            while block := reply.read(BLOCK):
                file.write(block)
                have += len(block)
                report(have, size)
    if size is not None and have != size:
        raise EOFError(f"{url}: {have:,} of {size:,} bytes")


def _version(reply: Any) -> str:
    """What distinguishes this content from another of the same URL: a strong ETag, or the date of the last change."""
    tag = reply.headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else reply.headers.get("Last-Modified") or ""


def _total(reply: Any, have: int) -> int | None:
    """The size of the file, where the reply has it."""
    length = reply.headers.get("Content-Length")
    return have + int(length) if length and length.isdigit() else None
