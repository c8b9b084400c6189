"""Folders and files on a local disk or behind a URL (gs://, s3://, http://), the latter through TensorStore; a name of
the Hugging Face hub (hf:ORG/NAME) is the folder of its copy on this machine.

Every read of a URL has a time limit. What is mapped into memory (stores, vocabularies) is copied once into a local
cache, the folder FLANX_CACHE, by default `~/.cache/flanx`. A bucket mounted as a folder is a local path, read in place.
(etils would import TensorFlow for gs://.)
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from flanx import hub
from flanx.errors import UserError
from flanx.files import open_regular, write_atomic

ANSWER_S = 8  # of an address, to a list of names or to a small file
COPY_S = 3600  # of a whole volume
URLS = ("gs://", "s3://", "http://", "https://")


@dataclasses.dataclass(frozen=True)
class Storage:
    """A folder that may not exist; `str` of it is its path as the user gave it.

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
        """Whether it is behind a URL."""
        return self.path.startswith(URLS)

    def local(self) -> Path:
        """The folder as a path. Raises UserError where it is remote."""
        if self.is_remote:
            raise UserError(f"{self}: Hugging Face folders are read and written on a local disk; copy it there first")
        return Path(self.path)

    def kvstore(self) -> Any:
        """TensorStore's description: a dict, or a URL."""
        if bucket := re.fullmatch(r"gs://([^/]+)/?(.*)", self.path):
            return {"driver": "gcs", "bucket": bucket[1], "path": f"{bucket[2]}/" if bucket[2] else ""}
        return f"{self.path}/" if self.is_remote else {"driver": "file", "path": f"{self.path}/"}

    def keys(self) -> set[str]:
        """Paths of all files below it."""
        return {key.decode() for key in self._do("list", lambda store: store.list())}

    def children(self) -> set[str]:
        """Names of the files and folders in it; empty where it does not exist."""
        if self.is_remote:
            return {key.partition("/")[0] for key in self.keys()}
        path = Path(self.path)
        return set(os.listdir(path)) if path.is_dir() else set()

    def find(self, file: str, limit: float | None = None) -> bytes | None:
        """The content of one of its files, or None where that is not there. Raises UserError where it cannot be read,
        or where a URL gives no answer within `limit` (ANSWER_S) seconds."""
        if self.is_remote:
            result = self._do("read", lambda store: store.read(file), file, limit)
            return result.value if result.state == "value" else None
        path = Path(self.path) / file
        try:
            with open_regular(path) as opened:
                return opened.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error

    def read(self, file: str) -> bytes:
        """The content of one of a checkpoint's files. Raises UserError where that is not there."""
        if (content := self.find(file)) is None:
            raise UserError(f"no file '{self}/{file}'; the checkpoint is incomplete or of another format")
        return content

    def read_json(self, file: str) -> Any:
        """A JSON file's content. Raises UserError where it is not there or not JSON."""
        try:
            return json.loads(self.read(file))
        except ValueError as error:
            raise UserError(f"{self}/{file} is not JSON ({error}); copy the checkpoint again") from error

    def write(self, file: str, content: bytes | str) -> None:
        """Writes one file, atomically."""
        data = content.encode() if isinstance(content, str) else content
        self._do("write", lambda store: store.write(file, data), file)

    def _do(self, what: str, act: Any, file: str = "", limit: float | None = None) -> Any:
        import tensorstore  # noqa: PLC0415  (local files do without it)

        within = (limit or ANSWER_S) if self.is_remote else None
        named = f"{self}/{file}" if file else self.path
        try:
            store = tensorstore.KvStore.open(self.kvstore()).result(timeout=within)
            return act(store).result(timeout=within)
        except TimeoutError as error:
            raise UserError(
                f"{named}: no answer within {within} s; is the address right, and is there a network?"
            ) from error
        except ValueError as error:
            raise UserError(f"cannot {what} {named} ({brief(error)})") from error


def open_storage(path: str | os.PathLike) -> Storage:
    """The folder at a local path or URL, or of a model of the hub (hf:ORG/NAME), which is fetched."""
    text = os.fspath(path)
    if text.startswith(hub.PREFIX):
        return Storage(str(hub.fetch(text).folder))
    if text.startswith(URLS):
        return Storage(text.rstrip("/"))
    path = Path(text).expanduser().absolute()
    return Storage(str(path.resolve() if ".." in path.parts else path))  # tensorstore takes no ".."


def brief(error: Exception) -> str:
    """TensorStore's message without its list of source locations, on one line."""
    return str(error).split("[source locations")[0].strip().replace("\n", " ")[:160]


# ---- single files ----------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """The folder of the copies of remote files: FLANX_CACHE, or ~/.cache/flanx."""
    return Path(os.environ.get("FLANX_CACHE") or Path.home() / ".cache" / "flanx")


def read(path: str, limit: float | None = None) -> bytes:
    """The bytes of a file. Raises UserError where it cannot be read or a URL does not answer within `limit` seconds."""
    folder, _, name = str(path).rpartition("/")
    content = open_storage(folder or ("/" if str(path).startswith("/") else ".")).find(name, limit)
    if content is None:
        raise UserError(f"{path}: no such file")
    return content


def copy(source: str, target: Path) -> None:
    """Copies a file or URL to a local path, if it is not there."""
    if not target.exists():
        write_atomic(target, read(source, COPY_S))


def local(path: str) -> str:
    """A local path with the same content: the path itself, or a copy in the cache."""
    if not path.startswith(URLS):
        return str(Path(path).expanduser())
    target = cache_dir() / hashlib.sha256(path.encode()).hexdigest()[:16] / path.rpartition("/")[2]
    copy(path, target)
    return str(target)
