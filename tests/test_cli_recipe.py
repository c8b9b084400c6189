"""`flanx recipe`: list, show, diff."""

import json
import subprocess
import sys

from flanx.cli.main import main


def test_show_marks_guesses_and_needs_no_jax(capsys):
    assert main(["recipe", "show", "flan-t5-xl"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "38000" in lines["TRAIN_STEPS"] and "?" not in lines["TRAIN_STEPS"]
    assert "?" in lines["SEED"]
    code = (
        "import sys; from flanx.cli.main import main; main(['recipe', 'show', 'flan_t5_xl', '--json']); "
        "sys.exit(bool({'jax', 'tensorflow', 'numpy', 'gin'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    fields = json.loads(shown.stdout)["fields"]
    assert fields["TRAIN_STEPS"]["value"] == 38_000
    assert fields["SEED"]["kind"] == "guess"


def test_diff_names_what_differs_and_nothing_else(capsys):
    assert main(["recipe", "diff", "flan_t5_xl", "flan_t5_xxl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["fields"]
    assert set(found) == {"MODEL", "INITIAL_CHECKPOINT_PATH", "TRAIN_STEPS"}
    assert [f["value"] for f in found["TRAIN_STEPS"]] == [38_000, 14_000]
    assert main(["recipe", "diff", "flan_t5_xl", "flan_palm_8b"]) == 0
    assert "palm.PaLM.prefix_lm" in capsys.readouterr().out


def test_an_unknown_recipe_is_answered_with_the_nearest(capsys):
    assert main(["recipe", "show", "flan_t5_xk"]) == 2
    assert "did you mean 'flan_t5_xl'" in capsys.readouterr().err
    assert main(["recipe", "list"]) == 0
    assert "flan_u_palm_540b" in capsys.readouterr().out
