"""Files named by a local path or by a URL (gs://, s3://, http://), the latter read through TensorStore.

A remote file is copied once into a local cache, because every reader of ours maps files into memory: the folder
FLANX_CACHE, by default `~/.cache/flanx`. A bucket mounted as a folder is a local path and is read in place.
"""

import hashlib
import os
import pathlib

from flanx.errors import UserError
from flanx.files import open_regular, write_atomic

ANSWER_S = 8  # of an address, and of a small file
COPY_S = 3600  # of a whole volume
URLS = ("gs://", "s3://", "http://", "https://")


def is_remote(path: str) -> bool:
    return str(path).startswith(URLS)


def cache_dir() -> pathlib.Path:
    """The folder of the copies of remote files: FLANX_CACHE, or ~/.cache/flanx."""
    return pathlib.Path(os.environ.get("FLANX_CACHE") or pathlib.Path.home() / ".cache" / "flanx")


def read(path: str, timeout: float = ANSWER_S) -> bytes:
    """The bytes of a file; one line that names it where it cannot be read, or where a URL gives none in `timeout` s."""
    if not is_remote(path):
        try:
            with open_regular(pathlib.Path(path).expanduser()) as file:
                return file.read()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    import tensorstore  # noqa: PLC0415  (local files do without it)

    folder, _, name = str(path).rpartition("/")
    try:
        store = tensorstore.KvStore.open(folder + "/").result(timeout=ANSWER_S)
        result = store.read(name).result(timeout=timeout)
    except TimeoutError as error:
        raise UserError(
            f"{path}: no answer within {timeout} s; is the address right, and is there a network?"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    if result.state != "value":
        raise UserError(f"{path}: no such file")
    return result.value


def copy(source: str, target: pathlib.Path) -> None:
    """Copies a file or URL to a local path, if it is not there."""
    if not target.exists():
        write_atomic(target, read(source, COPY_S))


def local(path: str) -> str:
    """A local path with the same content: the path itself, or a copy in the cache."""
    if not is_remote(path):
        return str(pathlib.Path(path).expanduser())
    target = cache_dir() / hashlib.sha256(str(path).encode()).hexdigest()[:16] / str(path).rpartition("/")[2]
    copy(path, target)
    return str(target)
