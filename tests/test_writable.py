"""What a vocabulary cannot write is said by name."""

from flanx.data import vocabulary
from flanx.data.vocabulary import Vocabulary
from flanx.evals.writable import unwritable


def test_what_a_vocabulary_cannot_write_is_said_by_name(t5_like: Vocabulary) -> None:
    found = unwritable(t5_like, ["Q: {1}\nA: is 2", "Ωω 5"])
    assert found == ["line breaks (read as blanks)", "'{'", "'}'", "greek (2 characters)"]
    assert unwritable(vocabulary.load("byte"), ["Q: {1}\nA: is 2", "Ωω 5"]) == []
