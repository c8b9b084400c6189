"""Folders and files on a local disk or at a URL (gs://, s3://, http://), the latter through TensorStore; a name on the
Hugging Face hub (hf:ORG/NAME) is the folder of its local copy.

Every read of a URL has a time limit. Memory-mapped files (stores, vocabularies) are copied once into a local cache, the
folder FLANX_CACHE, by default `~/.cache/flanx`. A bucket mounted as a folder is a local path, read in place. (etils
would import TensorFlow for gs://, and Orbax does not support s3://.) For folders that a run writes to: `flanx.mirror`.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from flanx import hub
from flanx.errors import UserError
from flanx.files import local_path, open_regular, read_json, write_atomic

ANSWER_S = 8  # for a small file at a URL
LIST_S = 120  # for a listing, which comes in pages of a thousand
COPY_S = 3600  # for a whole volume
LEAST_SPEED = 1e6  # bytes per second, of writes
PATIENCE_S = 600.0  # how long to wait for a bucket that does not answer, once work has begun
Answer = TypeVar("Answer")
URLS = ("gs://", "s3://", "http://", "https://")
BUCKETS = ("gs://", "s3://")  # writable
ABSENT = b"\x02"  # TensorStore's generation of a missing object
_ROLES = {
    "gs": "roles/storage.objectUser on the bucket, or `gcloud auth application-default login` as who has it",
    "s3": "s3:ListBucket, GetObject, PutObject and DeleteObject, or the keys (AWS_PROFILE) of who has them",
}
_WAITS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN")
_answered: set[str] = set()  # servers and buckets, as "gs://BUCKET", that have answered in this process
_RETRIES = {"max_retries": 4, "initial_delay": "0.3s", "max_delay": "3s"}


class Unreachable(UserError):
    """A bucket does not answer or asks to wait: the same call may succeed later."""


class NoBucket(UserError):
    """There is no bucket with that name."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A folder that may not exist; its `str` is the path as given by the user.

    Attributes:
      path: an absolute local path, or a URL such as gs://bucket/path.
    """

    path: str

    def __str__(self) -> str:
        return self.path

    def __fspath__(self) -> str:
        return self.path

    def __truediv__(self, name: str) -> "Storage":
        return Storage(f"{self.path}/{name}")

    @property
    def parent(self) -> "Storage":
        """The folder that contains it."""
        return Storage(self.path.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def is_remote(self) -> bool:
        """Whether it is at a URL."""
        return self.path.startswith(URLS)

    def local(self) -> Path:
        """The folder as a path. Raises UserError if it is remote."""
        if self.is_remote:
            raise UserError(f"{self}: Hugging Face folders are read and written on a local disk; copy it there first")
        return Path(self.path)

    def kvstore(self) -> Any:
        """TensorStore's description: a dict, or a URL."""
        if bucket := re.fullmatch(r"(gs|s3)://([^/]+)/?(.*)", self.path):
            place = {"bucket": bucket[2], "path": f"{bucket[3]}/" if bucket[3] else ""}
            return {"driver": "gcs"} | place if bucket[1] == "gs" else {"driver": "s3"} | place | _s3_settings()
        return f"{self.path}/" if self.is_remote else {"driver": "file", "path": f"{self.path}/"}

    def keys(self) -> set[str]:
        """Paths of all files below it, without keys of objects that are not file names."""
        found = self._do("list", lambda store: store.list(), limit=LIST_S)
        return {key for each in found if is_file_name(key := each.decode())}

    def children(self) -> set[str]:
        """Names of the files and folders in it; empty if it does not exist."""
        if self.is_remote:
            return {key.partition("/")[0] for key in self.keys()}
        path = Path(self.path)
        return set(os.listdir(path)) if path.is_dir() else set()

    def find(self, file: str, limit: float | None = None) -> bytes | None:
        """The content of one of its files, or None if missing. Raises UserError if it cannot be read, or if a URL does
        not answer within `limit` (ANSWER_S) seconds."""
        if self.is_remote:
            return self.get(file, limit)[0]
        path = Path(self.path) / file
        try:
            with open_regular(path) as opened:
                return opened.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error

    def get(self, file: str, limit: float | None = None, known: bytes | None = None) -> tuple[bytes | None, bytes]:
        """(content, generation) of a file in a bucket; (None, ABSENT) if it is missing, (None, known) if its generation
        is `known`."""
        result = self._do("read", lambda store: store.read(file, if_not_equal=known), file, limit)
        return (result.value if result.state == "value" else None), result.stamp.generation

    def put(self, file: str, content: bytes, expected: bytes, limit: float | None = None) -> bytes | None:
        """Writes a file in a bucket if its generation is `expected` (ABSENT: if it does not exist).

        Returns the new generation, or None if it has another one, as after a write by another process, or after one by
        this process that got no answer but succeeded."""
        stamp = self._do("write", lambda store: store.write(file, content, if_equal=expected), file, limit)
        return stamp.generation or None

    def expect_bucket(self) -> None:
        """Raises NoBucket if there is no such bucket, UserError if it is not writable; tested with an object that is
        deleted again: to a listing, a read or another conditional write, a missing Google bucket looks empty.
        """
        name = f".flanx.{secrets.token_hex(4)}"
        self.put(name, b"", ABSENT)
        self.remove(name)

    def remove(self, file: str) -> None:
        """Deletes a file in a bucket, if it exists."""
        self._do("delete", lambda store: store.write(file, None), file)

    def clear(self) -> None:
        """Deletes all files below it in a bucket."""
        import tensorstore  # noqa: PLC0415

        self._do("delete", lambda store: store.delete_range(tensorstore.KvStore.KeyRange()), limit=COPY_S)

    def read(self, file: str) -> bytes:
        """The content of one of a checkpoint's files. Raises UserError if it is missing."""
        if (content := self.find(file)) is None:
            raise UserError(f"no file '{self}/{file}'; the checkpoint is incomplete or of another format")
        return content

    def read_json(self, file: str) -> dict[str, Any]:
        """The object in a JSON file. Raises UserError if the file is missing or does not hold one."""
        try:
            found = json.loads(self.read(file))
        except ValueError as error:
            raise UserError(f"{self}/{file} is not JSON ({error}); copy the checkpoint again") from error
        except RecursionError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{self}/{file} is not a JSON object; copy the checkpoint again")
        return found

    def write(self, file: str, content: bytes | str) -> None:
        """Writes one file, atomically."""
        data = content.encode() if isinstance(content, str) else content
        self._do("write", lambda store: store.write(file, data), file, ANSWER_S + len(data) / LEAST_SPEED)

    def _do(self, what: str, act: Any, file: str = "", limit: float | None = None) -> Any:
        within = waited = (limit or ANSWER_S) if self.is_remote else None
        named, root = f"{self}/{file}" if file else self.path, "/".join(self.path.split("/")[:3])
        try:
            store = _open(json.dumps(self.kvstore()), within and min(within, ANSWER_S))
            if within is not None and within > ANSWER_S and root not in _answered:
                waited = ANSWER_S  # even if the whole takes long, the first answer comes soon or never
                with contextlib.suppress(ValueError):  # any answer will do: `act` reports what is wrong
                    store.read(file or "?", byte_range=slice(0, 0)).result(timeout=waited)
                _answered.add(root)
                waited = within
            return act(store).result(timeout=within)
        except TimeoutError as error:
            raise Unreachable(
                f"{named}: no answer within {waited} s; is the address right, and is there a network?"
            ) from error
        except ValueError as error:
            raise _explain(what, named, error) from error


