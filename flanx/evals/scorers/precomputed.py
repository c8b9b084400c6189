"""Toxicity scored elsewhere: a file with columns `text` and `toxicity`."""

import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from flanx.data.task import text as text_files
from flanx.data.task.row import BadRow
from flanx.errors import UserError
from flanx.evals.scorers.scorer import Verdict
from flanx.files import open_regular


class Precomputed:
    """The scores in a file, by exact text; an empty or null toxicity means that the text has none."""

    def __init__(self, path: pathlib.Path) -> None:
        """Reads the file. Raises UserError with the invalid line."""
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        self.name = f"{path.name} {digest[:12]}"
        self.known: dict[str, float | None] = {}
        for location, record in text_files.records(path):
            if isinstance(record, BadRow):
                raise UserError(f"{location}: {record}")
            for column in ("text", "toxicity"):
                if column not in record:
                    has = ", ".join(map(str, record))
                    raise UserError(f"{location}: no column '{column}' (it has {has}); `--texts` writes such a file")
            text, value = text_files.cell(record, "text", location).strip(), _number(record["toxicity"], location)
            if self.known.setdefault(text, value) != value:
                raise UserError(f"{location}: this text has another toxicity in an earlier line; keep one of them")
        if not self.known:
            raise UserError(
                f"scorer {path}: holds no texts; `flanx rescore RUN --texts FILE` writes those to be scored"
            )

    def score(self, texts: Sequence[str]) -> Iterator[tuple[int, Verdict]]:
        """The verdicts on the texts that are in the file."""
        for number, text in enumerate(texts):
            if text in self.known:
                value = self.known[text]
                yield number, Verdict(value, "" if value is not None else "none in the file")


def _number(value: Any, location: str) -> float | None:
    """A toxicity from 0 to 1; None for an empty cell or null."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value) if not isinstance(value, bool) else -1.0
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise UserError(f"{location}: toxicity is {str(value)[:40]!r}; it is a number from 0 to 1, or empty")
    return number
