"""The store's format: what is written is read; what was damaged is refused in one line."""

import json
import pathlib
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest

from flanx import files, storage
from flanx.data import store
from flanx.data.store import format as store_format
from flanx.data.store.shard import Shard, read_metadata, write_shard
from flanx.errors import UserError
from tests import store_maker


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> store.Store:
    sizes = {"cot/cot_a": 7, "cot/cot_b": 20, "muffin/muffin_c": 5}
    return store_maker.make(tmp_path_factory.mktemp("store"), sizes, ("zsopt", "fsopt"), renderings=2)


@pytest.fixture
def copy(made, tmp_path) -> pathlib.Path:
    shutil.copytree(made.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_every_example_is_read_as_written(made):
    for name, n in {"cot_a": 7, "cot_b": 20, "muffin_c": 5}.items():
        for style in ("zsopt", "fsopt"):
            for rendering in range(2):
                part = made.tasks[name].parts[style][rendering]
                assert part.examples == n
                for row, written in enumerate(store_maker.examples(f"{name} {style} {rendering}", n)):
                    for side, expected in zip(made.example(part, row), written, strict=True):
                        np.testing.assert_array_equal(side, expected)


def test_a_store_is_few_files_of_one_collection_each(made):
    assert [v["name"].split("-")[0] for v in made.manifest["volumes"]] == ["cot", "muffin"]
    assert made.collections() == {"cot": ["cot_a", "cot_b"], "muffin": ["muffin_c"]}
    assert made.tasks["cot_b"].examples == 20


def test_volumes_are_closed_when_full(tmp_path, monkeypatch):
    monkeypatch.setattr(store_format, "VOLUME_BYTES", 1000)
    opened = store_maker.make(tmp_path, {f"cot/cot_{i}": 10 for i in range(4)})
    assert len(opened.manifest["volumes"]) == 4
    _, targets = opened.example(opened.tasks["cot_3"].parts["zsopt"][0], 9)
    np.testing.assert_array_equal(targets, store_maker.examples("cot_3 zsopt 0", 10)[9][1])


def test_counts_of_the_manifest(made):
    facts = made.tasks["cot_b"].parts["zsopt"][1].metadata
    written = store_maker.examples("cot_b zsopt 1", 20)
    assert facts["input_tokens"] == sum(len(i) for i, _ in written)
    assert facts["target_tokens"] == sum(len(t) for _, t in written)
    assert facts["longest"] == [max(len(i) for i, _ in written), max(len(t) for _, t in written)]
    assert facts["longer_inputs"]["256"] == 0
    assert facts["unknown"] == 0


def test_the_hash_tells_content_and_not_place(made, tmp_path):
    sizes = {"cot/cot_a": 7, "cot/cot_b": 20, "muffin/muffin_c": 5}
    assert store_maker.make(tmp_path / "again", sizes, ("zsopt", "fsopt"), renderings=2).hash == made.hash
    assert store_maker.make(tmp_path / "other", sizes, ("zsopt", "fsopt")).hash != made.hash


def test_verify_reads_every_byte(made):
    seen = []
    assert store.verify(made.path, lambda file, size: seen.append(size)).hash == made.hash
    assert sum(seen) == sum(f.stat().st_size for f in made.path.glob("*.npy"))


def test_a_truncated_file_is_refused_when_opened(copy):
    file = next(copy.glob("cot-*.tokens.npy"))
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"cot-.*tokens\.npy: has .* bytes, not"):
        store.open_store(copy)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        store.open_store(copy)


@pytest.mark.parametrize("kind", ["tokens", "index"])
def test_a_flipped_bit_is_found_by_verify(copy, kind):
    file = next(copy.glob(f"muffin-*.{kind}.npy"))
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    store.open_store(copy)
    with pytest.raises(UserError, match=rf"muffin-.*{kind}\.npy: content changed"):
        store.verify(copy)


def flip(file: pathlib.Path, at: int) -> None:
    """Flips a bit of a byte, counted from the end where negative."""
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(data)


def read_all(opened: store.Store) -> None:
    for task in opened.tasks.values():
        for renderings in task.parts.values():
            for part in renderings:
                for number in range(part.examples):
                    opened.example(part, number)


def test_any_flipped_bit_is_found_when_its_block_is_read_and_not_before(tmp_path, monkeypatch):
    monkeypatch.setattr(store_format, "BLOCK", 64)
    made = store_maker.make(tmp_path / "made", {"cot/cot_a": 40, "muffin/muffin_c": 20})
    rng = np.random.default_rng(0)
    for trial in range(40):
        copied = shutil.copytree(made.path, tmp_path / str(trial))
        kind = ("tokens", "index")[trial % 2]
        flip(next(copied.glob(f"cot-*.{kind}.npy")), -1 - int(rng.integers(getattr(made.volume(0), kind).nbytes)))
        opened = store.open_store(copied)
        for number in range(20):  # of the other volume
            opened.example(opened.tasks["muffin_c"].parts["zsopt"][0], number)
        with pytest.raises(
            UserError, match=rf"cot-.*\.{kind}\.npy: bytes .* have changed since they were written"
        ) as caught:
            read_all(opened)
        assert "\n" not in str(caught.value) and "flanx store build" in str(caught.value)
        monkeypatch.setattr(files, "verifying", False)
        if kind == "tokens":
            read_all(store.open_store(copied))
        monkeypatch.setattr(files, "verifying", True)


