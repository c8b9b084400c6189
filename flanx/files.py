"""How commands write files: completely or not at all, JSONL that survives a kill, checksums, and locks that are
released when their process ends."""

import contextlib
import csv
import io
import json
import os
import pathlib
import stat
import tomllib
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from flanx import settings
from flanx.errors import UserError

CHECKSUMS = "flanx_checksums.json"
verifying = True  # whether readers of checkpoints and stores verify checksums; a command's `--no_verify` clears it
BLOCK = 1 << 22  # bytes read at a time
mirrors: dict[str, Any] = {}  # {URL: the `flanx.mirror.Mirror` that is open}


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """`path` as a local path, also for a file:// URL; ~ is the home folder. Raises UserError for any other URL."""
    text = os.fspath(path)
    if text.startswith("file://"):
        from urllib.request import url2pathname  # noqa: PLC0415  (it imports the servers' protocols)

        text = url2pathname(urllib.parse.urlsplit(text).path)
    if "://" in text:
        raise UserError(f"'{path}' is a URL; give a local file or folder")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        home = text.partition("/")[0]
        raise UserError(f"'{path}': there is no home folder '{home}'; write the path in full") from None


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """`path` as a folder to write to; for a URL, its local copy. Raises UserError if there is none."""
    text = str(path)
    if "://" not in text:
        return pathlib.Path(path)
    for url, mirror in mirrors.items():
        if f"{text}/".startswith(f"{url}/"):
            return mirror.path / text[len(url) :].strip("/")
    raise UserError(f"'{text}' is a URL: open it with `with flanx.bucket.opened(...)`")


def mirror_of(path: str | os.PathLike) -> Any:
    """The local copy of a bucket's folder that contains a path, or None."""
    return next((mirror for mirror in mirrors.values() if pathlib.Path(path).is_relative_to(mirror.path)), None)


def complete(folder: str | os.PathLike) -> None:
    """Makes the local copy of a bucket's folder copy this checkpoint, of which it may only have the name."""
    if mirror := mirror_of(folder):
        mirror.complete(folder)


def shown(path: str | os.PathLike) -> str:
    """A path as shown to people: for the local copy of a bucket's folder, its URL."""
    text = os.fspath(path)
    for url, mirror in mirrors.items():
        text = text.replace(str(mirror.path), url)
    return text


