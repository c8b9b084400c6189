"""Scores computed again from generations: the same in any order of files and lines, and every field is compared."""

import json
import pathlib
import random

import pytest

from flanx.errors import UserError
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


def test_generations_of_earlier_versions_stay_readable(tmp_path: pathlib.Path) -> None:
    scores = score(tmp_path, "gsm8k_cot")["suites"]
    path = next((tmp_path / "generations").glob("*.jsonl"))
    first, *rows = path.read_text().splitlines()
    header = json.loads(first)
    assert header.pop("versions") == scores["gsm8k_cot"]["versions"]
    del header["spec"]["fallback"]  # a field that was added later
    path.write_text("\n".join([json.dumps(header), *rows]) + "\n")
    assert rescore.rescore(tmp_path)[0] == scores
    for change in ({"unheard": 1}, {"max_new": None}):
        spec = {key: value for key, value in (header["spec"] | change).items() if value is not None}
        path.write_text("\n".join([json.dumps(header | {"spec": spec}), *rows]) + "\n")
        with pytest.raises(UserError, match=next(iter(change))):
            rescore.rescore(tmp_path)


def test_suites_of_two_checkpoints_are_not_put_into_one_record(tmp_path: pathlib.Path) -> None:
    score(tmp_path, "gsm8k_zero_shot")
    score(tmp_path / "other", "tydiqa", scale=3.0)
    for path in (tmp_path / "other" / "generations").iterdir():  # as earlier versions left them
        path.rename(tmp_path / "generations" / path.name)
    with pytest.raises(UserError, match="generations of two checkpoints, seeds or versions: gsm8k_zero_shot__gsm8k"):
        rescore.rescore(tmp_path)
