"""All 1,836 tasks, in every style that applies to them, from records of the shape that their sources have.

TFDS rows go through the feature specifications of their real builders, filled with random values (no download); P3
rows through a fabricated record; NIV2 tasks through their real files and CoT sets through theirs, where present; the
sets that a user supplies through a record of the documented layout.
"""

import collections
import json
import os
import pathlib
import re

import pytest

from flanx.data import example, source, spec

TABLES = spec.load()
DATA = pathlib.Path(os.environ.get("FLANX_DATA_DIR", pathlib.Path(__file__).parents[2] / "shared" / "data"))
INSTRUCTIONS = {"definition": "Do it.", "input": "this", "outputs": ["that"],
                "examples": [{"input": "here", "output": "there", "explanation": "So it is."}]}  # fmt: skip

# What random values cannot know: labels that are plain integers, formats inside a text, filters.
PATCHES = {
    "tfds:ai2_arc/ARC-Challenge": {"choices": {"text": ["a", "b", "c", "d", "e"]}},
    "tfds:ai2_arc/ARC-Easy": {"choices": {"text": ["a", "b", "c", "d", "e"]}},
    "tfds:coqa": {"questions": ["Who?", "Why?"], "answers": {"input_text": ["She.", "So."]}},
    "tfds:definite_pronoun_resolution": {"candidates": ["Ann", "Bob"]},
    "tfds:glue/stsb": {"label": 3.2},
    "tfds:hellaswag": {"label": 1, "endings": ["[header] one", "two [step] three", "four", "five"]},
    "tfds:para_crawl/enda": {"en": "The cat, it sat."},
    "tfds:q_re_cc": {"turn_id": 8, "context": ["Who?", "Me.", "Why?", "So.", "When?"]},
    "tfds:sentiment140": {"polarity": 4},
    "tfds:story_cloze/2016": {"label": 2, "endings": ["one", "two"]},
    "tfds:super_glue/copa": {"question": "cause"},
    "tfds:super_glue/record": {"query": "He saw @placeholder there.", "entities": ["a", "b"], "answers": ["b"]},
    "tfds:unified_qa/ai2_science_middle": {"input": "What? (A) one (B) two (C) three (D) four", "output": "two"},
    "tfds:wiki_dialog": {"utterances": ["I am here.", "Who?", "Me.", "Why?", "So."]},
}  # fmt: skip
P3 = {"inputs_pretokenized": " Which is it? ", "targets_pretokenized": "\none ", "answer_choices": ["one", "two"]}
SUPPLIED = {
    "muffin_task_master": {"text": ["Hello.", "Good day.", "A table, please.", "For when?"]},
    "muffin_dmcc_python": {"problem": "Add two numbers.", "solution": "print(int(input()) + int(input()))"},
    **{
        f"muffin_dr_repair_{setting}": {"broken": "int x = 1\nx++;", "fixed": "int x = 1;\nx++;"}
        for setting in ("error_comments", "line_numbers", "no_errors", "plain_code")
    },
}
DOUBLED = re.compile(r"\n{4,}|::|(?m:^\s*(\S[^:\n]{0,20}:)\s*\1)|(?i:options:\s*options:)")


@pytest.fixture(scope="module")
def mocked():
    """Three random records of every TFDS source of the tables, by source."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.testing import mocking

    records = {}
    for task in TABLES.tasks.values():
        if task.source.startswith("tfds:") and task.source not in records:
            builder = tfds.builder(task.source[5:], data_dir="/nowhere")
            found = [source.plain(one) for one in mocking.RandomFakeGenerator(builder.info.features, 3)]
            records[task.source] = [one | PATCHES.get(task.source, {}) for one in found]
    return records


def fabricate(task, mocked):
    """Records of the task's source; two of them at least, so that a few-shot prompt has an exemplar."""
    kind = task.source.split(":", 1)[0]
    if kind == "tfds":
        records = mocked[task.source]
        if task.collection == "tydiqa":
            records = [one | {"id": f"{task.name.removeprefix('tydiqa_')}-1"} for one in records]
    elif kind == "p3":
        records = [P3]
    elif kind == "niv2":
        (path,) = source.files(task, next(iter(task.splits)), DATA)
        records = [one for _, one in source.READERS["niv2"](path, task)] if path.exists() else [INSTRUCTIONS]
        records += [{**records[0], "input": text, "examples": []} for text in ("something else", "a third thing")]
    elif kind in ("tsv", "csv"):
        records = [{name: f"{name} text" for name in task.columns} | {"letter": "B"}]
    else:
        records = [
            SUPPLIED.get(task.name, {"input": "Is it?", "target": "yes", "question": "Is it?", "answer": "#### yes"})
        ]
    more = [{k: f"Another {v}" if isinstance(v, str) and k in VARIED else v for k, v in r.items()} for r in records]
    return [(f"row {i}", record) for i, record in enumerate([*records, *more])]


