"""RealToxicityPrompts: which prompts are drawn, whatever the order of the file, and what is wrong with one."""

import json
import pathlib
import random
import shutil

import pytest

from flanx.errors import UserError
from flanx.evals import registry
from flanx.evals.families import real_toxicity_prompts as family

FILE = pathlib.Path(family.NAME) / "prompts.jsonl"


def write(folder: pathlib.Path, rows: list[dict]) -> str:
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def row(number: int, toxicity: float | None = 0.2, **changes: object) -> dict:
    place = {"filename": f"f{number}.txt", "begin": 0, "end": 9, "challenging": False}
    return place | {"prompt": {"text": f"Prompt {number}", "toxicity": toxicity}} | changes


def test_the_protocol_is_the_papers() -> None:
    spec, first = (registry.resolve(name) for name in (family.NAME, f"{family.NAME}_first_sentence"))
    assert (spec.samples, spec.temperature, spec.top_k, spec.max_new, spec.metric) == (25, 1.0, 40, 128, "any_toxic")
    assert (spec.scored, first.scored, first.samples) == ("whole", "first_sentence", 25) and spec.harmful
    assert family.PROMPTS == 10_000
    with pytest.raises(UserError, match=r"each of its 25 continuations counts; leave '\+sc8' out"):
        registry.resolve(f"{family.NAME}+sc8")
    with pytest.raises(UserError, match=r"leave '\+likelihood' out"):
        registry.resolve(f"{family.NAME}+likelihood")


def test_the_draw_depends_on_neither_order_nor_other_rows(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(family, "PROMPTS", 60)
    rows = [row(n, (n % 10) / 10 if n % 7 else None, challenging=n % 50 == 49) for n in range(200)]
    first = registry.load(family.NAME, write(tmp_path / "a", rows))
    assert "29 prompts without a toxicity are not drawn" in capsys.readouterr().out
    assert len(first.items) == 60 and len({item.id for item in first.items}) == 60
    by_task = {task: [item for item in first.items if item.task == task] for task in family.TASKS}
    assert all((float(i.targets[0]) >= 0.5) == (task == "toxic") for task, items in by_task.items() for i in items)
    assert 20 <= len(by_task["toxic"]) <= 40  # half of the prompts are
    challenging = {item.id for item in first.items if item.labels == (("challenging", "yes"),)}
    assert challenging == {item.id for item in first.items if int(item.id[1:].partition(".")[0]) % 50 == 49} != set()
    random.Random(0).shuffle(rows)
    assert registry.load(family.NAME, write(tmp_path / "b", rows)).hash == first.hash
    kept = {item.id for item in registry.load(family.NAME, write(tmp_path / "c", rows[:150])).items}
    assert len(kept & {item.id for item in first.items}) > 35
    short = registry.load(f"{family.NAME}[toxic,:5]", str(tmp_path / "a")).items
    assert list(short) == by_task["toxic"][:5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row(2, 1.2), r"jsonl:2: prompt.toxicity is '1.2'"),
        (row(2, "high"), r"jsonl:2: prompt.toxicity is 'high'"),
        (row(2, prompt={"text": " ", "toxicity": 0.1}), r"jsonl:2: prompt.text is empty"),
        (row(2, prompt={"text": "x"}), r"jsonl:2: prompt.toxicity is 'absent'"),
        (row(2, prompt="x"), r"jsonl:2: no object 'prompt'"),
        (row(1), "id 'f1.txt-0-9' of non_toxic occurs twice"),
        ({"prompt": {"text": "x", "toxicity": 0.1}}, r"jsonl:2: no text column 'filename'"),
    ],
)
def test_wrong_rows_are_named_with_their_line(tmp_path: pathlib.Path, wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.load(f"{family.NAME}[non_toxic]", write(tmp_path, [row(1), wrong]))


def test_without_the_file_the_error_says_where_it_goes(tmp_path: pathlib.Path) -> None:
    shutil.copytree(registry.SAMPLE_DIR / "gsm8k", tmp_path / "gsm8k")
    with pytest.raises(UserError, match=r"RealToxicityPrompts: no file .*real_toxicity_prompts/prompts.jsonl; put it"):
        registry.load(family.NAME, str(tmp_path))
