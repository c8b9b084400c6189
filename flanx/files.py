"""Files and folders that a command writes: whole or not at all."""

import os
import pathlib

from flanx.errors import UserError


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """`path` as a folder. Raises UserError for a URL: logs are appended to, which object stores cannot."""
    if "://" in str(path):
        raise UserError(f"'{path}' is a URL, and a run writes to a folder: mount the bucket (gcsfuse) and give that")
    return pathlib.Path(path)


def write_atomic(path: pathlib.Path, text: str) -> None:
    """Writes `text` to `path` whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
