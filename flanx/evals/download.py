"""Benchmark files from their authors: DATA_DIR = "hub" downloads them, "tfds" reads those that TFDS has.

Both fill a folder of the cache (`FLANX_CACHE`, by default ~/.cache/flanx) with files in the layouts that the suites
read, each on first use, and record in its `origins.json` where each came from, its SHA-256 and its size. An existing
file is never downloaded again; one that differs from its record is an error. URLs pin a revision, so their bytes cannot
change. No loading script is run.
"""

import ast
import csv
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from flanx import storage
from flanx.data.fetch import http
from flanx.errors import UserError
from flanx.files import check_types, open_atomic, read_json, write_atomic

HUB, TFDS = "hub", "tfds"
_RAW = "https://raw.githubusercontent.com"
_LM_EVAL = f"{_RAW}/EleutherAI/lm-evaluation-harness/b8d1d4fd057f6223c4490613f0a38cb5d75a3183"
_MMLU = "https://huggingface.co/datasets/cais/mmlu/resolve/c30699e8356da336a370243923dbaf21066bb9fe/all"
_TOXICITY = (
    "https://huggingface.co/datasets/allenai/real-toxicity-prompts/resolve/d3a6507562064c4f37cdf267bdc2faa7b0873173/"
)
# prefix of our path -> prefix of the URL; the first match wins
ADDRESSES = {
    "bbh/": f"{_RAW}/suzgunmirac/BIG-Bench-Hard/9ee07bd481feebf959a6b59d61ea57bdcf30964d/",
    "gsm8k/gsm8k-cot.yaml": f"{_LM_EVAL}/lm_eval/tasks/gsm8k/gsm8k-cot.yaml",
    "gsm8k/": f"{_RAW}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/",
    "mgsm/": f"{_RAW}/google-research/url-nlp/452a21ad3dae5668c06ceeac21ff073e1e40f9be/mgsm/",
    "mmlu/mmlu-cot.json": f"{_RAW}/jasonwei20/flan-2/d87762acfd45f44bf4613d4f4bd4b43df5d21779/mmlu-cot.json",
    "mmlu/dev.parquet": f"{_MMLU}/dev-00000-of-00001.parquet",
    "mmlu/val.parquet": f"{_MMLU}/validation-00000-of-00001.parquet",
    "mmlu/test.parquet": f"{_MMLU}/test-00000-of-00001.parquet",
    "winogender/": f"{_RAW}/rudinger/winogender-schemas/1c7f8b481ad8a234b41e9f76a424d6e856e13f7f/data/",
    "bbq/": f"{_RAW}/nyu-mll/BBQ/bea11bd97d79217245b5871acd247b9d6eb24598/",
    "real_toxicity_prompts/": _TOXICITY,
    "tydiqa/": "https://storage.googleapis.com/tydiqa/v1.1/",
}
# our path -> the archive that contains it under the same name
_JIGSAW = "https://storage.googleapis.com/jigsaw-unintended-bias-in-toxicity-classification"
_WIKIPEDIA = ("jigsaw_toxicity/wikipedia_toxicity_subtypes_v0.3.zip", f"{_JIGSAW}/wikipedia_toxicity_subtypes_v0.3.zip")
MEMBERS = {
    "civil_comments/civil_comments.csv": (
        "civil_comments/civil_comments_v1.2.zip",
        f"{_JIGSAW}/civil_comments_v1.2.zip",
    ),
    "jigsaw_toxicity/wikidata_train.csv": _WIKIPEDIA,
    "jigsaw_toxicity/wikidata_test.csv": _WIKIPEDIA,
}
# prefix of our path -> notice shown once, before its first file is fetched
NOTICES = {
    "real_toxicity_prompts/": "RealToxicityPrompts (Apache-2.0) holds offensive and harmful texts of the web",
    "civil_comments/": "CivilComments (CC0-1.0) holds offensive comments, some of them hateful",
    "jigsaw_toxicity/": "Jigsaw's Wikipedia comments (CC0-1.0) hold offensive comments, some of them hateful",
}
# our path -> TFDS name and split
BUILDERS = {
    "tydiqa/tydiqa-goldp-v1.1-dev.json": ("tydi_qa/goldp", "validation"),
    "tydiqa/tydiqa-goldp-v1.1-train.json": ("tydi_qa/goldp", "train"),
    "gsm8k/test.jsonl": ("gsm8k", "test"),
    "real_toxicity_prompts/prompts.jsonl": ("real_toxicity_prompts", "train"),
    **{f"civil_comments/{split}.jsonl": ("civil_comments/CivilComments", split) for split in ("test", "train")},
    **{
        f"jigsaw_toxicity/{split}.jsonl": ("wikipedia_toxicity_subtypes/EnglishSubtypes", split)
        for split in ("test", "train")
    },
}


