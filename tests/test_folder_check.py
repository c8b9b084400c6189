"""What a run needs of a folder or bucket, tried: done and cleaned up, or refused by the operation's name."""

import pathlib

import pytest

from flanx import folder_check
from tests import bucket_case


def test_a_folder_and_a_new_one_do_all_and_are_left_as_they_were(tmp_path: pathlib.Path) -> None:
    for folder in (tmp_path, tmp_path / "new", tmp_path / "new" / "of" / "new"):
        assert list(folder_check.check(str(folder))) == [(operation, "") for operation in folder_check.ORDER]
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_folders_place_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    ((operation, problem),) = folder_check.check(str(tmp_path / "file"))
    assert operation == "write" and "File exists" in problem


def test_a_folder_that_refuses_amid_it_keeps_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(folder_check.os, "listdir", fail)
    *done, (operation, problem) = folder_check.check(str(tmp_path / "a" / "b"))
    assert len(done) == 4 and operation == "list" and "Input/output error" in problem
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_bucket_does_all_and_is_left_as_it_was() -> None:
    with bucket_case.service() as service:
        assert list(folder_check.check("gs://bucket/run")) == [(operation, "") for operation in folder_check.ORDER]
        assert not service.objects and len(service.asked) > 6


@pytest.mark.parametrize(
    ("operation", "method", "status", "said"),
    [("write", "POST", 403, "may not write it"), ("delete", "DELETE", 403, "may not delete it")],
)
def test_what_a_bucket_refuses_is_named(operation: str, method: str, status: int, said: str) -> None:
    with bucket_case.service() as service:
        service.fault = lambda asked, path: status if asked == method else None
        *done, (last, problem) = folder_check.check("gs://bucket/run")
    assert (
        last == operation
        and said in problem
        and [name for name, _ in done] == list(folder_check.ORDER[: folder_check.ORDER.index(operation)])
    )


def test_a_bucket_that_takes_no_condition_is_no_place_for_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_case.service() as service:
        asked = bucket_case.Handler.serve

        def serve(handler: bucket_case.Handler, body: bytes) -> None:
            handler.path = handler.path.replace("ifGenerationMatch", "x")
            asked(handler, body)

        monkeypatch.setattr(bucket_case.Handler, "serve", serve)
        found = list(folder_check.check("gs://bucket/run"))
        assert (
            not service.objects and found[-1][0] == "condition" and "two runs could share a folder" in found[-1][1]
        ), service.asked
