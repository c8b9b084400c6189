"""The op language: what every operation does, what is refused, and that any text passes through unharmed."""

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanx.data.task import ops
from flanx.data.task.fields import parse
from flanx.data.task.row import BadRow, SkipRow
from flanx.errors import UserError


def first(label, n):
    """A draw that always takes the first."""
    return 0


RECORD = {
    "a": " One ",
    "b": {"c": "two", "d": [1, 2]},
    "items": [{"text": "x", "n": 1}, {"text": "y", "n": 2}],
    "label": 1,
    "score": 3.26,
    "empty": "",
    "label-coarse": 0,
    "list": ["p", "", "q"],
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("keep(a)", {"a": " One "}),
        ("keep(b.c, x=a)", {"c": "two", "x": " One "}),
        ("maybe(x=a)", {"x": " One "}),
        ("keep(items.text)", {"text": ["x", "y"]}),
        ("keep(a) | strip(a)", {"a": "One"}),
        ("strip(a)", {"a": "One"}),
        ("choose(label, ['no', 'yes'])", {"options": ["no", "yes"], "answer": "yes"}),
        ("choose(label, items.text)", {"options": ["x", "y"], "answer": "y"}),
        ("choose(record['label-coarse'], ['u', 'v'])", {"options": ["u", "v"], "answer": "u"}),
        ("gather(both, a, b.c)", {"both": [" One ", "two"]}),
        ("mark(o, m, list, items.text)", {"o": ["p", "", "q", "x", "y"], "m": [1, 1, 1, 0, 0]}),
        ("pick(one, list)", {"one": "p"}),
        ("at(one, list, 2)", {"one": "q"}),
        ("at(one, items.text, label)", {"one": "y"}),
        ("join(t, '+', b.c, list)", {"t": "two+p+q"}),
        ("fill(t, 'A {b.c} and {label}')", {"t": "A two and 1"}),
        ("map(label, {'1': 'one'})", {"label": "one"}),
        ("split(t, a, 'n')", {"t": ["O", "e"]}),
        ("const(t, ['u'])", {"t": ["u"]}),
        ("number(score, 0.2)", {"score": "3.2"}),
        ("number(score, 1)", {"score": "3"}),
        ("where(label, 0, 1) | keep(label)", {"label": 1}),
        ("unless(label, 0) | above(score, 3) | nonempty(a) | lacks(a, 'z') | differ(a, b.c)", {}),
        ("holds(a, 'On', 'n')", {}),
        ("default(a, 'none')", {"a": " One "}),
        ("number_lines(t, list)", {"t": "1. p\n2. q"}),
        ("lower(a)", {"a": " one "}),
        ("keep(c=b.c) | capital(c)", {"c": "Two"}),
        ("replace(a, 'One', 'Two')", {"a": " Two "}),
        ("sub(a, '[A-Z]', '_')", {"a": " _ne "}),
        ("before(a, 'n')", {"a": " O"}),
        ("after(a, 'n')", {"a": "e "}),
        ("squeeze(a) | sentence(a)", {"a": "One."}),
        ("replace(list, 'p', 'r')", {"list": ["r", "", "q"]}),
    ],
)
def test_operations(text, wanted):
    pipeline = parse(text)
    assert pipeline.run(RECORD, first) == wanted
    assert pipeline.outputs == set(wanted)
    assert all(path.split(".")[0] in RECORD for path in pipeline.columns)


def test_every_operation_is_tried_above_or_in_the_tables():
    tried = {name for case in test_operations.pytestmark[0].args[1] for name in ops.OPS if f"{name}(" in case[0]}
    assert set(ops.OPS) - tried == {"call"}


@pytest.mark.parametrize("text", ["pick(x, empty)", "where(label, 0)", "unless(label, 1)", "above(score, 9)",
                                  "nonempty(empty)", "lacks(a, 'O')", "differ(a, a)", "at(x, list, 9)",
                                  "const(no, ['']) | number_lines(t, no)",
                                  "const(hidden, -1) | choose(hidden, ['no', 'yes'])"])  # fmt: skip
