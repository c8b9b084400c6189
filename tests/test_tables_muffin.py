"""The 80 Muffin rows against their real builders, and the wording of their templates."""

import csv
import itertools
import json
import re
from collections import Counter

import pytest

from flanx.data.task import render, sources, tables
from flanx.data.task.row import SkipRow
from flanx.seqio import tfds as tfds_records
from tests import source_case

TABLES = tables.load()
MUFFIN = {name.removeprefix("muffin_"): task for name, task in TABLES.tasks.items() if task.collection == "muffin"}
TFDS = sorted(name for name, task in MUFFIN.items() if task.source.startswith("tfds:"))
SAMPLE = ["rte", "coqa", "record", "arc_easy", "trec", "dart", "wiki_dialog", "squad_v2"]  # quick; the rest is slow
MAIN = sorted({block for task in MUFFIN.values() for block in task.templates})
INVERTED = sorted({block for task in MUFFIN.values() for block in task.inversions})

PARTS = {"FLAN": 28, "FLAN/T0": 44, "Dialog": 3, "Program Synthesis": 5}  # of the 80, by source in the released list


# ---- the rows --------------------------------------------------------------------------------------------------------


def test_eighty_rows_of_four_kinds():
    kinds = Counter(task.source.split(":")[0] for task in MUFFIN.values())
    print(f"\n{len(MUFFIN)} rows, {sum(kinds.values()) - kinds['tfds']} of them from files: {dict(kinds)}")
    print(f"{len(MAIN)} blocks of {sum(len(TABLES.blocks[b].prompts) for b in MAIN)} prompts, ", end="")
    print(f"{len(INVERTED)} of {sum(len(TABLES.blocks[b].prompts) for b in INVERTED)} inverted ones")
    assert len(MUFFIN) == 80
    assert all(task.cap == 30000 and task.metrics and task.category for task in MUFFIN.values())
    assert {name for name, task in MUFFIN.items() if task.access == "user"} == {
        "task_master",
        "dmcc_python",
        *(n for n in MUFFIN if n.startswith("dr_repair_")),
    }


