"""`flanx plan`: its JSON, its table, its notes and its errors; docs/plan.md."""

import dataclasses
import json
import math
import pathlib
import re
import shlex

import pytest

from benchmarks import plan_page
from flanx.cli import main
from flanx.errors import UserError
from flanx.plan import hardware, planned_run, tpu_compile


def command(*more: str) -> list[str]:
    bound = ["--gin.t5.T5.num_encoder_layers=1", "--gin.t5.T5.num_decoder_layers=1", "--gin.BATCH_SIZE=32"]
    return ["plan", "--gin_file=models/t5_1_1/tiny.gin", *bound, *more]


def test_prints_json_and_says_whether_it_fits(capsys: pytest.CaptureFixture) -> None:
    assert main.main(command("--topology=v5e:2x2", "--estimate", "--json", "--gin.TRAIN_STEPS=3600")) == 0
    answer = json.loads(capsys.readouterr().out)
    keys = "fits chips layout hbm_per_chip_bytes hbm_capacity_bytes step_seconds tokens_per_second mfu hours chip_hours"
    assert set(keys.split()) <= set(answer)
    assert (answer["fits"], answer["chips"], answer["source"]) == (True, 4, "estimate")
    assert answer["chip_hours"] == pytest.approx(4 * answer["step_seconds"])
    assert math.isclose(sum(answer["hbm_parts_bytes"].values()), answer["hbm_per_chip_bytes"])


