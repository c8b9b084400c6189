"""Stores in a bucket through the cache, against the service of this process."""

import hashlib
import json
import os
import pathlib

import pytest

from flanx.data.store import cached
from flanx.errors import UserError
from tests import bucket_case

SIZE = 1000


@pytest.fixture
def service(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FLANX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cached, "_held", {})
    with bucket_case.service() as found:
        yield found


def put(service: bucket_case.Service, name: str) -> str:
    """A store of one volume; its URL."""
    content = name.encode() * SIZE
    volume = {"name": "v", "tokens_bytes": len(content), "tokens_sha256": hashlib.sha256(content).hexdigest()}
    service.objects[f"{name}/v.tokens.npy"] = content, 1
    service.objects[f"{name}/manifest.json"] = json.dumps({"hash": name, "volumes": [volume]}).encode(), 1
    return f"gs://bucket/{name}"


def names(tmp_path: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "stores").iterdir())


def reads(service: bucket_case.Service) -> int:
    """Contents alone: the first request to a service asks whether it answers (`storage.Storage`)."""
    return sum("tokens" in path and "alt=media" in path for _, path in service.asked)


def test_a_store_is_copied_once(service, tmp_path: pathlib.Path):
    url = put(service, "a")
    folder = cached.fetch(f"{url}/")
    assert (folder / "v.tokens.npy").read_bytes() == b"a" * SIZE and (folder / "manifest.json").is_file()
    cached.fetch(url)
    assert reads(service) == 1


def test_what_is_not_as_the_manifest_says_is_read_again_and_refused(service, tmp_path: pathlib.Path):
    url = put(service, "a")
    service.objects["a/v.tokens.npy"] = b"b" * SIZE, 2
    with pytest.raises(UserError, match=r"a/v\.tokens\.npy: is not what the store's manifest says"):
        cached.fetch(url)
    assert reads(service) == 2
    assert not (tmp_path / "cache" / "stores" / "a" / "manifest.json").exists()
    service.objects["a/manifest.json"] = b"{}", 2
    with pytest.raises(UserError, match="not the manifest of a flanx store"):
        cached.fetch(url)


def test_the_store_that_was_not_used_for_longest_goes_unless_it_is_open(service, tmp_path, monkeypatch):
    monkeypatch.setenv("FLANX_CACHE_GB", f"{3.2 * SIZE / 1e9:f}")
    for number, name in enumerate("ab"):
        folder = cached.fetch(put(service, name))
        os.utime(folder / "manifest.json", (number, number))
    os.close(cached._held.pop(str(folder)))  # b's process ended

    assert names(tmp_path) == ["a", "b"]
    cached.fetch(put(service, "c"))
    assert names(tmp_path) == ["a", "c"]
    with pytest.raises(UserError, match=r"raise FLANX_CACHE_GB, give FLANX_CACHE another disk"):
        cached.fetch(put(service, "d"))
    monkeypatch.setenv("FLANX_CACHE_GB", "many")
    with pytest.raises(UserError, match="give a number of gigabytes"):
        cached.fetch(put(service, "e"))
