"""Templates, option lists and few-shot prompts: by example, and for any text."""

import collections
import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flanx.data.task import spec, tables, template
from flanx.data.task.render import MAX_INPUT_TOKENS, Renderer
from flanx.data.task.row import BadRow, draw
from flanx.data.task.template import Prompt, compile_text, fill, list_options, parse_block
from flanx.errors import UserError
from flanx.evals import answers as extraction

TABLES = tables.load()
STYLE = TABLES.style
BLOCK = parse_block(
    "plain",
    {
        "none": ["{question}\n{options}", "{answer}"],
        "prompts": [
            ["Say: {question}\n{options}\nNow?", "{answer}"],
            ["Do it.\n\n", "{question}\n{options}", "{answer}"],
        ],
    },
)  # fmt: skip


def make_renderer(style="zsopt", block=BLOCK, split="train", pool=tuple, count=len, rendering=0, **row):
    """The renderer of a task with these blocks; `row`: more of its row, blocks as they are."""
    blocks = {one.name: one for one in (block, *row.get("inversions", ()), *row.get("worked", ()))}
    row = {key: tuple(one.name for one in value) if isinstance(value, list) else value for key, value in row.items()}
    task = spec.TaskSpec("task", "mine", "extra", "mine.toml:1", "jsonl:mine", {"train": "train"}, (block.name,),
                         dataset="data", **row)  # fmt: skip
    return Renderer(task, tables.Tables({}, blocks, STYLE, {}), style, split, rendering, pool, count)


def render(style="zsopt", records=None, row="train:0", block=BLOCK, **more):
    records = records or {f"train:{i}": {"question": f"question {i}", "answer": f"answer {i}"} for i in range(40)}
    renderer = make_renderer(style, block, pool=lambda: list(records.items()), **more)
    return renderer.render(row, records[row])


def test_texts_compile_to_literals_and_fields():
    assert compile_text("a {b}{c} {{d}}") == (("a ", "b"), ("", "c"), (" {d}", None))
    assert fill(compile_text("{b}{b}"), {"b": "{b}"}) == "{b}{b}"  # a value is never looked into
    for wrong in ("{", "a } b", "{b c}", "{1}"):
        with pytest.raises(ValueError, match="a single"):
            compile_text(wrong)


def test_the_list_goes_with_the_line_break_before_it():
    both = Prompt.parse("x", ["Is it?\n\n{options}\nNow?", "{answer}"])
    shown, hidden = both.listed[1], both.plain[1]
    assert fill(shown, {"options": "A\nB"}) == "Is it?\n\nA\nB\nNow?"
    assert fill(hidden, {}) == "Is it?\nNow?"
    assert fill(Prompt.parse("x", ["{options}\n\nIs it {a}?", "{answer}"]).plain[1], {"a": "b"}) == "Is it b?"


def test_no_list_without_options_or_in_a_style_without():
    record = {"train:0": {"question": "Is it?", "answer": "yes", "options": ["no", "yes"]}}
    with_list = render("zsopt", record)
    assert "no" in with_list.inputs
    for style, records in (("zsnoopt", record), ("zsopt", {"train:0": {"question": "Is it?", "answer": "yes"}})):
        made = render(style, records)
        assert made.inputs in ("Say: Is it?\nNow?", "Do it.\n\nIs it?") and made.targets == "yes"


def test_letters_are_answered_by_the_mark_and_bullets_by_the_text():
    seen = collections.Counter()
    for i in range(400):
        text, answers = list_options(STYLE, ["no", "yes"], f"key {i}")
        assert "no" in text and "yes" in text
        assert answers[0] != answers[1]
        seen[answers[1] == "yes"] += 1
        if answers[1] != "yes":
            assert answers[1] in text
    assert min(seen.values()) > 50


