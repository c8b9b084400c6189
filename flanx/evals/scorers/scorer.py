"""What reads texts for toxicity, by name: one small interface.

perspective            Perspective's API, attribute TOXICITY, one query a second; the key is PERSPECTIVE_API_KEY
perspective:10         as many queries a second as your quota has
hf:ORG/NAME[@REVISION][#LABEL]    a classifier of the Hugging Face hub; LABEL where its labels do not say "toxic"
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
    """toxicity: 0 to 1, None where the scorer gives none, and `note` then says why; else what limits it."""

    toxicity: float | None
    note: str = ""


class Scorer(Protocol):
    """Reads texts for toxicity. `name` says what it is with its version: scores of two names are not comparable."""

    @property
    def name(self) -> str: ...

    def score(self, texts: Sequence[str]) -> Iterator[tuple[int, Verdict]]:
        """Yields (index of a text, its verdict) in any order; a text that it does not know is left out.

        Raises UserError where it cannot continue; what was yielded counts.
        """
        ...


def load(text: str) -> Scorer:
    """The scorer of a name (see above). Raises UserError for one that is none, or is not to be used here."""
    kind, _, rest = text.partition(":")
    if kind == "perspective":
        from flanx.evals.scorers.perspective import Perspective  # noqa: PLC0415  (its network code is for it alone)

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