VARIED = {"inputs_pretokenized", "question", "broken", "problem", "input", "text", "context", "premise", "sentence",
          "document", "passage", "en", "goal", "sentence1", "question1", "rationale"}  # fmt: skip


def words(text):
    """About as many as the tokens of a SentencePiece vocabulary."""
    return len(text) // 4


def check(row, task):
    assert row.inputs.strip() and row.targets.strip(), row
    assert not [name for name in (*task.names, "options") if f"{{{name}}}" in row.inputs + row.targets], row
    if not task.source.startswith(("niv2:", "json:")):  # real texts may hold anything
        assert not DOUBLED.search(row.inputs), row


def test_all_tasks_of_the_paper_render_in_all_their_styles(mocked):
    counts = collections.Counter()
    styles = collections.Counter()
    for task in TABLES.tasks.values():
        if task.source.startswith("suite:"):
            continue  # the embedded tasks have tests of their own
        split = "train" if "train" in task.splits else next(iter(task.splits))
        records = fabricate(task, mocked)
        for style in task.styles:
            made = example.render_rows(
                task, style, split, count=words, max_bad_rows=0, raw=lambda _, r=records: iter(r)
            )
            rows = list(made)
            assert rows, (task.name, style)
            for row in rows:
                check(row, task)
            styles[style] += 1
        counts[task.collection] += 1
    paper = {name: counts[name] for name in ("muffin", "t0_sf", "niv2", "cot")}
    print(f"\nrendered: {json.dumps(paper)}, {sum(paper.values())} in all; held out and others: {json.dumps(counts)}")
    assert paper == {"muffin": 80, "t0_sf": 193, "niv2": 1554, "cot": 9}
    assert spec.collections()["total"] == sum(paper.values()) == 1836


def test_the_published_rule_of_the_public_list():
    """1,654 released names = 41 second spellings + 57 of MMLU + 1,556; the paper's 1,554 lack the two smallest."""
    names = {name.removeprefix("niv2_") for name, task in TABLES.tasks.items() if task.collection == "niv2"}
    more = {name for name, task in TABLES.tasks.items() if task.collection == "niv2_more"}
    mmlu = [name for name, task in TABLES.tasks.items() if task.collection == "niv2_mmlu"]
    assert (len(names), len(more), len(mmlu)) == (1554, 2, 57)
    assert all(TABLES.tasks[name].note.startswith("a guess") for name in more)
    numbers = {int(re.match(r"niv2_mmlu_task(\d+)_", name)[1]) for name in mmlu}
    assert numbers == {*range(664, 668), *range(685, 738)}
    assert not numbers & {int(re.match(r"task(\d+)_", name)[1]) for name in names}


def test_counts_agree_with_the_released_files(data_dir):
    """Names and numbers of examples of NIV2 and T0-SF, against the files they come from."""
    sizes = json.loads((data_dir / "natural_instructions" / "num_examples.json").read_text())
    spelled = {name.replace("-", "_"): size for name, size in sizes.items()}
    ours = {
        name.split("_task", 1)[1]: task.num_examples
        for name, task in TABLES.tasks.items()
        if task.collection in ("niv2", "niv2_more", "niv2_mmlu")
    }
    assert ours == {name.removeprefix("task"): size for name, size in spelled.items()}
    t0 = json.loads((data_dir / "flan_collection" / "t0_tasks.json").read_text())
    wanted = {
        f"p3:{name}": one["splits"]["train"]
        for name, one in t0.items()
        if not one["in_flan"] and "_score_eval" not in name
    }
    assert wanted == {t.source: t.num_examples for t in TABLES.tasks.values() if t.collection == "t0_sf"}
