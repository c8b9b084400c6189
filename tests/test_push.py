"""`flanx push`: what it would send, what it sends to a stand-in of the hub, and what it refuses."""

import json
import pathlib
import socket

import pytest

from flanx import hub
from flanx.cli import main
from tests.hub_case import ask_here, served, write_model

pytest.importorskip("huggingface_hub")


@pytest.fixture
def export(tmp_path: pathlib.Path) -> pathlib.Path:
    """An export with its card, and files that nobody asked for."""
    folder = tmp_path / "export"
    write_model(folder)
    (folder / "README.md").write_text("# mine\n")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "notes.txt").write_text("mine alone")
    return folder


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's call of httpx
def test_a_push_without_yes_sends_nothing_and_with_it_one_commit(export, tmp_path, monkeypatch, capsys):
    with served(tmp_path / "none") as (endpoint, handler):
        ask_here(monkeypatch, endpoint, tmp_path / "cache", token="hf_right")
        assert main.main(["push", str(export), "hf:org/mine"]) == 0
        out = capsys.readouterr().out
        assert "nothing is sent; with --yes these 5 files go to hf:org/mine (public where it is new)" in out
        assert "pytorch_model.bin" not in out and "notes.txt" not in out and not handler.asked
        assert main.main(["push", str(export), "hf:org/mine", "--yes", "--private"]) == 0, capsys.readouterr().err
    names = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"}
    assert handler.sent == {name: (export / name).read_bytes() for name in names}
    assert list(handler.large.values()) == [(export / "model.safetensors").read_bytes()]
    created = json.loads(handler.bodies["/api/repos/create"])
    assert created["name"] == "mine" and created["organization"] == "org"
    assert created.get("private", created.get("visibility")) in (True, "private")
    assert "sent: https://huggingface.co/org/mine/commit/1" in capsys.readouterr().out


def test_what_cannot_be_sent_is_one_line(export, tmp_path, monkeypatch, capsys):
    def refused(*words: str) -> str:
        assert main.main(["push", *words]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1, err
        return err

    assert "no folder" in refused(str(tmp_path / "none"), "hf:org/mine")
    assert "is not a name on the Hugging Face hub" in refused(str(export), "mine")
    with served(tmp_path / "none") as (endpoint, _):
        ask_here(monkeypatch, endpoint, tmp_path / "cache", token="hf_wrong")
        assert "the hub refuses (401): set HF_TOKEN" in refused(str(export), "hf:org/mine", "--yes")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ask_here(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "cache", token="hf_right")
        monkeypatch.setattr(hub, "ANSWER_S", 0.2)
        assert "the hub does not answer" in refused(str(export), "hf:org/mine", "--yes")
    assert "leave it out" in refused(str(export), "hf:org/mine@v1", "--yes")
    (export / "README.md").write_text("my token is hf_" + "a" * 30)
    assert "README.md holds an access token of the hub" in refused(str(export), "hf:org/mine")
    (export / "README.md").unlink()
    assert "lacks a card (README.md)" in refused(str(export), "hf:org/mine")
    (export / "tokenizer_config.json").unlink()
    assert "lacks a tokenizer" in refused(str(export), "hf:org/mine")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("config.json", lambda raw: b"", "config.json is not JSON"),
        ("config.json", lambda raw: b"[]", "config.json is not a JSON object"),
        ("model.safetensors", lambda raw: raw[:-9], "truncated"),
        ("model.safetensors", lambda raw: b"", "safetensors"),
    ],
)
def test_a_damaged_export_is_not_sent(export, capsys, name, damage, said):
    raw = (export / name).read_bytes()
    (export / name).write_bytes(damage(raw))
    assert main.main(["push", str(export), "hf:org/mine"]) == 2
    err = capsys.readouterr().err
    assert said in err and name in err and len(err.splitlines()) == 1


def test_parameters_that_changed_since_the_conversion_are_not_sent(export, capsys):
    (export / "flanx_convert.json").write_text('{"fingerprint": "0123"}')
    assert main.main(["push", str(export), "hf:org/mine", "--yes"]) == 2
    assert "its flanx_convert.json says 0123: it is damaged or was changed" in capsys.readouterr().err
