"""All 1,836 tasks, in every style that applies to them, from records of the shape that their sources have."""

import collections
import json
import re

from flanx.data.task import render as example
from flanx.data.task import sources, tables
from flanx.data.task.row import BadRow, SkipRow
from tests import source_case

TABLES = tables.load()
DOUBLED = re.compile(r"\n{4,}|::|(?m:^\s*(\S[^:\n]{0,20}:)\s*\1)|(?i:options:\s*options:)")


def words(text):
    """About as many as the tokens of a SentencePiece vocabulary."""
    return len(text) // 4


def check(row, task, real):
    assert row.inputs.strip() and row.targets.strip(), row
    assert not [name for name in (*task.names, "options") if f"{{{name}}}" in row.inputs + row.targets], row
    if not real:  # real texts may hold anything
        assert not DOUBLED.search(row.inputs), row


def render(task, style, records):
    """The examples of one style; what a random value cannot be is left out, but no column may be absent."""
    split = "train" if "train" in task.splits else next(iter(task.splits))
    numbered = [(f"row {i}", record) for i, record in enumerate(records)]
    return list(example.render_rows(task, style, split, count=words, max_bad_rows=99, raw=lambda _: iter(numbered)))


def reasons(task, records):
    """Why records are not rows of the task."""
    for i, record in enumerate(records):
        try:
            sources.make_fields(task, record, str(i))
        except (BadRow, SkipRow) as e:
            yield str(e)


def test_all_tasks_of_the_paper_render_in_all_their_styles(monkeypatch):
    counts, kinds, styles = collections.Counter(), collections.defaultdict(collections.Counter), collections.Counter()
    worked, too_long = 0, []
    with source_case.no_network(monkeypatch):
        for task in TABLES.tasks.values():
            if task.source.startswith("suite:"):
                continue  # the embedded tasks have tests of their own
            kind, records = source_case.records(task)
            assert not [why for why in reasons(task, records) if "no column" in why], task.name
            for style in task.styles:
                rows = render(task, style, records)
                long = style.startswith("fs") and 2 * min(words(str(one)) for one in records) > example.MAX_INPUT_TOKENS
                assert len(rows) >= (0 if long else 2), (task.name, style, kind)
                too_long += [task.name] * (long and not rows)
                for row in rows:
                    check(row, task, real="file" in kind)
                styles[style] += len(rows)
                worked += sum(row.template.startswith("niv2_worked") for row in rows)
            counts[task.collection] += 1
            kinds[task.collection][kind] += 1
    paper = {name: counts[name] for name in ("muffin", "t0_sf", "niv2", "cot")}
    print(f"\nrendered: {json.dumps(paper)}, {sum(paper.values())} in all; held out and others: {json.dumps(counts)}")
    print(f"with no exemplar that fits into {example.MAX_INPUT_TOKENS} tokens: {', '.join(too_long) or 'none'}")
    print(f"from: {json.dumps(kinds)}\nexamples: {json.dumps(styles)}, {worked} of NIV2 with a worked example")
    for name, (why, _) in source_case.UNMOCKABLE.items():
        print(f"tfds:{name}: random values cannot be {why}")
    assert paper == {"muffin": 80, "t0_sf": 193, "niv2": 1554, "cot": 9}
    assert tables.collections()["total"] == sum(paper.values()) == 1836
    assert worked > 500
    if source_case.DATA.is_dir():
        assert kinds["niv2"]["niv2 file"] == 1554 and kinds["cot"]["tsv file"] == 7


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
