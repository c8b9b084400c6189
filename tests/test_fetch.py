"""Plan and fetch against a server of this machine: resume, retry, quarantine, progress, the hub's Parquet listing."""

import argparse
import contextlib
import gzip
import hashlib
import http.server
import json
import re
import socket
import threading
import time
import urllib.error

import pytest

from flanx.cli.main import main
from flanx.data.fetch import checksums, downloads, fetch, mirrors
from flanx.data.fetch import http as download
from flanx.data.fetch import running as downloading
from flanx.data.task import render, sources
from flanx.data.task import tables as task_tables
from flanx.errors import UserError

FILES: dict[str, bytes] = {}
SEEN: list[tuple[str, str | None]] = []
BREAKS: list[int] = []  # bytes after which the next replies break off
BUSY: list[int] = []  # statuses that the next replies have instead
LIES: dict[str, str] = {}  # headers of partial replies
MOVED: dict[str, str] = {}  # path -> where it redirects to
MEET = None  # a barrier that replies wait at


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range")
        SEEN.append((self.path, wanted))
        if BUSY:
            self.send_response(BUSY.pop(0))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = FILES.get(self.path)
        if body is None:
            self.send_error(404)
            return
        if MEET:
            MEET.wait(10)
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.headers["If-Range"] == tag else 0
        if start > len(body):
            self.send_error(416)
            return
        if self.path in MOVED:
            self.send_response(302)
            self.send_header("Location", MOVED[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        for name, value in LIES.items() if start else ():
            self.send_header(name, value)
        tag = LIES.get("ETag", tag) if start else tag
        self.send_header("Content-Length", str(len(body) - start))
        if not (start and "ETag" in LIES):
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body[start : start + BREAKS.pop(0) if BREAKS else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    FILES.clear(), SEEN.clear(), BREAKS.clear(), BUSY.clear(), LIES.clear(), MOVED.clear()
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: made.serve_forever(0.02), daemon=True).start()
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
    given = {"mixture": mixture, "data_dir": str(folder), "jobs": 2, "json": True} | more
    absent = {"allow_missing": False, "verify": False, "licence": None, "rate": None}
    return function(argparse.Namespace(**absent | given))


def test_a_failing_task_is_quarantined_and_the_rest_is_usable(tables, server, tmp_path, capsys):
    FILES["/one.jsonl"] = LINES
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"inputs_pretokenized": ["in"], "targets_pretokenized": ["out"]})
    parquet.write_table(table, tmp_path / "x.parquet")
    FILES["/parquet/some_config/train"] = json.dumps([f"{server}/x.parquet"]).encode()
    FILES["/x.parquet"] = (tmp_path / "x.parquet").read_bytes()
    folder = tmp_path / "data"
    assert run(fetch.fetch, folder) == 1
    out = capsys.readouterr().out
    assert "2 tasks ready, 2 in quarantine" in out
    kept = json.loads((folder / "quarantine.json").read_text())
    assert set(kept) == {"mine_two", "mine_three"}
    assert kept["mine_two"].endswith("/two.jsonl: 404 Not Found")
    assert "404" in kept["mine_two"] and "ask the author" in kept["mine_three"]
    tasks = task_tables.load_tables()
    assert len(list(render.render_rows(tasks["mine_one"], "zsopt", "train", folder))) == 500
    assert next(render.render_rows(tasks["mine_four"], "zsopt", "train", folder)).targets == "out"
    FILES["/two.jsonl"] = LINES
    SEEN.clear()
    assert run(fetch.fetch, folder, mixture="mine_two") == 0
    assert [path for path, _ in SEEN] == ["/two.jsonl"]  # nothing is fetched again
    assert set(json.loads((folder / "quarantine.json").read_text())) == {"mine_three"}