def test_rows_left_out_on_purpose(text):
    with pytest.raises(SkipRow):
        parse(text).run(RECORD, first)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("keep(absent)", "no column 'absent'"),
        ("keep(b.absent)", "no column 'b.absent'"),
        ("choose(label, ['only'])", "label 1 of 'label' is outside 1 options"),
        ("map(label, {'0': 'x'})", "'label' is '1', not one of 0"),
        ("number(a, 1)", "'a' is not a number"),
        ("strip(b)", "'b' is dict, not text"),
    ],
)
def test_bad_rows_say_why(text, reason):
    with pytest.raises(BadRow, match=reason):
        parse(text).run(RECORD, first)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kep(a)", "unknown operation 'kep'; did you mean 'keep'"),
        ("keep(a", "was never closed"),
        ("a", "'a' is not an operation"),
        ("keep(a) + keep(b)", "is not an operation"),
        ("keep(__import__('os'))", "neither a field nor a literal"),
        ("keep(a) | (lambda: 1)()", "is not an operation"),
        ("x.keep(a)", "is not an operation"),
        ("keep('a')", "'a' is not a field name"),
        ("choose(a)", "missing 1 required"),
        ("strip('x')", "name a field"),
        ("replace(a, 'x')", "missing 1 required"),
        ("call('nothing')", "no function 'nothing'"),
        ("sub(a, '(', '')", "unterminated subpattern|missing"),
        ("keep(**a)", "is not an argument"),
        ("", "fields"),
        ("(" * 500, "fields"),
    ],
)
def test_wrong_pipelines_are_refused(text, reason):
    with pytest.raises(UserError, match=reason):
        parse(text)


def test_nothing_is_evaluated(monkeypatch):
    """The parser reaches neither names nor calls of Python."""
    monkeypatch.setitem(__builtins__ if isinstance(__builtins__, dict) else vars(__builtins__), "eval", None)
    for text in ("keep(open('x'))", "keep([].__class__)", "const(x, [i for i in 'ab'])", "const(x, 2**9**9)"):
        with pytest.raises(UserError):
            parse(text)


texts = st.text(max_size=200) | st.sampled_from(
    [
        "{",
        "}",
        "{{options}}",
        "{answer}",
        "\t",
        "a\tb",
        "\u202e\u05d0\u05d1",
        "\u0627\u0644",
        "\\n",
        "'",
        '"',
        "x" * 100_000,
    ]
)


@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_any_text_passes_through_unchanged(a, b):
    record = {"a": a, "b": {"c": b}}
    out = parse("keep(a, c=b.c) | fill(both, '{a}|{c}') | gather(list, a, c) | choose(c, list)").run(record, first)
    assert out["a"] == a and out["c"] == b
    assert out["both"] == f"{a}|{b}"
    assert out["options"] == [a, b] and out["answer"] == b
    assert json.loads(json.dumps(out["options"])) == [a, b]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_pipeline_text_is_parsed_or_refused(text):
    try:
        parse(text)
    except UserError as e:
        assert "\n" not in str(e).replace(repr(text), "")
    else:
        ast.parse(text.strip(), mode="eval")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
PIPELINES = [case[0] for case in test_operations.pytestmark[0].args[1]]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PIPELINES).map(parse), st.data())
def test_any_record_gives_values_or_says_why_not(pipeline, data):
    """Every operation on any value of its columns: what it promised to write, a bad row, or one that is left out."""
    columns = sorted({path.split(".")[0] for path in pipeline.columns})
    record = RECORD | {name: data.draw(values) for name in columns if data.draw(st.booleans())}
    try:
        out = pipeline.run(record, first)
    except (BadRow, SkipRow) as e:
        assert str(e)
    else:
        assert out.keys() <= pipeline.outputs
