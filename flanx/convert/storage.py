"""A folder on a local disk or in a gs:// bucket, through tensorstore: etils would import TensorFlow for gs://."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import tensorstore as ts

from flanx.errors import UserError

ANSWER_S = 8  # of a bucket, to a list of names or to a small file


@dataclasses.dataclass(frozen=True)
class Storage:
    """A folder that may not exist; `str` of it is its path as the user gave it.

    Attributes:
      path: an absolute local path, or gs://bucket/path.
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
        """Whether it is in a bucket."""
        return self.path.startswith("gs://")

    def local(self) -> Path:
        """The folder as a path. Raises UserError where it is remote."""
        if self.is_remote:
            raise UserError(f"{self}: Hugging Face folders are read and written on a local disk; copy it there first")
        return Path(self.path)

    def kvstore(self) -> dict[str, Any]:
        """tensorstore's description."""
        bucket = re.fullmatch(r"gs://([^/]+)/?(.*)", self.path)
        if bucket:
            return {"driver": "gcs", "bucket": bucket[1], "path": f"{bucket[2]}/" if bucket[2] else ""}
        return {"driver": "file", "path": f"{self.path}/"}

    def children(self) -> set[str]:
        """Names of the files and folders in it; empty where it does not exist."""
        if self.is_remote:
            keys = self._do("list", lambda store: store.list())
            return {key.decode().partition("/")[0] for key in keys}
        path = Path(self.path)
        return set(os.listdir(path)) if path.is_dir() else set()

    def read(self, file: str) -> bytes:
        """The content of one of its files. Raises UserError where that is not there."""
        path = Path(self.path) / file
        if not self.is_remote and path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file; copy the checkpoint again")
        if not self.is_remote and not path.is_file():
            raise UserError(f"no file '{self}/{file}'; the checkpoint is incomplete or of another format")
        result = self._do("read", lambda store: store.read(file))
        if result.state != "value":
            raise UserError(f"no file '{self}/{file}'; the checkpoint is incomplete or of another format")
        return result.value

    def read_json(self, file: str) -> Any:
        """A JSON file's content. Raises UserError where it is not there or not JSON."""
        try:
            return json.loads(self.read(file))
        except ValueError as error:
            raise UserError(f"{self}/{file} is not JSON ({error}); copy the checkpoint again") from error

    def write(self, file: str, content: bytes | str) -> None:
        """Writes one file, atomically."""
        data = content.encode() if isinstance(content, str) else content
        self._do("write to", lambda store: store.write(file, data))

    def _do(self, what: str, act: Any) -> Any:
        limit = ANSWER_S if self.is_remote else None
        try:
            store = ts.KvStore.open(self.kvstore()).result(timeout=limit)
            return act(store).result(timeout=limit)
        except TimeoutError as error:
            raise UserError(
                f"{self}: no answer within {limit} s; is the name right, and is there a network?"
            ) from error
        except ValueError as error:
            raise UserError(f"cannot {what} {self} ({brief(error)})") from error


def open_storage(path: str | os.PathLike) -> Storage:
    """The folder at a local path or gs:// URL."""
    text = os.fspath(path)
    if text.startswith("gs://"):
        return Storage(text.rstrip("/"))
    return Storage(str(Path(text).expanduser().absolute()))


def brief(error: Exception) -> str:
    """tensorstore's message without its list of source locations, on one line."""
    return str(error).split("[source locations")[0].strip().replace("\n", " ")[:160]
