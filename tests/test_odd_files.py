"""Files as people have them, in every reader: the same rows whatever the form, and what has no text is one line.

Benchmarks read the samples that come with flanx, rows of a task, prompts, answers and scores a file made here. Each is
written in odd forms (byte order marks, line ends, encodings), and with single values replaced by others.
"""

import functools
import json
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from flanx.cli import main
from flanx.compare import candidate
from flanx.data.task import sources, tables
from flanx.data.task.spec import TaskSpec
from flanx.errors import UserError
from flanx.evals import files as benchmark_files
from flanx.evals import registry
from flanx.evals.scorers.precomputed import Precomputed
from flanx.infer import read_prompts

SAME: dict[str, Callable[[str], bytes]] = {  # forms of one text
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "blank lines at the end": lambda text: text.encode() + b"\n\n",
}
REFUSED: dict[str, Callable[[str], bytes]] = {
    "UTF-16 without its mark": lambda text: text.encode("utf-16-le"),
    "Windows-1252": lambda text: text.encode("cp1252", "ignore").replace(b"a", b"\xe4"),
}
VALUES = (float("nan"), None, 1.5, 7, 1234567.0, True, [], ["a"], {}, {"a": 1}, "", "  ", "\ud800")
TEXTS = ("[]", "5", '"x"', "null", "{}", "[5]", "[[]]", "[{}]", "[" * 5000)
MARKS = ("nan", "None", "1234567.0", "\ufffd", "\ufeff", "\r", "\ud800")  # what no text may show that came of these


class Read(NamedTuple):
    """What is read: a folder, a file in it, and a function of the folder that gives the texts."""

    name: str
    folder: pathlib.Path
    file: str
    texts: Callable[[pathlib.Path], Any]


