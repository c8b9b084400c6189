"""The report of a sweep: scores, intervals, chosen checkpoints, figures, a page whose every link leads somewhere."""

import csv
import dataclasses
import html.parser
import json
import pathlib
import shutil
import urllib.parse

import pytest

from flanx import config
from flanx.cli.main import main
from flanx.errors import UserError
from flanx.evals import metrics, published
from flanx.sweep import figure_specs, figures, report, results, score_expressions, statistics
from flanx.sweep.state import State
from tests import sweep_maker
from tests.sweep_maker import entry

SCORES = {"words": "suite_composition", "both": ["suite_composition", "suite_rule"]}
STEPS = {0: 0.0, 1: 1.0, 2: 5.0}  # what a seed adds


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of 2 sizes, 2 numbers of tasks, 3 seeds: one run is flagged, one failed, three were not begun."""
    out = tmp_path_factory.mktemp("swept")
    axes = {"size": {"d1": [], "d2": []}, "tasks": {2: [], 8: []}, "seed": {0: [], 1: [], 2: []}}
    more = {
        "title": "held-out <exact> match",
        "published": {"d1_8": "5:T5-Small"},
        "choose_by": ["suite_rule"],
        "compare": {"size": "d1"},
    }
    sweep = sweep_maker.make(out, axes=axes, scores=SCORES, **more)
    state = State(out)
    for point in sweep.points():
        size, tasks, seed = (int(v.strip("d")) for v in point.labels.values())
        if (size, tasks) == (2, 8):
            if seed == 0:
                state.write(point.name, state="failed", reason="exit status 70: lost <a> host")
            continue
        if point.name == "d2_2_2":
            continue
        base = 10.0 * size + tasks + STEPS[seed]
        suites = {
            step: {
                "suite_composition": entry(base + step, flagged=point.name == "d1_2_1"),
                "suite_rule": entry(40 - step),
            }
            for step in (5, 10)
        }
        sweep_maker.leave(point.folder, suites, 1000 * size)
    return sweep, report.publish(sweep, state)


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_results_have_a_line_for_every_point_checkpoint_and_suite_and_no_blank_that_reads_as_success(swept):
    sweep, written = swept
    table = rows(written[0])
    assert len(table) == 8 * 2 * 2 + 4 * 2
    first = {
        k: table[0][k] for k in ("size", "tasks", "seed", "state", "checkpoint", "step", "suite", "score", "store")
    }
    assert first == {
        **{"size": "d1", "tasks": "2", "seed": "0", "state": "done", "checkpoint": "last", "step": "10"},
        **{"suite": "suite_composition", "score": "22.0", "store": "5707e5707e5707e"},
    }
    for row in table:
        assert row["state"] in ("done", "failed", "not run")
        assert bool(row["score"]) == (row["state"] == "done")
        if row["score"]:
            for name in ("run", "config", "scores", "generations"):
                assert (pathlib.Path(sweep.out_dir) / row[name]).exists()


def test_means_over_seeds_have_the_interval_of_student(swept):
    _, written = swept
    table = {(r["size"], r["tasks"], r["checkpoint"], r["score"]): r for r in rows(written[1])}
    found = table["d1", "2", "last", "words"]
    assert float(found["mean"]) == pytest.approx(24.0)  # 22, 23, 27
    half = 4.302653 * (7.0 / 3) ** 0.5  # t with 2 degrees of freedom, deviation sqrt(7), 3 runs
    assert float(found["seeds_low"]) == pytest.approx(24 - half) and float(found["seeds_high"]) == pytest.approx(
        24 + half
    )
    assert (float(found["items_low"]), float(found["items_high"])) == (22.0, 26.0)  # the runs share their items
    assert found["flagged"] == "True" and found["points"] == "d1_2_0 d1_2_1 d1_2_2"
    short = table["d2", "2", "last", "words"]
    assert short["runs"] == "2" and short["missing"] == "d2_2_2: not run"
    assert table["d2", "8", "last", "words"]["mean"] == ""
    assert "exit status 70: lost <a> host" in table["d2", "8", "last", "words"]["missing"]
    both = table["d1", "2", "last", "both"]
    assert float(both["mean"]) == pytest.approx(27.0)
    assert float(both["items_high"]) - 27 == pytest.approx(2 / 2**0.5)  # of two independent scores
    assert statistics.student_interval([1.0]) is None


def test_a_setting_is_compared_between_runs_that_share_the_seed(swept):
    _, written = swept
    table = {(row["tasks"], row["score"]): row for row in rows(written[2])}
    assert {row["size"] for row in table.values()} == {"d2"} and {row["tasks"] for row in table.values()} == {"2"}
    words = table["2", "words"]  # of three seeds one has no run of d2; ten points by the size, nothing by the seed
    assert (words["against"], words["runs"], words["each"]) == ("size d1", "2", "10.0 10.0")
    assert float(words["mean"]) == 10.0 and float(words["low"]) == float(words["high"]) == 10.0
    assert "| d2 | 2 | size d1 | words | +10.0 | +10.0 to +10.0 | +10.0, +10.0 |" in written[3].read_text()
    assert "<h2>Differences</h2>" in written[4].read_text()
    one = statistics.PairedDifference({"size": "d2"}, "size d1", "words", "last", (3.0,))
    assert report.difference_row(one) == ["d2", "size d1", "words", "+3.0", "one pair of runs", "+3.0"]


def test_the_chosen_step_is_the_best_by_the_named_score_and_the_report_shows_what_that_does(swept):
    sweep, written = swept
    table = {(r["size"], r["tasks"], r["checkpoint"], r["score"]): r for r in rows(written[1])}
    assert float(table["d1", "2", "chosen", "words"]["mean"]) == pytest.approx(19.0)  # step 5: the better rule score
    lines = next(text for text in written if text.name == "report.md").read_text().splitlines()
    (told,) = [line for line in lines if line.startswith("| d1 | 2 | words | 5 | [19.0](runs/d1_2_0/evals/step_5/")]
    assert told.endswith("| -5.0 |") and "| 10 | [24.0](runs/d1_2_0/evals/step_10/scores.json)" in told
    shared = dataclasses.replace(sweep, choose_per=["size"])
    assert set(results.choices(shared, shared.points()).values()) == {5}
    results.write_choices(sweep)
    assert json.loads((sweep.points()[0].folder / "chosen.json").read_text()) == {"step": 5, "by": ["suite_rule"]}


def test_points_of_one_model_share_the_step_that_is_best_for_their_mean(tmp_path):
    sweep = sweep_maker.make(tmp_path, choose_by=["suite_rule"], choose_per=["size"])
    curves = {"d1_2": {5: 10, 10: 20, 15: 90}, "d1_8": {5: 30, 10: 25}, "d2_2": {0: 3}, "d2_8": {5: 1, 10: 2}}
    for point in sweep.points():
        made = {step: {"suite_rule": entry(score)} for step, score in curves[point.name].items()}
        sweep_maker.leave(point.folder, made)
    # step 15 is not of both; 10 has the better mean; a parent evaluated as it is stands by itself
    assert results.choices(sweep, sweep.points()) == {"d1_2": 10, "d1_8": 10, "d2_2": 0, "d2_8": 10}


class Page(html.parser.HTMLParser):
    """The links, anchors and cells of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.cells: list[tuple[str, bool, str]] = []  # (text, linked, class)
        self._cell: list | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "a":
            self.links.append(found["href"])
            if self._cell:
                self._cell[1] = True
        if tag == "img":
            assert found["src"].startswith("data:image/svg+xml;base64,")
        assert tag not in ("script", "link", "iframe")
        if tag == "td":
            self._cell = ["", False, found.get("class", "")]

    def handle_data(self, data):
        if self._cell:
            self._cell[0] += data

    def handle_endtag(self, tag):
        if tag == "td":
            self.cells.append(tuple(self._cell))
            self._cell = None


