"""The build: resumed after any death with the same bytes, stale tasks alone made again, failing tasks set aside."""

import json
import os
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from flanx.data import store
from flanx.data.pipeline import mixture
from flanx.data.store import assemble, build, build_job, build_worker, selection
from flanx.data.store.shard import Shard
from flanx.data.task import render
from flanx.data.task import tables as task_tables
from flanx.errors import UserError
from tests import bucket_case

TASKS = ("mini_a", "mini_b", "mini_c")
ROWS = 40
COLLECTIONS = """
[mini]
role = "extra"
[mini.defaults]
source = "tsv:mini/{name}.tsv"
columns = ["question", "answer"]
splits = {train = "train"}
styles = ["zsopt", "fsopt"]
templates = "mini"
"""
TEMPLATES = """
[mini]
none = ["{question}", "{answer}"]
prompts = [["Answer this.\\n{question}", "{answer}"], ["{question}\\nWhat is it?", "{answer}"]]

[mini_back]
none = ["{answer}", "{question}"]
prompts = [["Ask for {answer}.", "{question}"]]
"""


def write_rows(folder: pathlib.Path, name: str, rows: int = ROWS, tag: str = "") -> None:
    lines = [f"question {tag}{i} of {name}, {'long ' * (i % 7)}\tanswer {i}\n" for i in range(rows)]
    (folder / "mini").mkdir(parents=True, exist_ok=True)
    (folder / "mini" / f"{name}.tsv").write_text("".join(lines))