def test_the_rows_are_those_of_the_released_list(data_dir):
    with open(data_dir / "flan_collection" / "flan_collection_info.csv", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["Source"] in PARTS]
    listed = Counter(row["Dataset"] for row in rows)
    ours = Counter(name.removesuffix("_matched").removesuffix("_mismatched") for name in MUFFIN)
    assert {name: count // 2 for name, count in listed.items()} == ours
    parts = Counter(row["Source"] for row in rows)
    assert {source: count // 2 for source, count in parts.items()} == PARTS
    categories = {row["Dataset"]: row["Specific Task Category"] for row in reversed(rows)}
    for name, task in MUFFIN.items():
        assert task.category == categories[re.sub("_(mis)?matched", "", name)], name


def test_sizes_agree_with_the_counted_cases(data_dir):
    """Upstream counts are rounded down to tens and, for a few sets, taken after a filter."""
    cases = json.loads((data_dir / "flan_collection" / "num_cases.json").read_text())
    for name, task in MUFFIN.items():
        if task.num_examples is not None and name in cases:
            assert cases[name]["zero_shot"] <= task.num_examples * 1.001 + 10, name
            assert task.num_examples <= cases[name]["zero_shot"] * 1.03 + 10, name


def test_train_and_held_back_slices_do_not_meet():
    for name, task in MUFFIN.items():
        train, validation = task.splits["train"], task.splits.get("validation", "")
        if train.split("[")[0] == validation.split("[")[0]:
            assert re.search(r"\[(\d*:-?\d+|\d+:\d+)\]", train), (name, train)
            assert validation.split("[")[1] != train.split("[")[1], name


LABELS = {
    "entailment": "yes", "e": "yes", "neutral": "it is not possible to tell", "n": "it is not possible to tell",
    "contradiction": "no", "c": "no", "not_entailment": "no", "False": "no", "True": "yes",
    "not_equivalent": "no", "equivalent": "yes", "not_duplicate": "no", "duplicate": "yes",
    "different_meaning": "no", "paraphrase": "yes", "neg": "negative", "pos": "positive",
    "negative": "negative", "positive": "positive", "unacceptable": "unacceptable", "acceptable": "acceptable",
    "World": "World", "Sports": "Sports", "Business": "Business", "Sci/Tech": "Science/Tech",
    "DESC": "description", "ENTY": "entity", "ABBR": "abbreviation", "HUM": "human", "NUM": "numeric",
    "LOC": "location",
}  # fmt: skip
WORDS = {"wic": {"False": "different meanings", "True": "the same meaning"},
         "yelp_polarity_reviews": {"1": "negative", "2": "positive"}}  # fmt: skip


def test_answers_mean_what_the_builders_labels_mean():
    """Every class of every classifying set: the builder's name of it, and our word."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.testing import mocking

    checked = 0
    for name in TFDS:
        task, column = MUFFIN[name], "label-coarse" if name == "trec" else "label"
        if "gather" in task.fields or "candidates" in task.fields:
            continue
        features = tfds.builder(task.source[5:], data_dir="/nowhere").info.features
        classes = getattr(features[column], "names", None) if column in features else None
        for index, label in enumerate(classes or []):
            record = tfds_records.plain(next(iter(mocking.RandomFakeGenerator(features, 1))))
            made = sources.make_fields(task, {**record, column: index}, "key")
            assert made["answer"] == WORDS.get(name, LABELS)[label], (name, label)
            checked += 1
    print(f"\n{checked} labels checked")
    assert checked >= 50


READINGS = [  # task, raw record, what its fields must say
    ("natural_questions", {"question": "who is it", "answer": ["A", "B"]}, {"question": "who is it?", "answer": "A"}),
    ("story_cloze", {"context": "A.", "endings": ["x", "y"], "label": 2}, {"answer": "y", "options": ["x", "y"]}),
    ("stsb", {"sentence1": "a", "sentence2": "b", "label": 3.8}, {"answer": "4"}),
    ("yelp_polarity_reviews", {"text": r'Good.\n\"Yes\"', "label": 1}, {"text": 'Good.\n"Yes"', "answer": "positive"}),
    ("imdb_reviews", {"text": "Bad.<br /><br />Bad.", "label": 0}, {"text": "Bad.\n\nBad.", "answer": "negative"}),
    ("sentiment140", {"text": "hi", "polarity": 4}, {"answer": "positive"}),
    ("record", {"passage": "A.\n@highlight\n\nB.", "query": "@placeholder ran", "entities": ["B"], "answers": ["B"]},
     {"text": "A.\nB.", "query": "____ ran", "answer": "B"}),
    ("hellaswag", {"context": "[header] How to [title] Do it.", "endings": ["[step] One.", "b", "c", "d"], "label": 0},
     {"context": "How to Do it.", "answer": "One."}),
    ("squad_v2", {"title": "A_b", "question": "?", "context": "c", "answers": {"text": []}, "is_impossible": True},
     {"answer": "unanswerable", "title": "A b"}),
    ("wsc", {"text": "Ann met Bo when she left.", "span1_text": "Ann", "span2_text": "she", "span2_index": 4,
             "label": 1}, {"text": "Ann met Bo when *she* left.", "answer": "yes"}),
    ("winogrande", {"sentence": "The _ ran.", "option1": "cat", "option2": "dog", "label": 1}, {"answer": "dog"}),
    ("multirc", {"paragraph": "<b>One: </b>A.<br>", "question": "?", "answer": "x", "label": 0}, {"text": "One: A.\n"}),
    ("copa", {"premise": "A.", "question": "effect", "choice1": "x", "choice2": "y", "label": 0},
     {"relation": "effect", "answer": "x"}),
    ("e2e_nlg", {"meaning_representation": "name[A], area[b]", "target": "A."}, {"data": "name = A, area = b"}),
    ("web_nlg_en", {"input": ["A_b | is | C"], "target": "A."}, {"data": "A b, is, C"}),
    ("fix_punct", {"en": "Yes, it's so."}, {"bare": "Yes its so", "answer": "Yes, it's so."}),
    ("lambada", {"passage": "She sat down ."}, {"sentence": "She sat down", "answer": "."}),
]  # fmt: skip
LEFT_OUT = [
    ("true_case", {"en": "no capitals"}),
    ("word_segment", {"en": "one"}),
    ("gigaword", {"document": "UNK", "summary": "a"}),
    ("qrecc", {"turn_id": 6, "context": ["a", "b", "c"]}),
    ("snli", {"premise": "a", "hypothesis": "b", "label": -1}),
    ("sentiment140", {"text": "hm", "polarity": 2}),
]


def read_fields(name, record):
    return sources.make_fields(MUFFIN[name], record, "key")


@pytest.mark.parametrize(("name", "record", "wanted"), READINGS)
def test_single_rows_read_as_they_should(name, record, wanted):
    made = read_fields(name, record)
    assert {key: made[key] for key in wanted} == wanted


@pytest.mark.parametrize(("name", "record"), LEFT_OUT)
def test_single_rows_are_left_out_on_purpose(name, record):
    with pytest.raises(SkipRow):
        read_fields(name, record)


# ---- the wording -----------------------------------------------------------------------------------------------------


def sides(block):
    """(name, head, input, target) of every prompt of a block, as it was written."""
    for prompt in TABLES.blocks[block].prompts:
        yield prompt.name, *("".join(f"{a}{{{b}}}" if b else a for a, b in text) for text in prompt.listed)


def words(text):
    """The words of a template, without fields and signs."""
    return re.findall(r"[a-z']+", re.sub(r"\{\w+\}", " ", text).lower())


@pytest.mark.parametrize("block", MAIN + INVERTED)
def test_prompts_differ_in_more_than_a_word(block):
    prompts = [
        (name, Counter(words(head + body)), head + body + "=>" + target) for name, head, body, target in sides(block)
    ]
    assert len(prompts) >= (10 if block in MAIN else 6 if block.startswith(("dialog", "code")) else 3)
    for (a, one, text), (b, two, other) in itertools.combinations(prompts, 2):
        moved = re.sub(r"\s+", " ", text).split("=>")[1] != re.sub(r"\s+", " ", other).split("=>")[1]
        apart = sum(((one - two) + (two - one)).values())
        assert apart >= (1 if moved else 3), (a, b)


@pytest.mark.parametrize("block", MAIN + INVERTED)
def test_prompts_are_clean(block):
    for name, head, body, target in sides(block):
        text = head + body
        assert not re.search(r"[ \t]\n|\n{3,}|::|\?\?|\.\.(?!\.)(?<!\.\.\.)|  ", text), name
        assert body == body.strip() and target == target.strip(), name
        assert head == "" or head.endswith("\n\n"), name
        assert "{options}" not in body or re.search(r"(^|\n)\{options\}($|\n)", body), name
        assert not re.search(r"\boptions?\b|\bchoices?\b", re.sub(r"\{\w+\}", "", text), re.I), f"{name} names the list"
        assert target == "{answer}" or "{options}" not in body, name
        assert not set(re.findall(r"\{(\w+)\}", target)) & set(re.findall(r"\{(\w+)\}", text)), (
            f"{name} tells the target"
        )


@pytest.mark.parametrize("block", MAIN)
def test_blocks_vary_their_form(block):
    prompts = TABLES.blocks[block].prompts
    bodies = [body for _, _, body, _ in sides(block)]
    assert any(prompt.cued for prompt in prompts), "none ends in a cue"
    assert any(head for _, head, _, _ in sides(block)), "none has a head for all exemplars"
    assert any(body.startswith("{") for body in bodies), "none begins with the input"
    asks = ["?" in re.sub(r"\{\w+\}\?", "", body) for body in bodies]
    assert any(asks) and not all(asks), "all ask, or none does"
    listed = ["{options}" in body for body in bodies]
    assert all(listed) or not any(listed), "some show the list and some do not"
    lengths = sorted(len(words(body)) for body in bodies)
    assert lengths[0] <= 8 and lengths[-1] >= 15, "all alike in length"


def test_rows_with_options_show_them():
    for name, task in MUFFIN.items():
        shown = ["{options}" in body for block in task.templates for _, _, body, _ in sides(block)]
        assert all(shown) if "options" in task.names else not any(shown), name


# ---- rendering -------------------------------------------------------------------------------------------------------

FIELD = re.compile(r"\{[a-z_]\w*\}")
DOUBLED = re.compile(r"\n{4,}|::|(?i:options:\s*options:)")


def check_row(name, records):
    """Every prompt of a row in every style that it has, on each record. The number of examples."""
    task = MUFFIN[name]
    blocks = [TABLES.blocks[block] for block in (*task.templates, *task.inversions)]
    made = 0
    rows = list(sources.rows(task, "train", raw=records, max_bad_rows=99))
    assert len(rows) >= 2, name
    for style in task.styles:
        renderer = render.Renderer(task, TABLES, style, pool=lambda: [(row, fields) for row, _, fields in rows])
        for prompt in (p for block in blocks for p in (*block.prompts, block.none)):
            for row, _, fields in rows:
                one = renderer.render(row, fields, prompt)
                if one is None:  # few-shot, and no other record reads differently
                    continue
                made += 1
                assert one.inputs.strip() and one.targets.strip(), (name, prompt.name)
                assert not FIELD.search(one.inputs + one.targets), (name, prompt.name)
                assert not DOUBLED.search(one.inputs), (name, prompt.name, one.inputs)
                if "options" in prompt.fields and "noopt" not in style:
                    assert any(str(o).strip() in one.inputs for o in fields["options"]), (name, prompt.name)
    return made


def check_mocked(name):
    _, records = source_case.records(MUFFIN[name])
    return check_row(name, [(f"row {i}", record) for i, record in enumerate(records)])


@pytest.mark.parametrize("name", SAMPLE)
def test_rows_render_from_their_builders(name):
    assert check_mocked(name) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TFDS if name not in SAMPLE])
def test_all_rows_render_from_their_builders(name):
    assert check_mocked(name) > 50


@pytest.mark.parametrize("name", [name for name, task in MUFFIN.items() if task.access == "user"])
def test_rows_of_supplied_files_render(name, tmp_path):
    """Through the files themselves, in the layout that docs/data.md describes."""
    task = MUFFIN[name]
    path = tmp_path / task.source.split(":")[1].format(split="train")
    path.parent.mkdir(parents=True)
    _, records = source_case.records(task)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert sources.missing(task, tmp_path) is None
    assert check_row(name, [(place, record) for place, record in sources.raw_rows(task, "train", tmp_path)]) > 20