def _pinned() -> dict[str, str]:
    """{our path: its hash} from `pinned.csv`: "sha256:..." (for TyDiQA and the archives, from TFDS's
    url_checksums/*.txt), or "git:...", the blob id in the tree of the commit that a repository file's URL names."""
    with open(pathlib.Path(__file__).with_name("pinned.csv"), encoding="utf-8", newline="") as file:
        return {row["file"]: row["hash"] for row in csv.DictReader(file)}


KNOWN = _pinned()


def folder(name: str) -> pathlib.Path:
    """The cache folder that "hub" or "tfds" fills."""
    return storage.cache_dir() / "evals" / name


def provide(path: pathlib.Path, what: str, url: str = "") -> bool:
    """Downloads a file of either folder from `url` or our own address; False if it has neither or is elsewhere."""
    root = next((folder(name) for name in (HUB, TFDS) if path.is_relative_to(folder(name))), None)
    if root is None:
        return False
    name = path.relative_to(root).as_posix()
    if path.is_file():
        _check(root, name, what)
        return True
    if root.name == TFDS and name in BUILDERS:
        _export(root, name, what)
    elif name.startswith("mmlu/data/"):
        split = name.split("/")[2]
        if split not in ("dev", "val", "test"):
            return False
        table = f"mmlu/{split}.parquet"
        for subject, text in subjects(_parquet(_download(root, table, ADDRESSES[table], what))).items():
            write_atomic(root / "mmlu" / "data" / split / f"{subject}_{split}.csv", text)
    elif name == "mgsm/exemplars.json":
        code = _download(root, "mgsm/exemplars.py", ADDRESSES["mgsm/"] + "exemplars.py", what)
        write_atomic(path, literals(code.read_text(encoding="utf-8")))
    elif name in MEMBERS:
        archive, at = MEMBERS[name]
        _unpack(_download(root, archive, at, what), path, what)
    elif (address := url or _address(name)) and address.endswith(".parquet") and path.suffix == ".jsonl":
        rows = _parquet(_download(root, f"{name.removesuffix('.jsonl')}.parquet", address, what))
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif address:
        _download(root, name, address, what)
    return path.is_file()


def _address(name: str) -> str | None:
    """The URL of one of our paths, if it has one."""
    return next((to + name.removeprefix(start) for start, to in ADDRESSES.items() if name.startswith(start)), None)


def _download(root: pathlib.Path, name: str, url: str, what: str) -> pathlib.Path:
    """Downloads one file. Raises UserError with file, address, reason, and where to put it by hand."""
    path = root / name
    if path.is_file():
        return path
    notice = next((text for start, text in NOTICES.items() if name.startswith(start)), "")
    if notice and not any(each.startswith(name.partition("/")[0]) for each in recorded(root)):
        print(f"note: {notice}; what a model writes after it may be so, too")
    try:
        http.download(url, path)
    except (OSError, EOFError) as error:
        raise UserError(
            f"{what}: cannot fetch {url} ({error}); put that file at {path}, or set DATA_DIR to a folder that has it"
        ) from None
    _record(root, name, url)
    return path


def _record(root: pathlib.Path, name: str, origin: str) -> None:
    """Records a file's origin, hash and size. Raises UserError if it does not match its pinned hash."""
    path, record = root / name, root / "origins.json"
    if origin.startswith("https:") and (wanted := KNOWN.get(name)):
        kind = wanted.partition(":")[0]
        if (found := f"{kind}:{_digest(path, kind)}") != wanted:
            path.unlink()
            raise UserError(f"{origin}: its hash is {found}, not {wanted}; the file has changed")
    entry = {"from": origin, "sha256": _digest(path, "sha256"), "bytes": path.stat().st_size}
    write_atomic(record, json.dumps(recorded(root) | {name: entry}, indent=1, sort_keys=True) + "\n")


