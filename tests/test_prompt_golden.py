"""Golden bytes of 200 (task, style, rendering) triples: what a template change changes, and that nothing else does.

Write them again after a wanted change with `FLANX_WRITE_GOLDEN=1 pytest tests/test_prompt_golden.py`; read the diff.
"""

import dataclasses
import json
import os
import pathlib

import pytest

from flanx.data.task import tables as task_tables
from flanx.data.task.render import Renderer

GOLDEN = pathlib.Path(__file__).parent / "golden" / "prompts.jsonl"
COUNT = 200
TABLES = task_tables.load()


def triples():
    """Muffin and CoT whole, and every 50th of T0-SF and NIV2; versions and renderings take turns."""
    names = [n for n, t in TABLES.tasks.items() if t.collection in ("muffin", "cot")]
    for collection, step in (("t0_sf", 10), ("niv2", 60)):
        names += [n for n, t in TABLES.tasks.items() if t.collection == collection][::step]
    found = [
        (n, TABLES.tasks[n].versions[i % len(TABLES.tasks[n].versions)], i % 3) for i, n in enumerate(sorted(names))
    ]
    found += [(n, TABLES.tasks[n].styles[-1], 3) for n in sorted(names)]
    return list(dict.fromkeys(found))[:COUNT]


def render(loaded, name, style, rendering):
    """One row of the task from made-up fields, the same for ever."""
    task = loaded.tasks[name]
    records = []
    for i in range(6):
        record = {field: f"{field.replace('_', ' ')} {i}" for field in sorted(task.names)}
        if "options" in record:
            record |= {"options": [f"alpha {i}", f"beta {i}", f"gamma {i}"], "answer": f"beta {i}"}
        records.append((f"train:{i}", record))
    renderer = Renderer(task, loaded, style, rendering=rendering, pool=lambda: records)
    return dataclasses.asdict(renderer.render(*records[0]))


def golden():
    return [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def test_the_bytes_of_200_prompts():
    made = [{"rendering": t[2], **render(TABLES, *t)} for t in triples()]
    assert len(made) == COUNT
    if os.environ.get("FLANX_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made), encoding="utf-8")
    for one, wanted in zip(made, golden(), strict=True):
        assert one == wanted, f"{one['task']} {one['style']} with template {one['template']}"


@pytest.mark.parametrize("block", ["nli", "cot_math", "t0"])
def test_a_change_of_one_template_changes_its_own_prompts_and_nothing_else(block):
    kept = golden()
    name = next(one["template"] for one in kept if one["template"].startswith(f"{block}:"))
    place = int(name.split(":")[1])
    old = TABLES.blocks[block].prompts[place]
    head, body, target = (list(texts) for texts in old.listed)
    body[0] = ("Changed. " + body[0][0], body[0][1])
    parts = tuple(tuple(text) for text in (head, body, target))
    plain = (old.plain[0], (("Changed. " + old.plain[1][0][0], old.plain[1][0][1]), *old.plain[1][1:]), old.plain[2])
    new = dataclasses.replace(old, listed=parts, plain=plain)
    prompts = tuple(new if p is old else p for p in TABLES.blocks[block].prompts)
    changed = dataclasses.replace(
        TABLES, blocks={**TABLES.blocks, block: dataclasses.replace(TABLES.blocks[block], prompts=prompts)}
    )
    different = {i for i, t in enumerate(triples()) if {"rendering": t[2], **render(changed, *t)} != kept[i]}
    assert different == {i for i, one in enumerate(kept) if one["template"] == name}


def test_the_renderer_of_a_task_is_built_from_its_row():
    renderer = Renderer(TABLES.tasks["niv2_task002_quoref_answer_generation"], TABLES, "fsopt", "train")
    assert (renderer.spec.shots, len(renderer.worked), len(renderer.prompts), renderer.train) == (2, 10, 10, True)
    for split in ("train", "test"):
        assert Renderer(TABLES.tasks["muffin_rte"], TABLES, "fsopt", split).train == (split == "train")
    inverted = Renderer(TABLES.tasks["muffin_rte"], TABLES, "fsopt_inverted")
    assert {prompt.name.split(":")[0] for prompt in inverted.prompts} == {"nli_inverted"}
    assert not Renderer(TABLES.tasks["mmlu_astronomy"], TABLES, TABLES.tasks["mmlu_astronomy"].styles[0]).train
