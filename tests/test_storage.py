import http.server
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import urllib.parse

import pytest

from flanx import storage
from flanx.convert import t5x
from flanx.convert.lazy_tensor import fingerprint
from flanx.errors import UserError
from flanx.storage import ABSENT, Storage, Unreachable, open_storage
from tests import bucket_case
from tests.convert_case import ONE_LAYER, draw


class Bucket(http.server.BaseHTTPRequestHandler):
    """The little of the storage service's HTTP interface that is needed, over a folder on this machine."""

    root: pathlib.Path

    def answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        for key, value in (("Content-Type", kind), ("Content-Length", str(len(content))), ("x-goog-generation", "1")):
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        _, _, name = url.path.partition("/b/bucket/o")
        if name:
            path = self.root / urllib.parse.unquote(name[1:])
            return self.answer(200, path.read_bytes(), "bytes") if path.is_file() else self.answer(404, b"{}")
        found = sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file())
        first, last = query.get("startOffset", ""), query.get("endOffset", "\x7f")
        items = [{"name": each, "generation": "1"} for each in found if first <= each < last]
        return self.answer(200, json.dumps({"items": items}).encode())

    def do_POST(self) -> None:
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        path = self.root / query["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200, json.dumps({"name": query["name"], "generation": "1", "size": "1"}).encode())

    def do_DELETE(self) -> None:
        self.answer(404, b"{}")

    def log_message(self, *_: object) -> None:
        pass


CODE = """
import sys
from flanx.cli import main
for arguments in (["gs://bucket/theirs", "gs://bucket/ours"], ["gs://bucket/ours", sys.argv[1], "--to", "t5x"]):
    assert main.main(["convert", *arguments]) == 0
print(sorted({"tensorflow", "fsspec", "gcsfs"} & set(sys.modules)))
"""


def test_checkpoints_in_a_bucket_are_read_and_written_without_tensorflow(tmp_path: pathlib.Path):
    """A server on this machine plays the bucket: there is no network in the test."""
    bucket, out = tmp_path / "bucket", tmp_path / "out"
    t5x.write_legacy(open_storage(bucket / "theirs" / "checkpoint_7"), draw(ONE_LAYER, optimizer=True), 7)
    handler = type("Handler", (Bucket,), {"root": bucket})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = {"TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{server.server_port}"}
        token = {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}  # or tensorstore looks for credentials on the network
        command = [sys.executable, "-c", CODE, str(out)]
        done = subprocess.run(command, env=os.environ | here | token, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert (bucket / "ours" / "checkpoints" / "checkpoint_7" / "default" / "_METADATA").is_file()
    assert fingerprint(t5x.read_legacy(open_storage(out / "checkpoint_7"))) == fingerprint(draw(ONE_LAYER))


def test_places_of_folders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert str(open_storage("a")) == f"{tmp_path}/a"
    (tmp_path / "far" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/folder")
    assert str(open_storage("link")) == f"{tmp_path}/link"
    assert str(open_storage("link/../a")) == f"{tmp_path}/far/a"  # tensorstore refuses a path with ".."
    remote = open_storage("gs://bucket/some/place/")
    assert (str(remote), remote.name, str(remote.parent)) == ("gs://bucket/some/place", "place", "gs://bucket/some")
    assert remote.kvstore() == {"driver": "gcs", "bucket": "bucket", "path": "some/place/"}
    assert open_storage("gs://bucket").kvstore()["path"] == ""
    with pytest.raises(UserError, match="copy it there first"):
        remote.local()


def test_files_of_a_folder(tmp_path: pathlib.Path):
    folder = open_storage(tmp_path / "new")
    assert folder.children() == set()
    folder.write("a.json", '{"x": 1}')
    (folder / "sub").write("b", b"\x00")
    assert folder.children() == {"a.json", "sub"}
    assert folder.read_json("a.json") == {"x": 1}
    assert (folder / "sub").read("b") == b"\x00"
    folder.write("a.json", "{")
    with pytest.raises(UserError, match=r"a\.json is not JSON"):
        folder.read_json("a.json")
    with pytest.raises(UserError, match=r"no file '.*/new/c'"):
        folder.read("c")


def test_a_bucket_without_an_answer_is_a_line_within_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(storage, "_answered", set())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(storage, "ANSWER_S", 0.3)
        monkeypatch.setattr(Storage, "kvstore", lambda self: {"driver": "http", "base_url": url, "path": "/x/"})
        with pytest.raises(UserError, match=r"gs://bucket/x(/checkpoint)?: no answer within 0\.3 s"):
            Storage("gs://bucket/x").read("checkpoint")
        for long in (  # what has an hour once the server answers
            lambda: storage.copy("gs://bucket/x/prompts.txt", tmp_path / "prompts.txt"),
            lambda: Storage("gs://bucket/x").keys(),
            lambda: storage.local_tree("gs://bucket/x"),
        ):
            with pytest.raises(UserError, match=r"gs://bucket/x(/prompts.txt)?: no answer within 0\.3 s"):
                long()


def test_a_file_of_a_bucket_is_replaced_where_it_is_what_was_expected():
    with bucket_case.service() as service:
        folder = open_storage("gs://bucket/a")
        assert folder.get("x") == (None, ABSENT)
        first = folder.put("x", b"1", ABSENT)
        assert first and folder.put("x", b"2", ABSENT) is None
        assert folder.get("x") == (b"1", first)
        assert folder.put("x", b"2", first) and folder.put("x", b"3", first) is None
        (folder / "b").write("y", b"y")
        service.objects |= {"a/c/": (b"", 7), "a/../z": (b"", 8)}  # a folder, as consoles write it, and another place
        assert folder.keys() == {"x", "b/y"}
        folder.remove("x")
        folder.remove("x")
        folder.clear()
        assert not folder.keys()


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (403, UserError, "may not write it; they need roles/storage.objectUser"),
        (401, UserError, "gcloud auth application-default login"),
        (404, storage.NoBucket, "there is no bucket gs://bucket; make it"),
        (503, Unreachable, "does not write it at present"),
        (429, Unreachable, "try again later"),
    ],
)
def test_what_a_bucket_refuses_is_a_line_with_the_repair(monkeypatch, status: int, kind: type, said: str):
    monkeypatch.setattr(storage, "_RETRIES", {"max_retries": 1, "initial_delay": "0.01s", "max_delay": "0.01s"})
    with bucket_case.service() as service:
        service.fault = lambda method, path: status
        with pytest.raises(UserError, match=rf"gs://bucket/a/x: .*{re.escape(said)}") as caught:
            open_storage("gs://bucket/a").put("x", b"1", ABSENT)
    assert type(caught.value) is kind and "\n" not in str(caught.value)


def test_where_s3_is(monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    place = {"driver": "s3", "bucket": "b", "path": "c/", "use_conditional_write": True}
    assert open_storage("s3://b/c").kvstore() == place
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    there = {"endpoint": "http://127.0.0.1:9000", "aws_region": "eu-central-1"}
    assert open_storage("s3://b/c").kvstore() == place | there


def test_a_folder_of_a_bucket_is_copied_and_what_has_changed_copied_anew(tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path))
    assert storage.local_tree("data") == "data"
    with bucket_case.service() as service:
        folder = open_storage("gs://bucket/data")
        for name in ("a.txt", "b/c.txt"):
            folder.write(name, name)
        copy = pathlib.Path(storage.local_tree("gs://bucket/data"))
        assert (copy / "b" / "c.txt").read_text() == "b/c.txt"
        folder.write("a.txt", "new")
        folder.remove("b/c.txt")
        folder.write("d.txt", "d")
        (copy / "d.txt").write_text("half")
        assert pathlib.Path(storage.local_tree("gs://bucket/data")) == copy
        found = {path.name: path.read_text() for path in copy.rglob("*.txt")}
        assert found == {"a.txt": "new", "d.txt": "d"}
        bodies = len(service.asked)
        storage.local_tree("gs://bucket/data")
        assert [method for method, _ in service.asked[bodies:]] == ["GET"] * 3
        with pytest.raises(UserError, match="gs://bucket/nothing: no such folder"):
            storage.local_tree("gs://bucket/nothing")


@pytest.mark.parametrize("content", ["[1]", "5", "[" * 5000, "{", "\udcff"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: pathlib.Path, content: str):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"config\.json is not .*copy the checkpoint again"):
        open_storage(tmp_path).read_json("config.json")
