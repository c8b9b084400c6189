"""`flanx ask`: in a pipe, in a terminal, as a server; each as a process in the slow lane."""

import contextlib
import http.client
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.parse

import pytest

from flanx import files
from flanx.cli.main import main
from tests import ask_case
from tests.ask_case import PROMPTS

LIMITS = ("--max_prompt_tokens=200", "--max_tokens=24", "--rows=4")


def test_lines_of_a_pipe_are_answered(monkeypatch, capsys):
    def pipe(*lines: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\r\n".join(lines)), "ascii"))

    pipe(b"\xef\xbb\xbf" + PROMPTS[0].encode(), b"", PROMPTS[1].encode())
    assert main(["ask", str(ask_case.folder()), *LIMITS]) == 0
    out, err = capsys.readouterr()
    first, second = (ask_case.answers()[prompt] for prompt in PROMPTS[:2])
    assert out == f"{first}\n\n{second}\n" and err.startswith("loading ")
    pipe(b"x" * 300)
    assert main(["ask", str(ask_case.folder()), *LIMITS]) == 2
    assert "flanx ask: line 1: the prompt has 301 tokens" in capsys.readouterr().err
    pipe(b"", b"Wie gr\xfc\xdft man?")
    assert main(["ask", str(ask_case.folder()), *LIMITS]) == 2
    assert "flanx ask: line 2: not UTF-8 (byte 0xfc); convert the input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--port=1"], "--host and --port belong to the server: add --serve"),
        (["--template=qaa"], "no template 'qaa'; did you mean 'qa'"),
        (["--stop="], "--stop is empty"),
        (["--serve", "--host=0.0.0.0"], "host 0.0.0.0 can be reached from other machines"),
        (["--serve", "--host=elsewhere"], "host 'elsewhere' is not an IP address"),
    ],
)
def test_mistakes_are_one_line_before_the_model_is_read(more, message, capsys, monkeypatch):
    if "--serve" in more:
        pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    monkeypatch.delenv("FLANX_TOKEN", raising=False)
    assert main(["ask", "no/where", *more]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_checkpoint_that_is_not_there(capsys):
    assert main(["ask", "no/where/at/all"]) == 2
    assert "no/where/at/all: no such folder" in capsys.readouterr().err


# ---- processes -------------------------------------------------------------------------------------------------------


# Makes the standard input the terminal whose keys are signals to the program after it.
CONTROL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def start(*arguments, first=(), **pipes):
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "TERM": "dumb"}
    command = [sys.executable, *first, "-m", "flanx", "ask", str(ask_case.folder()), *LIMITS, *arguments]
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)


@pytest.mark.slow
def test_a_pipe_gets_the_answers_of_infer(tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS[:5]))
    command = ["infer", "--checkpoint", str(ask_case.folder()), "--prompts", str(tmp_path / "prompts.txt")]
    bound = "--gin.TASK_FEATURE_LENGTHS={'inputs': 200, 'targets': 24}"
    assert main([*command, "--output", str(tmp_path / "out.jsonl"), bound]) == 0
    with start(stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        said, _ = process.communicate((tmp_path / "prompts.txt").read_text(), timeout=120)
    assert said.splitlines() == [row["prediction"] for row in files.read_jsonl(tmp_path / "out.jsonl")]


@pytest.mark.slow
def test_a_person_at_a_terminal():
    ours, theirs = pty.openpty()
    process = start(first=["-c", CONTROL], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = ""

    def until(text):
        nonlocal seen
        limit = time.monotonic() + 120
        while text not in seen:
            assert select.select([ours], [], [], limit - time.monotonic())[0], seen
            seen += os.read(ours, 4096).decode()
        before, _, seen = seen.partition(text)
        return before

    def say(text):
        os.write(ours, text.encode())

    try:
        said = until("> ")
        assert "parameters, prompts of up to 200 tokens, answers of up to 24; several turns become one text" in said
        say(f"{PROMPTS[0]}\n")
        until(f"{PROMPTS[0]}\r\n")  # as the terminal shows what is typed
        assert until("\r\n> ") == ask_case.answers()[PROMPTS[0]]
        say("\x03")  # Ctrl-C at the prompt
        until("/quit or Ctrl-D ends")
        until("> ")
        say("/prompt\n")
        until("/prompt\r\n")
        assert until("\r\n> ") == PROMPTS[0]
        say("\x04")  # Ctrl-D
        assert process.wait(30) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.slow
@pytest.mark.parametrize("is_busy", [False, True])
def test_control_c_stops_a_server_cleanly(is_busy):
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    process = start("--serve", "--port=0", "--max_tokens=20000", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        head = [process.stdout.readline() for _ in range(4)]
        link = urllib.parse.urlsplit(re.search(r"http://\S+", head[1])[0])
        token = urllib.parse.parse_qs(link.query)["token"][0]
        assert f"key {token}   model drawn" in head[2] and head[3] == "Ctrl-C ends\n"
        connection = http.client.HTTPConnection(link.hostname, link.port, timeout=60)
        with contextlib.closing(connection):
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            body = {"prompt": PROMPTS[0], "max_tokens": 20000 if is_busy else 3, "stream": is_busy}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            assert answer.status == 200
            if is_busy:
                assert answer.readline().startswith(b"data: {")
            else:
                assert json.loads(answer.read())["choices"][0]["text"] == ask_case.answers()[PROMPTS[0]][:3]
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0 and time.monotonic() - began < 10
        assert process.stdout.read() == "stopped\n"
        assert "Traceback" not in process.stderr.read()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
