"""What a vocabulary cannot represent in a suite's prompts and gold answers, by name."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

from flanx.data.vocabulary import Vocabulary


def unwritable(vocabulary: Vocabulary, texts: Iterable[str]) -> list[str]:
    """Line breaks that become spaces, and characters that become unknown tokens: symbols singly, letters by script.

    `["line breaks (read as blanks)", "'{'", "'}'", "bengali (63 characters)"]`; [] if everything can be represented.
    """
    characters = sorted(set().union(*texts))
    found = []
    if "\n" in characters and "\n" not in vocabulary.decode(vocabulary.encode("a\nb")):
        found.append("line breaks (read as blanks)")
    unknown = [c for c in characters if not c.isspace() and vocabulary.unk_id in vocabulary.encode(c)]
    scripts = Counter(unicodedata.name(c, "unnamed").split()[0].lower() for c in unknown if not _is_sign(c))
    found += [repr(c) for c in unknown if _is_sign(c)]
    return found + [f"{script} ({count} characters)" for script, count in sorted(scripts.items())]


def _is_sign(character: str) -> bool:
    return unicodedata.category(character)[0] in "PSC"