def test_on_the_page_every_link_leads_somewhere_and_every_score_has_one(swept):
    sweep, written = swept
    text = next(path for path in written if path.name == "report.html").read_text()
    page = Page(text)
    for link in page.links:
        if link.startswith("#"):
            assert urllib.parse.unquote(link[1:]) in page.ids, link
        else:
            assert (pathlib.Path(sweep.out_dir) / urllib.parse.unquote(link)).exists(), link
    assert "held-out &lt;exact&gt; match" in text and "lost &lt;a&gt; host" in text
    scores = [(text, linked) for text, linked, look in page.cells if "score" in look]
    assert all(linked for _, linked in scores)
    # two cells of two scores in two figures, and with both checkpoints; two checkpoints and suites of 8 runs
    assert len(scores) == 2 * (3 * 2) + 2 * (3 * 2) + 8 * 2 * 2
    assert not [c for c in page.cells if not c[0].strip()]  # never blank
    assert any("no score (failed, not run)" in c[0] and "missing" in c[2] for c in page.cells)
    assert "26.7" in text and "published" in text  # T5-Small's MMLU is of no score here; its average is
    links = [urllib.parse.unquote(link) for link in page.links]
    for seed in (0, 1, 2):  # every run behind a mean
        assert {f"#d1_2_{seed}.last", f"#d1_2_{seed}.chosen"} <= set(links)
    for name in ("config.gin", "run.json", "evals/step_5/generations/", "evals/step_10/scores.json"):
        assert f"runs/d1_2_0/{name}" in links


