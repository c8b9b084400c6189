"""Scores computed again from generations: the same in any order of files and lines, and every field is compared."""

import pathlib
import random

from flanx.evals import rescore
from tests.echo_case import score


def test_scores_do_not_depend_on_the_order_of_files_and_lines(tmp_path: pathlib.Path) -> None:
    names = ("bbh_direct[navigate,word_sorting]", "tydiqa", "bbh_zero_shot[navigate,word_sorting]+likelihood")
    scores = score(tmp_path, *names)["suites"]
    rng = random.Random(0)
    for number, path in enumerate((tmp_path / "generations").glob("*.jsonl")):
        header, *rows = path.read_text().splitlines()
        rng.shuffle(rows)
        path.write_text("\n".join([header, *rows]) + "\n")
        path.rename(path.with_name(f"{rng.random()}_{number}.jsonl"))
    assert rescore.rescore(tmp_path)[0] == scores
