"""A stand-in of the Hugging Face hub on loopback: the answers that its client asks for, about models in a folder."""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
from collections.abc import Iterator

import pytest

from flanx import hub
from flanx.convert import hf
from flanx.storage import open_storage
from tests.convert_case import draw
from tests.test_api import T5_SIZES

SHA, LATER = "1" * 40, "2" * 40
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json", "spiece.model",
         "pytorch_model.bin")  # fmt: skip
OF_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
REFUSED = {  # repository -> status and code of every question about it
    "org/private": (401, "RepoNotFound"), "org/none": (404, "RepoNotFound"), "org/closed": (403, "GatedRepo"),
    "org/down": (503, ""),
}  # fmt: skip


class Stand(http.server.BaseHTTPRequestHandler):
    """The hub's answers about `org/small`, a model in `folder` at revision `sha`, and about names in REFUSED.

    `asked`: the paths of all requests; `sent`: {file: its content} of the commits; `bodies`: of all posts, by path.
    `others`: {name: folder} of further models; `large`: {SHA-256: content} of what was put into the large file storage.
    `gated`: the files of `org/small` are refused, as those of a gated model are.
    """

    folder: pathlib.Path
    sha: str
    gated: bool
    asked: list[str]
    sent: dict[str, bytes]
    bodies: dict[str, str]
    others: dict[str, pathlib.Path]
    large: dict[str, bytes]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0].replace("%2F", "/")
        self.asked.append(path)
        repository = next((name for name in self.others if name in path), "org/small")
        folder = self.others.get(repository, self.folder)
        names = [name for name in (*FILES, *OF_ADAPTER) if (folder / name).exists()]
        for refused, (status, code) in REFUSED.items():
            if refused in path:
                return self.send({"error": "refused"}, status, {"X-Error-Code": code} if code else {})
        if self.headers.get("Authorization") == "Bearer hf_wrong":
            return self.send({"error": "Invalid credentials in Authorization header"}, 401)
        about = f"/api/models/{repository}"
        if path in (about, *(f"{about}/revision/{r}" for r in (self.sha, "main"))):
            siblings = [{"rfilename": name, **blob(folder / name)} for name in names]
            return self.send({"id": repository, "sha": self.sha, "siblings": siblings})
        if path.startswith(f"{about}/revision/"):
            return self.send({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith(f"{about}/tree/{self.sha}"):
            tree = [{"type": "file", "path": n, "oid": oid(folder / n), **blob(folder / n)} for n in names]
            return self.send(tree)
        name = path.rpartition("/")[2]
        if path.startswith(f"/{repository}/resolve/") and name in names:
            if self.gated:
                return self.send({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
            content = (folder / name).read_bytes()
            return self.send(content, 200, {"ETag": f'"{oid(folder / name)}"', "X-Repo-Commit": self.sha})
        return self.send({"error": "no such thing"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.asked.append(path)
        self.bodies[path] = body
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.send({"error": "Invalid credentials in Authorization header"}, 401)
        if path == "/api/repos/create":
            return self.send({"url": "https://huggingface.co/org/mine"})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("safetensors") else "regular",
                 "shouldIgnore": False, "oid": None} for f in files
            ]  # fmt: skip
            return self.send({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            here = f"http://{self.headers['Host']}"
            objects = [
                {**each, "actions": {"upload": {"href": f"{here}/large/{each['oid']}"},
                                     "verify": {"href": f"{here}/verify/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]  # fmt: skip
            return self.send({"transfer": "basic", "objects": objects})
        if path.startswith("/verify/"):
            return self.send({}, 200 if path.rpartition("/")[2] in self.large else 404)
        if "/commit/" in path:
            for row in map(json.loads, body.splitlines()):
                value = row["value"]
                if row["key"] == "file":
                    self.sent[value["path"]] = base64.b64decode(value["content"])
                if row["key"] == "lfsFile":  # by its hash: the storage has the content
                    self.sent[value["path"]] = self.large[value["oid"]]
            return self.send(
                {"commitUrl": "https://huggingface.co/org/mine/commit/1", "commitOid": SHA, "pullRequestUrl": None}
            )
        return self.send({}, 200)

    def do_PUT(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"".join(self.chunks())
        self.asked.append(self.path)
        found = hashlib.sha256(content).hexdigest()
        self.large[found] = content
        return self.send({}, 200 if self.path == f"/large/{found}" else 400)

    def chunks(self) -> Iterator[bytes]:
        """The parts of a body that comes in chunks."""
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()

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


def oid(file: pathlib.Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def blob(file: pathlib.Path) -> dict:
    content = file.read_bytes()
    lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
    return {"size": len(content)} | ({"lfs": lfs | {"oid": lfs["sha256"]}} if file.name.endswith("safetensors") else {})


def write_model(folder: pathlib.Path, seed: int = 0) -> None:
    """A drawn T5 of one layer that reads bytes, as a Hugging Face folder."""
    hf.write(open_storage(folder), draw(T5_SIZES, seed=seed), T5_SIZES, {})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[tuple[str, type[Stand]]]:
    """(address, handler, whose attributes say what it answers) of a hub that has the model in `folder`."""
    state = {"folder": folder, "sha": SHA, "gated": False, "asked": [], "sent": {}, "bodies": {}}
    state |= {"others": {}, "large": {}}
    handler = type("Here", (Stand,), state)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


def ask_here(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: pathlib.Path, token: str | None = None) -> None:
    """Lets huggingface_hub, in this process, ask a stand-in; it reads its environment when it is imported."""
    constants = pytest.importorskip("huggingface_hub.constants")
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    values = {"ENDPOINT": endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache)}
    for name, value in {**values, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.fetch.cache_clear()
