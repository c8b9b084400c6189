"""Turns become a prompt by a table of texts, which a file may hold."""

import pytest

from flanx.ask.template import Turn, load
from flanx.errors import UserError

TALK = [Turn("user", "{text} one"), Turn("assistant", "two"), Turn("user", "three")]


def test_the_built_in_templates():
    assert load("qa").render(TALK) == "Q: {text} one\nA: two\n\nQ: three\nA:"
    assert load("lines").render(TALK) == "{text} one\ntwo\nthree\n"
    assert load("last").render(TALK) == "three"
    for name in ("qa", "lines", "last"):
        assert load(name).render(TALK[:1]) == "{text} one"  # a prompt by itself is asked as it is
    system = [Turn("system", "Be brief."), Turn("developer", "Now.")]
    assert load("qa").render([*system, *TALK[2:]]) == "Be brief.\n\nNow.\n\nthree"
    assert load("last").render([*system[:1], *TALK]) == "Be brief.\n\nthree"
    assert load("qa").render([Turn("system", ""), *TALK[2:]]) == "three"
    assert load("qa").stop == ("\nQ:",)


def test_a_template_of_a_file(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        '\ufefffirst = "<{text}>"\nuser = "U {text};"\nassistant = "M {text};"\nanswer = "M"\nstop = ["U "]\n', "utf-8"
    )
    own = load(str(path))
    assert own.render(TALK[:1]) == "<{text} one>" and own.render(TALK) == "U {text} one;M two;U three;M"
    assert own.stop == ("U ",)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match="no template 'qq'; did you mean 'qa'"):
        load("qq")
    path = tmp_path / "own.toml"
    for text, message in {
        "user = 3": "user is 3; it takes a text with one {text}",
        'user = "Q"': "user is 'Q'; it takes a text with one",
        'answer = "{text}"': "with no {text}",
        'usr = "{text}"': "no 'usr' in a template; did you mean 'user'",
        'stop = "x"': "stop is 'x'; it takes a list",
        'stop = [""]': "texts that are not empty",
        "only_last = 1": "true or false",
        "user": "not TOML",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load(str(path))
    for turns, message in {
        (): "the last message is not the user's",
        tuple(TALK[:2]): "the last message is not the user's",
        (TALK[0], Turn("system", "x"), TALK[0]): r"messages\[1\] is of 'system'",
        (Turn("tool", "x"), TALK[0]): r"messages\[0\] is of 'tool'",
    }.items():
        with pytest.raises(UserError, match=message):
            load("qa").render(turns)
