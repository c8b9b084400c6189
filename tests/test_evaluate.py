"""Evaluation from suite to report: resumed, rescored, merged; what is wrong is named, what is bad is counted."""

import argparse
import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flanx.cli import rescore
from flanx.data import vocabulary
from flanx.errors import UserError
from flanx.evals import generations, metrics, registry, table5
from flanx.evals.fitting import fit
from flanx.evals.spec import Item, Spec, Suite
from flanx.evaluate import evaluate

ROOT = pathlib.Path(__file__).resolve().parent.parent
BYTES = vocabulary.load("byte")
LENGTHS = {"inputs": 400, "targets": 24}


@dataclasses.dataclass(frozen=True)
class Echo:
    """A model that says its prompt again from the first capital letter of the last line on; "~" makes it fail."""

    vocab_size: int = 259
    packing: str = "encoder_decoder"

    def prefill(self, params: Any, inputs: jax.Array, max_new: int) -> tuple[Any, jax.Array]:
        length = (inputs > 0).sum(axis=1)
        start = jnp.maximum(length - 9, 0)
        return {"inputs": inputs, "at": start}, jnp.zeros_like(length)

    def decode_step(self, params: Any, cache: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        said = jnp.take_along_axis(cache["inputs"], cache["at"][:, None], axis=1)[:, 0]
        logits = 9.0 * jax.nn.one_hot(said, self.vocab_size) * params["scale"]
        broken = (cache["inputs"] == ord("~") + 3).any(axis=1)
        return jnp.where(broken[:, None], jnp.nan, logits), cache | {"at": cache["at"] + 1}


def score(out: pathlib.Path, *names: str, scale: float = 1.0, **options: Any) -> dict[str, Any]:
    """Evaluates the echo on our samples."""
    given = {"data_dir": registry.SAMPLE, "vocabulary": BYTES, "lengths": LENGTHS, "batch_size": 16} | options
    return evaluate(
        model=Echo(), params={"scale": jnp.float32(scale)}, suites=names or ("gsm8k_zero_shot",), out_dir=out, **given
    )


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_scores_and_raw_generations_are_kept(tmp_path: pathlib.Path) -> None:
    scores = score(tmp_path, "gsm8k_zero_shot", "mmlu_test_hendrycks[astronomy]", "bbh_direct[navigate]", step=7)
    folder = tmp_path / "step_7"
    assert json.loads((folder / "scores.json").read_text()) == scores and scores["step"] == 7
    entry = scores["suites"]["mmlu_test_hendrycks[astronomy]"]
    wanted = {"score", "low", "high", "metric", "n", "extraction_failed", "truncated", "unknown", "spec", "tasks"}
    assert wanted <= set(entry) and entry["n"] == 2 and set(entry["tasks"]) == {"astronomy"}
    assert {"checkpoint", "seed", "versions", "vocabulary", "parameters"} <= set(scores["run"])
    header, *rows = lines(folder / "generations" / "gsm8k_zero_shot__gsm8k.jsonl")
    assert header["hash"] == scores["suites"]["gsm8k_zero_shot"]["spec"] and len(rows) == 3
    assert rows[0]["outputs"][0] and rows[0]["prompt"].startswith("Q: ")
    ranked = lines(folder / "generations" / "mmlu_test_hendrycks-astronomy-__astronomy.jsonl")[1]
    assert len(ranked["option_scores"]) == 4 and ranked["options"] == ["A", "B", "C", "D"]
    assert scores["suites"]["gsm8k_zero_shot"]["flagged"]  # the echo says no number: never a bare zero
    assert scores["suites"]["gsm8k_zero_shot"]["extraction_failed"] == 1


def test_the_training_run_is_recorded_with_the_scores(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"data": {"store": "abc", "missing": ["qed"]}}')
    scores = score(tmp_path / "run" / "evals", step=3, provenance={"host": "a"})
    assert scores["run"]["training"]["data"]["missing"] == ["qed"] and scores["run"]["host"] == "a"
    assert score(tmp_path / "alone")["run"]["training"] is None


def test_a_killed_evaluation_goes_on_and_ends_alike(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    names = ("bbh_direct[navigate,word_sorting]", "gsm8k_zero_shot")
    whole = score(tmp_path / "whole", *names)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "scores.json").unlink()
    victim = tmp_path / "cut" / "generations" / "gsm8k_zero_shot__gsm8k.jsonl"
    victim.write_bytes(victim.read_bytes()[:-40])  # the last line was being written
    capsys.readouterr()
    assert score(tmp_path / "cut", *names) == whole
    assert "1 items in" in capsys.readouterr().out
    assert sorted(r["id"] for r in lines(victim)[1:]) == [f"gsm8k-test-{i}" for i in range(3)]


def test_an_evaluation_that_is_killed_outright_goes_on(tmp_path: pathlib.Path) -> None:
    name = "bbh_direct[navigate,word_sorting]"
    whole = score(tmp_path / "whole", name)
    code = f"""
import os, signal
from flanx.evals import generations
from tests import test_evaluate
add, count = generations.Writer.add, []
def stop(self, row):
    add(self, row)
    count.append(row)
    if len(count) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
generations.Writer.add = stop
test_evaluate.score({str(tmp_path / "cut")!r}, {name!r})
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == -signal.SIGKILL
    files = list((tmp_path / "cut" / "generations").glob("*.jsonl"))
    assert sum(len(lines(path)) - 1 for path in files) == 2
    assert score(tmp_path / "cut", name) == whole


def test_another_model_is_evaluated_anew_and_another_spec_refused(tmp_path: pathlib.Path, capsys: Any) -> None:
    first = score(tmp_path)
    assert "begun anew" not in capsys.readouterr().out
    assert score(tmp_path, scale=2.0)["run"]["parameters"] != first["run"]["parameters"]
    assert "1 files of another checkpoint, seed or version are begun anew" in capsys.readouterr().out
    path = tmp_path / "generations" / "gsm8k_zero_shot__gsm8k.jsonl"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header.replace(first["suites"]["gsm8k_zero_shot"]["spec"], "0" * 16), *rows]) + "\n")
    with pytest.raises(UserError, match="predictions of another spec"):
        score(tmp_path, scale=2.0)


def test_scores_of_earlier_suites_stay(tmp_path: pathlib.Path) -> None:
    score(tmp_path, "gsm8k_zero_shot")
    assert set(score(tmp_path, "tydiqa")["suites"]) == {"gsm8k_zero_shot", "tydiqa"}
    assert set(score(tmp_path, "tydiqa", scale=3.0)["suites"]) == {"tydiqa"}


def test_self_consistency_is_one_argument(tmp_path: pathlib.Path) -> None:
    scores = score(tmp_path, "gsm8k_zero_shot", "mmlu_test_hendrycks", self_consistency=3)
    assert scores["suites"]["gsm8k_zero_shot+sc3"]["samples"] == 3
    assert "mmlu_test_hendrycks" in scores["suites"]
    row = lines(tmp_path / "generations" / "gsm8k_zero_shot-sc3__gsm8k.jsonl")[1]
    assert len(row["outputs"]) == 3
    assert registry.resolve("gsm8k_cot+sc") == dataclasses.replace(
        registry.resolve("gsm8k_cot"), name="gsm8k_cot+sc", samples=40, temperature=0.7, top_k=40
    )


def test_likelihood_is_the_mean_probability_of_the_gold_tokens(tmp_path: pathlib.Path) -> None:
    entry = score(tmp_path, "bbh_zero_shot[navigate]+likelihood", scale=0.0)["suites"][
        "bbh_zero_shot[navigate]+likelihood"
    ]
    assert entry["metric"] == "likelihood" and not entry["flagged"]
    assert entry["score"] == pytest.approx(100 / 259, rel=1e-4)  # all bytes alike, however long the answer is
    with pytest.raises(UserError, match=r"ranks options; '\+likelihood' wants a suite that generates"):
        registry.resolve("mmlu_hendrycks+likelihood")


def test_beams_are_one_argument(tmp_path: pathlib.Path) -> None:
    greedy = score(tmp_path, "gsm8k_zero_shot[:2]")["suites"]["gsm8k_zero_shot[:2]"]
    found = score(tmp_path, "gsm8k_zero_shot[:2]", "mmlu_test_hendrycks[astronomy]", beams=2)["suites"]
    assert found["gsm8k_zero_shot[:2]+beam2"]["n"] == greedy["n"] == 2 and "mmlu_test_hendrycks[astronomy]" in found
    row = lines(tmp_path / "generations" / "gsm8k_zero_shot--2--beam2__gsm8k.jsonl")[1]
    assert len(row["outputs"]) == len(row["ended"]) == 1
    assert registry.resolve("gsm8k_cot+beam") == dataclasses.replace(
        registry.resolve("gsm8k_cot"), name="gsm8k_cot+beam", beams=4
    )
    with pytest.raises(UserError, match="SELF_CONSISTENCY and BEAMS exclude each other"):
        score(tmp_path, beams=2, self_consistency=2)


def test_an_output_ends_with_its_stop_text(tmp_path: pathlib.Path) -> None:
    score(tmp_path, "tydiqa")
    for task in ("fi", "sw"):
        for row in lines(tmp_path / "generations" / f"tydiqa__{task}.jsonl")[1:]:
            assert row["prompt"].endswith("?\nA:")  # the echo says its end again, and "\n" ends an answer
            assert row["outputs"][0].endswith("?\n") and row["ended"] == [True]


def test_broken_logits_are_counted_not_scored(tmp_path: pathlib.Path) -> None:
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "data")
    path = tmp_path / "data" / "gsm8k" / "test.jsonl"
    path.write_text(path.read_text().replace("A bus has", "A ~ bus has"))
    entry = score(tmp_path / "out", data_dir=str(tmp_path / "data"))["suites"]["gsm8k_zero_shot"]
    assert entry["broken"] == 1 and entry["flagged"]


# --- fitting a prompt ------------------------------------------------------------------------------------------------


def test_exemplars_are_dropped_then_the_beginning_is_cut() -> None:
    shots = tuple(f"shot {i} ..........\n" for i in range(5))
    item = Item(task="t", id="1", head="Head.\n", shots=shots, query="Query?", targets=("x",), kind="exact")
    spec = Spec("s", "bbh", shots=5)
    count = lambda text: len(BYTES.encode(text))  # noqa: E731
    for use in (None, count):
        whole = fit(item, spec, BYTES, 400, use)
        assert (whole.shots, whole.cut, whole.tokens[-1]) == (5, False, 1)
        some = fit(item, spec, BYTES, 60, use)
        assert some.text == "Head.\nshot 0 ..........\nshot 1 ..........\nQuery?" and not some.cut
        assert len(some.tokens) <= 60
        last = fit(item, dataclasses.replace(spec, drop="first"), BYTES, 60, use)
        assert last.text == "Head.\nshot 3 ..........\nshot 4 ..........\nQuery?"
        none = fit(item, dataclasses.replace(spec, drop="none"), BYTES, 60, use)
        assert (none.shots, none.cut, len(none.tokens)) == (5, True, 60)
        assert BYTES.decode(none.tokens).endswith("..\nQuery?")
        short = fit(item, spec, BYTES, 5, use)
        assert (short.shots, short.cut, BYTES.decode(short.tokens)) == (0, True, "ery?")


def test_prompts_too_long_for_the_model_are_counted(tmp_path: pathlib.Path) -> None:
    entry = score(tmp_path, "gsm8k_cot", lengths={"inputs": 48, "targets": 8})["suites"]["gsm8k_cot"]
    assert entry["truncated"] == 1 and entry["shots_dropped"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": {"inputs": 64}}, r"lengths are .'inputs': 64.: give 'inputs' and 'targets'"),
        ({"lengths": {"inputs": 1, "targets": 4}}, "two tokens or more"),
        ({"batch_size": 0}, "EVAL_BATCH_SIZE is 0"),
        ({"vocabulary": vocabulary.load("byte", 100)}, "VOCABULARY byte has 359 ids, the model's table has 259 rows"),
        ({"suites": []}, "SUITES is empty"),
        ({"data_dir": ""}, "suite gsm8k_zero_shot: no folder of benchmark data; set DATA_DIR"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(
    tmp_path: pathlib.Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLANX_DATA_DIR", raising=False)
    given = {
        "suites": "gsm8k_zero_shot",
        "data_dir": registry.SAMPLE,
        "vocabulary": BYTES,
        "lengths": LENGTHS,
    } | options
    with pytest.raises(UserError, match=message):
        evaluate(model=Echo(), params={"scale": jnp.float32(1)}, out_dir=tmp_path, **given)
    assert not list(tmp_path.iterdir())


# --- names and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bbh_dirct", "no evaluation suite 'bbh_dirct'; did you mean 'bbh_direct'"),
        ("bbh_direct[navigat]", "bbh has no task 'navigat'; did you mean 'navigate'"),
        ("bbh_direct[:x]", "wants a number of items"),
        ("mmlu_test_hendrycks+sc", "'.sc' wants a suite that generates"),
        ("mmlu_test_hendrycks+beam4", "'.beam4' wants a suite that generates"),
        ("gsm8k_cot+beams", "in one pair of brackets, the way to answer behind it, as in 'gsm8k_cot"),
        ("mgsm_direct[de][:8]", "in one pair of brackets"),
        ("gsm8k_cot+beam1", "'.beam1' wants two samples or beams at least"),
        ("gsm8k_cot+sc0", "'.sc0' wants two samples or beams at least"),
        ("", "no evaluation suite ''"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        registry.resolve(name)


@pytest.mark.parametrize(
    ("file", "text", "name", "message"),
    [
        ("mmlu/data/test/astronomy_test.csv", "Q,a,b,c,B\n", "mmlu_test_direct", "test.csv:1: 5 columns, expected 6"),
        ("mmlu/data/test/astronomy_test.csv", "Q,a,b,c,d,E\n", "mmlu_test_direct", "the last column is 'E'"),
        ("mmlu/data/test/astronomy_test.csv", "Q,a,,c,d,B\n", "mmlu_test_direct", "an option is empty"),
        ("mmlu/data/test/astronomy_test.csv", "", "mmlu_test_direct", "task 'astronomy' has no item"),
        ("mgsm/mgsm_de.tsv", "Wie viele?\n", "mgsm_cot", r"mgsm_de.tsv:1: 1 columns, expected 2"),
        ("mgsm/exemplars.json", "{}", "mgsm_cot", "no exemplars for 'de'"),
        ("gsm8k/test.jsonl", '{"question": "x"}\n', "gsm8k_cot", "no text column 'answer' .there is: question"),
        ("gsm8k/test.jsonl", '{"question": "x", "answer": "5"}\n', "gsm8k_cot", "no '#### ' before its number"),
        ("gsm8k/test.jsonl", "{\n", "gsm8k_cot", r"test.jsonl:1: not JSON"),
        ("bbh/bbh/navigate.json", '{"examples": [{"input": "x"}]}', "bbh_direct", "example 0: no text column 'target'"),
        ("bbh/cot-prompts/navigate.txt", "-----\nDo.\n\nQ: a\nA: b\n", "bbh_direct", "exemplar 1 wants"),
        ("tydiqa/tydiqa-goldp-v1.1-dev.json", '{"data": [{}]}', "tydiqa", "not SQuAD's form: KeyError 'paragraphs'"),
    ],
)  # fmt: skip
def test_wrong_files_are_named(tmp_path: pathlib.Path, file: str, text: str, name: str, message: str) -> None:
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "data")
    (tmp_path / "data" / file).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        _load_there(tmp_path / "data", name)


def _load_there(folder: pathlib.Path, name: str) -> Suite:
    """A suite of the tasks that a copy of our samples has."""
    sample = registry.load(name, registry.SAMPLE)
    return registry.load(f"{name}[{','.join(sample.spec.tasks)}]", str(folder))


def test_bytes_that_are_no_text_and_twice_given_ids(tmp_path: pathlib.Path) -> None:
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "data")
    path = tmp_path / "data" / "tydiqa" / "tydiqa-goldp-v1.1-dev.json"
    path.write_text(path.read_text().replace("finnish-s2-1", "finnish-s2-0"))
    with pytest.raises(UserError, match="id 'finnish-s2-0' of fi stands twice"):
        _load_there(tmp_path / "data", "tydiqa")
    (tmp_path / "data" / "gsm8k" / "test.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(UserError, match="is not UTF-8"):
        _load_there(tmp_path / "data", "gsm8k_cot")


def test_a_language_without_rows_is_an_error_unless_named() -> None:
    folder = str(registry.SAMPLE_DIR)
    with pytest.raises(UserError, match="TyDiQA: 0 exemplars for 'ar'"):
        registry.load("tydiqa", folder)
    loaded = registry.load("tydiqa", folder, allow_missing=("ar", "bn", "id", "ko", "ru", "te"))
    assert {item.task for item in loaded.items} == {"fi", "sw"}


def test_the_hash_covers_every_byte_and_every_setting(tmp_path: pathlib.Path) -> None:
    before = registry.load("gsm8k_cot", registry.SAMPLE)
    assert registry.load("gsm8k_cot", registry.SAMPLE).hash == before.hash
    for change in ({"max_new": 511}, {"drop": "first"}, {"version": 2}, {"stop": ()}):
        assert dataclasses.replace(before, spec=dataclasses.replace(before.spec, **change)).hash != before.hash
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "data")
    assert registry.load("gsm8k_cot", str(tmp_path / "data")).items[0].query == before.items[0].query
    path = tmp_path / "data" / "mgsm" / "exemplars.json"
    path.write_text(path.read_text().replace("Mia has 4", "Mia has  4"))
    from flanx.evals.families import mgsm

    mgsm.exemplars.cache_clear()
    after = registry.load("gsm8k_cot", str(tmp_path / "data"))
    assert dataclasses.replace(after, spec=before.spec).hash != before.hash


# --- rescore and report ----------------------------------------------------------------------------------------------


def _rescore(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    rescore.add_arguments(parser)
    return rescore.run(parser.parse_args(arguments))


def test_rescoring_gives_the_same_scores(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    scores = score(tmp_path, "gsm8k_zero_shot", "tydiqa", "mmlu_test_lm_eval")
    assert _rescore(str(tmp_path), "--check") == 0
    (tmp_path / "scores.json").unlink()
    assert _rescore(str(tmp_path)) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["suites"] == scores["suites"]
    path = tmp_path / "generations" / "gsm8k_zero_shot__gsm8k.jsonl"
    header, *rows = lines(path)
    rows[0]["outputs"] = ["The answer is 5."]
    path.write_text("".join(json.dumps(r) + "\n" for r in [header, *rows]))
    assert _rescore(str(tmp_path), "--check") == 1
    assert "gsm8k_zero_shot: 33.33 (was 0.00)" in capsys.readouterr().out


def test_wrong_generation_files_are_named(tmp_path: pathlib.Path) -> None:
    score(tmp_path)
    path = tmp_path / "generations" / "gsm8k_zero_shot__gsm8k.jsonl"
    good = path.read_text()
    header, *rows = good.splitlines()
    cases = {
        f"{header}\n{rows[0]}\n{rows[0]}\n": r":3: id 'gsm8k-test-\d' stands twice",
        f"{header}\n{rows[0].replace('outputs', 'output')}\n": ":2: unexpected or absent column",
        f"{header}\n{rows[0][:-9]}\n": ":2: not JSON",
        f"{header}\n{rows[0]}\n": r"gsm8k_zero_shot is not whole \(gsm8k 1 of 3\)",
        f"{rows[0]}\n": ":1: no header",
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


def fake(folder: pathlib.Path, names: tuple[str, ...], failed: float = 0.0) -> pathlib.Path:
    """A scores.json with 40 everywhere."""
    entry = {"score": 40.0, "low": 38.0, "high": 42.0, "n": 100, "extraction_failed": failed, "flagged": failed > 0.05}
    tasks = {task: {"score": 40.0} for task in metrics.BBH_BOUNDS}
    suites = {name: entry | {"spec": "abc", "tasks": tasks if name.startswith("bbh") else {}} for name in names}
    folder.mkdir()
    generations.write_scores(folder, suites, {"seed": 0})
    return folder


def test_report_has_no_blank_that_reads_as_success(tmp_path: pathlib.Path) -> None:
    whole = fake(tmp_path / "whole", metrics.HEADLINE)
    part = fake(tmp_path / "part", ("bbh_cot", "gsm8k_cot"), failed=0.2)
    texts = [table5.Line.read(f"{whole}=Flan-T5-XL"), table5.Line.read(str(part))]
    shown = table5.markdown(texts)
    average = json.loads((whole / "scores.json").read_text())["normalized_average"]
    assert f"| {average:.1f} | 40.0 [38.0, 42.0] |" in shown
    assert "| published: Flan-T5-XL | 19.1 | 52.4 | 45.5 | 41.0 | 35.2 | 16.6 | 1.9 |" in shown
    assert (
        f"| {part} | needs all six | not run | not run | not run | 40.0 [38.0, 42.0] ! 20% unread | not run |" in shown
    )
    assert f"| {part} | gsm8k_cot | 40.0 [38.0, 42.0] ! 20% unread | 100 | abc |" in shown
    assert "|  |" not in shown
    assert "mgsm 0 (free answers)" in shown and "word_sorting 0 (recovered by fit" in shown
    csv_text = table5.table(texts)
    assert all("" not in row.split(",")[3:4] for row in csv_text.splitlines())
    with pytest.raises(UserError, match=r"no model .Flan-T5-LX.; behind .=. stands one of .*Flan-T5-XL"):
        table5.Line.read(f"{whole}=Flan-T5-LX")
    with pytest.raises(UserError, match="holds no scores"):
        table5.Line.read(str(tmp_path / "nothing"))


def test_summary_keeps_finite_numbers(tmp_path: pathlib.Path) -> None:
    scores = score(tmp_path)
    assert np.isfinite([scores["suites"]["gsm8k_zero_shot"][k] for k in ("score", "low", "high", "unknown")]).all()