@functools.lru_cache(maxsize=64)
def _open(spec: str, within: float | None) -> Any:
    """TensorStore's store for a JSON spec; connections and credentials are cached."""
    import tensorstore  # noqa: PLC0415  (local files do without it)

    retries = tensorstore.Context({"gcs_request_retries": _RETRIES, "s3_request_retries": _RETRIES})
    return tensorstore.KvStore.open(json.loads(spec), context=retries).result(timeout=within)


def _s3_settings() -> dict[str, Any]:
    """Settings that TensorStore does not read from AWS's environment variables itself, also for services with their own
    URL (MinIO, Ceph, R2); conditional writes are done by the service, with If-Match."""
    environment = os.environ
    found: dict[str, Any] = {"use_conditional_write": True}
    if url := environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"):
        found["endpoint"] = url.rstrip("/")
        found["aws_region"] = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    if environment.get("AWS_ACCESS_KEY_ID"):  # else the library looks for other credentials, and complains about each
        found["aws_credentials"] = {"type": "environment"}
    return found


def _explain(what: str, named: str, error: Exception) -> UserError:
    """TensorStore's error as one line that says how to fix it."""
    text, bucket = str(error), "/".join(named.split("/")[:3])
    if named.startswith(BUCKETS):
        if re.search(r"PERMISSION_DENIED|UNAUTHENTICATED|code='40[13]'", text):
            return UserError(f"{named}: this machine's credentials may not {what} it; they need {_ROLES[named[:2]]}")
        if "NOT_FOUND" in text:
            return NoBucket(f"{named}: there is no bucket {bucket}; make it, or give the address of one that exists")
        if any(status in text for status in _WAITS):
            return Unreachable(f"{named}: the bucket does not {what} it at present ({brief(error)}); try again later")
    return UserError(f"cannot {what} {named} ({brief(error)})")