def variants(file: str, text: str, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """(what is odd, content)."""
    for name, form in {**SAME, **REFUSED}.items():
        yield name, form(text)
    lines = text.splitlines(keepends=True)
    if file.endswith((".json", ".jsonl")):
        first, rest = (lines[0], "".join(lines[1:])) if file.endswith("l") else (text, "")
        record, places = json.loads(first), list[tuple[Any, Any]]()

        def walk(value: Any) -> None:
            for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
                places.append((value, key))
                walk(value[key])

        walk(record)
        for holder, key in places if len(places) <= 10 else places[:4] + rng.sample(places[4:], 6):
            kept = holder[key]
            for value in VALUES:
                holder[key] = value
                yield f"'{key}' is {value!r}", (json.dumps(record) + "\n" + rest).encode()
            holder[key] = kept
            if isinstance(holder, dict):
                del holder[key]
                yield f"no '{key}'", (json.dumps(record) + "\n" + rest).encode()
                holder[key] = kept
        yield from ((f"the text {each[:9]}", each.encode()) for each in TEXTS)
        if file.endswith("l"):
            yield "SAME array", json.dumps([json.loads(line) for line in lines], indent=1).encode()
    elif file.endswith((".csv", ".tsv")):
        mark = "," if file.endswith("csv") else "\t"
        yield "a column twice", "".join(f"{line.partition(mark)[0]}{mark}{line}" for line in lines).encode()
        yield "an open quote", (lines[0] + '"' + "".join(lines[1:])).encode()
        yield "its header alone", lines[0].encode()
        yield "an empty cell", (lines[0] + lines[1][lines[1].index(mark) :] + "".join(lines[2:])).encode()


def outcome(read: Read, what: str, content: bytes, folder: pathlib.Path, good: Any) -> str:
    """What is wrong with how this content is read; "" where nothing is."""
    shutil.copytree(read.folder, folder)
    (folder / read.file).write_bytes(content)
    try:
        found = read.texts(folder)
    except UserError as error:
        lines = len(str(error).splitlines())
        return "refused" if what in SAME or what.startswith("SAME") else "" if lines <= 5 else f"{lines} lines"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if what in SAME or what.startswith("SAME"):
        return "" if found == good else "read as something else"
    if what in REFUSED or what == "a column twice":
        return "accepted"
    before, after = repr(good), repr(found)
    shown = [mark for mark in MARKS if repr(mark)[1:-1] in after and repr(mark)[1:-1] not in before]
    return f"gives the texts {shown}" if shown else ""


# ---- what is read ----------------------------------------------------------------------------------------------------


def benchmarks() -> Iterator[Read]:
    """A suite of each family on each file of its samples."""
    of_family: dict[str, list[str]] = {}
    for name, (spec, _) in registry.specs().items():
        of_family.setdefault(spec.family, []).append(name)
    for place in sorted(registry.SAMPLE_DIR.iterdir()):
        for path in sorted(p for p in place.rglob("*") if p.suffix in (".json", ".jsonl", ".csv", ".tsv", ".txt")):
            file = path.relative_to(registry.SAMPLE_DIR).as_posix()
            for name in chosen(file, of_family.get(place.name, [])):
                yield Read(f"{name} {file}", place, path.relative_to(place).as_posix(), suite(name, place.name))


def chosen(file: str, names: list[str]) -> list[str]:
    """Of the suites of a family one that reads the file, as far as its name says."""
    marks = {"cot": "_cot", "test/": "_test_direct", "generation": "generation", "validation": "", "mini": "mini"}
    mark = next((mark for part, mark in marks.items() if part in file), "")
    return [name for name in names if mark in name and "+" not in name][:1] or names[:1]


@functools.cache
def absent(name: str) -> tuple[str, ...]:
    """The tasks of a suite without a sample."""
    (spec, family), there = registry.find(name), registry.load(name, "sample").spec.tasks
    return tuple(task for task in family.tasks(spec) if task not in there)


def suite(name: str, place: str) -> Callable[[pathlib.Path], Any]:
    """The items of a suite on a folder of its samples."""

    def texts(folder: pathlib.Path) -> Any:
        root = folder.with_name(f"{folder.name}.data")
        root.mkdir()
        folder.rename(root / place)
        items = registry.load(name, str(root), absent(name)).items
        return [(i.id, i.head, i.shots, i.query, i.targets, i.options, i.labels) for i in items]

    return texts


ROWS = [
    {"inputs": f"Wie heißt {n}?", "targets": f"a{n % 2}", "answer": "so", "toxicity": 0.25, "text": f"so, ä {n}"}
    for n in range(6)
]


def tables_of_rows(folder: pathlib.Path) -> Iterator[Read]:
    """What reads files of rows: prompts, answers, scores of texts, a task's source, `tasks add`, `import-export`."""
    folder.mkdir()
    names = list(ROWS[0])
    for ending in ("jsonl", "csv", "tsv"):
        own = folder / ending
        own.mkdir()
        mark = {"csv": ",", "tsv": "\t"}.get(ending, "")
        lines = [mark.join(str(row[name]).replace(",", " ;" if mark == "," else ",") for name in names) for row in ROWS]
        content = (
            "\n".join([mark.join(names), *lines])
            if mark
            else "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
        )
        (own / f"f.{ending}").write_text(f"{content}\n", encoding="utf-8")
        file = f"f.{ending}"
        readers: dict[str, Callable[[pathlib.Path], Any]] = {
            "prompts": lambda f, file=file: [row["inputs"] for row in read_prompts(f / file)],
            "answers": lambda f, file=file: list(candidate.read("a", f / file).answers.items()),
            "scores": lambda f, file=file: Precomputed(f / file).known,
            "source": lambda f, file=file: source(f / file),
            "tasks add": lambda f, file=file: command(f, "add", file, "--inputs=inputs", "--targets=targets"),
        }
        yield from (Read(f"{name} {ending}", own, file, texts) for name, texts in readers.items())


def source(path: pathlib.Path) -> Any:
    """The fields of a task's rows; the first bad row is an error."""
    spec = TaskSpec(
        name="a", collection="own", role="extra", location="here", source=f"{path.suffix[1:]}:{path}", templates=(),
        splits={"train": "train"}, fields="join(said, '', inputs) | join(answer, '', targets)",
    )  # fmt: skip
    return [(fields["said"], fields["answer"]) for _, _, fields in sources.rows(spec, "train", max_bad_rows=0)]


def command(folder: pathlib.Path, *words: str) -> Any:
    """The table that `tasks add` writes, without its paths."""
    words = ("tasks", words[0], str(folder / words[1]), *words[2:], f"--output={folder}/o", "--debug")
    assert main.main(words) == 0
    return [spec.fields for spec in tables.read([folder / "o"]).tasks.values()]


# ---- tests -----------------------------------------------------------------------------------------------------------


def tried(reads: list[Read], folder: pathlib.Path, most: int | None = None) -> tuple[int, list[str]]:
    """(how many variants were read, a line for each that came out wrong)."""
    rng, number, wrong = random.Random(0), 0, list[str]()
    every = [
        (read, what, content)
        for read in reads
        for what, content in variants(read.file, (read.folder / read.file).read_text(encoding="utf-8"), rng)
        if content != (read.folder / read.file).read_bytes()
    ]
    good: dict[str, Any] = {}
    for read, what, content in every if most is None else rng.sample(every, most):
        if read.name not in good:
            shutil.copytree(read.folder, folder / f"good{len(good)}")
            good[read.name] = read.texts(folder / f"good{len(good)}")
        number += 1
        if why := outcome(read, what, content, folder / f"v{number}", good[read.name]):
            wrong.append(f"{read.name}: {what}: {why[:200]}")
    return number, wrong


@pytest.mark.slow
def test_a_sample_of_odd_files(tmp_path, capsys):
    """`most=None` tries them all."""
    number, wrong = tried([*benchmarks(), *tables_of_rows(tmp_path / "rows")], tmp_path, most=16)
    assert number == 16 and not wrong, "\n".join(wrong)


def test_a_field_is_a_text_or_a_number_and_a_question_is_not_blank() -> None:
    row = {"question": " \t", "answer": 4, "note": None, "right": True}
    assert benchmark_files.value(row, "answer", "x.jsonl:3") == "4"
    assert benchmark_files.value(row, "question", "x.jsonl:3") == " \t"
    for read, key, said in (
        (benchmark_files.filled, "question", "x.jsonl:3: question is empty"),
        (
            benchmark_files.value,
            "note",
            r"x.jsonl:3: no text column 'note' \(there is: question, answer",
        ),
        (benchmark_files.value, "right", "x.jsonl:3: no text column 'right'"),
    ):
        with pytest.raises(UserError, match=said):
            read(row, key, "x.jsonl:3")
