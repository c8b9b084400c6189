"""The notebooks of docs/: their cells run one after another in a process of their own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def code(notebook: pathlib.Path) -> str:
    """The code cells of a notebook as one program."""
    cells = json.loads(notebook.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_cells_compile_and_hold_no_outputs(notebook):
    compile(code(notebook), str(notebook), "exec")
    cells = json.loads(notebook.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_cells_run_one_after_another(notebook, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as a reader has
    command = [sys.executable, "-c", code(notebook)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of 100 over" in done.stdout and len(done.stdout.splitlines()) > 8, done.stdout
