"""The page of a comparison's results: tables and a figure, people and judges apart, the paper's figure beside ours."""

import html.parser

import pytest

pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")

from flanx.compare import tally
from flanx.evals.families import open_ended
from flanx.sweep import preference_page
from tests.compare_case import comparison, rater


def results(made):
    ada = rater("Ada", {pair: pair.left for pair in made.pairs})
    judge = rater("judge x", {pair: min(pair.sides) for pair in made.pairs}, kind="model")
    return tally.results(made, [ada, judge])


def test_the_page_has_every_table_and_its_figure(tmp_path):
    made = comparison(8, names=("ours", "<theirs>", "c"))
    paths = preference_page.publish(made, results(made), tmp_path)
    assert [path.name for path in paths] == ["report.md", "report.html", "preferred.png", "preferred.svg"]
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    html.parser.HTMLParser().feed(page)
    assert "&lt;theirs&gt;" in page and "<theirs>" not in page and "<script" not in page
    assert made.id in text and "![Preferred](figures/preferred.png)" in text
    for title in ("Raters", "Preferences", "Ratings", "Agreement of judges with people", "Position bias"):
        assert f"## {title}" in text
    assert "| people | ours | <theirs> | all | 8 |" in text and "| judge x | ours | <theirs> | all | 8 |" in text
    before = (tmp_path / "figures" / "preferred.svg").read_bytes()
    preference_page.publish(made, results(made), tmp_path)
    assert (tmp_path / "figures" / "preferred.svg").read_bytes() == before


def drawn(rates, monkeypatch, tmp_path):
    """The panels of the figure."""
    kept = []
    monkeypatch.setattr(preference_page, "save", lambda canvas, path: kept.append(canvas))
    preference_page.draw(rates, tmp_path / "a.svg")
    return kept[0].axes


def test_the_figure_has_a_panel_for_two_candidates_and_a_place_for_each_task(monkeypatch, tmp_path):
    made = comparison(8, names="abc")
    rates = [record for record in results(made) if record["what"] == "win_rate"]
    panels = drawn(rates, monkeypatch, tmp_path)
    assert [panel.get_title() for panel in panels] == ["a preferred to b", "a preferred to c", "b preferred to c"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["all", "creativity", "planning"]
    shown = {round(bar.lines[0].get_xdata()[0], 6) for bar in panels[0].containers}
    assert shown == {round(record["win_rate"], 6) for record in rates if (record["a"], record["b"]) == ("a", "b")}


def test_the_papers_figure_is_beside_open_ended_prompts_alone(monkeypatch, tmp_path):
    def legend(task):
        row = {"a": "a", "b": "b", "raters": "people", "pairs": 9, "win_rate": 60.0, "low": None, "high": None}
        (panel,) = drawn([row | {"task": each} for each in ("", task)], monkeypatch, tmp_path)
        return [text.get_text() for text in panel.figure.legends[0].get_texts()]

    assert legend("my task") == ["people"]
    assert any("PaLM 540B: 79" in label for label in legend(open_ended.KINDS[0]))


def test_a_name_is_no_formula_and_many_tasks_are_not_drawn_beyond_a_page(monkeypatch, tmp_path):
    row = {"raters": "judge $\\bad{$", "win_rate": 60.0, "low": None, "high": None, "a": "$\\frac{$", "b": "$_^$"}
    tasks = ["", "$\\bad{ $", "two\nlines " * 20, *(f"{n}" for n in range(1000))]
    rates = [row | {"task": task, "pairs": 2000 - n} for n, task in enumerate(tasks)]
    preference_page.draw(rates, tmp_path / "a.svg")
    (panel,) = drawn(rates, monkeypatch, tmp_path)
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels[0] == "all" and len(labels) == preference_page.MOST_TASKS and len(labels[2]) == 60