@contextlib.contextmanager
def open_atomic(path: pathlib.Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, and is removed if the block raises.

    A reader sees the old content or all of the new. With `durable` that also holds after a machine crash: file and
    folder are fsynced. The temporary file has the process id in its name, so that two writers do not share it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # from a write, which names no file
            error.filename = os.fspath(path)
        raise
    with contextlib.suppress(OSError):  # some network mounts cannot fsync a folder
        if durable and (descriptor := os.open(path.parent, os.O_RDONLY)) >= 0:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_atomic(path: pathlib.Path, content: str | bytes, durable: bool = True) -> None:
    """Replaces the content of `path` (text as UTF-8); see `open_atomic`."""
    with open_atomic(path, durable) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a file for reading. Raises UserError for a folder, and a pipe or device, which may never end; OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(f"{path} is not a regular file (a folder, a pipe or a device); give a file")
    return open(path, "rb")


def read_text(path: pathlib.Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises UserError for other bytes, a folder or a pipe."""
    with open_regular(path) as file:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def read_toml(path: pathlib.Path) -> dict[str, Any]:
    """The content of a TOML file. Raises UserError with what is wrong and where."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML ({error})") from None
    except RecursionError:
        raise UserError(f"{path}: not TOML (nested too deeply)") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no file. Raises UserError for a damaged one."""
    try:
        with open_regular(path) as file:
            found = json.loads(file.read().decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"{path} is damaged: not a JSON object (cut off by a copy or a full disk?); restore or remove it"
        )
    return found


def check_types(path: pathlib.Path, record: dict[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a file, whose keys ("run.versions" for one inside "run") have these types if present.

    Raises UserError naming the first with another type.
    """
    for name, hint in types.items():
        value: Any = record
        for part in name.split("."):
            value = value.get(part, settings.UNCHECKED) if isinstance(value, dict) else settings.UNCHECKED
        try:
            settings.convert(hint, value)
        except settings.Wrong as wrong:
            shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."
            raise UserError(
                f"{path} is damaged: '{name}' is {shown}, it takes {wrong}; restore or remove it"
            ) from wrong
    return record


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, with bars in cells escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; None is an empty field. A text that a spreadsheet would take for a formula gets a leading "'"."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([map(_inert, row) for row in [head, *rows]])
    return text.getvalue()


def _inert(cell: Any) -> Any:
    if not isinstance(cell, str) or len(cell) < 2 or cell[0] not in "=+-@\t\r":
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def umask() -> int:
    """The process's umask, for folders that `tempfile.mkdtemp` makes accessible only to the owner."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def lock(path: pathlib.Path, busy: str | None = None) -> Iterator[None]:
    """Holds the lock file `path` exclusively; the kernel releases it when the process ends, however it ends.

    If another process holds it: waits, or with `busy` raises UserError(busy) at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    import filelock  # noqa: PLC0415  (20 ms, which commands that only read do without)

    held = filelock.FileLock(path, timeout=-1 if busy is None else 0)
    try:
        held.acquire()
    except filelock.Timeout as error:
        raise UserError(busy or f"{path} is locked") from error
    try:
        yield
    finally:
        held.release()


# ---- JSONL: one object per line, in files that grow while their process may be killed -------------------------------


# A line is complete once its line feed is written. No other character ends a line: a text may contain U+2028 or U+0085,
# at which `str.splitlines` would break it.


def json_line(record: Any) -> str:
    """The record as a line, including the line feed; a lone surrogate, which UTF-8 cannot encode, becomes "?"."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8") + "\n"


def json_lines(path: pathlib.Path) -> list[str]:
    """All lines, the last of which may be truncated. Raises UserError if they are not UTF-8."""
    with open_regular(path) as file:
        return _split_lines(path, file.read())


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of the complete lines; [] if there is no file.

    Raises UserError naming the line that is not a JSON object.
    """
    raw = b""
    if path.exists():
        with open_regular(path) as file:
            raw = file.read()
    found: list[dict[str, Any]] = []
    for number, text in enumerate(_split_lines(path, raw[: raw.rfind(b"\n") + 1]), 1):
        found.append(json_object(path, number, text))
    return found


def json_object(path: pathlib.Path, number: int, line: str | bytes) -> dict[str, Any]:
    """The record in line `number` of a JSONL file. Raises UserError if it is not a JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(
            f"{path}:{number}: not a JSON object; the file is damaged or not written by flanx: move it away"
        )
    return record


def truncate_jsonl(path: pathlib.Path) -> None:
    """Removes an incomplete last line, left by a kill, so that the next one starts on its own."""
    with open(path, "r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def _split_lines(path: pathlib.Path, raw: bytes) -> list[str]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    return text.removesuffix("\n").split("\n") if text else []


# ---- checksums of a folder, written when it is complete and compared before it is used ------------------------------


# A missing chunk of an array reads as zeros and a flipped bit as another number; neither raises an error by itself.


def write_checksums(folder: str | os.PathLike) -> None:
    """Records every file of the folder, as {path: [bytes, CRC-32]}."""
    root = pathlib.Path(folder)
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    record = {p.relative_to(root).as_posix(): [p.stat().st_size, _crc(p)] for p in files}
    write_atomic(root / CHECKSUMS, json.dumps(record, indent=0) + "\n")


def verify_checksums(folder: str | os.PathLike) -> None:
    """Compares the files with their record, if there is one. Raises UserError naming the first that differs."""
    root = pathlib.Path(folder)
    for path in root.rglob("*"):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path} is a pipe or a device: the checkpoint is damaged; copy it again")
    record = read_json(root / CHECKSUMS) if verifying else {}
    check_types(root / CHECKSUMS, {"files": record}, {"files": dict[str, tuple[int, int]]})
    for name, (size, crc) in record.items():
        path = root / name
        if not path.is_file():
            raise UserError(f"{path} is missing: the checkpoint is damaged or half copied; copy it again")
        if path.stat().st_size != size or _crc(path) != crc:
            raise UserError(f"{path} has changed since it was written: the checkpoint is damaged; copy it again")


def _crc(path: pathlib.Path) -> int:
    crc = 0
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
