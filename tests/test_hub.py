"""Names of the Hugging Face hub, against a stand-in on loopback: what is fetched, recorded, cached and refused."""

import hashlib
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from flanx import hub
from flanx.convert import hf
from flanx.errors import UserError
from flanx.storage import open_storage
from tests.convert_case import draw
from tests.test_api import T5_SIZES

pytest.importorskip("huggingface_hub")

SHA = "1" * 40
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json", "pytorch_model.bin")


class Stand(http.server.BaseHTTPRequestHandler):
    """The hub's answers about one model, `org/small`, from a folder; `asked` holds the paths of all requests."""

    folder: pathlib.Path
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        names = [name for name in FILES if (self.folder / name).exists()]
        if path in (
            "/api/models/org/small",
            f"/api/models/org/small/revision/{SHA}",
            "/api/models/org/small/revision/main",
        ):
            return self.send({"id": "org/small", "sha": SHA, "siblings": [{"rfilename": name} for name in names]})
        if path.startswith(f"/api/models/org/small/tree/{SHA}"):
            sizes = {name: (self.folder / name).stat().st_size for name in names}
            return self.send([{"type": "file", "path": n, "oid": self.oid(n), "size": sizes[n]} for n in names])
        if path.startswith("/api/models/org/gated"):
            return self.send({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        name = path.rpartition("/")[2]
        if path.startswith("/org/small/resolve/") and name in names:
            content = (self.folder / name).read_bytes()
            return self.send(content, 200, {"ETag": f'"{self.oid(name)}"', "X-Repo-Commit": SHA})
        return self.send({"error": "no such thing"}, 404, {"X-Error-Code": "RepoNotFound"})

    def oid(self, name: str) -> str:
        return hashlib.sha1((self.folder / name).read_bytes()).hexdigest()

    def send(self, body, status: int = 200, headers: dict | None = None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def stand(tmp_path):
    """A folder of the model, its server's address, and what it was asked."""
    folder = tmp_path / "served"
    hf.write(open_storage(folder), draw(T5_SIZES), T5_SIZES, {})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which is never asked for")
    handler = type("Here", (Stand,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


def run(code: str, home: pathlib.Path, endpoint: str, **env: str) -> subprocess.CompletedProcess:
    """Python in a process of its own: huggingface_hub reads its environment when it is imported."""
    kept = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    env = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **env}
    head = "import flanx, json\nfrom flanx import hub\n"
    code = f"{head}try:\n    {code}\nexcept flanx.UserError as e:\n    print('refused:', e)"
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=home.parent)


FETCH = "print(json.dumps(hub.fetch('{}').record()))"


def test_a_model_is_fetched_once_without_what_is_no_data_and_recorded(stand, tmp_path):
    folder, endpoint, asked = stand
    done = run(FETCH.format("org/small"), tmp_path / "hub", endpoint, HF_TOKEN="hf_secret")
    record = (
        json.loads(done.stdout) if done.returncode == 0 and "refused" not in done.stdout else pytest.fail(str(done))
    )
    assert record["hub"] == "org/small" and record["revision"] == SHA
    names = sorted(set(FILES) - {"pytorch_model.bin"})
    assert record["files"] == {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
    assert not any("pytorch_model.bin" in path for path in asked) and "hf_secret" not in done.stdout + done.stderr
    fetched = sum("/resolve/" in path for path in asked)
    again = run(FETCH.format(f"hf:org/small@{SHA}"), tmp_path / "hub", endpoint)
    assert json.loads(again.stdout) == record and sum("/resolve/" in path for path in asked) == fetched
    offline = run(FETCH.format("org/small"), tmp_path / "hub", endpoint, HF_HUB_OFFLINE="1")
    assert json.loads(offline.stdout) == record, offline.stderr


def test_a_model_of_the_hub_answers_as_its_folder_does(stand, tmp_path):
    folder, endpoint, _ = stand
    ask = "m = flanx.load({!r}, lengths={{'inputs': 16, 'targets': 8}}); print(m.generate(['abc', 'x']), m.source)"
    ours = run(ask.format("hf:org/small"), tmp_path / "hub", endpoint)
    theirs = run(ask.format(str(folder)), tmp_path / "hub", endpoint)
    assert ours.stdout.partition("] ")[0] == theirs.stdout.partition("] ")[0] and SHA in ours.stdout, ours


def test_what_is_not_there_is_one_line(stand, tmp_path):
    folder, endpoint, _ = stand
    for name, message in (
        ("org/none", "no folder 'org/none' here; no model 'org/none' on the hub"),
        ("org/gated", "org/gated on the hub asks for its conditions to be accepted"),
        ("hf:a b", "is no name on the Hugging Face hub"),
    ):
        done = run(FETCH.format(name), tmp_path / "hub", endpoint)
        assert done.stdout.startswith(f"refused: {message}") or message in done.stdout, done
        assert len(done.stdout.splitlines()) == 1
    (folder / "model.safetensors").unlink()
    assert "has no safetensors" in run(FETCH.format("org/small"), tmp_path / "hub", endpoint).stdout


def test_no_network_is_a_line_within_twenty_seconds(tmp_path):
    with socket.socket() as silent:  # accepts, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        done = run(FETCH.format("org/small"), tmp_path / "hub", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "gives no answer" in done.stdout and time.monotonic() - began < 40, done
    done = run(FETCH.format("org/small"), tmp_path / "hub", "http://127.0.0.1:9")
    assert "gives no answer" in done.stdout and "is there a network?" in done.stdout, done
    done = run(FETCH.format("org/small"), tmp_path / "hub", "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert "no folder 'org/small' here; " in done.stdout and "HF_HUB_OFFLINE is set" in done.stdout
    assert hub.NAME.fullmatch("hf:t5-small") and not hub.NAME.fullmatch("t5-small")


def test_which_texts_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_name("google/flan-t5-small") and hub.is_name("hf:t5-small") and hub.is_name("a/b@v1")
    (tmp_path / "out").mkdir()
    for text in ("out/my_run", "my_run", "./a/b", "/a/b", "a/b/c", "gs://a/b", "~/a"):
        assert not hub.is_name(text), text
    with pytest.raises(UserError, match="no name on the Hugging Face hub"):
        hub.fetch("hf:../etc/passwd")
