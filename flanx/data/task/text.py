"""Real-world text files: one reader for the rows of tasks, exports, prompts and benchmarks.

| what | how it is read |
|---|---|
| encoding | UTF-8, with or without a byte order mark; UTF-16 and UTF-32 with one; others are rejected with the line |
| line ends | LF and CRLF; lone CR if a file has no LF. No other character ends a line |
| .gz | recognized by its first bytes, whatever the name |
| JSONL | one object per line; blank lines are skipped; a file that is one JSON array yields its elements |
| JSON | duplicate keys in an object are rejected, where Python and pandas silently take the last value |
| CSV | RFC 4180, separated by commas, semicolons (if the first line has no comma) or as `sep=;` says; no blank rows |
| TSV | plain, or quoted as pandas and Excel write it, consistently for the whole file (`is_quoted`) |

Column names are compared in NFC, so that an accent typed on one machine matches a header written on another.
"""

import codecs
import csv
import functools
import gzip
import io
import itertools
import json
import os
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from flanx.data.task.row import BadRow, Record, text_of, whole
from flanx.errors import UserError, nearest
from flanx.files import open_regular

csv.field_size_limit(1 << 30)  # a cell may be a whole document
HEAD = 1 << 20  # bytes read to detect the encoding and the line ends
MOST_RATIO, MOST_UNPACKED = 200, 1 << 26  # limits when unpacking: times the packed size; bytes always allowed
KINDS = ("jsonl", "json", "csv", "tsv", "parquet")
_MARKS = (  # longest first: UTF-16's mark is a prefix of UTF-32's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATOR = re.compile(r"sep=([,;|\t])\r?\n", re.IGNORECASE)
_DOUBLED = re.compile(r'(?:^|\t)"(?:[^"\t]|"")*""(?:[^"\t]|"")*"(?=\t|\r?\n?$)')  # a cell "with ""quotes"" in it"
Raw = Iterator[tuple[str, Record | BadRow]]  # (location for messages, the record or its error)


def kind_of(path: pathlib.Path) -> str | None:
    """One of KINDS by file extension, case-insensitive, with or without .gz; None for others."""
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    ending = {"ndjson": "jsonl", "tab": "tsv"}.get(ending, ending)
    return ending if ending in KINDS else None


# ---- bytes -> lines --------------------------------------------------------------------------------------------------


def _binary(path: pathlib.Path) -> BinaryIO:
    with open_regular(path) as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, _Unpacked(path, "rb")) if packed else path.open("rb")


class _Unpacked(gzip.GzipFile):
    """A gzip file that raises an error if it unpacks to far more than text of its packed size can."""

    count = 0

    def read1(self, size: int = -1) -> bytes:
        return self._checked(super().read1(size))

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(size))

    def _checked(self, block: bytes) -> bytes:
        self.count += len(block)
        if self.count > max(MOST_UNPACKED, MOST_RATIO * os.path.getsize(self.name)):
            raise OSError(f"unpacks to more than {MOST_RATIO} times its size; that is not text")
        return block


def _form(path: pathlib.Path) -> tuple[str, bool]:
    """(encoding, whether lone CR ends lines), detected from the first bytes."""
    with _binary(path) as file:
        head = file.read(HEAD)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in head:
        line = head.count(b"\n", 0, head.index(b"\0")) + 1
        raise UserError(
            f"{path}:{line}: holds zero bytes; it is not text, or UTF-16 without its mark: save it as UTF-8"
        )
    return encoding, b"\r" in head and b"\n" not in head


