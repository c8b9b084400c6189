"""`flanx fit`: laws of a sweep's folder and of published scores, predictions that are written, mistakes."""

import pytest

from flanx.cli.main import main
from flanx.laws import prediction
from flanx.sweep import grid
from tests import test_law_section


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep of three sizes and four counts of which the corner has not run."""
    out = tmp_path_factory.mktemp("fit") / "sweep"
    sweep = test_law_section.make(out)
    test_law_section.leave(sweep, skip=("d3_282",))
    (out / grid.RECORD).write_text(grid.record(sweep))
    return out


def test_the_cells_that_have_not_run_are_predicted_and_written_down(folder, capsys):
    assert main(["fit", str(folder), "--form=log", "--draws=50"]) == 0
    printed = capsys.readouterr().out
    assert "law: log: c + b_N ln(N/N0) + b_T ln(1 + T)" in printed
    assert "predicted: d3_282, held_out: " in printed and "off on" in printed
    assert "noise: runs of one recipe differ by" in printed
    [entry] = prediction.read(folder / prediction.FILE)
    assert (entry["cell"], entry["form"], len(entry["seen"])) == ("d3_282", "log", 11)
    assert (folder / "figures" / "fit_1.png").exists()
    text = (folder / prediction.FILE).read_text()
    capsys.readouterr()
    assert main(["fit", str(folder), "--form=log", "--draws=60"]) == 0  # the same again adds nothing
    assert "0 new predictions; 1 were there, and stay as they were first written" in capsys.readouterr().out
    assert (folder / prediction.FILE).read_text() == text


def test_a_target_may_be_named_by_labels_and_lie_beyond_the_grid(folder, tmp_path, capsys):
    named = ["--predict=size=d3,tasks=282", "--predict=size=64M,tasks=1836"]
    assert main(["fit", str(folder), "--form=log", "--draws=50", f"--out={tmp_path}", *named]) == 0
    assert [e["cell"] for e in prediction.read(tmp_path / prediction.FILE)] == ["d3_282", "size=64M,tasks=1836"]
    assert "predicted: size=64M,tasks=1836, held_out" in capsys.readouterr().out


def test_the_papers_table_is_fitted_and_nothing_is_written_without_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["fit", "published:3", "--scores=normalized_average", "--predict=size=1T,tasks=1836", "--draws=50"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert main([*command[:-2], "--predict=size=1T,tasks=1836,cot=0.5", "--draws=50"]) == 0
    idle = capsys.readouterr().out
    assert "note: the law of normalized_average has no cot" in idle
    assert idle[idle.index("predicted: ") :] == printed[printed.index("predicted: ") :]  # under the same name
    assert "normalized_average: 15 cells" in printed and "half of the gain of tasks: 59 tasks" in printed
    assert "predicted: size=1T,tasks=1836, normalized_average: " in printed
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["published:4"], "no such published scores; there are published:3"),
        (["published:3", "--scores=bbh"], "--scores: no score 'bbh'; did you mean 'bbh_cot'"),
        (["published:3", "--over=size,task"], "'task' is not a variable of a law; did you mean 'tasks'"),
        (["published:3", "--predict=size=big,tasks=5"], "'big' is not a number"),
        (["published:3", "--predict=tasks=5"], "no size is known; give it"),
        (["published:3", "--predict=size=540B,tasks=1836"], "has been measured"),
        (["published:3", "--form=cubic"], "invalid choice: 'cubic'"),
        (["published:3", "--predict=size=8B,size=1T,tasks=5"], "'size' is given twice"),
        (["published:3", "--predict=cot=7,size=1T,tasks=5"], "cot is a share, 0 to 1"),
        (["published:3", "--draws=1"], "it takes a whole number, 40 or more"),
        (["published:3", "published:5:T5", "published:3"], "published:3 is given twice"),
        (["nowhere"], "nowhere is not the folder of a sweep"),
    ],
)
def test_mistakes_are_named(words, message, capsys):
    try:
        status = main(["fit", *words])
    except SystemExit as end:  # argparse's
        status = end.code
    printed = capsys.readouterr().err
    assert status == 2 and message in printed and len(printed.strip().splitlines()) <= 5


def test_a_file_of_predictions_that_was_changed_is_refused_before_anything_is_written(folder, tmp_path, capsys):
    main(["fit", str(folder), "--form=log", "--draws=50", f"--out={tmp_path}"])
    path = tmp_path / prediction.FILE
    path.write_text(path.read_text().replace('"form": "log"', '"form": "lag"'))
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["fit", str(folder), "--form=power", f"--out={tmp_path}"]) == 2
    assert "was changed after it was written: entry 1" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_variable_that_is_asked_for_and_says_nothing_is_named(capsys):
    assert main(["fit", "published:3", "--over=size,tokens", "--draws=40"]) == 0
    assert "note: the law of normalized_average has no tokens: not known of every cell" in capsys.readouterr().out
