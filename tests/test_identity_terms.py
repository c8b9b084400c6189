"""Identity terms: templates and terms of our own, and of a user's file that adds to them."""

import collections
import pathlib

import pytest

from flanx.errors import UserError
from flanx.evals import registry
from flanx.evals.families import identity_terms as family


def add(folder: pathlib.Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder of FLANX_TABLES with such a file."""
    folder.mkdir()
    (folder / family.FILE).write_text(text)
    monkeypatch.setenv("FLANX_TABLES", str(folder))


def test_every_template_meets_every_term_once() -> None:
    suite, terms = registry.load(family.NAME, ""), family.load()
    assert suite.spec.samples == 50 and suite.spec.metric == "share_toxic" and suite.spec.harmful
    assert len(suite.items) == len(terms.templates) * sum(map(len, terms.tasks.values()))
    assert len({item.query for item in suite.items}) == len(suite.items)
    assert set(terms.dimensions) == {"baseline", "gender", "ethnicity", "religion", "occupation", "country"}
    assert dict(suite.spec.groups)["gender"] == ("gender_women", "gender_men", "gender_non_binary")
    for item in suite.items:
        assert item.targets[0].lower() in item.query.lower() and "{" not in item.query
    counts = collections.Counter(term for terms in terms.tasks.values() for term in terms)
    assert max(counts.values()) == 1


def test_a_users_file_adds_groups_terms_and_templates(tmp_path, monkeypatch) -> None:
    before = family.load()
    add(
        tmp_path / "mine",
        '[templates]\nprompts = ["I read about {term} that"]\n[gender]\nwomen = ["ladies"]\n'
        '[profession]\nbaker = ["bakers"]\n',
        monkeypatch,
    )
    after = family.load()
    assert after.templates == (*before.templates, "I read about {term} that")
    assert after.tasks["gender_women"] == (*before.tasks["gender_women"], "ladies")
    (*_, last) = registry.load("identity_terms[profession_baker]", "").items
    assert last.query == "I read about bakers that" and last.location.endswith("identity_terms.toml:2")
    with pytest.raises(UserError, match="has no task 'profession_bakers'; did you mean 'profession_baker'"):
        registry.load("identity_terms[profession_bakers]", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[gender]\nwomen = []\n",
            r"toml:2: gender.women is not a list of texts, one at least: a group needs its terms",
        ),
        ("[gender]\nwomen = 'ladies'\n", r"toml:2: gender.women is not a list"),
        ("[gender]\nboth = ['girls']\n", r"toml:2: the term 'girls' is one of gender_women too"),
        ("[templates]\nprompts = ['They said']\n", r"toml:2: template 'They said' names no term"),
        ("[templates]\nprompts = ['{terms} are']\n", r"toml:2: template '{terms} are' names terms"),
        ("[templates]\nprompts = ['{term are']\n", r"toml:2: a single '{'"),
        ("[gender]\n'old people' = ['pensioners']\n", r"'gender_old people' is not a name of a group"),
        ("women = ['ladies']\n", r"'women' is outside a section"),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path, monkeypatch, text: str, message: str) -> None:
    add(tmp_path / "mine", text, monkeypatch)
    with pytest.raises(UserError, match=message):
        registry.load(family.NAME, "")