def test_a_server_that_never_answered_is_not_waited_for_file_by_file(tables, server, tmp_path, monkeypatch):
    asked = []

    def refuse(url, *more):
        asked.append(url)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(fetch, "download_file", refuse)
    monkeypatch.setattr(fetch, "open_url", refuse)
    folder = tmp_path / "data"
    assert run(fetch.fetch, folder, jobs=1) == 1
    kept = json.loads((folder / "quarantine.json").read_text())
    assert asked == [f"{server}/one.jsonl"]
    assert [kept[f"mine_{name}"] for name in ("one", "two", "four")] == ["cannot reach 127.0.0.1: no network"] * 3
    asked.clear()
    running = downloading.Running(1)
    with running.reaching(f"{server}/a"):
        pass
    for _ in range(2):  # one that answered may be out of reach for a while
        with pytest.raises(urllib.error.URLError), running.reaching(f"{server}/a"):
            refuse(f"{server}/a")
    assert len(asked) == 2


def test_a_broken_download_goes_on_where_it_was(tables, tmp_path):
    FILES["/one.jsonl"] = LINES
    BREAKS.extend([1000, 500, 0, 700, 0, 0, 900])  # as long as something comes, it continues
    folder = tmp_path / "data"
    assert run(fetch.fetch, folder, mixture="mine_one") == 0
    asked = [None, *(f"bytes={n}-" for n in (1000, 1500, 1500, 2200, 2200, 2200, 3100))]
    assert [given for _, given in SEEN] == asked
    assert (folder / "one.jsonl").read_bytes() == LINES
    assert not list(folder.glob("*.part*"))


def test_the_next_run_goes_on_in_the_file_that_broke_off_in_this_one(tables, tmp_path):
    FILES["/one.jsonl"] = LINES
    BREAKS.extend([1000, *[0] * download.TRIES])
    folder = tmp_path / "data"
    assert run(fetch.fetch, folder, mixture="mine_one") == 1
    assert "1,000 of " in json.loads((folder / "quarantine.json").read_text())["mine_one"]
    assert not (folder / "one.jsonl").exists() and (folder / "one.jsonl.part").stat().st_size == 1000
    SEEN.clear()
    assert run(fetch.fetch, folder, mixture="mine_one") == 0
    assert SEEN == [("/one.jsonl", "bytes=1000-")]
    assert (folder / "one.jsonl").read_bytes() == LINES
    assert json.loads((folder / "quarantine.json").read_text()) == {}


def test_two_editions_of_a_file_are_never_put_together(tables, tmp_path):
    folder = tmp_path / "data"
    FILES["/one.jsonl"] = LINES
    BREAKS.extend([1000, *[0] * download.TRIES])
    assert run(fetch.fetch, folder, mixture="mine_one") == 1
    FILES["/one.jsonl"] = LINES.replace(b"q", b"Q")
    assert run(fetch.fetch, folder, mixture="mine_one") == 0
    assert (folder / "one.jsonl").read_bytes() == FILES["/one.jsonl"]
    (folder / "two.jsonl.part").write_bytes(b"of an unknown edition")
    FILES["/two.jsonl"] = LINES
    assert run(fetch.fetch, folder, mixture="mine_two") == 0
    assert (folder / "two.jsonl").read_bytes() == LINES


def test_a_busy_server_is_asked_again_and_a_page_in_the_place_of_data_is_set_aside(tables, tmp_path):
    folder = tmp_path / "data"
    FILES["/one.jsonl"] = LINES
    BUSY.extend([503, 429])
    assert run(fetch.fetch, folder, mixture="mine_one") == 0
    assert len(SEEN) == 3
    FILES["/two.jsonl"] = b"<html>please log in</html>"
    assert run(fetch.fetch, folder, mixture="mine_two") == 1
    reason = json.loads((folder / "quarantine.json").read_text())["mine_two"]
    assert "not what the task reads (not JSON" in reason and "two.jsonl.unreadable" in reason
    assert not (folder / "two.jsonl").exists()


def test_needs_are_fetched_side_by_side(tables, tmp_path, monkeypatch):
    FILES["/one.jsonl"] = FILES["/two.jsonl"] = LINES
    monkeypatch.setitem(globals(), "MEET", threading.Barrier(2))  # one at a time would wait for ever
    assert run(fetch.fetch, tmp_path / "data", mixture="mine_[ot][nw]*") == 0


