"""Plan and fetch against a server of this machine: resume, retry, quarantine, the hub's Parquet listing."""

import argparse
import http.server
import json
import threading

import pyarrow as pa
import pyarrow.parquet
import pytest

from flanx.data import example, fetch, spec
from flanx.errors import UserError

FILES: dict[str, bytes] = {}
SEEN: list[tuple[str, str | None]] = []
BREAK = {"after": None}  # bytes after which a reply breaks off, once


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        SEEN.append((self.path, self.headers.get("Range")))
        body = FILES.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers else 0
        if start > len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end, BREAK["after"] = BREAK["after"], None
        self.wfile.write(body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    FILES.clear(), SEEN.clear(), BREAK.update(after=None)
    monkeypatch.setattr(fetch, "WAIT_S", 0.01)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.fixture
def tables(tmp_path, monkeypatch, server):
    root = tmp_path / "tables_of_mine"
    (root / "tables").mkdir(parents=True)
    (root / "templates").mkdir()
    monkeypatch.setenv("FLANX_TABLES", str(root))
    (root / "tables" / "collections.toml").write_text(
        f'[mine]\nrole = "extra"\n[mine.defaults]\nsplits = {{train = "train"}}\ncolumns = ["question", "answer"]\n'
        f'templates = "mine"\nurl = "{server}/{{file}}"\n'
    )
    (root / "templates" / "mine.toml").write_text(
        '[mine]\nnone = ["{question}", "{answer}"]\nprompts = [["{question}", "{answer}"]]\n'
    )
    (root / "tables" / "mine.toml").write_text(
        '[one]\nsource = "jsonl:one.jsonl"\n[two]\nsource = "jsonl:two.jsonl"\n'
        '[three]\nsource = "jsonl:three.jsonl"\naccess = "user"\nurl = ""\nnote = "ask the author"\n'
        '[four]\nsource = "p3:some_config"\nurl = "' + server + '/parquet/{config}/{split}"\n'
        'fields = "keep(question=inputs_pretokenized, answer=targets_pretokenized)"\n'
    )
    return root


LINES = b"".join(json.dumps({"question": f"q{i}", "answer": f"a{i}"}).encode() + b"\n" for i in range(500))


def run(function, folder, mixture="mine", **more):
    return function(
        argparse.Namespace(mixture=mixture, data_dir=str(folder), jobs=2, allow_missing=False, json=True, **more)
    )


def test_a_failing_task_is_quarantined_and_the_rest_is_usable(tables, server, tmp_path, capsys):
    FILES["/one.jsonl"] = LINES
    table = pa.table({"inputs_pretokenized": ["in"], "targets_pretokenized": ["out"]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    FILES["/parquet/some_config/train"] = json.dumps([f"{server}/x.parquet"]).encode()
    FILES["/x.parquet"] = (tmp_path / "x.parquet").read_bytes()
    folder = tmp_path / "data"
    assert run(fetch.fetch, folder) == 1
    out = capsys.readouterr().out
    assert "2 tasks ready, 2 in quarantine" in out
    kept = json.loads((folder / "quarantine.json").read_text())
    assert set(kept) == {"mine_two", "mine_three"}
    assert "404" in kept["mine_two"] and "ask the author" in kept["mine_three"]
    tasks = spec.load_tables()
    assert len(list(example.render_rows(tasks["mine_one"], "zsopt", "train", folder))) == 500
    assert next(example.render_rows(tasks["mine_four"], "zsopt", "train", folder)).targets == "out"
    FILES["/two.jsonl"] = LINES
    SEEN.clear()
    assert run(fetch.fetch, folder, mixture="mine_two") == 0
    assert [path for path, _ in SEEN] == ["/two.jsonl"]  # nothing is fetched again
    assert set(json.loads((folder / "quarantine.json").read_text())) == {"mine_three"}


def test_a_broken_download_goes_on_where_it_was(tables, tmp_path):
    FILES["/one.jsonl"] = LINES
    BREAK["after"] = 1000
    folder = tmp_path / "data"
    assert run(fetch.fetch, folder, mixture="mine_one") == 0
    assert [given for _, given in SEEN] == [None, "bytes=1000-"]
    assert (folder / "one.jsonl").read_bytes() == LINES
    (folder / "two.jsonl.part").write_bytes(LINES + b"longer than the file")
    FILES["/two.jsonl"] = LINES
    assert run(fetch.fetch, folder, mixture="mine_two") == 0
    assert (folder / "two.jsonl").read_bytes() == LINES
    assert not list(folder.glob("*.part"))


def test_plan_counts_what_is_there_and_what_is_not(tables, tmp_path, capsys):
    (tmp_path / "one.jsonl").write_bytes(LINES)
    assert run(fetch.plan, tmp_path) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sum"]["present"] == 1 and said["sum"]["needs"] == 4
    assert said["sum"]["user"] == ["jsonl:three.jsonl"]
    with pytest.raises(UserError, match="no data folder"):
        fetch.plan(argparse.Namespace(mixture="mine", data_dir=None, json=False))


def test_sizes_of_tfds_sources_come_from_its_own_checksums():
    assert fetch.tfds_bytes("tfds:super_glue/rte") == 750920
    assert fetch.tfds_bytes("tfds:nothing") is None
    assert [fetch.say_bytes(n) for n in (None, 999, 1_500_000, 2_700_000_000)] == ["?", "999 B", "1.5 MB", "2.7 GB"]
