"""Scores by label in reports, misgendering beside Table 10, and their figures."""

import pathlib
from typing import Any

import pytest

from flanx.cli.main import main
from flanx.evals import label_table, scores
from flanx.evals.table5 import Line
from flanx.sweep import label_figures


def entry(score: float, n: int = 40, **more: Any) -> dict[str, Any]:
    spread = {"low": score - 5, "high": score + 5} if n >= 4 else {"low": None, "high": None}
    return {"score": score, **spread, "n": n, "extraction_failed": 0.0, "flagged": False, **more}


TRANSLATION = {
    "pronoun": {"he": entry(90.0), "she": entry(60.0)},
    "language": {"es": entry(80.0), "de": entry(70.0), "fr": entry(70.0)},
    "set": {"synthbio": entry(75.0), "late_binding": entry(55.0, n=2)},
}
WINOGENDER = {
    "pronoun": {"he": entry(50.0), "she": entry(40.0), "they": entry(45.0)},
    "split": {"gotcha": entry(30.0), "neutral": entry(45.0), "stereotypical": entry(60.0)},
}
BBQ = {"condition": {"ambiguous": entry(20.0, metrics={"accuracy_ambiguous": 20.0, "bias_ambiguous": -12.5})}}


@pytest.fixture
def run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with scores of three suites with labels and one without."""
    of = {"misgendering": TRANSLATION, "winogender_zero_shot": WINOGENDER, "bbq": BBQ, "gsm8k_cot": {}}
    common = entry(75.0) | {"spec": "abc", "metric": "exact_match", "tasks": {}}
    suites = {name: common | ({"slices": slices} if slices else {}) for name, slices in of.items()}
    (tmp_path / "run").mkdir()
    scores.write_scores(tmp_path / "run", suites, {"seed": 0})
    return tmp_path / "run"


def test_misgendering_stands_beside_table_10(run: pathlib.Path) -> None:
    shown = label_table.markdown([Line.read(f"{run}=Flan-T5-XXL")]).splitlines()
    assert shown[0] == "| run | suite | overall | he | she | worst language | worst set |"
    worst = "de 70.0 [65.0, 75.0] | late_binding 55.0 [no interval: under 4 items a task]"
    assert shown[2] == f"| {run} | misgendering | 75.0 [70.0, 80.0] | 90.0 [85.0, 95.0] | 60.0 [55.0, 65.0] | {worst} |"
    assert "| published: Flan-T5-XXL | table 10 | 97 | 99 | 95 | Indonesian 88 | synthbio 92 |" in shown
    assert sum(line.startswith("| published: ") for line in shown) == 7


def test_every_label_has_its_score_and_what_is_beside_it(run: pathlib.Path) -> None:
    shown = label_table.markdown([Line.read(str(run))])
    assert f"| {run} | winogender_zero_shot | split | gotcha | 30.0 [25.0, 35.0] | 40 | 0.0% | - |" in shown
    assert "| 20.0 [15.0, 25.0] | 40 | 0.0% | accuracy_ambiguous 20.0, bias_ambiguous -12.5 |" in shown
    assert "gsm8k_cot" not in shown and "||" not in shown
    many = {"suites": {"t": entry(1.0, slices={"category": {str(n): entry(1.0) for n in range(38)}})}}
    assert "| t | category | 38 values, in scores.json |" in label_table.markdown([Line("r", many, None, run)])
    assert label_table.markdown([Line("r", {"suites": {"gsm8k_cot": entry(1.0)}}, None, run)]) == ""
    home = entry(1.0, slices=TRANSLATION, data={"folder": "sample"}) | {"flagged": True}
    shown = label_table.markdown([Line("r", {"suites": {"people_translate": home}}, None, run)])
    assert "| r | people_translate (sample data) ! | 1.0" in shown and "published" not in shown


def test_figures_are_drawn_of_what_is_there(run: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra plots")
    assert main(["report", f"{run}=Flan-T5-XXL", "--figures", str(run / "figures")]) == 0
    assert "winogender_splits.png" in capsys.readouterr().out
    names = {path.name for path in (run / "figures").iterdir()}
    kinds = ("winogender_splits", "winogender_pronouns", "misgendering")
    assert names == {f"{name}.{kind}" for name in kinds for kind in ("png", "svg")}
    lines = [Line.read(f"{run}=Flan-T5-XXL")]
    (panel,) = label_figures._translation(lines)
    assert [each.published for each in panel.series[lines[0].label].values()] == [97, 99, 95, 88, 92]
    assert label_figures.draw([Line("r", {"suites": {}}, None, run)], run / "none") == []