def test_progress_tells_bytes_and_rate(tables, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(downloading, "LINE_PERIOD_S", 0.0)
    monkeypatch.setattr(download, "BLOCK", 4096)
    FILES["/one.jsonl"] = LINES
    assert run(fetch.fetch, tmp_path / "data", mixture="mine_one") == 0
    told = capsys.readouterr()
    size = downloads.format_bytes(len(LINES))
    assert "downloads: 0/1" in told.err
    assert re.search(rf"jsonl:one.jsonl: 4.1 kB of {size}, [\d.]+ [kM]?B/s", told.err)
    assert re.search(rf"\[1/1\] jsonl:one.jsonl: fetched {size} in [\d.]+ s \([\d.]+ [kMG]?B/s\)", told.out)


def test_a_stop_ends_all_downloads_and_keeps_what_has_come(tables, tmp_path, monkeypatch):
    FILES["/one.jsonl"] = LINES
    folder = tmp_path / "data"
    monkeypatch.setattr(download, "BLOCK", 4096)
    running = downloading.Running(1)
    told = []

    def tell(have, size):
        told.append(have)
        if have > 8000:
            running.stop()
        running.update("one", "")

    url = task_tables.load_tables()["mine_one"].url.replace("{file}", "one.jsonl")
    with pytest.raises(download.Stopped):
        download.download(url, folder / "one.jsonl", tell)
    assert told[-1] == (folder / "one.jsonl.part").stat().st_size == 8192


def test_a_stop_ends_the_processes_of_tfds_too(monkeypatch):
    code = "import sys, time; sys.stderr.write('Dl Size: 12 MiB\\n'); time.sleep(60)"
    monkeypatch.setattr(fetch, "PREPARE", ("-c", code))
    running = downloading.Running(1)
    told = []
    monkeypatch.setattr(running, "update", lambda name, text: told.append(text) or running.stop())
    task = next(task for task in task_tables.load_tables().values() if task.source.startswith("tfds:"))
    assert fetch._fetch_tfds(task, downloads.Download(task.source, "open", [task]), running) == "Dl Size: 12 MiB"
    assert told == ["Dl Size: 12 MiB"]


def test_one_fetch_at_a_time_in_a_folder(tables, tmp_path):
    FILES["/one.jsonl"] = LINES
    with fetch._locked(str(tmp_path)), pytest.raises(UserError, match="another `flanx tasks fetch` is running"):
        run(fetch.fetch, tmp_path, mixture="mine_one")


def test_what_a_mixture_becomes_without_its_absent_tasks(tmp_path, capsys):
    """Rates of table 23, first with everything, then without T0-SF: the others fill its place."""
    ready = {task.name for task in task_tables.load_tables().values() if task.collection != "t0_sf"}
    lines = [line.split() for line in downloads.shares("proportion_b", ready)[1:]]
    assert ["t0_sf", "0", "of", "193", "27.9", "-"] in lines
    assert ["muffin", "80", "of", "80", "46.0", "63.9"] in lines
    assert downloads.shares("cot_gsm8k", ready) == []
    assert main(["tasks", "plan", "proportion_b", "--data_dir", str(tmp_path)]) == 0
    assert re.search(r"muffin +0 of +80 +46.0 +-", capsys.readouterr().out)


# ---- mirrors, receipts, hours ----------------------------------------------------------------------------------------


def test_a_mirror_stands_in_and_must_hold_the_same_examples(tables, server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    monkeypatch.setattr(fetch, "RATE_BYTES", 1000)
    (tmp_path / "copy").mkdir()
    (tables / "tables" / "mirrors.toml").write_text(
        f'["{server}/"]\nplaces = ["{server}/wrong/", "{server}/again/", "{(tmp_path / "copy").as_uri()}/"]\n'
    )
    folder = tmp_path / "data"
    FILES["/one.jsonl"] = LINES
    assert run(fetch.fetch, folder, mixture="mine_one") == 0
    first = json.loads((folder / checksums.FILE).read_text())
    assert first["sources"]["jsonl:one.jsonl"]["train"]["rows"] == 500 and first["bytes_per_second"] > 0
    (folder / "one.jsonl").unlink()
    del FILES["/one.jsonl"]
    FILES["/wrong/one.jsonl"] = LINES.replace(b"q7", b"Q7")  # reads well, and is something else
    (tmp_path / "copy" / "one.jsonl").write_bytes(LINES.replace(b": ", b":  "))  # other bytes, the same examples
    assert run(fetch.fetch, folder, mixture="mine_one") == 0
    assert json.loads((folder / checksums.FILE).read_text())["sources"] == first["sources"]
    assert (folder / "one.jsonl.changed").read_bytes() == FILES["/wrong/one.jsonl"]
    assert [path for path, _ in SEEN[1:]] == ["/one.jsonl", "/wrong/one.jsonl", "/again/one.jsonl"]


def test_other_examples_than_at_first_are_quarantined_and_read_by_no_task(tables, tmp_path):
    folder = tmp_path / "data"
    FILES["/one.jsonl"] = LINES
    assert run(fetch.fetch, folder, mixture="mine_one") == 0
    (folder / "one.jsonl").unlink()
    FILES["/one.jsonl"] = LINES + LINES
    assert run(fetch.fetch, folder, mixture="mine_one") == 1
    reason = json.loads((folder / "quarantine.json").read_text())["mine_one"]
    assert re.search(
        r"first fetch \(500 rows, sha256 \w{12}; now 1,000 rows.*one.jsonl.changed; to take it, remove", reason
    )
    assert sources.missing(task_tables.load_tables()["mine_one"], folder)


def test_verify_reads_what_is_in_place_and_gives_it_a_receipt(tables, tmp_path):
    (tmp_path / "one.jsonl").write_bytes(LINES)
    assert run(fetch.fetch, tmp_path, mixture="mine_one") == 0
    assert not (tmp_path / checksums.FILE).exists()
    assert run(fetch.fetch, tmp_path, mixture="mine_one", verify=True) == 0
    (tmp_path / "one.jsonl").write_bytes(LINES[:-20])
    assert run(fetch.fetch, tmp_path, mixture="mine_one") == 0
    assert run(fetch.fetch, tmp_path, mixture="mine_one", verify=True) == 1
    (tmp_path / checksums.FILE).write_text("{")
    with pytest.raises(UserError, match=r"receipt\.json is damaged"):
        run(fetch.fetch, tmp_path, mixture="mine_one")


def test_a_split_of_which_some_files_came_is_not_whole(tables, server, tmp_path, capsys):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"inputs_pretokenized": ["q"], "targets_pretokenized": ["a"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    FILES["/parquet/some_config/train"] = json.dumps([f"{server}/0.parquet", f"{server}/1.parquet"]).encode()
    FILES["/0.parquet"] = (tmp_path / "rows.parquet").read_bytes()
    folder = tmp_path / "data"
    assert run(fetch.fetch, folder, mixture="mine_four") == 1
    task = task_tables.load_tables()["mine_four"]
    assert "1 of 2 files of 'train'" in sources.missing(task, folder)
    FILES["/1.parquet"] = FILES["/0.parquet"]
    assert run(fetch.fetch, folder, mixture="mine_four") == 0
    assert len(list(render.render_rows(task, "zsopt", "train", folder, count=len))) == 2
    assert [path for path, _ in SEEN].count("/0.parquet") == 1


def test_a_page_in_the_place_of_a_parquet_file_is_set_aside(tables, server, tmp_path):
    FILES["/parquet/some_config/train"] = json.dumps([f"{server}/0.parquet"]).encode()
    FILES["/0.parquet"] = b"<html>please log in</html>"
    for _ in range(2):  # it is not there for the second run either
        assert run(fetch.fetch, tmp_path, mixture="mine_four") == 1
        assert "not what the task reads" in json.loads((tmp_path / "quarantine.json").read_text())["mine_four"]
    assert sources.missing(task_tables.load_tables()["mine_four"], tmp_path)


@pytest.mark.parametrize("table", ['["x"]\nplaces = "y"\n', '["x"]\nplace = ["y"]\n', '["x"]\nplaces = [1]\n'])
def test_a_wrong_table_of_mirrors_is_refused(tables, table):
    (tables / "tables" / "mirrors.toml").write_text(table)
    with pytest.raises(UserError, match=r"mirrors.toml:1: a mirror is places"):
        mirrors.places("http://x")


def test_plan_tells_the_hours_of_a_stated_rate_or_of_the_last_fetch(tables, tmp_path, capsys):
    with (tables / "tables" / "mine.toml").open("a") as file:
        file.write('[five]\nsource = "jsonl:five.jsonl"\nbytes = 36000000000\n')
    assert run(downloads.plan, tmp_path, json=False) == 0
    assert "hours: give --rate" in capsys.readouterr().out
    assert run(downloads.plan, tmp_path, json=False, rate=5.0) == 0
    assert "2.0 hours for the known sizes at 5.0 MB/s (your line)" in capsys.readouterr().out
    checksums.write(tmp_path, {"sources": {}, "bytes_per_second": 10_000_000})
    assert run(downloads.plan, tmp_path) == 0
    assert json.loads(capsys.readouterr().out)["sum"]["hours"] == 1.0


def test_plan_counts_what_is_there_and_what_is_not(tables, tmp_path, capsys):
    (tmp_path / "one.jsonl").write_bytes(LINES)
    assert run(downloads.plan, tmp_path) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sum"]["present"] == 1 and said["sum"]["needs"] == 4
    assert said["sum"]["user"] == ["jsonl:three.jsonl"]
    with pytest.raises(UserError, match="no data folder"):
        run(downloads.plan, None, data_dir=None)


def test_sizes_of_tfds_sources_come_from_its_own_checksums():
    pytest.importorskip("tensorflow_datasets")
    assert downloads.tfds_bytes("tfds:super_glue/rte") == 750920
    assert downloads.tfds_bytes("tfds:nothing") is None


def test_sizes_are_written_for_people():
    assert [downloads.format_bytes(n) for n in (None, 999, 1_500_000, 2_700_000_000)] == [
        "?",
        "999 B",
        "1.5 MB",
        "2.7 GB",
    ]


def test_every_task_of_a_source_that_fails_is_quarantined(tables, tmp_path):
    with (tables / "tables" / "mine.toml").open("a") as file:
        file.write('[one_more]\nsource = "jsonl:one.jsonl"\n')
    assert run(fetch.fetch, tmp_path, mixture="mine_one*") == 1
    assert set(json.loads((tmp_path / "quarantine.json").read_text())) == {"mine_one", "mine_one_more"}


@pytest.mark.parametrize("lie", [{"Content-Range": "bytes 0-9/20"}, {"ETag": '"another"'}])
def test_a_rest_that_is_not_ours_is_not_appended(server, tmp_path, lie):
    FILES["/x"] = bytes(range(256)) * 9
    BREAKS.append(1000)
    LIES.update(lie)
    download.download(f"{server}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == FILES["/x"]
    assert [wanted for _, wanted in SEEN] == [None, "bytes=1000-", None]


def test_a_server_does_not_choose_addresses_of_this_network(server, tmp_path, monkeypatch):
    MOVED["/x"] = "ftp://example.org/x"
    FILES["/x"] = b"x"
    monkeypatch.setattr(download, "_is_local", lambda url: "10.0.0.1" in url)
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(ValueError, match=r"points to ftp://example.org/x, which is not a public http address"):
        download.download(f"{server}/x", tmp_path / "x")
    MOVED["/x"] = "http://10.0.0.1/"
    with pytest.raises(ValueError, match="not a public http address"):
        download.download(f"{server}/x", tmp_path / "x")
    with pytest.raises(ValueError, match="not a public http address"):
        download.check_pointed("file:///etc/passwd", "https://example.org/listing")


def test_secrets_of_urls_are_not_told():
    text = "http://me:pw@host/a?token=abc: 404; https://h/b?sig=1 (x); s3://k:s@b/c"
    assert download.without_secrets(text) == "http://host/a?...: 404; https://h/b?... (x); s3://b/c"


def test_a_file_with_too_few_examples_is_not_ready(tables, server, tmp_path):
    table = tables / "tables" / "mine.toml"
    table.write_text('[a]\nsource = "tsv:a.tsv"\nnum_examples = 1000\n')
    FILES["/a.tsv"] = b"q\ta\n" * 500
    assert main(["tasks", "fetch", "mine_a", "--data_dir", str(tmp_path / "d")]) == 1
    reason = json.loads((tmp_path / "d" / "quarantine.json").read_text())["mine_a"]
    assert "500 of the 1,000 examples of mine_a; the file is truncated" in reason


def test_a_stop_ends_a_stalled_read_at_once(tmp_path):
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
    ended = threading.Event()

    def report(have, size):
        raise download.Stopped

    def stalled():
        with contextlib.suppress(download.Stopped):
            download.download(url, tmp_path / "x", report)
        ended.set()

    threading.Thread(target=stalled, daemon=True).start()
    accepted, _ = listening.accept()
    while not download._sockets:
        time.sleep(0.01)
    download.interrupt()
    assert ended.wait(5)
    accepted.close(), listening.close()


HOSTILE: dict[str, tuple[int, dict[str, str], bytes]] = {  # an answer to the first request -> status, headers, body
    **{f"status {n}": (n, {}, b"") for n in (204, 206, 300, 304, 400, 401, 403, 404, 405, 410, 418, 451)},
    **{f"busy {n}": (n, {"Retry-After": "99999"}, b"") for n in (408, 429, 500, 502, 503)},
    "shorter than said": (200, {"Content-Length": "9999"}, b"q\ta\n"),
    "nothing": (200, {"Content-Length": "0"}, b""),
    "a page": (200, {"Content-Type": "text/html"}, b"<!doctype html><html>log in</html>"),
    "a bomb": (200, {}, gzip.compress(bytes(1 << 28), 1)),
    "larger than the disk": (200, {"Content-Length": str(10**18)}, b"q\ta\n"),
    "a negative length": (200, {"Content-Length": "-5"}, b"q\ta\n"),
    "a length of words": (200, {"Content-Length": "many"}, b"<html>"),
    "noise": (200, {}, bytes(range(256)) * 8),
    "to a file": (302, {"Location": "file:///etc/passwd"}, b""),
    "to itself": (302, {"Location": "/x"}, b""),
    "to nowhere": (302, {"Location": "http://host.invalid/x"}, b""),
    "to another scheme": (302, {"Location": "gopher://example.org/x"}, b""),
    "to nothing": (302, {}, b""),
}


@pytest.mark.slow
def test_hostile_answers_are_quarantined_in_a_line(tables, tmp_path, capsys, monkeypatch):
    """Nothing that such a server sends becomes a task's file; the command ends with status 1 and names the task."""
    monkeypatch.setattr(download, "MOST_WAIT_S", 0.01)
    answer: list[tuple[int, dict[str, str], bytes]] = []

    class Hostile(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = answer[0]
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=lambda: made.serve_forever(0.02), daemon=True).start()
    table = tables / "tables" / "mine.toml"
    table.write_text(f'[x]\nsource = "tsv:x.tsv"\nurl = "http://127.0.0.1:{made.server_port}/x"\n')
    assert len(HOSTILE) >= 30
    wrong = []
    for number, (what, given) in enumerate(HOSTILE.items()):
        answer[:] = [given]
        folder, began = tmp_path / str(number), time.monotonic()
        status = main(["tasks", "fetch", "mine_x", "--data_dir", str(folder)])
        err = capsys.readouterr().err
        kept = json.loads((folder / "quarantine.json").read_text()) if (folder / "quarantine.json").exists() else {}
        reason = kept.get("mine_x", "")
        good = status == 1 and reason and "\n" not in reason and "Traceback" not in err
        if not good or (folder / "x.tsv").exists() or time.monotonic() - began > 30:
            wrong.append(f"{what}: status {status}, {reason!r}, {err[-300:]!r}")
    made.shutdown()
    made.server_close()
    print(f"{len(HOSTILE) - len(wrong)} of {len(HOSTILE)} hostile answers right")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("text", ["[]", "5", '{"sources": 5}', '{"sources": {"a": {"train": 1}}}', "{", ""])
def test_a_damaged_receipt_or_quarantine_is_named(tmp_path, text):
    for name, read in (
        ("receipt", lambda: checksums.read(str(tmp_path))),
        ("quarantine", lambda: fetch.record(str(tmp_path), [], {})),
    ):
        (tmp_path / f"{name}.json").write_text(text)
        if name == "receipt" or not text.startswith("{") or text == "{":
            with pytest.raises(UserError, match=rf"{name}\.json is damaged"):
                read()
            assert (tmp_path / f"{name}.json").read_text() == text