@pytest.mark.parametrize(
    ("marker", "shown", "said"),
    [
        ("({A}) {}", "(B) yes", "(B)"),
        ("[{i}] {}", "[ii] yes", "[ii]"),
        ("<{A}> {}", "<B> yes", "<B>"),
        ("- ({1}) {}", "- (2) yes", "(2)"),
        ("{A}. {}", "B. yes", "B"),
        ("{a}) {}", "b) yes", "b"),
        ("{1}: {}", "2: yes", "2"),
        ("- {A}. {}", "- B. yes", "B"),
        ("#{1} {}", "#2 yes", "2"),
        ("[ ] {}", "[ ] yes", "yes"),
        ("> {}", "> yes", "yes"),
    ],
)
def test_an_answer_says_the_mark_without_half_brackets(marker, shown, said):
    text, answers = list_options(dataclasses.replace(STYLE, markers=(marker,)), ["no", "yes"], "key")
    assert shown in text and answers[1] == said


def test_every_lettered_answer_is_read_back_by_the_evaluation():
    for marker in STYLE.markers:
        if "{A}" in marker:
            _, said = list_options(dataclasses.replace(STYLE, markers=(marker,)), ["no", "yes", "maybe"], "key")
            assert [extraction.extract(one, "letter") for one in said] == ["A", "B", "C"]


@pytest.mark.parametrize("right", ["no", "maybe", "yes"])
def test_the_target_is_the_mark_that_stands_before_the_right_option(right):
    records = {f"train:{n}": {"question": "q?", "options": ["no", "maybe", "yes"], "answer": right} for n in range(60)}
    marked = 0
    for row in records:
        made = render(records=records, row=row)
        before = made.inputs[: made.inputs.rindex(right)]
        marked += made.targets != right
        assert made.targets == right or re.search(rf"{re.escape(made.targets)}\W*$", before), made
    assert marked > 10


@pytest.mark.parametrize("options", [["0", "1", "2"], ["A", "B"], ["1.5", "-2", "30%"], ["i", "ii"], ["(a)", "(b)"]])
def test_options_that_read_like_marks_get_bullets(options):
    for i in range(60):
        text, answers = list_options(STYLE, options, f"key {i}")
        assert answers == options
        assert len(re.findall(r"\w+", text.split(":")[-1].split("?")[-1])) <= len(re.findall(r"\w+", " ".join(options)))


def test_marks_go_beyond_the_alphabet():
    assert [template._enumerator("A", i) for i in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]
    assert [template._enumerator("i", i) for i in (0, 3, 15)] == ["i", "iv", "xvi"]


def test_there_are_at_least_twenty_few_shot_styles():
    assert len(set(STYLE.shots)) >= 20


def test_every_muffin_and_chain_of_thought_set_has_ten_templates():
    for task in TABLES.tasks.values():
        if task.collection in ("muffin", "cot"):
            assert sum(len(TABLES.blocks[name].prompts) for name in task.templates) >= 10, task.name
        if task.collection == "cot" or task.source.startswith(("tfds:q_re", "tfds:wiki_dialog", "jsonl:")):
            assert task.inversions or task.held_out, task.name


def test_no_two_templates_of_a_block_are_the_same():
    for block in TABLES.blocks.values():
        texts = [p.listed for p in block.prompts]
        assert len(set(texts)) == len(texts), block.name


def test_draws_are_stateless_and_even():
    assert draw("key", "label", 1000) == draw("key", "label", 1000) == 293
    counts = collections.Counter(draw(f"k{i}", "x", 7) for i in range(7000))
    assert len(counts) == 7 and max(counts.values()) < 1150


def test_the_same_row_gives_the_same_bytes_and_another_rendering_others():
    for style in spec.STYLES:
        assert render(style) == render(style)
    assert {render("fsopt", rendering=i).inputs for i in range(8)} != {render("fsopt").inputs}


def test_exemplars_are_other_rows_of_the_pool_and_distinct():
    for i in range(40):
        made = render("fsopt", row=f"train:{i}")
        assert made.shots >= 1
        asked = made.inputs.count("question")
        assert asked == made.shots + 1
        assert not re.search(rf"answer {i}\b", made.inputs)
        assert len(set(re.findall(r"question \d+", made.inputs))) == asked


def test_a_row_that_reads_like_the_query_is_no_exemplar():
    records = {"train:0": {"question": "same", "answer": "a"}, "train:1": {"question": "same", "answer": "b"}}
    assert render("fsopt", records) is None
    assert render("fsopt", records, split="validation").shots == 0


