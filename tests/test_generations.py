"""Generation files: what is wrong in them is reported with its line."""

import contextlib
import json
import pathlib

import pytest

from flanx.errors import UserError
from flanx.evals import generations, registry, rescore
from tests.echo_case import score
from tests.test_marking import generation

ODD: list[tuple[dict[str, object], str]] = [  # fields of a spec, and what is said of them
    ({"metric": {}}, "'spec.metric' is {}, it takes a text"),
    ({"stop": [{}]}, "'spec.stop' is .*, it takes a list of texts"),
    ({"groups": [["a", [{}]]]}, "'spec.groups' is .*, it takes a list"),
    ({"groups": [["a"]]}, "'spec.groups' is .*, it takes a list"),
    ({"groups": [{}]}, "'spec.groups' is .*, it takes a list"),
]


def test_wrong_generation_files_are_named(tmp_path: pathlib.Path) -> None:
    score(tmp_path)
    path = tmp_path / "generations" / "gsm8k_zero_shot__gsm8k.jsonl"
    good = path.read_text()
    header, *rows = good.splitlines()
    record = json.loads(header)
    cases = {
        f"{header}\n{rows[0]}\n{rows[0]}\n": r":3: id 'gsm8k-test-\d' occurs twice",
        f"{header}\n{rows[0].replace('outputs', 'output')}\n": ":2: unexpected or missing column",
        f"{header}\n{rows[0][:-9]}\n": ":2: not JSON",
        f"{header}\n{rows[0]}\n": r"gsm8k_zero_shot is incomplete \(gsm8k 1 of 3\)",
        f"{rows[0]}\n": ":1: no header",
        f"{json.dumps(record | {'spec': {}})}\n": ":1 is damaged: its spec has no name",
        **{f"{json.dumps(record | {'spec': record['spec'] | odd})}\n": said for odd, said in ODD},
        "": "is empty",
    }
    for text, message in cases.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            rescore.rescore(tmp_path)
    path.write_text(good)
    other = json.loads(header) | {"hash": "0" * 16}
    (path.parent / "gsm8k_zero_shot__other.jsonl").write_text(json.dumps(other) + "\n")
    with pytest.raises(UserError, match="is of another spec than"):
        rescore.rescore(tmp_path)
    with pytest.raises(UserError, match="holds no generations"):
        rescore.evaluations(path.parent)


def test_a_writer_resumes_after_a_truncated_line(tmp_path: pathlib.Path) -> None:
    suite = registry.load("gsm8k_zero_shot", registry.SAMPLE)
    rows = [generation(id=item.id, task=item.task, outputs=["5"]) for item in suite.items]
    with contextlib.closing(generations.Writer(tmp_path, suite, {"seed": 0})) as writer:
        assert not writer.done
        for row in rows[:2]:
            writer.add(row)
    (path,) = generations.paths(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with contextlib.closing(generations.Writer(tmp_path, suite, {"seed": 0})) as writer:
        assert writer.done == {("gsm8k", rows[0].id)}
        for row in rows[1:]:
            writer.add(row)
    header, found = generations.read(path)
    assert found == rows and header["hash"] == suite.hash and header["items"] == {"gsm8k": 3}
    assert generations.spec_of(header, path) == suite.spec
    with pytest.raises(UserError, match="its spec differs from this version's in 'another'"):
        generations.spec_of({"spec": header["spec"] | {"another": 1}}, path)


def test_names_of_files_have_no_character_that_file_systems_refuse(tmp_path: pathlib.Path) -> None:
    path = generations.generation_path(tmp_path, "bbh_direct[a,b,:20]+sc", "a")
    assert path == tmp_path / "generations" / "bbh_direct-a-b--20--sc__a.jsonl"


def test_items_done_by_the_same_parameters_are_kept_and_those_of_others_set_aside(tmp_path: pathlib.Path) -> None:
    suite = registry.load("gsm8k_zero_shot", registry.SAMPLE)
    run = {"parameters": "0123", "seed": 0, "checkpoint": "out/run"}
    item = suite.items[0]
    for change, done in (({}, 0), ({"checkpoint": "./out/run"}, 1), ({"parameters": "4567"}, 0), ({"seed": 1}, 0)):
        run |= change
        with contextlib.closing(generations.Writer(tmp_path, suite, run)) as writer:
            assert len(writer.done) == done, change
            if not done:
                writer.add(generation(id=item.id, task=item.task))
    assert len(list((tmp_path / generations.ASIDE).iterdir())) == 2


def test_a_folder_has_the_generations_and_scores_of_one_checkpoint_and_keeps_the_others_aside(tmp_path: pathlib.Path):
    suite = registry.load("gsm8k_zero_shot", registry.SAMPLE)
    for parameters in ("0123", "0123", "4567"):
        run = {"parameters": parameters, "seed": 0}
        generations.set_others_aside(tmp_path, run)
        with contextlib.closing(generations.Writer(tmp_path, suite, run)) as writer:
            writer.add(generation(id=suite.items[0].id, task=suite.items[0].task))
        (tmp_path / "scores.json").write_text(json.dumps({"suites": {}, "run": run}))
    aside = tmp_path / generations.ASIDE
    assert sorted(path.name for path in aside.iterdir()) == ["gsm8k_zero_shot__gsm8k.1.jsonl", "scores.1.json"]
    assert json.loads((aside / "scores.1.json").read_text())["run"]["parameters"] == "0123"
