"""Hashes of what a store's pieces are made of: every process must find the same."""

import os
import subprocess
import sys

import pytest

from flanx.data.store import build_job

CODE = """
from flanx.data.store import build_job
from flanx.data.task import spec
rows = spec.load_tables()
print([build_job.hash_row(rows[name], rows[name].styles[0], 0, "words", "files") for name in sorted(rows)[::40]])
"""


def test_two_processes_hash_every_row_alike():
    said = [
        subprocess.run(
            [sys.executable, "-c", CODE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(hashes(said[0])) > 40


def hashes(text: str) -> list[str]:
    """The hashes of a printed list."""
    return [part.strip(" '\n[]") for part in text.split(",")]


def test_a_value_without_a_stable_form_is_refused():
    with pytest.raises(TypeError, match="stable"):
        build_job._plain(object())