def test_finds_the_smallest_slice_and_plans_gpus(capsys: pytest.CaptureFixture) -> None:
    assert main.main(command("--topology=auto", "--family=v6e", "--estimate", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["topology"] == "v6e:1x1"
    assert main.main(command("--topology=h100:8", "--rows=2")) == 0
    said = capsys.readouterr().out
    assert "h100:8: 8 chips" in said
    assert "note: GPUs are planned from shapes alone" in said


def test_a_recipe_is_named_as_launch_takes_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def read(files: list[str], bindings: list[str], paths: list[str]) -> None:
        raise UserError(f"read {files} {bindings}")

    monkeypatch.setattr(planned_run, "read", read)
    for words, files in (
        (["flan_t5_xl"], ["recipes/flan_t5_xl.gin"]),
        (["flan-t5-xl", "--gin_file=a.gin"], ["recipes/flan_t5_xl.gin", "a.gin"]),
        (["mine/b.gin", "--gin_file=a.gin"], ["mine/b.gin", "a.gin"]),
        (["--gin_file=a.gin"], ["a.gin"]),
    ):
        assert main.main(["plan", *words, "--gin.SEED=1"]) == 2
        assert capsys.readouterr().err == f"flanx plan: read {files} ['SEED=1']\n"
    assert main.main(["plan", "flan_t5_x"]) == 2 and "did you mean 'flan_t5_x" in capsys.readouterr().err
    assert main.main(["plan"]) == 2 and "no RECIPE and no --gin_file given" in capsys.readouterr().err


def test_says_when_the_compiler_is_absent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(tpu_compile, "has_compiler", lambda: False)
    assert main.main(command("--topology=v5e:2x2", "--rows=1")) == 0
    assert "libtpu is not installed" in capsys.readouterr().out


def test_with_bad_input_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main.main(command("--topology=v4:4x4")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main.main(command("--topology=v5e:2x2", "--layout=model 3")) == 2
    assert "names no layout of v5e:2x2" in capsys.readouterr().err
    for flag in ("--compilations=0", "--timeout=-1", "--rows=0"):
        with pytest.raises(SystemExit, match="2"):
            main.main(command("--topology=v5e:2x2", flag))
        assert f"argument {flag.partition('=')[0]}: " in capsys.readouterr().err


def test_a_model_that_fits_nowhere_in_a_family_is_one_line_with_the_next_thing_to_try(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(hardware.CHIPS, "v5e", dataclasses.replace(hardware.CHIPS["v5e"], hbm_bytes=3e6))
    assert main.main(command("--topology=auto", "--estimate", "--json", "--gin.BATCH_SIZE=1024")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no slice of v5e fits it: the largest, v5e:16x16, has 0.0 GB a chip and the run needs" in said
    assert "next: remat = 'full', a larger NUM_MICROBATCHES or a smaller BATCH_SIZE, --topology='2x v5e:16x16'" in said
    assert main.main(command("--topology=v5e:2x2", "--estimate")) == 1
    assert "GB too much (next: remat = 'full', " in capsys.readouterr().out
    monkeypatch.setitem(hardware.CHIPS, "v5e", dataclasses.replace(hardware.CHIPS["v5e"], hbm_bytes=1e5))
    assert main.main(command("--topology=v5e:1x1", "--estimate")) == 1
    assert "parameters, optimizer and gradients alone are too much" in capsys.readouterr().out


def test_a_layout_on_which_the_compiler_fails_is_reported_and_the_next_one_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list[dict] = []

    def ask(request: dict, timeout: float) -> tpu_compile.CompilerReport:
        asked.append(request["layout"])
        if len(asked) == 1:
            raise tpu_compile.CompilerError("the compiler failed on it: INTERNAL: RET_CHECK")
        return tpu_compile.CompilerReport(True, 1e9, 1e8, 9e8, 0.0, [], 1.0, 1e9)

    monkeypatch.setattr(tpu_compile, "has_compiler", lambda: True)
    monkeypatch.setattr(tpu_compile, "compile_in_child", ask)
    assert main.main(command("--topology=v5e:2x2", "--compilations=1", "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["source"] == "compiled" and answer["layout"] == asked[1] != asked[0]
    assert "INTERNAL: RET_CHECK; left out" in answer["notes"][0]
    monkeypatch.setattr(tpu_compile, "compile_in_child", lambda *_: ask({"layout": asked.clear()}, 0.0))
    assert main.main(command("--topology=v5e:2x2", "--json")) == 2
    assert "INTERNAL: RET_CHECK" in capsys.readouterr().err


def test_the_page_has_the_papers_ten_models_compiled() -> None:
    text = (pathlib.Path(__file__).parent.parent / "docs" / "plan.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| Flan-")]
    assert [row[0] for row in rows] == [row.name for row in plan_page.ROWS]
    assert {row[-1] for row in rows} == {"compiled"}
    assert "does not fit" not in text
    (largest,) = [row for row in rows if row[0] == "Flan-PaLM 540B"]
    assert largest[1] == "`v4:8x8x8`, 512 chips" and largest[-3].endswith("(paper: 37)")


@pytest.mark.slow
def test_an_adapter_of_t5_xl_fits_one_device_of_40_gb(capsys: pytest.CaptureFixture) -> None:
    """Rank 16 over a bfloat16 base, eight packed rows of 2,048 and 512 tokens, as docs/memory.md has it."""
    page = (pathlib.Path(__file__).parent.parent / "docs" / "memory.md").read_text()
    line = re.search(r"    (flanx plan .*?--estimate)\n", page.replace("\\\n        ", ""), re.DOTALL)
    assert line is not None
    words = shlex.split(line[1])[1:]
    assert {"--gin.LORA_RANK=16", "--gin.LORA_BASE='bfloat16'", "--topology=a100-40:1"} <= {*words}
    assert main.main([*words, "--json"]) == 0, capsys.readouterr().err
    answer = json.loads(capsys.readouterr().out)
    assert answer["fits"] and answer["hbm_per_chip_bytes"] == pytest.approx(20.8e9, rel=0.02)
    assert answer["trained"].startswith("trains 9,437,184 of ")
    full = [word for word in words if "lora" not in word and "LORA" not in word]
    assert main.main([*full, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["trained"] is None and whole["hbm_per_chip_bytes"] > 1.5 * answer["hbm_per_chip_bytes"]