def open_storage(path: str | os.PathLike) -> Storage:
    """The folder at a local path or URL, or of a model on the hub (hf:ORG/NAME), which is fetched."""
    text = os.fspath(path)
    if text.startswith(hub.PREFIX):
        return Storage(str(hub.fetch(text).folder))
    if text.startswith(URLS):
        return Storage(text.rstrip("/"))
    path = local_path(text).absolute()
    return Storage(str(path.resolve() if ".." in path.parts else path))  # tensorstore does not accept ".."


def patiently(act: Callable[[], Answer]) -> Answer:
    """The result of a call, retried for PATIENCE_S seconds while the bucket does not answer."""
    ends, pause = time.monotonic() + PATIENCE_S, 0.2
    while True:
        try:
            return act()
        except Unreachable:
            if time.monotonic() > ends:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def is_file_name(key: str) -> bool:
    """Whether a key in a bucket names a file below its folder: "a/" may stand for a folder, "../a" is elsewhere."""
    return bool(key) and key[0] != "/" and key[-1] != "/" and ".." not in key.split("/")


def brief(error: Exception) -> str:
    """TensorStore's message on one line, without its list of source locations."""
    return str(error).split("[source locations")[0].strip().replace("\n", " ")[:160]


# ---- single files ----------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """The folder for copies of remote files: FLANX_CACHE, or ~/.cache/flanx."""
    return Path(os.environ.get("FLANX_CACHE") or Path.home() / ".cache" / "flanx")


def read(path: str, limit: float | None = None) -> bytes:
    """The bytes of a file. Raises UserError if it cannot be read or a URL does not answer within `limit` seconds."""
    folder, _, name = str(path).rpartition("/")
    content = open_storage(folder or ("/" if str(path).startswith("/") else ".")).find(name, limit)
    if content is None:
        raise UserError(f"{path}: no such file")
    return content


def copy(source: str, target: Path) -> None:
    """Copies a file or URL to a local path, if that does not exist."""
    if not target.exists():
        write_atomic(target, read(source, COPY_S))


def local(path: str) -> str:
    """A local path with the same content: the path itself, or a copy in the cache."""
    if not path.startswith(URLS):
        return str(local_path(path))
    target = cache_dir() / hashlib.sha256(path.encode()).hexdigest()[:16] / path.rpartition("/")[2]
    copy(path, target)
    return str(target)


def local_tree(path: str) -> str:
    """A local folder with the same files: the path itself, or for a bucket a copy in the cache, in which changed files
    are copied again. Raises UserError if the folder does not exist."""
    if not path.startswith(BUCKETS):
        return path
    folder = open_storage(path)
    target = cache_dir() / "trees" / hashlib.sha256(folder.path.encode()).hexdigest()[:16]
    record = target / ".generations.json"
    known, names = read_json(record), folder.keys()
    if not names:
        raise UserError(f"{path}: no such folder, or nothing in it; check the address")

    def take(name: str) -> tuple[str, str]:
        had = bytes.fromhex(known[name]) if name in known and (target / name).is_file() else None
        content, generation = folder.get(name, COPY_S, had)
        if content is not None:
            write_atomic(target / name, content, durable=False)
        return name, generation.hex()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = dict(pool.map(take, sorted(names)))
    for name in set(known) - names:
        (target / name).unlink(missing_ok=True)
    write_atomic(record, json.dumps(found))
    return str(target)
