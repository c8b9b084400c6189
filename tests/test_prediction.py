"""Predictions that are written down: a chain that shows every change, and verdicts."""

import copy
import json
import os

import numpy as np
import pytest

from flanx.errors import UserError
from flanx.laws import choice, fit, prediction
from flanx.laws.cell import gather
from tests import law_maker


@pytest.fixture(scope="module")
def made():
    """A choice, and the entries of two predictions of it."""
    found = choice.choose(gather(law_maker.draw("log", np.random.default_rng(0))), ["log"])
    cells = [law_maker.cell(256e6, tasks) for tasks in (282, 1836)]
    return prediction.entries("score", found, choice.predict(found, fit.bootstrap(found.fit, 50), cells, 1.0))


def test_entries_are_appended_once_and_are_dated_and_say_what_they_saw(made, tmp_path):
    path = tmp_path / prediction.FILE
    assert prediction.read(path) == []
    prediction.append(path, made[:1])
    first = path.read_text()
    both = prediction.append(path, made)
    assert both == prediction.read(path) and [e["cell"] for e in both] == ["2.56e+08_282", "2.56e+08_1836"]
    assert first.rstrip("\n]") in path.read_text()  # the first entry stays to the letter
    assert prediction.append(path, made) == both
    assert len(both[0]["seen"]) == 20 and len(both[0]["data"]) == 64 and both[0]["made"].startswith("20")
    assert both[1]["previous"] == both[0]["hash"] and both[0]["low"] < both[0]["value"] < both[0]["high"]


def spoil(path, change):
    """Changes the entries of a file."""
    found = json.loads(path.read_text())
    path.write_text(json.dumps(change(copy.deepcopy(found))))


CHANGES = {
    "a value": lambda e: [{**e[0], "value": 50.0}, e[1]],
    "an interval": lambda e: [e[0], {**e[1], "high": 100.0}],
    "a date": lambda e: [{**e[0], "made": "2020-01-01T00:00:00+00:00"}, e[1]],
    "the first is removed": lambda e: e[1:],
    "the order": lambda e: [e[1], e[0]],
    "a key is removed": lambda e: [e[0], {k: v for k, v in e[1].items() if k != "form"}],
    "one hash made to fit": lambda e: [{**e[0], "value": 5.0, "hash": prediction._hash({**e[0], "value": 5.0})}, e[1]],
    "no list": lambda e: {},
    "no entry": lambda e: [5],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_was_changed_is_refused_and_left_alone(change, made, tmp_path):
    path = tmp_path / prediction.FILE
    prediction.append(path, made)
    spoil(path, CHANGES[change])
    text = path.read_text()
    for call in (lambda: prediction.read(path), lambda: prediction.append(path, made)):
        with pytest.raises(UserError, match=r"predictions\.json (was changed after it was written|is damaged)"):
            call()
    assert path.read_text() == text


def test_a_file_that_is_no_json_is_refused(tmp_path):
    for text in ("[{", "[" * 5000, "\udcff"):
        (tmp_path / prediction.FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=r"predictions\.json is damaged"):
            prediction.read(tmp_path / prediction.FILE)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a regular file"):
        prediction.read(tmp_path / "pipe")


def test_verdicts_and_coverage(made, tmp_path):
    found = prediction.append(tmp_path / prediction.FILE, made)
    assert prediction.coverage(prediction.verdicts(found, {})) == "2 predictions, none measured yet."
    value, above = found[0]["value"], found[1]["high"] + 1
    some = prediction.verdicts(found, {("2.56e+08_282", "score"): value, ("2.56e+08_1836", "other"): 5.0})
    assert [each.text for each in some] == ["inside", "not measured yet"]
    assert prediction.coverage(some) == (
        "1 of 1 measured cells lie inside their 95% intervals (100%); 1 predictions are still open."
    )
    both = prediction.verdicts(found, {("2.56e+08_282", "score"): value, ("2.56e+08_1836", "score"): above})
    assert [each.text for each in both] == ["inside", "outside"]
    assert prediction.coverage(both) == "1 of 2 measured cells lie inside their 95% intervals (50%)."


def test_the_digest_is_of_what_was_measured():
    cells = law_maker.draw("log", np.random.default_rng(0))
    assert prediction.digest(cells) == prediction.digest([*reversed(cells), law_maker.cell(1e9, 5)])
    assert prediction.digest(cells) != prediction.digest(cells[1:])
