"""Files with one JSON object per line that grow while their process may be killed at any moment.

A line is complete when its line feed is written. No other character ends one: a text may contain U+2028 or U+0085, at
which `str.splitlines` would break it.
"""

import json
import pathlib
from typing import Any

from flanx.errors import UserError


def line(record: Any) -> str:
    """The record as a line, line feed included; half a surrogate pair, which UTF-8 cannot hold, becomes "?"."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8") + "\n"


def lines(path: pathlib.Path) -> list[str]:
    """All lines, the last one perhaps truncated. Raises UserError where they are not UTF-8."""
    return _split(path, path.read_bytes())


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of the complete lines; none where there is no file.

    Raises UserError naming the line that is not a JSON object.
    """
    raw = path.read_bytes() if path.exists() else b""
    found: list[dict[str, Any]] = []
    for number, text in enumerate(_split(path, raw[: raw.rfind(b"\n") + 1]), 1):
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise UserError(
                f"{path}:{number}: not a JSON object; the file is damaged or not written by flanx: move it away"
            )
        found.append(record)
    return found


def truncate(path: pathlib.Path) -> None:
    """Removes an incomplete last line, left by a kill, so that the next one starts on its own."""
    with open(path, "r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _split(path: pathlib.Path, raw: bytes) -> list[str]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    return text.removesuffix("\n").split("\n") if text else []
