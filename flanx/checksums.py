"""The sizes and CRC-32s of a folder's files, written when it is complete and compared before it is used.

A missing chunk of an array reads as zeros and a flipped bit as another number; neither is an error of its own.
"""

import json
import os
import pathlib
import zlib

from flanx.errors import UserError
from flanx.files import read_json, write_atomic

FILE = "flanx_checksums.json"
BLOCK = 1 << 22  # bytes


def write(folder: str | os.PathLike) -> None:
    """Records every file of the folder, as {path: [bytes, CRC-32]}."""
    root = pathlib.Path(folder)
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != FILE)
    record = {p.relative_to(root).as_posix(): [p.stat().st_size, _crc(p)] for p in files}
    write_atomic(root / FILE, json.dumps(record, indent=0) + "\n")


def verify(folder: str | os.PathLike) -> None:
    """Compares the files with their record, where there is one. Raises UserError naming the first that differs."""
    root = pathlib.Path(folder)
    for name, (size, crc) in read_json(root / FILE).items():
        path = root / name
        if not path.is_file():
            raise UserError(f"{path} is missing: the checkpoint is damaged or half copied; copy it again")
        if path.stat().st_size != size or _crc(path) != crc:
            raise UserError(f"{path} has changed since it was written: the checkpoint is damaged; copy it again")


def _crc(path: pathlib.Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
