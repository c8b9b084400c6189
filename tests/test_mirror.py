"""What reaches a bucket, and in which order, against the service of this process."""

import contextlib
import json
import pathlib
import re
import shutil
import urllib.parse

import pytest

from flanx import files, mirror, storage
from flanx.errors import UserError
from flanx.lease import Lease, LeaseLost
from flanx.mirror import INDEX, MARKER, Mirror
from flanx.storage import Storage, Unreachable, open_storage
from tests import bucket_case


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch):
    leases: list[Lease] = []  # they end with the test: a thread that renews one would write to the next one's bucket

    def keep(*arguments) -> Lease:
        leases.append(Lease(*arguments))
        return leases[-1]

    monkeypatch.setattr(mirror, "Lease", keep)
    monkeypatch.setattr(Mirror, "_end", lambda self, error: None)  # of a thread, by the end of the process
    with bucket_case.service() as found:
        yield found
        for mine in leases:
            mine.release()


def made(path: pathlib.Path, process: int = 0, processes: int = 1) -> Mirror:
    """A mirror of the run, with all that the bucket has."""
    found = Mirror(open_storage("gs://bucket/run"), path, process, processes)
    path.mkdir()
    if found.lease:
        found.lease.acquire()
    found.pull()
    return found


def write_step(folder: pathlib.Path, step: int, **content: str) -> None:
    """A checkpoint as Orbax leaves it: all at once."""
    temporary = folder / "checkpoints" / f"checkpoint_{step}.orbax-checkpoint-tmp"
    (temporary / "default").mkdir(parents=True)
    (temporary / MARKER).write_text("{}")
    for name, text in content.items():
        (temporary / "default" / name).write_text(text)
    temporary.rename(folder / "checkpoints" / f"checkpoint_{step}")