def _not_text(path: pathlib.Path, error: UnicodeDecodeError) -> UserError:
    """The error naming the first line that is not in the file's encoding."""
    with _binary(path) as file:
        for number, line in enumerate(file if error.encoding == "utf-8" else (), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as e:
                near = line[max(0, e.start - 10) : e.start + 10].decode("cp1252", errors="replace").strip()
                return UserError(
                    f"{path}:{number}: not UTF-8 (byte 0x{line[e.start]:02x}; as Windows-1252 it reads {near!r}); "
                    "convert the file: iconv -f WINDOWS-1252 -t UTF-8"
                )
    return UserError(f"{path}: not {error.encoding.upper()} ({error.reason}); save it as UTF-8")


def _chunks(path: pathlib.Path) -> Iterator[str]:
    """The lines with their ends; if lone CR ends lines, it becomes LF. Raises UserError."""
    try:
        encoding, old_mac = _form(path)
        with io.TextIOWrapper(_binary(path), encoding, newline="\r" if old_mac else "\n") as file:
            for line in file:
                yield line.removesuffix("\r") + "\n" if old_mac and line.endswith("\r") else line
    except UnicodeDecodeError as error:
        raise _not_text(path, error) from None
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be read ({said or type(error).__name__})") from error


def lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end). Raises UserError naming a line that is not text."""
    for number, line in enumerate(_chunks(path), 1):
        yield number, line.removesuffix("\n").removesuffix("\r")


def read(path: pathlib.Path) -> str:
    """The whole text, with LF line ends. Raises UserError as `lines` does."""
    return "".join(_chunks(path)).replace("\r\n", "\n")


# ---- JSON ------------------------------------------------------------------------------------------------------------


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file. Raises UserError with the line."""
    try:
        return json.loads(read(path), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def read_yaml(path: pathlib.Path) -> Any:
    """Reads a YAML file of plain values. Raises UserError with the reason."""
    import yaml  # noqa: PLC0415  (only needed for exemplars published as YAML)

    try:
        return yaml.safe_load(read(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def _once(pairs: list[tuple[str, Any]]) -> Record:
    """An object whose keys are distinct, even in NFC. Raises ValueError naming a duplicate."""
    record = dict(pairs)
    if len(record) != len(pairs) or not all(map(str.isascii, record)):
        seen: set[str] = set()
        for name, _ in pairs:
            if (normal := unicodedata.normalize("NFC", name)) in seen:
                raise ValueError(f"an object has '{name}' twice")
            seen.add(normal)
    return record


def json_rows(path: pathlib.Path) -> Raw:
    """The objects of a JSONL file, or of a file that is a single array."""
    begun = False
    for number, line in lines(path):
        if not (text := line.strip()):
            continue
        if not begun and text.startswith("["):
            value = read_json(path)
            yield from ((f"{path}[{n}]", _object(record)) for n, record in enumerate(value))
            return
        if not begun and text == "{":
            raise UserError(f"{path}:{number}: not JSON on one line; give each object its own: jq -c . FILE")
        begun = True
        try:
            yield f"{path}:{number}", _object(json.loads(text, object_pairs_hook=_once))
        except (ValueError, RecursionError) as error:
            yield f"{path}:{number}", BadRow(f"not JSON: {error}")


def _object(value: Any) -> Record | BadRow:
    return value if isinstance(value, dict) else BadRow("not a JSON object")


# ---- tables ----------------------------------------------------------------------------------------------------------


def csv_rows(path: pathlib.Path, delimiter: str = ",") -> Iterator[tuple[int, list[str] | BadRow]]:
    """(line, cells) of a quoted table; blank rows are skipped, line ends in cells become LF."""
    text = _chunks(path)
    first = next(text, "")
    if said := _SEPARATOR.fullmatch(first):  # Excel's own line
        delimiter, first = said[1], "\n"
    elif delimiter == "," and ";" in first and "," not in first:
        delimiter = ";"
    kept: list[str] = []  # the lines of the current row
    ended = False  # the reader asks for a line past the end within a quoted cell, or for another row

    def keeping() -> Iterator[str]:
        nonlocal ended
        for line in itertools.chain([first], text):
            kept.append(line)
            yield line
        ended = True

    reader = csv.reader(keeping(), delimiter=delimiter)
    last = 0
    while True:
        kept.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield reader.line_num, BadRow(f"not CSV: {error}")
            continue
        if cells is None:
            return
        if ended:
            yield last + 1, BadRow("a quote is opened here and never closed")
            return
        last = reader.line_num
        if any(map(str.strip, cells)):
            yield last, [cell.replace("\r\n", "\n") for cell in cells]


def tsv_rows(path: pathlib.Path, escaped: bool = False) -> Iterator[tuple[int, list[str] | BadRow]]:
    """(line, cells) of a TSV, quoted or plain; blank rows are skipped.

    With `escaped`, a literal `\\n` in a plain file is a line break."""
    if is_quoted(path):
        yield from csv_rows(path, "\t")
        return
    for number, line in lines(path):
        if line.strip():
            yield number, [cell.replace("\\n", "\n") if escaped else cell for cell in line.split("\t")]


def is_quoted(path: pathlib.Path) -> bool:
    """Whether a TSV is quoted: when read with quotes, every quote closes at the end of its cell, all rows have the same
    width, and some cell needs its quotes (it has a tab, a line end or a doubled quote) or all texts have them.

    A plain file, in which a cell may begin with a quotation, is not."""
    found = path.stat()
    return _is_quoted(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _is_quoted(path: pathlib.Path, size: int, time_ns: int) -> bool:
    needed, width, cells = False, 0, []
    try:
        for cells in csv.reader(_chunks(path), delimiter="\t", strict=True):
            if cells and len(cells) != (width := width or len(cells)):
                return False
            needed = needed or any("\t" in cell or "\n" in cell for cell in cells)
        if needed or any(_DOUBLED.search(line) for line in _chunks(path)):
            return width > 1
        quoted_all = csv.reader(_chunks(path), delimiter="\t", strict=True, quoting=csv.QUOTE_NONNUMERIC)
        return width > 1 and any([isinstance(cell, str) for cells in quoted_all for cell in cells])
    except (csv.Error, ValueError):  # a quote within a cell; a text without quotes
        return False


def table_rows(path: pathlib.Path, kind: str | None = None, escaped: bool = False) -> Raw:
    """The rows of a CSV or TSV file by its header; `kind`: which of the two, if the name does not tell.

    Blank cells after the last named column, which Excel writes, are ignored. `escaped`: as in `tsv_rows`."""
    rows = csv_rows(path) if (kind or kind_of(path)) == "csv" else tsv_rows(path, escaped)
    header: list[str] = []
    for number, cells in rows:
        location = f"{path}:{number}"
        if isinstance(cells, BadRow):
            if not header:
                raise UserError(f"{location}: {cells}")
            yield location, cells
        elif not header:
            header = unique(cells, location)
            while header and not header[-1]:
                header.pop()
        elif len(cells) < len(header) or any(map(str.strip, cells[len(header) :])):
            yield location, BadRow(f"{len(cells)} columns instead of {len(header)} ({', '.join(header)})")
        else:
            yield location, dict(zip(header, cells, strict=False))


def unique(header: list[str], location: str) -> list[str]:
    """The header with stripped names. Raises UserError for duplicate names."""
    names = [name.strip() for name in header]
    twice = next((name for n, name in enumerate(names) if name and name in names[:n]), None)
    if twice is not None:
        raise UserError(f"{location}: two columns are named '{twice}'; rename one")
    return names


def records(path: pathlib.Path, escaped: bool = False) -> Raw:
    """The records of a file of any kind in KINDS; `escaped`: as in `tsv_rows`.

    Raises UserError for another kind, or if there is no file."""
    kind = kind_of(path)
    if not path.is_file():
        raise UserError(f"no file {path}")
    if kind is None:
        raise UserError(f"{path}: give a .jsonl, .json, .csv, .tsv or .parquet file, .gz or not")
    if kind == "parquet":
        return ((f"{path}[{number}]", record) for number, record in enumerate(parquet_rows(path)))
    return table_rows(path, kind, escaped) if kind in ("csv", "tsv") else json_rows(path)


def parquet_rows(path: pathlib.Path) -> Iterator[Record]:
    """The rows of a Parquet file, a thousand in memory at a time; 32-bit floats as their shortest decimals."""
    try:
        import pyarrow as pa  # noqa: PLC0415  (large, comes with TFDS; only Parquet files need it)
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as e:
        raise UserError(f"{path}: Parquet files need pyarrow: pip install pyarrow") from e
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            short = [
                column.cast(pa.string()).cast(pa.float64()) if column.type == pa.float32() else column
                for column in batch.columns
            ]
            yield from pa.RecordBatch.from_arrays(short, names=batch.schema.names).to_pylist()
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{path}: not a Parquet file that can be read ({str(e).splitlines()[0][:150]})") from e


def cell(record: Record, name: str, location: str) -> str:
    """A field of a record as text, "" if null. Raises UserError for values without a text form, such as NaN."""
    value = record[name]
    try:
        return "" if value is None else whole(text_of(value, name))
    except BadRow as error:
        raise UserError(f"{location}: {error}") from None


def column_of(asked: str, columns: list[str], location: str) -> str:
    """The requested column, compared in NFC. Raises UserError listing the existing ones."""
    found = [name for name in columns if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", asked)]
    if not found:
        raise UserError(f"{location}: no column '{asked}'{nearest(asked, columns)} (it has {', '.join(columns)})")
    return asked if asked in found else found[0]