def test_few_shot_prompts_are_pruned_to_the_limit():
    records = {f"train:{i}": {"question": f"{i} " + "word " * 60, "answer": str(i)} for i in range(40)}
    made = [render("fsopt", records, row=row) for row in records]
    assert all(len(one.inputs) <= MAX_INPUT_TOKENS for one in made)
    assert max(one.shots for one in made) == 5
    assert render("fsopt", {**records, "train:0": {"question": "x" * 2000, "answer": "y"}}) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 700), st.sampled_from("aaé")), max_size=6),
    st.integers(0, 2000),
    st.sampled_from((1, 3)),
)
def test_what_is_seen_to_fit_is_what_fits_when_counted(texts, query, share):
    """With as many tokens as any vocabulary can make, one for a character, one in front, two for what is not ASCII; and
    with a third of them."""
    count = lambda text: len(text.encode()) // share + 1  # noqa: E731
    renderer = make_renderer("fsopt", count=count)
    shots, kept = [letter * n for n, letter in texts], []
    left = MAX_INPUT_TOKENS - count("q" * query) - 2
    for shot in shots:
        left -= count(shot) + 1
        if left < 0:
            break
        kept.append(shot)
    assert renderer._prune("q" * query, shots) == kept


def test_texts_are_counted_only_until_the_others_are_known_to_fit():
    counted = []

    def count(text: str) -> int:
        counted.append(text[0])
        return len(text) // 4

    shots = [letter * 600 for letter in "abcd"]
    assert make_renderer("fsopt", count=count)._prune("query", shots) == shots
    assert counted == ["q", "a", "b"]  # 150 tokens each, and 1,204 for the others at most


def test_half_of_the_prompts_have_five_exemplars_and_a_tenth_no_instruction():
    records = {f"train:{i}": {"question": f"question {i}", "answer": str(i)} for i in range(600)}
    renderer = make_renderer("fsopt", pool=lambda: list(records.items()))
    made = [renderer.render(row, record) for row, record in records.items()]
    assert 250 < sum(one.shots == 5 for one in made) < 420
    assert 30 < sum(one.template == "plain:none" for one in made) < 95


@pytest.mark.parametrize("style", ["zsopt", "fsopt"])
def test_the_inverted_version_has_every_row_and_so_has_the_plain_one(style):
    inverted = parse_block("turned", {"none": ["{answer}", "{question}"], "prompts": [["{answer}", "{question}"]]})
    records = {f"train:{i}": {"question": f"question {i}", "answer": str(i)} for i in range(300)}
    for name, block, side in ((style, "plain", "answer"), (f"{style}_inverted", "turned:0", "question")):
        renderer = make_renderer(name, inversions=[inverted], pool=lambda: list(records.items()))
        made = [renderer.render(*row) for row in records.items()]
        assert {one.style for one in made} == {name} and all(one.template.startswith(block) for one in made)
        assert [one.targets for one in made] == [record[side] for record in records.values()]


def test_only_what_is_trained_on_is_inverted():
    inverted = parse_block("turned", {"none": ["{answer}", "{question}"], "prompts": [["{answer}", "{question}"]]})
    with pytest.raises(UserError, match="only what is trained on is inverted"):
        make_renderer("zsopt_inverted", inversions=[inverted], split="test")
    with pytest.raises(UserError, match="has no style 'zsopt_inverted'"):
        make_renderer("zsopt_inverted")


def test_a_worked_example_stands_in_half_of_the_few_shot_prompts():
    task = TABLES.tasks["niv2_task002_quoref_answer_generation"]
    blocks = [[TABLES.blocks[name] for name in names] for names in (task.templates, task.worked)]
    records = {
        f"train:{i}": {"definition": "Do it.", "input": f"in {i}", "answer": "out", "worked_input": "here",
                       "worked_output": "there", "worked_why": "so"}
        for i in range(200)
    }  # fmt: skip
    renderer = make_renderer("fsopt", blocks[0][0], worked=blocks[1], shots=2, pool=lambda: list(records.items()))
    made = [renderer.render(row, record) for row, record in records.items()]
    worked = [one for one in made if one.template.startswith("niv2_worked")]
    assert 70 < len(worked) < 130
    assert all("here" in one.inputs and "there" in one.inputs and one.shots == 1 for one in worked)
    plain = [one for one in made if one not in worked]
    assert all(one.inputs.count("in ") >= 3 and one.shots == 2 for one in plain)
    assert all(one.inputs.count("Do it.") <= 1 for one in plain)  # the definition stands once


