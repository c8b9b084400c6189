"""Benchmark files from the hub and from TFDS give the same suites as files in a folder; what fails says where."""

import contextlib
import csv
import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable

import pytest

from flanx.data.fetch import http
from flanx.errors import UserError
from flanx.evals import download as origin
from flanx.evals import files, registry
from flanx.evals.families import bbh, bbq
from flanx.seqio import tfds

SAMPLE = registry.SAMPLE_DIR
NAMES = (
    "gsm8k_cot",
    "bbh_cot[navigate,word_sorting]",
    "mgsm_cot[de,es]",
    "tydiqa[fi,sw]",
    "mmlu_direct[astronomy,elementary_mathematics]",
    "mmlu_test_cot[astronomy]",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty cache."""
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(origin, "KNOWN", {})
    return tmp_path / "cache" / "evals"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that serves our samples in their authors' layouts; the addresses it was asked for."""
    seen: list[str] = []

    def serve(url: str, path: pathlib.Path) -> None:
        seen.append(url)
        name = next(start + url.removeprefix(to) for start, to in origin.ADDRESSES.items() if url.startswith(to))
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            _parquet(path, path.stem)
        elif name == "mgsm/exemplars.py":
            constants = json.loads((SAMPLE / "mgsm" / "exemplars.json").read_text(encoding="utf-8"))
            path.write_text('"""Prompts."""\n' + "".join(f"{k} = {v!r}\n" for k, v in constants.items()), "utf-8")
        else:
            path.write_bytes((SAMPLE / name).read_bytes())

    monkeypatch.setattr(http, "download", serve)
    return seen


def _parquet(path: pathlib.Path, split: str) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="MMLU's hub files are Parquet")
    import pyarrow

    rows = []
    for file in sorted((SAMPLE / "mmlu" / "data" / split).glob("*.csv")):
        for row in csv.reader(io.StringIO(file.read_text(encoding="utf-8"))):
            subject = file.stem.removesuffix(f"_{split}")
            rows.append({"question": row[0], "subject": subject, "choices": row[1:5], "answer": "ABCD".index(row[5])})
    pq.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("name", NAMES)
def test_hub_files_give_the_same_prompts(name: str, asked: list[str], cache: pathlib.Path) -> None:
    found, wanted = registry.load(name, "hub"), registry.load(name, str(SAMPLE))
    assert found.hash == wanted.hash
    entries = found.data["files"].values()
    assert entries and all(len(e["sha256"]) == 64 and e["bytes"] and e["from"].startswith("https://") for e in entries)
    before = len(asked)
    registry.load(name, "hub")
    assert len(asked) == before == len(set(asked))  # each address once, and never again


def test_a_table_says_where_its_files_are(cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow", reason="MMLU-Pro's files on the hub are Parquet")
    seen: list[str] = []

    def serve(url: str, path: pathlib.Path) -> None:
        seen.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.relative_to(cache / "hub")
        if path.suffix != ".parquet":
            path.write_bytes((SAMPLE / name).read_bytes())
            return
        lines = (SAMPLE / name).with_suffix(".jsonl").read_text("utf-8").splitlines()
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), path)

    monkeypatch.setattr(http, "download", serve)
    for name in (
        "mmlu_pro_cot[math]",
        "global_mmlu_direct[de]",
        "agieval_en_zero_shot[sat-en]",
        "bbeh_mini_zero_shot_cot",
    ):
        suite, ours = registry.load(name, "hub"), registry.load(name, str(SAMPLE))
        assert suite.hash == ours.hash and suite.data["files"], name
    hub = "https://huggingface.co/datasets"
    assert {
        f"{hub}/TIGER-Lab/MMLU-Pro/resolve/main/data/validation-00000-of-00001.parquet",
        f"{hub}/TIGER-Lab/MMLU-Pro/resolve/main/data/test-00000-of-00001.parquet",
        f"{hub}/CohereLabs/Global-MMLU/resolve/main/de/dev-00000-of-00001.parquet",
    } <= {*seen}


def test_without_a_network_the_error_names_address_and_place(
    monkeypatch: pytest.MonkeyPatch, cache: pathlib.Path
) -> None:
    def offline(url: str, path: pathlib.Path) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(http, "download", offline)
    place = cache / "hub" / "gsm8k" / "test.jsonl"
    with pytest.raises(UserError, match=r"gsm8k_zero_shot: cannot fetch https://raw\S+/test.jsonl .Name or") as caught:
        registry.load("gsm8k_zero_shot", "hub")
    assert f"put that file at {place}" in str(caught.value)
    place.parent.mkdir(parents=True)
    place.write_bytes((SAMPLE / "gsm8k" / "test.jsonl").read_bytes())
    assert registry.load("gsm8k_zero_shot", "hub").hash == registry.load("gsm8k_zero_shot", str(SAMPLE)).hash
    with pytest.raises(UserError, match="none of its tasks has data here"):
        registry.load("mgsm_direct_8_shot[de]", "hub", allow_missing=["de"])


