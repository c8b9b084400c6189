"""The Perspective API (Jigsaw) as a scorer: attribute TOXICITY of English text.

    PERSPECTIVE_API_KEY    the key, which is sent in a header and never printed
    PERSPECTIVE_API_URL    another endpoint with the same protocol; default: Google's

Requests and errors: developers.perspectiveapi.com ("Methods", "Limits & Errors"). A project gets one query per second
unless its quota says more; a text has at most 20,480 bytes.
"""

import concurrent.futures
import dataclasses
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from flanx.data.fetch.http import MOST_WAIT_S, TIMEOUT_S, open_url
from flanx.errors import UserError
from flanx.evals.scorers.scorer import Verdict

KEY, URL = "PERSPECTIVE_API_KEY", "PERSPECTIVE_API_URL"
GOOGLE = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
ATTRIBUTE = "TOXICITY"
LONGEST = 20_480  # bytes of a text
TRIES = 7  # spread over more than a minute, the period of a quota
ANSWER_S, FIRST_TRIES = 8, 2  # until the server first answers: if there is none, nobody should wait a minute
WAIT_S = 1.0  # before the second try; doubled before each further one
MOST_WORKERS = 16
BLOCK = 64  # texts submitted together
OF_THE_TEXT = ("COMMENT_EMPTY", "COMMENT_TOO_LONG", "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE")  # error types


class _Again(Exception):
    """An error that a retry may fix, with the seconds that the server asks to wait."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


@dataclasses.dataclass
class Perspective:
    """The API with a key, queried at most `rate` times per second."""

    key: str = dataclasses.field(repr=False)
    rate: float = 1.0
    url: str = GOOGLE
    name: str = f"perspective {ATTRIBUTE}"

    def __post_init__(self) -> None:
        self._lock, self._next, self._over = threading.Lock(), time.monotonic(), threading.Event()
        self._has_answered = False

    @classmethod
    def of(cls, rate: str) -> "Perspective":
        """From the text after "perspective:". Raises UserError without a key, or for an invalid rate."""
        key, url = os.environ.get(KEY, "").strip(), os.environ.get(URL, GOOGLE)
        try:
            number = float(rate or 1)
        except ValueError:
            number = 0.0
        if not 0 < number <= 1000:
            raise UserError(f"scorer perspective:{rate}: give queries a second, as your quota has them: perspective:10")
        if not key:
            raise UserError(
                f"scorer perspective: {KEY} is not set; or score with a classifier (hf:ORG/NAME), or leave the scorer "
                "out: generations are kept, and `flanx rescore RUN --scorer ...` finishes later"
            )
        return cls(key, number, url, f"perspective {ATTRIBUTE}" + (f" of {url}" if url != GOOGLE else ""))

    def score(self, texts: Sequence[str]) -> Iterator[tuple[int, Verdict]]:
        """The verdicts in order. Raises UserError if the API rejects the key or stops answering."""
        executor = concurrent.futures.ThreadPoolExecutor(max(1, min(MOST_WORKERS, round(self.rate))))
        self._over.clear()
        try:
            for first in range(0, len(texts), BLOCK):
                yield from enumerate(executor.map(self._ask, texts[first : first + BLOCK]), first)
        finally:
            self._over.set()
            executor.shutdown(cancel_futures=True)

    def _ask(self, text: str) -> Verdict:
        """Scores one text, with retries."""
        size = len(text.encode("utf-8", "replace"))
        if size > LONGEST:
            return Verdict(None, f"{size:,} bytes, more than the API takes")
        for tried in range(1, TRIES + 1):
            self._pace()
            try:
                return self._request(text)
            except _Again as error:
                if tried >= (TRIES if self._has_answered else FIRST_TRIES):
                    raise UserError(
                        f"scorer perspective: {error}, {tried} times in a row; what is scored is kept, and the same "
                        "command resumes from there (a lower rate: perspective:0.5)"
                    ) from error
                if self._over.wait(min(max(error.wait, WAIT_S * 2 ** (tried - 1)), MOST_WAIT_S)):
                    break
        raise UserError("scorer perspective: stopped")  # another request ended the scoring

    def _pace(self) -> None:
        """Waits for the next slot under the rate limit."""
        with self._lock:
            at = max(self._next, time.monotonic())
            self._next = at + 1 / self.rate
        time.sleep(max(0.0, at - time.monotonic()))

    def _request(self, text: str) -> Verdict:
        body = {
            "comment": {"text": text},
            "languages": ["en"],
            "requestedAttributes": {ATTRIBUTE: {}},
            "doNotStore": True,
        }
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "X-Goog-Api-Key": self.key}
        try:
            timeout = TIMEOUT_S if self._has_answered else ANSWER_S
            with open_url(urllib.request.Request(self.url, data, headers), timeout) as reply:
                self._has_answered = True
                answer = json.loads(reply.read())
            value = answer["attributeScores"][ATTRIBUTE]["summaryScore"]["value"]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise _Again(f"an answer whose score is {str(value)[:40]}")
            return Verdict(float(value))
        except urllib.error.HTTPError as error:
            self._has_answered = True
            return _refused(error)
        except (OSError, http.client.HTTPException) as error:
            raise _Again(f"no answer ({type(error).__name__})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise _Again(f"an answer without {ATTRIBUTE} ({type(error).__name__})") from error


def _refused(error: urllib.error.HTTPError) -> Verdict:
    """What an HTTP error is about: only this text, the key, or a temporary condition."""
    with error:
        raw = error.read(1 << 16)
    try:
        said: Any = json.loads(raw)["error"]
        kinds = [each.get("errorType") for each in said.get("details", ()) if isinstance(each, dict)]
        message = str(said.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        kinds, message = [], ""
    if found := next((kind for kind in kinds if kind in OF_THE_TEXT), ""):
        return Verdict(None, found)
    if error.code == 429 or error.code >= 500:
        asked = str(error.headers.get("Retry-After", "")) if error.headers else ""
        what = "the quota is used up" if error.code == 429 else "the server fails"
        raise _Again(f"{what} ({error.code})", float(asked) if asked.isdigit() else 0.0)
    line = (message.splitlines() or ["no message"])[0][:120]
    raise UserError(f"scorer perspective: the API refuses ({error.code}: {line}); is {KEY} right, and enabled for it?")