def _digest(path: pathlib.Path, kind: str) -> str:
    """The hash of a file: "sha256", or "git", its blob id (SHA-1 with a header that gives the size)."""
    with open(path, "rb") as file:
        if kind == "sha256":
            return hashlib.file_digest(file, "sha256").hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        while block := file.read(1 << 20):
            blob.update(block)
        return blob.hexdigest()


def recorded(root: pathlib.Path) -> dict[str, dict[str, Any]]:
    """{path: {"from", "sha256", "bytes"}} for a folder that this module filled; empty for any other."""
    path = root / "origins.json"
    found = read_json(path)
    check_types(path, {"files": found}, {"files": dict[str, dict[str, Any]]})
    return found


def _check(root: pathlib.Path, name: str, what: str) -> None:
    """Raises UserError if a file is not the one that was fetched."""
    entry = recorded(root).get(name)
    if entry and hashlib.sha256((root / name).read_bytes()).hexdigest() != entry["sha256"]:
        raise UserError(f"{what}: {root / name} has changed since it was downloaded from {entry['from']}; delete it")


# --- other layouts, converted to the ones that the suites read --------------------------------------------------------


def _parquet(path: pathlib.Path) -> Iterable[Mapping[str, Any]]:
    try:
        import pyarrow.parquet  # noqa: PLC0415 - optional
    except ImportError:
        raise UserError(f"{path} needs pyarrow: pip install pyarrow, or set DATA_DIR to CSV files") from None
    return pyarrow.parquet.read_table(path).to_pylist()


def _unpack(archive: pathlib.Path, path: pathlib.Path, what: str) -> None:
    """Extracts the archive member with the file's name. Raises UserError for a damaged archive."""
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(path.name) as member, open_atomic(path) as file:
            shutil.copyfileobj(member, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError) as error:
        raise UserError(f"{what}: {archive} cannot be unpacked ({error}); delete it, and fetch it again") from None


def subjects(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """MMLU's rows (question, subject, four choices, answer 0 to 3) as one CSV text per subject, in order."""
    found: dict[str, io.StringIO] = {}
    for record in records:
        text = found.setdefault(record["subject"], io.StringIO())
        cells = [record["question"], *record["choices"], "ABCD"[record["answer"]]]
        csv.writer(text, lineterminator="\n").writerow(cells)
    return {subject: text.getvalue() for subject, text in found.items()}


def literals(code: str) -> str:
    """The constants of a Python file (NAME = literal) as a JSON object; the file is not executed."""
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return json.dumps(found, ensure_ascii=False, indent=1)


def squad(records: Iterable[Mapping[str, Any]]) -> str:
    """TFDS's TyDiQA (id, context, question, answers.text) in SQuAD's format: one paragraph per question."""
    paragraphs = [
        {
            "context": record["context"],
            "qas": [
                {
                    "id": record["id"],
                    "question": record["question"],
                    "answers": [{"text": text} for text in record["answers"]["text"]],
                }
            ],
        }
        for record in records
    ]
    return json.dumps({"data": [{"paragraphs": paragraphs}]}, ensure_ascii=False)


def jsonl(records: Iterable[Mapping[str, Any]]) -> str:
    """TFDS's records, one per line; GSM8K's (question, answer, annotation, short_answer) without the derived fields."""
    kept = ({k: v for k, v in record.items() if k not in ("annotation", "short_answer")} for record in records)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)


# --- TFDS, in a child process: this one does not import TensorFlow ----------------------------------------------------


def _export(root: pathlib.Path, name: str, what: str) -> None:
    """Writes the file from the records of a prepared TFDS dataset, which a child process prints."""
    builder, split = BUILDERS[name]
    command = [sys.executable, "-m", "flanx.seqio.tfds", builder, split]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise UserError(
            f"{what}: TFDS has no prepared {builder} ({lines[-1][:200]}); prepare it with `tfds build {builder}`, put "
            f'{name} into {root}, or set DATA_DIR = "{HUB}"'
        )
    records = map(json.loads, done.stdout.splitlines())
    write_atomic(root / name, (jsonl if name.endswith(".jsonl") else squad)(records))
    _record(root, name, f"tfds:{builder} {split}")
