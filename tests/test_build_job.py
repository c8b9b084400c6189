"""The key of a shard: equal in every process, and another one when what is rendered changes.

tests/golden/rendering.json holds, for each version of rendering, the hashes of the golden prompts and of prompts of the
procedural tasks. After a wanted change raise `flanx.data.store.build_job.RENDERING_VERSION` and run
`FLANX_WRITE_GOLDEN=1 pytest tests/test_build_job.py`, which adds the entry of the new version; an entry never changes.
"""

import hashlib
import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest

from flanx.data.store import build_job
from flanx.data.task import render, tables

GOLDEN = pathlib.Path(__file__).parent / "golden"
VERSIONS = GOLDEN / "rendering.json"
CODE = """
from flanx.data.store import build_job
from flanx.data.task import tables
rows = tables.load_tables()
print([build_job.shard_key(rows[name], rows[name].styles[0], 0, "words", "files") for name in sorted(rows)[::40]])
"""


def rendered() -> dict[str, str]:
    """SHA-256 of the golden prompts, and of the first four of each procedural task, later families apart."""
    digests = {name: hashlib.sha256() for name in ("procedural", "home", "people")}
    for row in sorted(tables.load_tables().values(), key=lambda row: row.name):
        if row.source.startswith("suite:"):
            made = render.render_rows(row, row.styles[-1], next(iter(row.splits)), None, count=len)
            for example in itertools.islice(made, 4):
                first = row.name.partition("_")[0]
                digest = digests[first if first in digests else "procedural"]
                digest.update(json.dumps([row.name, example.inputs, example.targets]).encode())
    prompts = hashlib.sha256((GOLDEN / "prompts.jsonl").read_bytes()).hexdigest()
    return {"prompts.jsonl": prompts} | {name: digest.hexdigest() for name, digest in digests.items()}


def test_what_is_rendered_changes_only_with_the_version_of_rendering() -> None:
    versions, version = json.loads(VERSIONS.read_text()), str(build_job.RENDERING_VERSION)
    if os.environ.get("FLANX_WRITE_GOLDEN") and version not in versions:
        versions[version] = rendered()
        VERSIONS.write_text(json.dumps(versions, indent=1) + "\n")
    assert versions.get(version) == rendered(), f"rendering changed: raise RENDERING_VERSION beyond {version}"
    assert list(versions) == [str(n) for n in range(1, len(versions) + 1)]


def test_the_version_of_rendering_is_part_of_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    row = tables.load_tables()["cot_gsm8k"]
    before = build_job.shard_key(row, "zsopt", 0, "byte-0", "files")
    assert build_job.shard_key(row, "zsopt", 0, "byte-0", "files") == before
    monkeypatch.setattr(build_job, "RENDERING_VERSION", build_job.RENDERING_VERSION + 1)
    assert build_job.shard_key(row, "zsopt", 0, "byte-0", "files") != before


def test_two_processes_compute_the_same_keys() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", CODE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0].split(","))) > 40


def test_a_value_without_a_stable_form_is_refused() -> None:
    with pytest.raises(TypeError, match="stable"):
        build_job._plain(object())