def test_empty_texts_and_half_characters_are_bad_rows():
    with pytest.raises(BadRow, match="empty target"):
        render(records={"train:0": {"question": "q", "answer": " "}})
    with pytest.raises(BadRow, match=r"'\\ud800' is half a character"):
        render(records={"train:0": {"question": "q \ud800", "answer": "a"}})


odd = st.text(min_size=1, max_size=80) | st.sampled_from(
    [
        "{options}",
        "{answer}",
        "{",
        "}}",
        "a\tb",
        "\u05e9\u05dc\u05d5\u05dd \u202e x",
        "\u0645\u0631\u062d\u0628\u0627",
        "1. x",
        "x" * 100_000,
    ]
)


@settings(max_examples=80, deadline=None)
@given(question=odd, options=st.lists(odd, min_size=2, max_size=30, unique_by=str.strip), which=st.integers(0, 29),
       style=st.sampled_from(spec.STYLES), row=st.text(max_size=20))  # fmt: skip
def test_any_text_is_shown_as_it_is(question, options, which, style, row):
    answer = options[which % len(options)]
    record = {"question": question, "answer": answer, "options": options}
    others = [(f"other {i}", {"question": f"Q{i}", "answer": "no", "options": ["no", "yes"]}) for i in range(8)]
    renderer = make_renderer(style, split="validation", pool=lambda: others)
    if not question.strip() or not answer.strip() or not all(o.strip() for o in options):
        return
    made = renderer.render(f"train:{row}", record)
    assert question.strip() in made.inputs
    if style.endswith("noopt"):
        assert made.targets == answer.strip()
    else:
        assert all(option.strip() in made.inputs for option in options)
        assert made.targets == answer.strip() or made.targets in made.inputs


@settings(max_examples=150, deadline=None)
@given(options=st.lists(odd, min_size=1, max_size=40), key=st.text(max_size=20))
def test_any_list_shows_every_option_whole_and_answers_tell_them_apart(options, key):
    text, answers = list_options(STYLE, options, key)
    assert (text, answers) == list_options(STYLE, options, key)
    assert len(answers) == len(options)
    place = 0
    for one in options:  # in their order, untouched
        place = text.index(one, place) + len(one)
    if answers == options:  # bullets
        return
    assert len(set(answers)) == len(options)  # marks differ even where the options do not
    assert all(re.fullmatch(r"\(\w+\)|\[\w+\]|<\w+>|\w+", answer) for answer in answers)


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(odd, min_size=1, max_size=12), answers=st.lists(odd, min_size=12, max_size=12),
       style=st.sampled_from(("fsopt", "fsnoopt")), shots=st.none() | st.integers(1, 6),
       place=st.integers(0, 11))  # fmt: skip
def test_exemplars_come_from_the_pool_and_never_read_like_the_query(texts, answers, style, shots, place):
    records = [
        (f"train:{i}", {"question": q, "answer": a}) for i, (q, a) in enumerate(zip(texts, answers, strict=False))
    ]
    place %= len(records)
    row, record = records[place]
    renderer = make_renderer(style, split="validation", shots=shots, pool=lambda: records)
    key = renderer.key + row
    template = renderer.choose(key, record)
    said = {i: _body(template, r) for i, (_, r) in enumerate(records)}
    if not all(body and target for body, target in said.values()):
        return  # an empty text is a bad row, tested above
    found = renderer._exemplars(key, row, template, said[place], shots or 5)
    assert len(found) <= (shots or 5)
    assert len({body for body, _ in found}) == len(found)
    assert all((body, target) in said.values() and body != said[place][0] for body, target in found)
    made = renderer.render(row, record)
    assert made == renderer.render(row, record)
    assert made.shots <= (shots or 25) and record["question"].strip() in made.inputs


def _body(template, record):
    _, body, target = (fill(text, {k: v.strip() for k, v in record.items()}).strip() for text in template.plain)
    return (body, target) if record["question"].strip() and record["answer"].strip() else ("", "")