def test_figures_are_drawn_and_markdown_leads_to_the_scores(swept):
    sweep, written = swept
    out = pathlib.Path(sweep.out_dir)
    drawn = sorted(path.name for path in written if path.parent.name == "figures")
    assert drawn == ["by_size.png", "by_size.svg", "by_tasks.png", "by_tasks.svg"]
    assert all((out / "figures" / name).stat().st_size > 5000 for name in drawn)
    text = (out / "report.md").read_text()
    places = [line.split(")")[0] for line in text.split("](")[1:]]
    assert places and all((out / place).exists() for place in places)


def test_a_report_is_made_again_from_the_sweeps_folder_wherever_it_lies(tmp_path, capsys):
    (tmp_path / "own.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom flanx.sweep import grid\n"
        "OUT_DIR = 'nowhere'\nLABELS = {'z': [], 'a': []}\nUNUSED = 3\n"
        "grid.Sweep:\n  out_dir = %OUT_DIR\n  gin_files = []\n  axes = {'size': %LABELS, 'b': {2: [], 1: []}}\n"
        "  title = %UNUSED\n"
    )
    config.parse([str(tmp_path / "own.gin")], ["Sweep.title='found again'"])
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    (home / "sweep.gin").write_text(config.text())
    sweep_maker.leave(home / "runs" / "z_2", {3: {"suite_rule": entry(12.5)}})
    moved = tmp_path / "moved"
    shutil.move(home, moved)
    assert main(["report", str(moved)]) == 0
    assert str(moved / "report.html") in capsys.readouterr().out
    table = rows(moved / "results.csv")
    assert [(r["point"], r["score"]) for r in table] == [("z_2", "12.5"), ("z_1", ""), ("a_2", ""), ("a_1", "")]
    assert main(["report", str(moved), str(tmp_path)]) == 2
    assert "report sweeps and runs separately" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "own.gin")]) == 2
    assert "nowhere is not a folder: the sweep has not been run" in capsys.readouterr().err


# ---- terms -----------------------------------------------------------------------------------------------------------


def test_terms_take_groups_alternatives_and_lower_bounds():
    tasks = {name: entry(bound + (100 - bound) / 2) for name, (bound, _) in metrics.BBH_BOUNDS.items()}
    suites = {"bbh_cot": entry(61.0, tasks=tasks), "mmlu_cot": entry(40.0, half=3.0, flagged=True)}
    assert score_expressions.value(["normalized mmlu_cot"], suites) == score_expressions.Estimate(
        20.0, 16.0, 24.0, True
    )
    found = score_expressions.value(["normalized bbh_direct | normalized bbh_cot"], suites)
    assert found.score == pytest.approx(50.0) and found.score < found.high < 50.0 + 4
    alg = score_expressions.value(["bbh_cot:alg"], suites)
    assert alg.score == pytest.approx(sum(tasks[t]["score"] for t in dict(report_groups())["alg"]) / 15)
    assert score_expressions.value(["mmlu_direct"], suites) == "mmlu_direct not run"
    assert score_expressions.value([score_expressions.AVERAGE], suites) == "mmlu_direct not run"
    del tasks["navigate"], tasks["snarks"]
    assert score_expressions.value(["normalized bbh_cot"], suites | {"bbh_cot": entry(61.0, tasks=tasks)}) == (
        "bbh_cot without navigate and 1 more"
    )
    six = {name: entry(50.0, tasks=tasks | dict.fromkeys(metrics.BBH_BOUNDS, entry(50.0))) for name in metrics.HEADLINE}
    wanted = metrics.normalized_average(
        dict.fromkeys(six, 50.0), dict.fromkeys(six, dict.fromkeys(metrics.BBH_BOUNDS, 50.0))
    )
    assert score_expressions.value([score_expressions.AVERAGE], six).score == pytest.approx(wanted)


