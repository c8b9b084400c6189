"""The report of a sweep: scores, intervals, chosen checkpoints, figures, a page whose every link leads somewhere."""

import csv
import dataclasses
import html.parser
import json
import pathlib
import urllib.parse

import pytest

from flanx.evals import metrics
from flanx.sweep import difference_section, figure_specs, figures, report, results, statistics
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


def test_published_rows_of_no_cell_are_noted(tmp_path: pathlib.Path, capsys):
    axes = {"size": {"d1": [], "d2": []}, "seed": {0: [], 1: []}}
    report.check(sweep_maker.make(tmp_path, axes=axes, published={"d1": "5:T5-Small", "d22": "5:T5-Base"}))
    assert capsys.readouterr().err == "note: Sweep.published: no cell for 1 of 2 published rows: d22\n"


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
    assert difference_section.difference_row(one) == ["d2", "size d1", "words", "+3.0", "one pair of runs", "+3.0"]


def test_the_chosen_step_is_the_best_by_the_named_score_and_the_report_shows_what_that_does(swept):
    sweep, written = swept
    table = {(r["size"], r["tasks"], r["checkpoint"], r["score"]): r for r in rows(written[1])}
    assert float(table["d1", "2", "chosen", "words"]["mean"]) == pytest.approx(19.0)  # step 5: the better rule score
    lines = next(text for text in written if text.name == "report.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith("| d1 | 2 | words | 5 | [19.0](runs/d1_2_0/evals/step_5/")]
    assert row.endswith("| -5.0 |") and "| 10 | [24.0](runs/d1_2_0/evals/step_10/scores.json)" in row
    shared = dataclasses.replace(sweep, choose_per=["size"])
    assert set(results.choices(shared, shared.points()).values()) == {5}
    results.write_choices(sweep)
    assert json.loads((sweep.points()[0].folder / "chosen.json").read_text()) == {"step": 5, "by": ["suite_rule"]}


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


def test_missing_tasks_are_named_and_the_x_axis_tells_the_trained_ones(tmp_path):
    """Of 9 tasks one has no data: docs/reproduce.md promises that every later result says so."""
    axes = {"tasks": {0: ["NUM_TASKS=0"], 4: ["NUM_TASKS=4"], 9: ["NUM_TASKS=9"]}}
    sweep = sweep_maker.make(tmp_path, axes=axes)
    for point in sweep.points():
        count = int(point.labels["tasks"])
        sweep_maker.leave(point.folder, {5: {"held_out": entry(10.0 + count)}})
        missing = {"cot_gsm8k": "no file cot/gsm8k_train.tsv"} if count == 9 else {}
        mixture = {"asked": {"num_tasks": count}, "tasks": count - len(missing), "missing": missing}
        record = json.loads((point.folder / "run.json").read_text())
        record["data"] = {"store": {"hash": "5707e"}, "mixture": mixture} if count else None
        (point.folder / "run.json").write_text(json.dumps(record))
    written = report.publish(sweep, State(tmp_path))
    table = {row["tasks"]: row for row in rows(tmp_path / "results.csv")}
    assert [table[n]["trained_tasks"] for n in ("0", "4", "9")] == ["0", "4", "8"]
    assert [table[n]["missing_tasks"] for n in ("0", "4", "9")] == ["", "", "cot_gsm8k"]
    page, text = (path.read_text() for path in written if path.name in ("report.html", "report.md"))
    for said in (page, text):
        assert "cot_gsm8k" in said and "no file cot/gsm8k_train.tsv" in said and "8 (1 missing)" in said
        assert "8 of 9" in said
    panel = figures.panels(
        sweep,
        figure_specs.figure_specs({}, statistics.axes(sweep), ["held_out"])[0],
        statistics.mean_scores(sweep, results.collect(sweep, State(tmp_path).statuses(sweep.points()))),
        results.collect(sweep, State(tmp_path).statuses(sweep.points())),
    )[0]
    assert panel.positions == {"0": 0.0, "4": 4.0, "9": 8.0} and panel.ticks == {"9": "8 of 9"}
    assert "8 of 9" in (tmp_path / "figures" / "by_tasks.svg").read_text()


def test_partial_scores_and_those_of_other_versions_are_marked(tmp_path):
    """Four points: of sample data, of another extractor, in a vocabulary that cannot write them, and a whole one."""
    sweep = sweep_maker.make(tmp_path, axes={"kind": {"sample": [], "old": [], "unknown": [], "whole": []}})
    now = {"extractor": 2, "scorer": 2}
    change = {
        "sample": {"data": {"folder": "sample"}, "versions": now},
        "old": {"versions": now | {"extractor": 1}},
        "unknown": {"unknown": 0.3, "versions": now},
        "whole": {"versions": now},
    }
    for point in sweep.points():
        sweep_maker.leave(point.folder, {10: {"suite_rule": entry(40.0) | change[point.labels["kind"]]}})
    written = report.publish(sweep, State(tmp_path))
    results_, cells = rows(written[0]), rows(written[1])
    assert [row["partial"] for row in cells] == ["sample data", "", "", ""]
    assert [row["partial"] for row in results_] == ["sample data", "", "30.0% of prompt tokens unknown", ""]
    assert [row["score"] for row in results_] == ["40.0", "40.0", "n/a (vocabulary)", "40.0"]
    assert cells[2]["mean"] == "" and "suite_rule n/a (vocabulary)" in cells[2]["missing"]
    text = (tmp_path / "report.md").read_text()
    assert "[40.0](runs/sample/evals/step_10/scores.json)‡" in text
    assert "Not comparable" in text and "extractor 1, scorer 2: old suite_rule (last)" in text


def test_the_caption_names_the_scores_whose_bars_are_combined_and_no_others(tmp_path):
    axes, shown = {"size": {"d1": [], "d2": []}}, {"algorithms": "bbh_cot:alg", "both": ["bbh_cot", "suite_rule"]}
    tasks = {name: entry(60.0, half=9.0) for name in metrics.BBH_BOUNDS}
    kept = {"groups": {"alg": 60.0}, "group_intervals": {"alg": {"low": 58.0, "high": 61.5}}}
    for name, more in (("old", {}), ("new", kept)):
        sweep = sweep_maker.make(tmp_path / name, axes=axes, scores=shown)
        for point in sweep.points():
            suites = {"bbh_cot": entry(60.0, tasks=tasks) | more, "suite_rule": entry(30.0)}
            sweep_maker.leave(point.folder, {5: suites})
        report.publish(sweep, State(tmp_path / name))
    old, new = ((tmp_path / name / "report.md").read_text() for name in ("old", "new"))
    assert "(Wilson's; of algorithms, both those of its parts combined, which are wider)" in old
    assert "(Wilson's; of both those of its parts combined, which are wider)" in new
    assert "[58.0, 61.5]" in new and "[58.0, 61.5]" not in old
    alone = sweep_maker.make(tmp_path / "new", axes=axes, scores={"algorithms": "bbh_cot:alg"})
    report.publish(alone, State(tmp_path / "new"))
    assert "over the items (Wilson's); they" in (tmp_path / "new" / "report.md").read_text()
