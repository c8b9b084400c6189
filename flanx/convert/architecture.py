"""Which model a checkpoint is of, its vocabulary, and how long its texts may be, from what is written with it.

A run says so in run.json, a Hugging Face folder in config.json and its tokenizer files, a conversion in its note; the
sizes of a T5 are those of its tensors. All of it is data: a run's config.gin is a program, and is not read.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from flanx.convert import flanx_format, hf, logit_parity
from flanx.convert.formats import OpenCheckpoint, open_checkpoint
from flanx.data import vocabulary as vocabularies
from flanx.data.vocabulary import Vocabulary
from flanx.errors import UserError, nearest
from flanx.models import Model
from flanx.models.palm import PaLM
from flanx.models.t5 import T5
from flanx.storage import Storage, open_storage

MODELS: Mapping[str, type[T5] | type[PaLM]] = {"t5.T5": T5, "palm.PaLM": PaLM}  # by the names in run.json
LENGTHS = {"inputs": 2048, "targets": 512}  # Flan-T5's own


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What it takes to run a checkpoint's parameters.

    Attributes:
      lengths: {"inputs": I, "targets": T}, tokens, as in training; Flan-T5's own where no run says so.
    """

    model: Model
    vocabulary: Vocabulary
    lengths: Mapping[str, int]


def architecture(
    path: str | os.PathLike, model: Model | None = None, vocabulary: str | None = None, dtype: str | None = None
) -> Architecture:
    """The architecture of a run, a step's folder, or what `flanx convert` reads and writes.

    Args:
      model, vocabulary: in place of what the checkpoint says.
      dtype: of activations, in place of the run's or "float32".

    Raises UserError where the checkpoint does not say what is not given.
    """
    folder = open_storage(path)
    run = folder.parent.parent if folder.parent.name == flanx_format.FOLDER else folder
    record = run.read_json("run.json") if "run.json" in run.children() else {}
    if not isinstance(record, dict):
        raise UserError(f"{run}/run.json is damaged: it is no dict; copy the run again")
    built: Any = model  # T5 and PaLM are frozen, the protocol's attributes are not
    if model is None:
        settings = record.get("settings")
        built = _of_run(run, settings) if settings else _of_tensors(open_checkpoint(path, optimizer=False))
    if dtype is not None:
        if not isinstance(built, T5 | PaLM):
            raise UserError(f"dtype = '{dtype}': {type(model).__name__} is no model of flanx; build it with that dtype")
        built = dataclasses.replace(built, dtype=dtype)
    data = record.get("data") or {}
    if vocabulary is not None:
        loaded = vocabularies.load(vocabulary)
    elif (spec := data.get("store", {}).get("vocabulary")) is not None:
        loaded = vocabularies.load(spec)
    else:
        loaded = _of_tokenizer(folder)
    return Architecture(built, loaded, data.get("lengths") or LENGTHS)


def _of_run(run: Storage, settings: Mapping[str, Any]) -> T5 | PaLM:
    """The model of a run's settings."""
    where = f"{run}/run.json"
    name = next((name for name in MODELS if any(key.startswith(f"{name}.") for key in settings)), None)
    if name is None:
        raise UserError(f"{where} names none of flanx's models ({', '.join(MODELS)}): give load(..., model=...)")
    fields = {key.removeprefix(f"{name}."): value for key, value in settings.items() if key.startswith(f"{name}.")}
    known = [field.name for field in dataclasses.fields(MODELS[name])]
    for field in fields:
        if field not in known:
            raise UserError(f"{where}: {name} has no '{field}'{nearest(field, known)}; was a later flanx its author?")
    try:
        return MODELS[name](**{**fields, "kernels": "tuned"})
    except TypeError as error:
        raise UserError(f"{where}: {name}: {error}; copy the run again") from error


def _of_tensors(source: OpenCheckpoint) -> T5:
    """The T5 of a checkpoint's sizes and config."""
    if source.sizes is None:
        raise UserError(f"{source.given} is not a T5, and no run.json says its sizes: give load(..., model=PaLM(...))")
    model = logit_parity.model(source.sizes, dict(source.config))
    return dataclasses.replace(model, scan_layers=source.stacked, kernels="tuned")


def _of_tokenizer(folder: Storage) -> Vocabulary:
    """The vocabulary of a folder's tokenizer files."""
    names = folder.children()
    config = folder.read_json("tokenizer_config.json") if "tokenizer_config.json" in names else {}
    config = config if isinstance(config, dict) else {}
    if "spiece.model" in names:
        extra_ids = config.get("extra_ids")
        return vocabularies.load(f"{folder}/spiece.model", extra_ids if type(extra_ids) is int else None)
    if str(config.get("tokenizer_class", "")).startswith("ByT5Tokenizer"):
        return vocabularies.load("byte")
    raise UserError(
        f"{folder} does not say its vocabulary (run.json, spiece.model): give vocabulary='byte', or the path or URL of "
        f"{hf.TOKENIZER_FILES[0]}"
    )
