"""The page of responsible AI: figures and tables of what runs have, and nothing of what they wrote."""

import json
import pathlib

import pytest

from flanx.evals import scores
from flanx.evals.responsible import Found
from flanx.evals.spec import Spec
from flanx.evals.table5 import Line
from flanx.sweep import responsible_page
from tests.test_auc import SPEC, rows
from tests.test_toxicity import scored


def write(folder: pathlib.Path, shift: float) -> pathlib.Path:
    """The scores.json of a run with all of the suites."""
    prompts, terms = [], []
    for number in range(40):
        of_prompt, of_term = scored([(number % 20) / 20 * 0.8 + shift, 0.1], [0.2 + shift, 0.1 * (number % 9)])
        of_prompt.id = of_term.id = str(number)
        of_prompt.targets = [str((number % 20) / 20)]
        of_prompt.task = "toxic" if number % 20 >= 10 else "non_toxic"
        of_term.task = ("baseline_people", "gender_men", "gender_women", "religion_hindu")[number % 4]
        prompts.append(of_prompt)
        terms.append(of_term)
    labels = [("female",) if n % 2 else ("muslim",) for n in range(40)]
    comments = rows([(n * 7 % 11) / 3 + shift * (n % 3) for n in range(40)], [n % 3 == 0 for n in range(40)], labels)
    suites = {
        "real_toxicity_prompts": scores.summarize(Spec("p", "f", metric="any_toxic"), "h", prompts),
        "identity_terms": scores.summarize(Spec("t", "f", metric="share_toxic"), "h", terms),
        "civil_comments": scores.summarize(SPEC, "h", comments),
        "civil_comments_10_shot": scores.summarize(SPEC, "h", comments),
    }
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps({"suites": suites, "run": {}}))
    return folder


def test_the_page_has_every_figure_and_the_printed_values(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need it")
    lines = [Line.read(f"{write(tmp_path / 'a', 0.1)}=Flan-T5-XXL"), Line.read(str(write(tmp_path / "b", 0.0)))]
    written = responsible_page.publish(lines, tmp_path / "page")
    names = {path.name for path in written}
    assert {"responsible.html", "responsible.md"} <= names
    assert sum(name.endswith(".svg") for name in names) == len(responsible_page.FIGURES) == 6
    text = (tmp_path / "page" / "responsible.md").read_text()
    assert "| 26 |" in text and "| 84.1 |" in text and "| 86.7 |" in text  # Tables 6 and 7
    assert text.count("![") == 6 and (tmp_path / "page" / "responsible.html").read_text().count("<img") == 6
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "scores.json").write_text(json.dumps({"suites": {}, "run": {}}))
    assert responsible_page.publish([Line.read(str(tmp_path / "c"))], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_runs_of_equal_toxicity_have_points_of_their_own() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    bins = [{"from": 0.0, "to": 0.1, "n": 9, "score": 20.0, "low": 10.0, "high": 40.0}]
    canvas, spot = pyplot.subplots()
    found = [Found(Line(name, {}, None, pathlib.Path()), "s", {"bins": bins}) for name in "ab"]
    responsible_page._bins(spot, found)
    first, second = (line.get_transform().transform(line.get_xydata())[0] for line in spot.lines)
    pyplot.close(canvas)
    assert second[0] - first[0] > 5 and first[1] == second[1]
