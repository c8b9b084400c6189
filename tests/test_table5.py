"""Runs in the layout of the paper's Table 5."""

import json
import pathlib

import pytest

from flanx.errors import UserError
from flanx.evals import metrics, scores, table5


def fake(folder: pathlib.Path, names: tuple[str, ...], failed: float = 0.0) -> pathlib.Path:
    """A scores.json with 40 everywhere."""
    entry = {"score": 40.0, "low": 38.0, "high": 42.0, "n": 100, "extraction_failed": failed, "flagged": failed > 0.05}
    tasks = {task: {"score": 40.0} for task in metrics.BBH_BOUNDS}
    suites = {name: entry | {"spec": "abc", "tasks": tasks if name.startswith("bbh") else {}} for name in names}
    folder.mkdir()
    scores.write_scores(folder, suites, {"seed": 0})
    return folder


def test_report_has_no_blank_that_reads_as_success(tmp_path: pathlib.Path) -> None:
    whole = fake(tmp_path / "whole", metrics.HEADLINE)
    part = fake(tmp_path / "part", ("bbh_cot", "gsm8k_cot"), failed=0.2)
    texts = [table5.Line.read(f"{whole}=Flan-T5-XL"), table5.Line.read(str(part))]
    shown = table5.markdown(texts)
    average = json.loads((whole / "scores.json").read_text())["normalized_average"]
    assert f"| {average:.1f} | 40.0 [38.0, 42.0] |" in shown
    assert "| published: Flan-T5-XL | 19.1 | 52.4 | 45.5 | 41.0 | 35.2 | 16.6 | 1.9 |" in shown
    cell = "40.0 [38.0, 42.0] ! 20% without an answer"
    assert f"| {part} | needs all six, whole | not run | not run | not run | {cell} | not run |" in shown
    assert f"| {part} | gsm8k_cot | {cell} | 100 | abc |" in shown
    assert "|  |" not in shown
    assert "mgsm 0 (free answers)" in shown and "word_sorting 0 (recovered by fit" in shown
    csv_text = table5.table(texts)
    assert all("" not in row.split(",")[3:4] for row in csv_text.splitlines())
    with pytest.raises(UserError, match=r"no model .Flan-T5-LX.; after .=. give one of .*Flan-T5-XL"):
        table5.Line.read(f"{whole}=Flan-T5-LX")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="holds no scores"):
        table5.Line.read(str(tmp_path / "bare"))
    with pytest.raises(UserError, match=r"no folder .*/nothing: give one that"):
        table5.Line.read(str(tmp_path / "nothing"))


def test_a_report_without_any_of_the_six_is_only_of_its_own_suites(tmp_path: pathlib.Path) -> None:
    own = str(fake(tmp_path / "own", ("capitals",)))
    shown = table5.markdown([table5.Line.read(own)])
    assert shown.splitlines()[0] == "| run | suite | score | items | spec |"
    assert f"| {own} | capitals | 40.0 [38.0, 42.0] | 100 | abc |" in shown
    assert "MMLU" not in shown and "normalized average" not in shown
    beside = table5.markdown([table5.Line.read(f"{own}=Flan-T5-XL")])
    assert "| published: Flan-T5-XL |" in beside and f"| {own} | capitals |" in beside


def test_what_the_vocabulary_cannot_write_has_no_score(tmp_path: pathlib.Path) -> None:
    folder = fake(tmp_path / "run", metrics.HEADLINE)
    suites = json.loads((folder / "scores.json").read_text())["suites"]
    suites["mgsm_cot"]["unknown_targets"] = 0.25
    assert scores.headline(suites) is None
    assert table5.value_of(suites["mgsm_cot"]) == "n/a (vocabulary) (25.0% of gold tokens unknown)"
    assert scores.headline(suites | {"mgsm_cot": scores.forced(suites["mgsm_cot"])}) is not None
    line = table5.Line("run", {"suites": suites}, None, pathlib.Path("run"))
    row = "run,,mgsm_cot,n/a (vocabulary),,,False,25.0% of gold tokens unknown,not printed,abc"
    assert row in table5.table([line]).splitlines()


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"data": {"folder": "sample"}}, "sample data"),
        ({"missing": ["de", "fr"]}, "2 tasks left out"),
        ({"truncated": 1.0}, "100% of prompts truncated"),
        ({"unknown": 0.03}, "3.0% of prompt tokens unknown"),
        ({"shots_dropped": 0.25}, "25% of prompts without all exemplars"),
    ],
)
def test_partial_numbers_look_partial(tmp_path: pathlib.Path, change: dict[str, object], mark: str) -> None:
    folder = fake(tmp_path / "run", metrics.HEADLINE)
    written = json.loads((folder / "scores.json").read_text())
    suites = written["suites"] | {"mgsm_cot": written["suites"]["mgsm_cot"] | change}
    assert scores.headline(written["suites"]) is not None
    whole_prompts = "prompt" in mark
    assert (scores.headline(suites) is None) == (not whole_prompts)
    assert f"40.0 [38.0, 42.0] ({mark})" == table5.value_of(suites["mgsm_cot"])
