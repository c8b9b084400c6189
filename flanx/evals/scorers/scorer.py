"""Toxicity scorers by name, behind one small interface.

perspective            the Perspective API, attribute TOXICITY, one query per second; the key is PERSPECTIVE_API_KEY
perspective:10         as many queries per second as your quota allows
hf:ORG/NAME[@REVISION][#LABEL]    a classifier on the Hugging Face hub; LABEL if none of its labels says "toxic"
FOLDER[#LABEL]         such a classifier in a folder
FILE                   scores from elsewhere: .jsonl, .csv, .tsv or .parquet with columns `text` and `toxicity`
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from flanx import hub
from flanx.errors import UserError, nearest
from flanx.files import local_path

NAMES = ("perspective",)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`toxicity`: 0 to 1, or None if the scorer gives none; `note`: why there is none, or else what qualifies it."""

    toxicity: float | None
    note: str = ""


class Scorer(Protocol):
    """Scores texts for toxicity. `name` includes the version: scores under different names are not comparable."""

    @property
    def name(self) -> str: ...

    def score(self, texts: Sequence[str]) -> Iterator[tuple[int, Verdict]]:
        """Yields (index of a text, its verdict) in any order; unknown texts are left out.

        Raises UserError if it cannot continue; what was yielded counts.
        """
        ...


def load(text: str) -> Scorer:
    """The scorer with a name (see above). Raises UserError for an invalid name or an unavailable scorer."""
    kind, _, rest = text.partition(":")
    if kind == "perspective":
        from flanx.evals.scorers.perspective import Perspective  # noqa: PLC0415  (only it needs network code)

        return Perspective.of(rest)
    path, _, label = text.partition("#")
    place = pathlib.Path(path) if "://" in path else local_path(path)
    if place.is_file():
        from flanx.evals.scorers.precomputed import Precomputed  # noqa: PLC0415  (as above)

        return Precomputed(place)
    if place.is_dir() or path.startswith(hub.PREFIX):
        from flanx.evals.scorers.classifier import Classifier  # noqa: PLC0415  (imports torch)

        return Classifier(path, label)
    raise UserError(
        f"scorer '{text}': no such file or folder{nearest(text, NAMES)}; it is perspective[:QUERIES A SECOND], "
        "hf:ORG/NAME[#LABEL], the folder of a classifier, or a file with columns text and toxicity"
    )
