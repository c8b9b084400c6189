"""TensorFlow Datasets as records of plain Python values; the one module that imports tensorflow_datasets.

`python -m flanx.seqio.tfds NAME [SPLIT]` does so in a separate process, for callers that do not import TensorFlow.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from flanx.errors import UserError


def _package(name: str) -> Any:
    """TensorFlow Datasets, imported when a source needs it. Raises UserError if it is not installed."""
    try:
        import tensorflow_datasets  # noqa: PLC0415  (takes seconds to import, and with TensorFlow 1.9 GB)
    except ImportError as error:
        raise UserError(
            f"tfds:{name} needs TensorFlow Datasets ({error}): pip install tensorflow-datasets tensorflow"
        ) from error
    return tensorflow_datasets


def records(name: str, split: str) -> Iterator[dict[str, Any]]:
    """The records of a prepared data set in order. Raises UserError if the package is not installed; for a missing data
    set TFDS raises various errors."""
    tfds = _package(name)
    data = tfds.load(name, split=split, shuffle_files=False, download=False)
    return map(plain, tfds.as_numpy(data))


def plain(value: Any) -> Any:
    """A TFDS value (numpy, bytes, nested) as strings, numbers, lists and dictionaries.

    Bytes that are not UTF-8 stay bytes, which prompts reject; 16- and 32-bit floats become their shortest decimals.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "to_list"):  # a ragged tensor
        return plain(value.to_list())
    if getattr(value, "dtype", None) in ("float32", "float16"):
        value = value.astype(str).astype(float)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def prepare(name: str) -> None:
    """Downloads and prepares a data set into TFDS_DATA_DIR."""
    _package(name).builder(name).download_and_prepare()


def main(arguments: Sequence[str]) -> None:
    """`NAME` prepares a data set; `NAME SPLIT` prints the records of a split as JSON, one per line."""
    if len(arguments) == 1:
        return prepare(*arguments)
    for record in records(*arguments):
        print(json.dumps(record, default=lambda value: None))  # ASCII: the only line breaks are between records


if __name__ == "__main__":
    main(sys.argv[1:])