def test_a_block_is_compared_once(made, monkeypatch):
    compared = []
    crc32 = zlib.crc32
    monkeypatch.setattr(store_format.zlib, "crc32", lambda data: compared.append(len(data)) or crc32(data))
    opened = store.open_store(made.path)
    for _ in range(2):
        read_all(opened)
    volumes = [opened.volume(number) for number in range(2)]
    assert sum(compared) == sum(volume.tokens.nbytes + volume.index.nbytes for volume in volumes)
    assert not any(volume.unchecked[kind] for volume in volumes for kind in ("tokens", "index"))


def test_damaged_checksums_are_found_when_the_store_is_opened(copy):
    flip(next(copy.glob("cot-*.checksums.npy")), -1)
    with pytest.raises(UserError, match=r"cot-.*checksums\.npy: content changed"):
        store.open_store(copy)


def test_a_store_of_an_earlier_version_has_no_checksums_and_is_read_with_a_line(copy, caplog):
    manifest = json.loads((copy / "manifest.json").read_text())
    for volume in manifest["volumes"]:
        (copy / f"{volume['name']}.checksums.npy").unlink()
        del volume["checksums_bytes"], volume["checksums_sha256"]
    manifest["hash"] = store.content_hash(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for _ in range(2):
        read_all(store.open_store(copy))
    assert caplog.text.count("is of an earlier version: it has no checksums") == 1
    store.verify(copy)


def test_an_edited_manifest_is_refused(copy):
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"examples": 20', '"examples": 21', 1))
    with pytest.raises(UserError, match=r"manifest\.json: content changed"):
        store.open_store(copy)


def test_other_formats_and_versions_are_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    for change, message in [
        ({"version": 99}, "store format 99, this flanx reads 1"),
        ({"format": "other"}, "not the manifest of a flanx store"),
    ]:
        (copy / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=message):
            store.open_store(copy)
    (copy / "manifest.json").write_text("{half")
    with pytest.raises(UserError, match="not JSON"):
        store.open_store(copy)


def test_a_folder_without_manifest_is_no_store(copy):
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        store.open_store(copy)
    with pytest.raises(UserError, match="no such store"):
        store.open_store(copy / "nowhere")


def test_another_vocabulary_is_refused(made):
    made.check_vocabulary("byte-0")
    with pytest.raises(UserError, match="built with vocabulary 'byte'"):
        made.check_vocabulary("byte-100")


def test_examples_that_no_reader_could_use_are_refused(tmp_path):
    shard = Shard("cot_a", "zsopt", 0, 0, 1, "h")
    for inputs, targets, message in [([], [5, 1], "without inputs"), ([259], [1], "token 259 is outside")]:
        stream = [(np.array(inputs, np.int32), np.array(targets, np.int32))]
        with pytest.raises(UserError, match=message):
            write_shard(tmp_path, shard, stream, store_maker.WORDS)
        assert read_metadata(tmp_path, shard) is None


def test_a_store_in_a_bucket_is_read_through_the_cache(made, tmp_path, monkeypatch):
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    asked = []

    def read(url: str, timeout: float = 0.0) -> bytes:
        asked.append(url)
        return (made.path / url.removeprefix("gs://bucket/store/")).read_bytes()

    monkeypatch.setattr(storage, "read", read)
    opened = store.open_store("gs://bucket/store/")
    assert opened.hash == made.hash and opened.path != made.path
    first = len(asked)
    store.open_store("gs://bucket/store")
    assert len(asked) == first + 1  # the manifest alone


def test_reading_releases_mapped_pages(made, monkeypatch):
    monkeypatch.setattr(store_format, "RESIDENT_BYTES", 10)
    opened = store.open_store(made.path)
    before = opened.example(opened.tasks["cot_a"].parts["zsopt"][0], 0)
    released = []
    monkeypatch.setattr(store_format.Volume, "release", lambda volume: released.append(volume))
    opened.touch(10)
    assert not released
    opened.touch(1)
    assert released == list(opened._volumes.values())
    monkeypatch.undo()
    opened.volume(0).release()
    after = opened.example(opened.tasks["cot_a"].parts["zsopt"][0], 0)
    np.testing.assert_array_equal(before[0], after[0])


def test_the_read_side_imports_numpy_and_the_standard_library_only():
    code = (
        "import sys; from flanx.data import store; from flanx.data.pipeline import mixture, prefetch; "
        "print([m for m in ('tensorflow', 'seqio', 'jax', 'sentencepiece', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