def report_groups():
    from flanx.evals import registry

    return registry.resolve("bbh_cot").groups


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mmlu_cit", "did you mean 'mmlu_cot'"),
        ("mmlu cot", "is not a score of a suite"),
        ("bbh_cot:algebra", "has no group 'algebra'"),
        ("normalized gsm8k_cot", "have lower bounds"),
    ],
)
def test_a_wrong_term_is_named(text, said):
    with pytest.raises(UserError, match=said):
        score_expressions.parse(text)


# ---- figures ---------------------------------------------------------------------------------------------------------

AXES = {"size": ["8B", "62B"], "tasks": ["0", "9"], "prompt": ["plain", "trigger"]}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"x": "size", "seires": "tasks"}, "did you mean 'series'"),
        ({"series": "tasks"}, "has no 'x'"),
        ({"x": "sizes"}, "did you mean 'size'"),
        ({"x": "size", "scores": ["mmlo"]}, "did you mean 'mmlu'"),
        ({"x": "size", "kind": "pie"}, "neither 'line' nor 'bar'"),
        ({"x": "size", "where": {"tasks": [8]}}, "has no '8'"),
    ],
)
def test_a_wrong_figure_is_named(table, said):
    with pytest.raises(UserError, match=said):
        figure_specs.figure_specs({"one": table}, AXES, ["mmlu", "bbh"])


def test_a_figure_whose_name_is_no_file_is_named():
    with pytest.raises(UserError, match="its name is the name of its files"):
        figure_specs.figure_specs({"CoT / direct": {"x": "size"}}, AXES, ["mmlu"])


def test_axes_that_a_figure_does_not_name_become_series_and_are_never_mixed():
    (found,) = figure_specs.figure_specs({"one": {"x": "size", "series": "tasks"}}, AXES, ["mmlu", "bbh"])
    assert found.series == ("tasks", "prompt") and found.panels == "score"
    (found,) = figure_specs.figure_specs(
        {"one": {"x": "size", "panels": "tasks", "where": {"prompt": ["plain"]}}}, AXES, ["mmlu"]
    )
    assert found.series == () and found.panels == "tasks"
    assert [f.name for f in figure_specs.figure_specs({}, AXES, ["mmlu"])] == ["by_tasks", "by_size"]
    (alone,) = figure_specs.figure_specs({}, {}, ["mmlu"])
    assert alone.x == "score"


def test_positions_follow_numbers_parameters_or_order():
    assert figures.x_positions(["0", "9"], {}) == ({"0": 0.0, "9": 9.0}, True)
    assert figures.x_positions(["80M", "11B"], {}) == ({"80M": 8e7, "11B": 1.1e10}, True)
    assert figures.x_positions(["a", "b"], {"a": 10, "b": 20}) == ({"a": 10.0, "b": 20.0}, True)
    assert figures.x_positions(["x", "9"], {}) == ({"x": 0.0, "9": 1.0}, False)


# ---- published -------------------------------------------------------------------------------------------------------


def test_a_published_row_that_is_not_there_is_named():
    assert published.model("3:PaLM 8B")["normalized_average"] == 6.4
    with pytest.raises(UserError, match="did you mean 'PaLM 8B'"):
        published.model("3:PaLM 8")
    with pytest.raises(UserError, match="no table '9'"):
        published.model("9:PaLM 8B")
