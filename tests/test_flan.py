"""Templates out of a clone of FLAN, on a made-up clone of its shape: literals are read, nothing is executed."""

import pytest

from flanx.cli.main import main
from flanx.data.task import render, tables

TEMPLATES = r"""
import copy
raise SystemExit("executed")

PATTERNS = {
    "rte": [("{premise} So {hypothesis}?\n{options_}", "{answer}"), ("Make up: {premise}", "{hypothesis}")],
    "anli": [("{context}\n{hypothesis}\n{options_}", "{answer}")],
    "cot_gsm8k": [("{question}", "{chain_of_thought} It is {answer}")],
    "cot_stream_general_input_inversion": [("{answer}", "{question}")],
    "cosmos_qa": [("{context} {question}\n{options_}", "{answer}"), ("{context}", "{question}\n{options_}")],
    "natinst_v2": [("{Definition}\n{input}", "{output}")],
    "strange": [("{a}", "{b}")],
    "computed": [("x" * 3, "{answer}")],
}
PATTERNS["cot_input_inversion_gsm8k"] = PATTERNS["cot_stream_general_input_inversion"]
PATTERNS["snli"] = PATTERNS["rte"]
PATTERNS["lost"] = PATTERNS["nowhere"]
PATTERNS[lower("X")] = 5

FEWSHOT_PATTERNS = {
    "rte": [FewShotPattern(inputs="P {premise} H {hypothesis} {options_}", targets="{answer}", inputs_prefix="I> ",
                           targets_prefix="O> ", x_y_delimiter="\n", example_separator="\n==\n")],
    "natinst_v2": [FewShotPattern(inputs="{input}", targets="{output}",
                                  input_pattern="{{Definition}}\n\n{{inputs}}{final_suffix}")],
    "wic": [FewShotPattern(inputs="{word}", targets="{answer}", final_suffix="!")],
}
INLINE_FS_PATTERNS = {"natinst_v2": [("{Definition} {ex_input} {ex_output} {ex_explanation} {input}", "{output}")]}
"""
BRANCHED = 'PATTERNS = {"rte": [("{premise} Hence {hypothesis}?\\n{options_}", "{answer}")]}\n'


@pytest.fixture
def converted(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "clone" / "flan" / "v2"
    folder.mkdir(parents=True)
    (folder / "templates.py").write_text(f"\ufeff{TEMPLATES}", encoding="utf-8")  # as some editors save it
    (folder / "flan_templates_branched.py").write_text(BRANCHED)
    assert main(["tasks", "import-flan", str(tmp_path / "clone"), "--output", str(tmp_path / "out")]) == 0
    monkeypatch.setenv("FLANX_TABLES", str(tmp_path / "out"))
    return capsys.readouterr().out


def rendered(name, style, records):
    task = tables.load_tables()[name]
    raw = [(f"row {i}", record) for i, record in enumerate(records)]
    return list(render.render_rows(task, style, "train", raw=lambda split: iter(raw)))


RTE = [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": 0} for i in range(3)]


def test_groups_are_converted_or_named(converted):
    assert "13 of 17 pattern groups converted" in converted
    for line in (
        "not converted: PATTERNS['computed']: malformed node",
        "not converted: PATTERNS['lost']: KeyError: 'nowhere'",
        """not converted: PATTERNS["lower('X')"]: ValueError: not an alias of another group""",
        "not converted: FEWSHOT_PATTERNS['wic']: input_pattern",
        "not converted: cosmos_qa, prompt 1: {options} is allowed in the input only",
        "converted, but no task here uses it: flan_strange",
    ):
        assert line in converted


def test_rows_take_the_prompts_of_their_style(converted):
    for style, wanted in (("zsopt", "flan_rte:"), ("zsnoopt", "flan_rte_noopt:")):
        taken = {r.template.partition(":")[0] + ":" for r in rendered("muffin_rte", style, RTE)}
        assert wanted in taken and taken <= {wanted, "nli_inverted:"}
    few = [r for r in rendered("muffin_rte", "fsnoopt", RTE) if r.template == "flan_rte_few:0"]
    assert few and all(
        r.inputs.startswith("I> P p") and r.inputs.endswith("\nO>") and "\n==\nI> " in r.inputs for r in few
    )
    assert tables.load_tables()["cot_gsm8k"].inversions == ("flan_cot_stream_general_input_inversion",)


def test_field_names_of_the_clone_are_made_from_ours(converted):
    records = [{"context": "c", "hypothesis": "h", "label": 1}]
    row = next(r for r in rendered("muffin_anli_r1", "zsopt", records * 20) if r.template == "flan_anli:0")
    assert row.inputs.startswith("c\nh\n")
    niv2 = {
        "definition": "D",
        "input": "i",
        "outputs": ["o"],
        "examples": [{"input": "a", "output": "b", "explanation": "e"}],
    }
    records = [{**niv2, "input": f"i{n}"} for n in range(20)]
    rows = rendered("niv2_task002_quoref_answer_generation", "fsopt", records)
    assert {r.template for r in rows} == {"flan_natinst_v2_few:0", "flan_natinst_v2_worked:0"}
    assert all(r.inputs.startswith("D") for r in rows)
    assert any(r.inputs.startswith("D a b e i") for r in rows)


def test_what_is_no_clone_is_refused(tmp_path, capsys):
    assert main(["tasks", "import-flan", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "is this a clone of google-research/FLAN?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