@pytest.fixture
def tables(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder of tables with three tasks over TSV files in `data`; workers see it too."""
    root = tmp_path / "own"
    (root / "tables").mkdir(parents=True)
    (root / "templates").mkdir()
    (root / "tables" / "collections.toml").write_text(COLLECTIONS)
    (root / "tables" / "mini.toml").write_text("".join(f"[{name[5:]}]\n" for name in TASKS))
    (root / "templates" / "mini.toml").write_text(TEMPLATES)
    for name in TASKS:
        write_rows(tmp_path / "data", name[5:])
    monkeypatch.setenv("FLANX_TABLES", str(root))
    forget()
    yield root
    forget()


def forget() -> None:
    """The tables are read once per process."""
    for value in vars(task_tables).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
    build_job._hash_file.cache_clear()


def run(tmp_path: pathlib.Path, name: str = "store", **changes) -> build.Report:
    asked = {"tasks": "mini", "data_dir": str(tmp_path / "data"), "workers": 0, "quiet": True, "styles": ["zsopt"]}
    asked |= changes
    return build.build_store(tmp_path / name, **asked)


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """The bytes of a store."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name != ".lock"}


def texts(opened: store.Store, task: str, style: str, rendering: int = 0) -> list[tuple[str, str]]:
    from flanx.data.vocabulary import load

    part, words = opened.tasks[task].parts[style][rendering], load("byte")
    return [tuple(words.decode(side.tolist()) for side in opened.example(part, i)) for i in range(part.examples)]


def test_a_store_holds_what_the_seqio_tasks_give(tables, tmp_path):
    pytest.importorskip("seqio")
    from flanx.data.vocabulary import load
    from flanx.seqio.tasks import make_task

    (tables / "tables" / "mini.toml").write_text('[a]\ninversions = ["mini_back"]\n')
    forget()
    report = run(tmp_path, tasks="mini_a", styles=None, renderings=2)
    assert (report.built, report.status, report.missing) == (8, 0, {})
    opened = store.verify(tmp_path / "store")
    assert opened.hash == report.hash
    assert report.examples == sum(p.examples for t in opened.tasks.values() for r in t.parts.values() for p in r)
    row = task_tables.load_tables()["mini_a"]
    for style in ("zsopt", "fsopt", "zsopt_inverted", "fsopt_inverted"):
        for rendering in range(2):
            task = make_task(row, style, load("byte"), rendering, str(tmp_path / "data"))
            examples = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
            part = opened.tasks["mini_a"].parts[style][rendering]
            assert part.examples == len(examples) == ROWS
            for i, example in enumerate(examples):
                inputs, targets = opened.example(part, i)
                np.testing.assert_array_equal(inputs, example["inputs"])
                np.testing.assert_array_equal(targets, example["targets"])
                assert inputs[-1] == targets[-1] == 1
    metadata = opened.tasks["mini_a"].metadata
    assert metadata["collection"] == "mini" and metadata["source"] == "tsv:mini/a.tsv"
    assert len(metadata["source_hash"]) == 64
    assert texts(opened, "mini_a", "fsopt") != texts(opened, "mini_a", "fsopt", 1)


def test_a_large_task_is_built_in_shards(tables, tmp_path, monkeypatch):
    (tables / "tables" / "mini.toml").write_text(f"[a]\nnum_examples = {ROWS}\n")
    forget()
    run(tmp_path, "whole")
    monkeypatch.setattr(selection, "SHARD", 15)
    assert run(tmp_path, "shards").built == 3
    whole, shards = (store.verify(tmp_path / name) for name in ("whole", "shards"))
    for style, renderings in whole.tasks["mini_a"].parts.items():
        assert shards.tasks["mini_a"].parts[style][0].examples == renderings[0].examples
        assert sorted(texts(whole, "mini_a", style)) == sorted(texts(shards, "mini_a", style))


def test_nothing_is_done_twice(tables, tmp_path):
    run(tmp_path)
    before = content(tmp_path / "store")
    again = run(tmp_path)
    assert (again.built, again.kept, again.status) == (0, 3, 0)
    assert content(tmp_path / "store") == before


def test_a_task_whose_templates_row_or_file_changed_is_made_again_alone(tables, tmp_path):
    run(tmp_path)
    write_rows(tmp_path / "data", "b", tag="new ")
    forget()
    assert run(tmp_path).built == 1  # mini_b
    (tables / "tables" / "mini.toml").write_text('[a]\nnote = "no text hangs on this"\n[b]\n[c]\ncap = 5\n')
    forget()
    assert run(tmp_path).built == 0
    (tables / "templates" / "mini.toml").write_text(TEMPLATES.replace("What is it?", "What?"))
    forget()
    assert run(tmp_path).built == 3
    run(tmp_path, "fresh")
    assert content(tmp_path / "store") == content(tmp_path / "fresh")


def test_another_version_of_rendering_makes_every_shard_stale(tables, tmp_path, monkeypatch):
    run(tmp_path)
    before = {name: data for name, data in content(tmp_path / "store").items() if name.endswith(".npy")}
    monkeypatch.setattr(build_job, "RENDERING_VERSION", build_job.RENDERING_VERSION + 1)
    assert run(tmp_path).built == 3
    after = content(tmp_path / "store")
    assert before.items() <= after.items()  # the same texts, so the same arrays


def test_another_build_adds_its_tasks_and_keeps_the_others(tables, tmp_path):
    run(tmp_path, tasks="mini_a")
    report = run(tmp_path, tasks=["mini_b", "mini_c"])
    assert report.built == 2
    run(tmp_path, "at_once")
    assert content(tmp_path / "store") == content(tmp_path / "at_once")


def test_a_missing_file_disables_its_task_and_is_recorded(tables, tmp_path):
    (tmp_path / "data" / "mini" / "b.tsv").unlink()
    report = run(tmp_path)
    assert report.status == 0 and set(report.missing) == {"mini_b"} and "b.tsv" in report.missing["mini_b"]
    opened = store.open_store(tmp_path / "store")
    assert set(opened.tasks) == {"mini_a", "mini_c"} and opened.missing["mini_b"]["collection"] == "mini"
    resolved = mixture.Mixture("mini").resolve(opened)
    assert set(resolved.tasks) == {"mini_a", "mini_c"} and set(resolved.missing) == {"mini_b"}
    write_rows(tmp_path / "data", "b")
    forget()
    assert run(tmp_path).built == 1
    assert store.open_store(tmp_path / "store").missing == {}


def test_a_failing_task_is_set_aside_and_named(tables, tmp_path):
    (tmp_path / "data" / "mini" / "b.tsv").write_text("only one column\n" * 300)
    report = run(tmp_path)
    assert report.status == 1 and set(report.failed) == {"mini_b"} and report.built == 2
    opened = store.verify(tmp_path / "store")
    assert set(opened.tasks) == {"mini_a", "mini_c"} and "b.tsv" in opened.missing["mini_b"]["reason"]
    assert "b.tsv" in (tmp_path / "store" / "failed" / "mini_b.txt").read_text()
    write_rows(tmp_path / "data", "b")
    forget()
    assert (run(tmp_path).built, (tmp_path / "store" / "failed").exists()) == (1, False)
    run(tmp_path, "fresh")
    assert content(tmp_path / "store") == content(tmp_path / "fresh")


def test_tasks_of_another_version_of_rendering_are_named(tables, tmp_path, monkeypatch):
    run(tmp_path, tasks="mini_a")
    assert run(tmp_path, tasks="mini_b").stale == []
    monkeypatch.setattr(build, "RENDERING_VERSION", -1)
    assert run(tmp_path, tasks="mini_b").stale == ["mini_a"]


def test_a_task_without_examples_fails(tables, tmp_path):
    (tmp_path / "data" / "mini" / "b.tsv").write_text("")
    assert "no examples" in run(tmp_path).failed["mini_b"]


def test_a_damaged_volume_is_made_again(tables, tmp_path):
    run(tmp_path)
    before = content(tmp_path / "store")
    file = next((tmp_path / "store").glob("*.tokens.npy"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert run(tmp_path).built == 3
    assert content(tmp_path / "store") == before


def test_a_shard_that_changed_on_disk_is_noticed(tables, tmp_path, monkeypatch):
    finish = build._finish

    def damage(folder, *rest):
        file = next((folder / "parts").rglob("*.tokens"))
        file.write_bytes(bytes([7]) + file.read_bytes()[1:])
        finish(folder, *rest)

    monkeypatch.setattr(build, "_finish", damage)
    with pytest.raises(UserError, match="changed since it was written; run the build again"):
        run(tmp_path)
    monkeypatch.setattr(build, "_finish", finish)
    assert run(tmp_path).built == 1  # that shard alone
    run(tmp_path, "fresh")
    assert content(tmp_path / "store") == content(tmp_path / "fresh")


def test_worker_programs_write_the_same_bytes_and_a_dead_one_costs_its_task(tables, tmp_path, monkeypatch):
    """A task that kills its process, as running out of memory does, is named; the others finish."""
    pytest.importorskip("seqio")
    (tmp_path / "killer.py").write_text(
        "import os, signal, seqio\n"
        "def die(split, shuffle_files=False, seed=None):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "words = seqio.ByteVocabulary()\n"
        "seqio.TaskRegistry.add('killer', source=seqio.FunctionDataSource(die, ['train']), preprocessors=[],\n"
        "    output_features={n: seqio.Feature(words) for n in ('inputs', 'targets')})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    report = run(tmp_path, tasks=["killer", "mini"], imports="killer", workers=1)
    assert report.failed == {"killer": "as_is: its process was killed (signal 9), as happens when memory runs out"}
    assert report.built == 3
    run(tmp_path, "here")
    arrays = [{k: v for k, v in content(tmp_path / n).items() if k.endswith(".npy")} for n in ("store", "here")]
    assert arrays[0] == arrays[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_that_are_left_out_are_named_once_whoever_reads_them(tables, tmp_path, capsys, workers):
    """Worker programs keep their output to themselves; several styles read the same rows."""
    file = tmp_path / "data" / "mini" / "a.tsv"
    file.write_text("no answer\n" + file.read_text())
    run(tmp_path, tasks=["mini_a"], workers=workers, quiet=False, styles=["zsopt", "fsopt"])
    said = capsys.readouterr().err
    assert len(re.findall(r"task mini_a: \S*mini/a.tsv:1: .*\(row left out\)", said)) == 1, said
    assert said.count("task mini_a: bad rows left out of 'train': 1\n") == 1


def test_a_failed_task_is_named_once(tables, tmp_path, capsys):
    file = tmp_path / "data" / "mini" / "a.tsv"
    file.write_text("no answer\n" + file.read_text())
    report = run(tmp_path, tasks=["mini_a", "mini_b"], workers=0, quiet=False, max_bad_rows=0)
    assert report.failed["mini_a"].partition(": ")[2].startswith("more than 0 bad rows, the last at ")
    said = capsys.readouterr().err
    assert "failed: task mini_a: more than 0 bad rows" in said and said.count("task mini_a: more than") == 1
    assert (tmp_path / "store" / "failed" / "mini_a.txt").read_text().startswith("more than 0 bad rows")


def test_a_users_own_seqio_task(tables, tmp_path, monkeypatch):
    pytest.importorskip("seqio")
    (tmp_path / "mine.py").write_text(
        "import functools, seqio, tensorflow as tf\n"
        "words = seqio.ByteVocabulary()\n"
        "def rows(split, shuffle_files=False, seed=None):\n"
        "    pairs = {'inputs': [f'q {i}' for i in range(5)], 'targets': [f'a {i}' for i in range(5)]}\n"
        "    return tf.data.Dataset.from_tensor_slices(pairs)\n"
        "for name, vocabulary in (('mine', words), ('other', seqio.ByteVocabulary(extra_ids=9))):\n"
        "    seqio.TaskRegistry.add(name, source=seqio.FunctionDataSource(rows, ['train']),\n"
        "        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],\n"
        "        output_features={n: seqio.Feature(vocabulary) for n in ('inputs', 'targets')})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    report = run(tmp_path, tasks=["mine", "other", "mini_a"], imports=["mine"])
    assert set(report.failed) == {"other"} and "not the vocabulary" in report.failed["other"]
    opened = store.open_store(tmp_path / "store")
    assert texts(opened, "mine", "as_is") == [(f"q {i}", f"a {i}") for i in range(5)]
    assert mixture.Mixture("mine").resolve(opened).tasks == {"mine": 1.0}
    assert run(tmp_path, tasks=["mine", "mini_a"], imports=["mine"]).built == 0


def test_a_users_own_seqio_mixture_and_its_validation_splits(tables, tmp_path, monkeypatch):
    pytest.importorskip("seqio")
    (tmp_path / "flanx_test_mixed.py").write_text(
        "import seqio, tensorflow as tf\n"
        "def rows(split, shuffle_files=False, seed=None):\n"
        "    pairs = {'inputs': [f'{split} {i}' for i in range(6)], 'targets': [f'a {i}' for i in range(6)]}\n"
        "    return tf.data.Dataset.from_tensor_slices(pairs)\n"
        "for name, splits in (('mixed_a', ['train', 'validation']), ('mixed_b', ['train'])):\n"
        "    seqio.TaskRegistry.add(name, source=seqio.FunctionDataSource(rows, splits),\n"
        "        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],\n"
        "        output_features={n: seqio.Feature(seqio.ByteVocabulary()) for n in ('inputs', 'targets')})\n"
        "seqio.MixtureRegistry.add('mixed', [('mixed_a', 3), ('mixed_b', lambda task: 1)])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    report = run(tmp_path, tasks="mixed", imports="flanx_test_mixed", validation="mixture", validation_examples=4)
    assert report.built == 2
    opened = store.open_store(tmp_path / "store")
    found = mixture.Mixture("mixed", module="flanx_test_mixed").resolve(opened)
    assert found.tasks == {"mixed_a": 0.75, "mixed_b": 0.25}
    assert found.describe()["asked"]["name"] == "mixed" and found.describe()["asked"]["module"] == "flanx_test_mixed"
    assert mixture.Mixture("mixed_b", module=["flanx_test_mixed"]).resolve(opened).tasks == {"mixed_b": 1.0}
    with pytest.raises(UserError, match="no mixture, collection or task 'mixed'"):
        mixture.Mixture("mixed").resolve(opened)
    splits = store.open_store(tmp_path / "store" / "validation")
    assert set(splits.tasks) == {"mixed_a:validation"} and len(texts(splits, "mixed_a:validation", "as_is")) == 4
    assert texts(splits, "mixed_a:validation", "as_is")[0] == ("validation 0", "a 0")
    assert splits.missing["mixed_b:validation"]["reason"] == "it has no split 'validation'"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "minni"}, "no mixture, collection or task 'minni'; did you mean 'mini'"),
        ({"runner": "bean"}, "runner 'bean': one of processes, beam; did you mean 'beam'"),
        ({"renderings": 0}, "renderings 0"),
        ({"styles": ["zsopt", "fsop"]}, "STYLES: no prompt style 'fsop'; did you mean 'fsopt'"),
        ({"styles": ["fsnoopt"]}, "has the styles zsopt, fsopt, none of fsnoopt"),
        ({"vocabulary": "/nowhere.model"}, "/nowhere.model: no such file"),
        ({"imports": ["no_such_module"], "tasks": "x"}, "cannot import 'no_such_module'"),
    ],
)
def test_bad_input_is_one_line(tables, tmp_path, changes, message):
    if "imports" in changes:
        pytest.importorskip("seqio")
    with pytest.raises(UserError, match=message):
        run(tmp_path, **changes)


def test_another_vocabulary_needs_another_store(tables, tmp_path):
    run(tmp_path, tasks="mini_a")
    with pytest.raises(UserError, match="built with vocabulary 'byte'"):
        run(tmp_path, tasks="mini_a", extra_ids=5)


def test_two_builds_of_one_store_do_not_meet(tables, tmp_path):
    with build._locked(tmp_path / "store"), pytest.raises(UserError, match="another build of this store is running"):
        run(tmp_path)


def test_held_out_tasks_belong_to_no_store(tables, tmp_path):
    (tables / "tables" / "mini.toml").write_text("[a]\n[b]\nheld_out = true\n")
    forget()
    with pytest.raises(UserError, match="'mini_b' is held out"):
        run(tmp_path, tasks="mini_b")
    run(tmp_path)
    assert set(store.open_store(tmp_path / "store").tasks) == {"mini_a"}


# ---- a store in a bucket ---------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path, monkeypatch):
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    with bucket_case.service() as found:
        yield found


def run_in_bucket(tmp_path: pathlib.Path, **changes) -> build.Report:
    asked = {"tasks": "mini", "data_dir": str(tmp_path / "data"), "workers": 0, "quiet": True, "styles": ["zsopt"]}
    return build.build_store("gs://bucket/out/store", **asked | changes)


def objects(service: bucket_case.Service) -> dict[str, bytes]:
    """The store's files in the bucket, by name."""
    found = {name.removeprefix("out/store/"): content for name, (content, _) in service.objects.items()}
    assert found.pop(".flanx.index") and not any("/" in name or "lease" in name for name in found)
    return found


def test_a_store_is_built_and_completed_in_a_bucket(tables, tmp_path, service):
    report = run_in_bucket(tmp_path, tasks="mini_a")
    assert (report.path, report.built) == ("gs://bucket/out/store", 1)
    wrote = [path for method, path in service.asked if method == "POST"]
    first = {kind: min(i for i, path in enumerate(wrote) if kind in path) for kind in ("tokens.npy", "manifest.json")}
    assert first["tokens.npy"] < first["manifest.json"]
    report = run_in_bucket(tmp_path)
    assert (report.built, report.kept) == (2, 1) and not list((tmp_path / "cache" / "mirrors").iterdir())
    run(tmp_path)
    assert objects(service) == content(tmp_path / "store")
    assert store.verify("gs://bucket/out/store").hash == report.hash


def test_a_build_into_a_bucket_that_died_goes_on_with_what_was_sent(tables, tmp_path, service, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(assemble, "assemble", lambda *_: (_ for _ in ()).throw(UserError(f"{_[0]}: no")))
    with pytest.raises(UserError, match=r"^gs://bucket/out/store: no$"):
        run_in_bucket(tmp_path)
    assert (
        "out/store/manifest.json" not in service.objects
        and "out/store/parts/mini_a/zsopt-0-0of1.json" in service.objects
    )
    monkeypatch.undo()
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache_of_another_machine"))
    monkeypatch.setenv("FLANX_TABLES", str(tables))
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", service.url)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    report = run_in_bucket(tmp_path)
    assert (report.built, report.kept) == (0, 3) and objects(service) == content(tmp_path / "store")


def test_what_is_refused_leaves_a_bucket_as_it_was(tables, tmp_path, service):
    with pytest.raises(UserError, match="Beam's workers share a disk; build it there and copy it"):
        run_in_bucket(tmp_path, runner="beam")
    with pytest.raises(UserError, match="no task could be built"):
        run_in_bucket(tmp_path, data_dir=str(tables))
    assert not service.objects
    service.objects["out/store/run.json"] = b"{}", 5
    service.asked.clear()
    with pytest.raises(UserError, match=r"gs://bucket/out/store is no token store and not empty \(it holds run.json\)"):
        run_in_bucket(tmp_path)
    assert [method for method, _ in service.asked] == ["GET"] and len(service.objects) == 1


# Builds in children of one program, each killed at its n-th touch of the store's folder (open, rename, remove, ...),
# with texts made without TensorFlow: a moment costs a fork and hangs on no clock. Prints how every child ended.
PROGRAM = """
import os, signal, sys
from flanx.data.store import build
from flanx.data.task import tables

tables.load_tables()
folder, data, moments = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
for moment in moments:
    name, count = moment.split(":")
    child = os.fork()
    if child == 0:
        left = int(count)
        def hook(event, args):
            global left
            touches = event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
            if touches and os.path.join(folder, name) in str(args[0]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        build.build_store(os.path.join(folder, name), "mini", data_dir=data, workers=0, quiet=True, styles=["zsopt"])
        print("touches", int(count) - left, "tensorflow" in sys.modules, flush=True)
        os._exit(0)
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def build_in_children(tmp_path: pathlib.Path, moments: list[tuple[str, int]]) -> list[str]:
    """Builds of (store, touch at which to die), one after the other; what they printed."""
    asked = ",".join(f"{name}:{count}" for name, count in moments)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "data"), asked]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def check_killed_builds(tmp_path: pathlib.Path, moments: int) -> None:
    """A build killed at any touch of its folder leaves no store that opens as good and is not, and the next one ends
    with the bytes of an undisturbed build."""
    _, touches, tensorflow = build_in_children(tmp_path, [("whole", 10**6)])[0].split()
    assert tensorflow == "False"  # tasks of the tables are built without it
    touches = int(touches)
    expected = content(tmp_path / "whole")
    draw = random.Random(moments)
    # Spread over the whole build, and on each store a second death while resuming.
    deaths = [(f"store_{n}", 1 + n * touches // moments) for n in range(moments)]
    ended = build_in_children(tmp_path, deaths + [(name, draw.randint(1, touches)) for name, _ in deaths])
    assert ended[:moments] == ["status -9"] * moments
    for name, _ in deaths:
        if (tmp_path / name / store.MANIFEST).exists():
            store.verify(tmp_path / name)
    build_in_children(tmp_path, [(name, 10**6) for name, _ in deaths])
    for name, _ in deaths:
        assert content(tmp_path / name) == expected, name


def test_three_sigkills(tables, tmp_path):
    check_killed_builds(tmp_path, 3)


@pytest.mark.slow
def test_fifty_sigkills(tables, tmp_path):
    check_killed_builds(tmp_path, 50)


def test_death_while_putting_together(tables, tmp_path, monkeypatch):
    """The old store stays readable until the new manifest stands; what was written is used again."""
    run(tmp_path, tasks="mini_a")
    before = store.verify(tmp_path / "store").hash
    run(tmp_path, "fresh")

    class Death(BaseException):
        pass

    write = assemble.write_atomic

    def die(file: pathlib.Path, text: str) -> None:
        if file.name == store.MANIFEST:
            raise Death
        write(file, text)

    monkeypatch.setattr(assemble, "write_atomic", die)
    with pytest.raises(Death):
        run(tmp_path)
    monkeypatch.setattr(assemble, "write_atomic", write)
    assert store.verify(tmp_path / "store").hash == before
    report = run(tmp_path)
    assert (report.built, report.kept) == (0, 3)  # the shards are still there
    assert content(tmp_path / "store") == content(tmp_path / "fresh")


def test_a_job_travels_as_json():
    shard = Shard("mini_a", "zsopt", 0, 0, 1, "h")
    made = build_job.Job(shard, "parts", "byte", 0, "data", imports=("mine",))
    assert build_job.Job.from_json(made.to_json()) == made


@pytest.mark.parametrize(("limit", "processes"), [(0, 3), (1 << 60, 1)])
def test_a_worker_above_its_memory_limit_is_replaced_before_the_next_job(
    tables, tmp_path, monkeypatch, limit, processes
):
    started = []

    class Worker(build_worker._Worker):
        def __init__(self, *arguments) -> None:
            started.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(build_worker, "_Worker", Worker)
    monkeypatch.setattr(build_worker, "LARGEST", limit)
    assert run(tmp_path, workers=1).built == 3
    assert len(started) == processes
    assert all(worker.process.returncode is not None for worker in started)


def test_a_build_gives_a_store_of_an_earlier_version_its_checksums_without_rendering(tables, tmp_path):
    folder = tmp_path / "store"
    run(tmp_path)
    whole = content(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for volume in manifest["volumes"]:
        (folder / f"{volume['name']}.checksums.npy").unlink()
        del volume["checksums_bytes"], volume["checksums_sha256"]
        (folder / f"{volume['name']}.json").write_text(json.dumps(volume))
    manifest["hash"] = store.content_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = run(tmp_path)
    assert (report.built, report.kept) == (0, 3)
    assert content(folder) == whole


# ---- splits to validate on -------------------------------------------------------------------------------------------


def with_splits(tmp_path: pathlib.Path, tables: pathlib.Path) -> None:
    """`mini_a` gets a validation split of 25 rows and a test split of 5; `mini_b` an empty validation file."""
    for name, rows in (("a_dev", 25), ("a_test", 5), ("b_dev", 0)):
        write_rows(tmp_path / "data", name, rows)
    (tables / "tables" / "mini.toml").write_text(
        '[a]\nsplits = {train = "train", validation = "tsv:mini/a_dev.tsv", test = "tsv:mini/a_test.tsv"}\n'
        '[b]\nsplits = {train = "train", validation = "tsv:mini/b_dev.tsv"}\n[c]\n'
    )
    forget()


def test_the_validation_splits_of_the_tasks_become_a_store_of_their_own(tmp_path, tables):
    with_splits(tmp_path, tables)
    report, plain = (
        run(tmp_path, validation_examples=10, styles=None),
        run(tmp_path, "plain", validation=None, styles=None),
    )
    assert report.validation is not None and (report.status, report.validation.examples) == (0, 10)
    assert report.hash == plain.hash  # what is trained on is the same, to the byte
    assert content(tmp_path / "plain") == {
        name: data for name, data in content(tmp_path / "store").items() if not name.startswith("validation")
    }
    held = store.verify(tmp_path / "store" / "validation")
    assert list(held.tasks) == ["mini_a:validation"] and list(held.tasks["mini_a:validation"].parts) == ["zsopt"]
    assert {name: entry["reason"] for name, entry in held.missing.items()} == {
        "mini_b:validation": "its split is empty", "mini_c:validation": "it has no split 'validation'"
    }  # fmt: skip
    row = task_tables.load_tables()["mini_a"]
    words = build_job.vocabulary.load("byte")
    every = [
        words.sequences([each.inputs])[0].tolist()
        for each in render.render_rows(row, "zsopt", "validation", str(tmp_path / "data"))
    ]
    part = held.tasks["mini_a:validation"].parts["zsopt"][0]
    drawn = [held.example(part, i)[0].tolist() for i in range(10)]
    places = [every.index(example) for example in drawn]
    assert places == sorted(places) and places[-1] > 10  # in their order, from all of the split
    again = run(tmp_path, validation_examples=10, styles=None)
    assert again.validation is not None and (again.built, again.validation.examples, again.validation.kept) == (0, 0, 1)
    assert store.open_store(tmp_path / "store" / "validation").hash == held.hash


def test_splits_to_validate_on_are_named_and_what_is_not_there_or_held_out_is_refused(tmp_path, tables):
    with_splits(tmp_path, tables)
    run(tmp_path, validation=["mini_a:test", "mini_a"])
    held = store.open_store(tmp_path / "store" / "validation")
    assert {name: task.examples for name, task in held.tasks.items()} == {"mini_a:test": 5, "mini_a:validation": 25}
    with pytest.raises(UserError, match="VALIDATION: task mini_c:test: it has no split 'test'"):
        run(tmp_path, validation="mini_c:test")
    row = (tables / "tables" / "mini.toml").read_text()
    (tables / "tables" / "mini.toml").write_text(row.replace("[b]\n", "[b]\nheld_out = true\n"))
    forget()
    with pytest.raises(UserError, match="'mini_b' is held out for evaluation"):
        run(tmp_path, validation=["mini_b"])


def test_a_file_that_is_edited_between_two_builds_of_a_session_is_read_again(tables, tmp_path):
    before = run(tmp_path).hash
    write_rows(tmp_path / "data", "b", tag="other ")
    os.utime(tmp_path / "data" / "mini" / "b.tsv", ns=(1, 1))  # whatever the clock's grain
    assert run(tmp_path).hash != before
