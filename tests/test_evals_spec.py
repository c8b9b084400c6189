"""The hash of a suite covers every byte of its prompts and every setting."""

import dataclasses
import pathlib
import shutil

from flanx.evals import registry
from flanx.evals.families import mgsm


def test_the_hash_covers_every_byte_and_every_setting(tmp_path: pathlib.Path) -> None:
    before = registry.load("gsm8k_cot_mgsm_exemplars", registry.SAMPLE)
    assert registry.load("gsm8k_cot_mgsm_exemplars", registry.SAMPLE).hash == before.hash
    for change in ({"max_new": 511}, {"drop": "first"}, {"version": 2}, {"stop": ()}):
        assert dataclasses.replace(before, spec=dataclasses.replace(before.spec, **change)).hash != before.hash
    shutil.copytree(registry.SAMPLE_DIR, tmp_path / "data")
    assert registry.load("gsm8k_cot_mgsm_exemplars", str(tmp_path / "data")).items[0].query == before.items[0].query
    path = tmp_path / "data" / "mgsm" / "exemplars.json"
    path.write_text(path.read_text().replace("Mia has 4", "Mia has  4"))
    mgsm.exemplars.cache_clear()
    after = registry.load(before.spec.name, str(tmp_path / "data"))
    assert dataclasses.replace(after, spec=before.spec).hash != before.hash
