"""Stores at URLs: copied into the local cache, each file checked against its SHA-256 in the manifest.

    <cache>/stores/<hash of the manifest>/    the store's files, with manifest.json written last

The cache is limited to FLANX_CACHE_GB gigabytes (LIMIT_GB). The least recently opened store is evicted first; a store
that a process has open stays, as the process holds its lock file.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import shutil

from flanx import files, storage
from flanx.errors import UserError

MANIFEST = "manifest.json"
LIMIT_GB = 500.0
KINDS = ("tokens", "index", "checksums")
_held: dict[str, int] = {}  # lock file descriptors of the stores that this process has opened, held until it ends


def fetch(url: str) -> pathlib.Path:
    """The local copy of a store. Raises UserError if there is no store, it does not fit into the cache, or a file does
    not match the manifest."""
    url = url.rstrip("/")
    try:
        content = storage.read(f"{url}/{MANIFEST}")
        manifest = json.loads(content)
        tag = str(manifest["hash"])
        sizes = {
            f"{volume['name']}.{kind}.npy": (int(volume[f"{kind}_bytes"]), str(volume[f"{kind}_sha256"]))
            for volume in manifest["volumes"]
            for kind in KINDS
            if f"{kind}_bytes" in volume
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{url}/{MANIFEST}: not the manifest of a flanx store") from error
    if not tag.isalnum() or any("/" in name for name in sizes):
        raise UserError(f"{url}/{MANIFEST}: not the manifest of a flanx store")
    folder = storage.cache_dir() / "stores" / tag
    folder.mkdir(parents=True, exist_ok=True)
    _hold(folder)
    with files.lock(folder / ".copying.lock"):
        todo = {n: each for n, each in sizes.items() if not (folder / n).is_file() or _size(folder / n) != each[0]}
        if todo:
            _make_room(url, folder, sum(size for size, _ in todo.values()))
        for name, (_, digest) in todo.items():
            files.write_atomic(folder / name, _read(f"{url}/{name}", digest), durable=False)
        if not (folder / MANIFEST).exists():
            files.write_atomic(folder / MANIFEST, content)
    os.utime(folder / MANIFEST)  # marks its last use
    return folder


def _read(url: str, digest: str) -> bytes:
    """Reads a file of known SHA-256; retries once on a mismatch, such as after a broken connection."""
    for _ in range(2):
        content = storage.read(url, storage.COPY_S)
        if hashlib.sha256(content).hexdigest() == digest:
            return content
    raise UserError(f"{url}: is not what the store's manifest says (SHA-256 differs); copy or build the store again")


def _hold(folder: pathlib.Path) -> None:
    """Keeps other processes from deleting a store while this one lives."""
    if str(folder) not in _held:
        _held[str(folder)] = os.open(folder / ".used.lock", os.O_CREAT | os.O_RDWR, 0o666)
        fcntl.flock(_held[str(folder)], fcntl.LOCK_SH)


def _make_room(url: str, own: pathlib.Path, wanted: int) -> None:
    """Deletes the least recently used stores until `wanted` bytes fit; raises UserError if they cannot."""
    try:
        limit = float(os.environ.get("FLANX_CACHE_GB") or LIMIT_GB) * 1e9
    except ValueError as error:
        raise UserError(f"FLANX_CACHE_GB is '{os.environ['FLANX_CACHE_GB']}': give a number of gigabytes") from error
    others = {path: sum(map(_size, path.iterdir())) for path in own.parent.iterdir() if path != own and path.is_dir()}
    kept = sum(map(_size, own.iterdir()))
    for path in sorted(others, key=_last_use):
        if kept + wanted + sum(others.values()) <= limit and wanted <= shutil.disk_usage(own).free:
            break
        with open(path / ".used.lock", "a", encoding="utf-8") as used:
            try:
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
            del others[path]
    room = min(limit - kept - sum(others.values()), shutil.disk_usage(own).free)
    if wanted > room:
        raise UserError(
            f"{url}: {wanted / 1e9:.3g} GB are to be copied, and the cache {own.parent} has room for "
            f"{max(room, 0) / 1e9:.3g} GB; raise FLANX_CACHE_GB, give FLANX_CACHE another disk, or mount the bucket"
        )


def _last_use(folder: pathlib.Path) -> float:
    manifest = folder / MANIFEST
    return manifest.stat().st_mtime if manifest.exists() else 0.0


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size