def test_a_file_that_changed_or_is_another_one_is_refused(
    asked: list[str], cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.load("tydiqa[fi]", "hub")
    path = cache / "hub" / "tydiqa" / "tydiqa-goldp-v1.1-dev.json"
    path.write_text(path.read_text().replace("?", "!"))
    with pytest.raises(UserError, match=r"dev.json has changed since it was downloaded from https://\S+; delete it"):
        files.existing(path, "TyDiQA")
    path.unlink()
    content = (SAMPLE / "tydiqa" / "tydiqa-goldp-v1.1-dev.json").read_bytes()
    blob = f"git:{hashlib.sha1(b'blob %d' % len(content) + bytes(1) + content).hexdigest()}"
    for wanted in (f"sha256:{'0' * 64}", f"git:{blob[5:]}0"):
        monkeypatch.setattr(origin, "KNOWN", {"tydiqa/tydiqa-goldp-v1.1-dev.json": wanted})
        with pytest.raises(UserError, match=f"its hash is .*, not {wanted}; the file has changed"):
            files.existing(path, "TyDiQA")
        assert not path.exists()
    for right in (f"sha256:{hashlib.sha256(content).hexdigest()}", blob):
        monkeypatch.setattr(origin, "KNOWN", {"tydiqa/tydiqa-goldp-v1.1-dev.json": right})
        assert files.existing(path, "TyDiQA").read_bytes() == content
        path.unlink()


def test_files_of_repositories_are_pinned_by_the_trees_of_their_commits() -> None:
    pinned = origin._pinned()
    wanted = [f"bbh/bbh/{task}.json" for task in bbh.KIND] + [f"bbh/cot-prompts/{task}.txt" for task in bbh.KIND]
    wanted += [f"bbq/data/{category}.jsonl" for category in bbq.CATEGORIES] + ["gsm8k/test.jsonl"]
    assert [name for name in wanted if not pinned.get(name, "").startswith("git:")] == []
    sizes = {"sha256": 64, "git": 40}
    assert [name for name, each in pinned.items() if len(each.partition(":")[2]) != sizes[each.partition(":")[0]]] == []


def test_paths_that_nobody_offers(cache: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert not origin.provide(tmp_path / "gsm8k" / "test.jsonl", "x")
    assert not origin.provide(cache / "hub" / "nothing" / "here.json", "x")
    with pytest.raises(UserError, match="no file"):
        files.existing(cache / "hub" / "mmlu" / "data" / "train" / "astronomy_train.csv", "MMLU astronomy")


# --- TFDS ------------------------------------------------------------------------------------------------------------


class Array(list):
    """What TFDS gives for a list of texts."""

    def tolist(self) -> list:
        return list(self)


def _tfds(builder: str, split: str) -> list[dict]:
    """Our samples as TFDS has them: numpy texts in bytes."""
    if builder == "gsm8k":
        rows = [json.loads(line) for line in (SAMPLE / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()]
        keys = {"annotation": "x", "short_answer": "y"}
        return [{k: v.encode() for k, v in (row | keys).items()} for row in rows]
    file = {"validation": "dev", "train": "train"}[split]
    data = json.loads((SAMPLE / "tydiqa" / f"tydiqa-goldp-v1.1-{file}.json").read_text("utf-8"))["data"]
    return [
        {
            "id": qa["id"].encode(),
            "title": b"",
            "context": paragraph["context"].encode(),
            "question": qa["question"].encode(),
            "answers": {"text": Array(a["text"].encode() for a in qa["answers"]), "answer_start": Array([0])},
        }
        for article in data
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TFDS that has our samples, and whose child process is this one."""

    def load(builder: str, split: str, shuffle_files: bool, download: bool) -> list[dict]:
        assert not shuffle_files and not download
        return _tfds(builder, split)

    def child(command: list[str], **_: object) -> types.SimpleNamespace:
        assert command[1:3] == ["-m", "flanx.seqio.tfds"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            tfds.main(command[3:])
        return types.SimpleNamespace(returncode=0, stdout=printed.getvalue())

    as_numpy: Callable = lambda rows: rows  # noqa: E731
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(load=load, as_numpy=as_numpy))
    monkeypatch.setattr(subprocess, "run", child)


@pytest.mark.parametrize("name", ["tydiqa[fi,sw]", "gsm8k_zero_shot"])
def test_tfds_gives_the_same_prompts(name: str, prepared: None, asked: list[str]) -> None:
    found = registry.load(name, "tfds")
    assert found.hash == registry.load(name, str(SAMPLE)).hash
    assert {e["from"].partition(":")[0] for e in found.data["files"].values()} == {"tfds"} and not asked


def test_tfds_takes_from_the_hub_what_it_lacks(prepared: None, asked: list[str]) -> None:
    assert registry.load("gsm8k_cot", "tfds").hash == registry.load("gsm8k_cot", str(SAMPLE)).hash
    assert [url.rpartition("/")[2] for url in asked] == ["gsm8k-cot.yaml"]


def test_tfds_without_the_data_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = types.SimpleNamespace(returncode=1, stderr="Traceback\nAssertionError: could not find data\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match=r"TFDS has no prepared tydi_qa/goldp .*could not find data.*`tfds build"):
        registry.load("tydiqa[fi]", "tfds")


def test_members_of_pinned_archives_are_unpacked_and_their_content_is_named_once(
    monkeypatch: pytest.MonkeyPatch, cache: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """Jigsaw's archives; the prompts come as they are."""
    asked: list[str] = []

    def serve(url: str, path: pathlib.Path) -> None:
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not url.endswith(".zip"):
            path.write_bytes((SAMPLE / "real_toxicity_prompts" / "prompts.jsonl").read_bytes())
            return
        sample = (SAMPLE / "civil_comments" / "civil_comments.csv").read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("civil_comments.csv", "wikidata_train.csv", "wikidata_test.csv"):
                archive.writestr(name, sample)

    monkeypatch.setattr(http, "download", serve)
    for name in ("civil_comments", "civil_comments_10_shot", "real_toxicity_prompts"):
        assert registry.load(name, "hub").hash == registry.load(name, str(SAMPLE)).hash
    assert registry.load("jigsaw_toxicity_10_shot", "hub").items
    printed = capsys.readouterr().out
    assert printed.count("(CC0-1.0) holds offensive comments") == printed.count("(Apache-2.0) holds") == 1
    assert printed.count("(CC0-1.0) hold offensive comments") == 1
    assert [url.rpartition("/")[2] for url in asked] == [
        "civil_comments_v1.2.zip", "prompts.jsonl", "wikipedia_toxicity_subtypes_v0.3.zip"
    ]  # fmt: skip
    assert set(registry.load("civil_comments", "hub").data["files"]) == {"civil_comments/civil_comments_v1.2.zip"}
    shutil.rmtree(cache)
    monkeypatch.setattr(origin, "KNOWN", {"civil_comments/civil_comments_v1.2.zip": f"sha256:{'0' * 64}"})
    with pytest.raises(UserError, match="the file has changed"):
        registry.load("civil_comments", "hub")
    (cache / "hub" / "jigsaw_toxicity").mkdir(parents=True)
    (cache / "hub" / "jigsaw_toxicity" / "wikipedia_toxicity_subtypes_v0.3.zip").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"v0.3.zip cannot be unpacked .*; delete it, and fetch it again"):
        registry.load("jigsaw_toxicity", "hub")


def test_tfds_comments_and_prompts_are_read_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"id": str(n), "text": f"comment {n}", "toxicity": n % 2, "filename": f"f{n}", "begin": 0, "end": 1,
         "prompt": {"text": f"prompt {n}", "toxicity": n / 10 if n else float("nan")}}
        for n in range(8)
    ]  # fmt: skip
    asked: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        asked.append(command[3:])
        return subprocess.CompletedProcess(command, 0, "".join(json.dumps(row) + "\n" for row in rows), "")

    monkeypatch.setattr(subprocess, "run", run)
    assert (
        len(registry.load("civil_comments", "tfds").items) == len(registry.load("jigsaw_toxicity", "tfds").items) == 8
    )
    assert len(registry.load("real_toxicity_prompts", "tfds").items) == 7  # NaN is not toxicity
    assert asked == [
        ["civil_comments/CivilComments", "test"], ["wikipedia_toxicity_subtypes/EnglishSubtypes", "test"],
        ["real_toxicity_prompts", "train"],
    ]  # fmt: skip
