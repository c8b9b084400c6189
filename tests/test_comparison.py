"""Two runs compared on the same items, from their generations."""

import json
import pathlib

import pytest

from flanx.cli.main import main
from flanx.evals import comparison, significance
from tests.echo_case import score


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[pathlib.Path]:
    """Two runs with eight items of GSM8K: each has some right that the other has not."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for folder in folders:
        score(folder, "gsm8k_cot", "tydiqa")
    for folder, rights in zip(folders, ((1, 2), (2, 3, 4, 5)), strict=True):  # by number of the item
        path = folder / "generations" / "gsm8k_cot__gsm8k.jsonl"
        header, row = map(json.loads, path.read_text().splitlines()[:2])
        rows = [row | {"id": f"item {number}"} for number in range(8)]
        for number, row in enumerate(rows):
            row["outputs"] = [f"The answer is {row['targets'][0] if number in rights else 987654321}."]
        path.write_text("".join(json.dumps(each) + "\n" for each in (header, *rows)))
    return folders


def test_every_suite_of_both_is_tested_and_corrected(runs):
    found = {each.suite: each for each in comparison.compare_all([("a", runs[0]), ("b", runs[1])])}
    gsm = found["gsm8k_cot"]
    assert (gsm.only_first, gsm.only_second, gsm.test) == (1, 3, "McNemar, exact")
    assert gsm.p == significance.mcnemar(1, 3) == 0.625
    assert gsm.difference == pytest.approx(100 * 2 / gsm.items) and gsm.low < gsm.difference < gsm.high
    assert found["tydiqa"].p == 1.0 and found["tydiqa"].difference == 0
    assert gsm.holm == 1.0  # twice 0.625
    back = {each.suite: each for each in comparison.compare_all([("b", runs[1]), ("a", runs[0])])}
    assert back["gsm8k_cot"].difference == -gsm.difference


def test_scores_between_right_and_wrong_are_drawn_again():
    ours, theirs = (
        comparison.Marks("h", "task", "mean", {"t": {str(i): x + d for i, x in enumerate((0.1, 0.5, 0.7, 0.2))}})
        for d in (0.0, 0.1)
    )
    found = comparison.compare("a", "b", "s", ours, theirs)
    assert found.test == "paired bootstrap" and found.only_first is None
    assert found.difference == pytest.approx(10) and (found.low, found.high) == pytest.approx((10, 10))


def test_other_items_and_metrics_of_all_items_are_not_tested():
    def marks(hash_: str = "h", metric: str = "task", items: str = "ab") -> comparison.Marks:
        return comparison.Marks(hash_, metric, "mean", {"t": dict.fromkeys(items, 1.0)})

    for theirs in (marks(hash_="other"), marks(items="abc"), marks(items="ac")):
        assert "not the same items" in comparison.compare("a", "b", "s", marks(), theirs).reason
    whole = comparison.compare("a", "b", "s", marks(metric="seqio"), marks(metric="seqio"))
    assert "of all items at once" in whole.reason
    assert "not tested: its metric" in comparison.markdown([whole])
    assert comparison.markdown([]) == ""


def test_the_report_of_two_runs_has_the_table(runs, capsys):
    assert main(["report", *map(str, runs)]) == 0
    printed = capsys.readouterr().out
    assert "| McNemar, exact | 0.62 | 1 |" in printed.replace("0.625", "0.62")
    assert "corrected by Holm's method for 2 comparisons" in printed
    assert main(["report", str(runs[0])]) == 0
    assert "Holm" not in capsys.readouterr().out