def texts(folder: pathlib.Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def there(service: bucket_case.Service) -> list[str]:
    """The objects of the run, without those that are of the lease and of the listing."""
    return [n.removeprefix("run/") for n in sorted(service.objects) if not n.startswith("run/.flanx")]


def append(path: pathlib.Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_what_grows_is_sent_as_parts_and_is_one_file_in_the_end(service, tmp_path: pathlib.Path):
    one = made(tmp_path / "one")
    log = tmp_path / "one" / "metrics.jsonl"
    append(log, '{"step": 1}\n{"st')
    one.push()
    append(log, 'ep": 2}\n')
    one.push()
    one.push()
    parts = ["metrics.jsonl.parts/000001.000000000000000", "metrics.jsonl.parts/000001.000000000000012"]
    assert there(service) == parts and service.objects[f"run/{parts[1]}"][0] == b'{"step": 2}\n'
    one.lease.release()  # as if it had been killed
    two = made(tmp_path / "two")
    assert texts(tmp_path / "two") == {"metrics.jsonl": '{"step": 1}\n{"step": 2}\n'}
    append(tmp_path / "two" / "metrics.jsonl", "{}\n")
    two.push()
    assert there(service) == [*parts, "metrics.jsonl.parts/000001.000000000000024"]
    del service.objects[f"run/{INDEX}"]
    held = service.objects.pop(f"run/{parts[1]}")  # what follows on a part that is not there is of no use
    three = Mirror(open_storage("gs://bucket/run"), tmp_path / "three", writes=False)
    three.pull()
    assert texts(tmp_path / "three") == {"metrics.jsonl": '{"step": 1}\n'}
    service.objects[f"run/{parts[1]}"] = held
    two.settle()
    assert there(service) == ["metrics.jsonl"]
    assert service.objects["run/metrics.jsonl"][0] == b'{"step": 1}\n{"step": 2}\n{}\n'


def test_what_was_cut_off_does_not_come_back(service, tmp_path: pathlib.Path):
    """A run that resumes drops records; the parts of the longer file must not be joined to the shorter one."""
    one = made(tmp_path / "one")
    log = tmp_path / "one" / "metrics.jsonl"
    append(log, "1\n")
    one.push()
    append(log, "2\n")
    one.push()
    log.write_text("1\n")
    asked = len(service.asked)
    service.fault = lambda method, path: 403 if method == "DELETE" and len(service.asked) > asked + 1 else None
    with pytest.raises(UserError, match="may not delete"):
        one.push()  # is killed between the new series and the end of the old one
    service.fault = lambda method, path: None
    one.lease.release()
    made(tmp_path / "two").lease.release()
    assert texts(tmp_path / "two") == {"metrics.jsonl": "1\n"}
    one.push()
    assert len(there(service)) == 1


def test_a_checkpoint_is_there_when_all_of_it_is(service, tmp_path: pathlib.Path):
    one = made(tmp_path / "one")
    (tmp_path / "one" / "unlogged.jsonl").write_text("{}\n")
    (tmp_path / "one" / "done.json").write_text("{}")
    write_step(tmp_path / "one", 2, a="a", b="b")
    for allowed in range(9):
        one.lease.release()
        sent: list[str] = []

        def fault(method: str, path: str, sent=sent, allowed=allowed) -> int | None:
            sent += [path] if method == "POST" and "lease" not in path else []
            return 403 if len(sent) > allowed else None

        one = made(tmp_path / f"again{allowed}")
        shutil.copytree(tmp_path / "one", tmp_path / f"again{allowed}", dirs_exist_ok=True)
        service.fault = fault
        with contextlib.suppress(UserError):
            one.push()
        service.fault = lambda method, path: None
        names = there(service)
        marker = f"checkpoints/checkpoint_2/{MARKER}"
        assert marker not in names or {"checkpoints/checkpoint_2/default/a", "checkpoints/checkpoint_2/default/b"} <= {
            *names
        }
        assert marker not in names or any(name.startswith("unlogged.jsonl.parts") for name in names)
        assert "done.json" not in names or marker in names
    assert "done.json" in there(service)
    record = json.loads(service.objects["run/checkpoints/checkpoint_2/flanx_checksums.json"][0])
    assert record["default/a"][0] == 1 and MARKER in record
    one.lease.release()


def test_half_a_checkpoint_is_deleted_and_the_newest_whole_one_is_copied(service, tmp_path: pathlib.Path):
    one = made(tmp_path / "one")
    for step in (2, 4):
        write_step(tmp_path / "one", step, a=str(step))
    one.push()
    one.lease.release()
    service.objects["run/checkpoints/checkpoint_6/default/a"] = b"half", 99
    two = made(tmp_path / "two")
    steps = tmp_path / "two" / "checkpoints"
    assert sorted(path.name for path in steps.iterdir()) == ["checkpoint_2", "checkpoint_4"]
    assert not [name for name in there(service) if "checkpoint_6" in name]
    assert (steps / "checkpoint_4" / "default" / "a").read_text() == "4"
    files.verify_checksums(steps / "checkpoint_4")
    assert not (steps / "checkpoint_2" / "default").exists()
    two.complete(steps / "checkpoint_2")
    files.verify_checksums(steps / "checkpoint_2")
    assert (steps / "checkpoint_2" / "default" / "a").read_text() == "2"
    shutil.rmtree(steps / "checkpoint_2")  # as Orbax does with an old one
    two.push()
    assert not [name for name in there(service) if "checkpoint_2" in name]
    two.lease.release()


def test_a_listing_that_is_late_hides_nothing(service, tmp_path: pathlib.Path):
    one = made(tmp_path / "one")
    (tmp_path / "one" / "run.json").write_text("{}")
    append(tmp_path / "one" / "metrics.jsonl", "1\n")
    write_step(tmp_path / "one", 2, a="a")
    one.push()
    append(tmp_path / "one" / "metrics.jsonl", "2\n")
    one.push()
    one.lease.release()
    service.stale = lambda name: True
    two = made(tmp_path / "two")
    found = texts(tmp_path / "two")
    assert found["metrics.jsonl"] == "1\n2\n" and found["checkpoints/checkpoint_2/default/a"] == "a"
    assert found["run.json"] == "{}"
    two.lease.release()


def test_files_that_are_gone_go_and_those_of_others_stay(service, tmp_path: pathlib.Path):
    service.objects["run/notes.txt"] = b"mine", 99
    one = made(tmp_path / "one")
    for name in ("a.json", "b.json", ".flanx.lock", "a.json.12.part"):
        (tmp_path / "one" / name).write_text(name)
    one.push()
    assert there(service) == ["a.json", "b.json", "notes.txt"]
    (tmp_path / "one" / "a.json").unlink()
    one.push()
    assert there(service) == ["b.json", "notes.txt"]
    one.lease.release()


def test_who_lost_the_lease_changes_nothing_any_more(service, tmp_path: pathlib.Path):
    old = made(tmp_path / "old")
    (tmp_path / "old" / "run.json").write_text("old")
    old.push()
    del service.objects["run/.flanx.lease"]  # it was suspended, and its time ran out
    new = made(tmp_path / "new")
    (tmp_path / "new" / "run.json").write_text("new")
    new.push()
    (tmp_path / "old" / "run.json").write_text("older")
    with pytest.raises(LeaseLost):
        old.push()
    assert service.objects["run/run.json"][0] == b"new"
    new.lease.release()


def test_a_write_whose_answer_was_lost_is_no_write_of_another(service, tmp_path: pathlib.Path):
    one = made(tmp_path / "one")
    one._put("a", b"1")
    service.objects["run/a"] = b"2", 99
    one._put("a", b"2")
    one._put("a", b"3")
    assert service.objects["run/a"][0] == b"3"
    one.lease.release()


def test_processes_send_their_own_arrays_and_the_first_one_the_marker(service, tmp_path: pathlib.Path, monkeypatch):
    zero, one = made(tmp_path / "0", 0, 2), made(tmp_path / "1", 1, 2)
    write_step(tmp_path / "0", 2, a="0")
    assert not zero.push()
    assert MARKER not in str(there(service))
    monkeypatch.setattr(storage, "PATIENCE_S", 0.3)
    with pytest.raises(UserError, match="not all processes have sent their part"):
        zero.flush()
    write_step(tmp_path / "1", 2, b="1")
    (tmp_path / "1" / "metrics.jsonl").write_text("{}\n")  # none but the first sends files
    assert one.push() and zero.push()
    names = {re.sub(".*/", "", name) for name in there(service)}
    assert names == {"a", "b", MARKER, files.CHECKSUMS}
    record = json.loads(service.objects["run/checkpoints/checkpoint_2/flanx_checksums.json"][0])
    assert {"default/a", "default/b"} < set(record)
    (tmp_path / "0" / "scores.json").write_text("{}")
    zero.publish()
    one.pull(checkpoints=False)
    assert (tmp_path / "1" / "scores.json").exists()
    zero.lease.release()


def test_a_bucket_that_is_silent_for_a_while_is_waited_for(service, tmp_path: pathlib.Path, monkeypatch, capsys):
    monkeypatch.setattr(mirror, "PERIOD_S", 0.05)
    one = made(tmp_path / "one")
    silent = Unreachable("gs://bucket/run/a: no answer")
    answers = [silent, silent, None]
    put = Storage.put

    def lossy(self, name: str, *rest):
        if "lease" not in name and answers and (error := answers.pop(0)):
            raise error
        return put(self, name, *rest)

    monkeypatch.setattr(Storage, "put", lossy)
    (tmp_path / "one" / "a").write_text("1")
    one.flush()
    assert there(service) == ["a"] and not answers
    assert INDEX in open_storage("gs://bucket/run").children()
    one.lease.release()


def test_a_folder_is_moved_whole_and_what_makes_it_a_run_goes_first(service, tmp_path: pathlib.Path):
    marker = f"checkpoints/checkpoint_2/{MARKER}"
    names = ["config.gin", "run.json", "done.json", "a.txt", marker, "checkpoints/checkpoint_2/default/x"]
    names.append("metrics.jsonl.parts/000001.000000000000000")
    service.objects |= {f"run/runs/a/{name}": (name.encode(), 5) for name in [*names, ".flanx.lease"]}
    own = Mirror(open_storage("gs://bucket/run"), tmp_path / "copy", writes=False)
    own.path.mkdir()
    own.pull(checkpoints=False)
    own.move(own.path / "runs" / "a", own.path / "runs" / "a.1")
    assert there(service) == ["runs/a.1/" + name for name in sorted(names)] + ["runs/a/.flanx.lease"]
    assert service.objects[f"run/runs/a.1/{marker}"][0] == marker.encode()
    paths = [urllib.parse.unquote(path.partition("?")[0]) for method, path in service.asked if method == "DELETE"]
    gone = [path.partition("run/runs/a/")[2] for path in paths]
    assert gone[:2] == ["done.json", marker] and gone[-2:] == ["config.gin", "run.json"] and len(gone) == len(names)
    assert (own.path / "runs" / "a.1" / "run.json").exists() and not (own.path / "runs" / "a").exists()
    service.asked.clear()
    own.give_back()
    assert not service.asked  # what was moved is not sent again
    own.pull(checkpoints=False)
    assert (own.path / "runs" / "a.1" / "metrics.jsonl").exists()
