"""A checkpoint's model, its vocabulary and its maximum lengths, from what is written with it.

A run records them in run.json, a Hugging Face folder in config.json and its tokenizer files, a conversion in its note;
the sizes of a T5 are inferred from its tensors. All of this is data: a run's config.gin is a program, and is not read.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from flanx import hub, run_record
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
FREE = ("dropout_rate", "dtype", "kernels", "remat", "scan_layers")  # not determined by a checkpoint
LENGTHS = {"inputs": 2048, "targets": 512}  # Flan-T5's own


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What is needed to run a checkpoint's parameters.

    Attributes:
      lengths: {"inputs": I, "targets": T}, tokens, as in training; Flan-T5's own if no run records them.
    """

    model: Model
    vocabulary: Vocabulary
    lengths: Mapping[str, int]


def architecture(
    path: str | os.PathLike, model: Model | None = None, vocabulary: str | None = None, dtype: str | None = None
) -> Architecture:
    """The architecture of a run, a step's folder, or what `flanx convert` reads and writes.

    Args:
      model, vocabulary: override the checkpoint's.
      dtype: of activations, overrides the run's or "float32".

    Raises UserError if the checkpoint does not determine what is not given.
    """
    folder = open_storage(path)
    run, record = _run_of(folder)
    built: Any = model  # T5 and PaLM are frozen; the protocol's attributes are not
    if model is None:
        built = _described(path, run, record)
    if dtype is not None:
        if not isinstance(built, T5 | PaLM):
            raise UserError(
                f"dtype = '{dtype}': {type(model).__name__} is not a model of flanx; build it with that dtype"
            )
        built = dataclasses.replace(built, dtype=dtype)
    data = record.get("data") or {}
    if vocabulary is not None:
        loaded = vocabularies.load(vocabulary)
    elif (named := vocabularies.named_in(folder)) is not None:
        loaded = vocabularies.load(*named)
    else:
        raise UserError(vocabularies.no_vocabulary(folder))
    return Architecture(built, loaded, data.get("lengths") or LENGTHS)


def read_model(
    checkpoint: str,
    given: Model | None = None,
    dropout_rate: float | None = None,
    dtype: str | None = None,
) -> T5 | PaLM:
    """The model of a checkpoint, by name or folder, for training or inference; from the hub, only fetches config.json.

    Args:
      given: the model that gin files say, which must be of the same sizes and is then taken.
      dropout_rate, dtype: in place of what the checkpoint says.

    Raises UserError if the checkpoint does not record its sizes, or if `given` has others.
    """
    text = f"{hub.PREFIX}{checkpoint.removeprefix(hub.PREFIX)}" if hub.is_name(checkpoint) else checkpoint
    folder = hub.fetch(text, weights=False).folder if text.startswith(hub.PREFIX) else checkpoint
    run, record = _run_of(open_storage(folder))
    found = _described(folder, run, record)
    if isinstance(given, T5 | PaLM):
        theirs = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        wrong = [name for name in theirs if name not in FREE and theirs[name] != getattr(given, name, None)]
        if type(given) is not type(found) or wrong:
            those = ", ".join(f"{name} {theirs[name]!r} (gin: {getattr(given, name, None)!r})" for name in wrong[:4])
            raise UserError(
                f"MODEL: {checkpoint} is a {type(found).__name__} with {those or 'other sizes'}: leave out the gin "
                "file of the model and what else binds its sizes, or give those"
            )
        return given
    if given is not None:
        raise UserError(f"MODEL: {checkpoint} is given together with a {type(given).__name__}; give one of them")
    changed: dict[str, Any] = {"dropout_rate": dropout_rate, "dtype": dtype}
    return dataclasses.replace(found, **{name: value for name, value in changed.items() if value is not None})


def lengths(checkpoint: str) -> Mapping[str, int] | None:
    """{"inputs": I, "targets": T} a run was trained with; None for any other checkpoint."""
    if checkpoint.startswith(hub.PREFIX):
        return None
    record = _run_of(open_storage(checkpoint))[1]
    return (record.get("data") or {}).get("lengths")


def _run_of(folder: Storage) -> tuple[Storage, Mapping[str, Any]]:
    """The run of a run's or a step's folder, and its record; the folder itself and {} for any other."""
    run = folder.parent.parent if folder.parent.name == flanx_format.FOLDER else folder
    return run, run_record.read_stored_run(run)


def _described(path: str | os.PathLike, run: Storage, record: Mapping[str, Any]) -> T5 | PaLM:
    """The model that a checkpoint's run, its config.json or its tensors describe."""
    if settings := record.get("settings"):
        return model_of_settings(f"{run}/run.json", settings)
    folder = open_storage(path)
    if "config.json" in folder.children():
        config = hf.read_config(folder)
        return dataclasses.replace(logit_parity.model(hf.sizes(config), config), kernels="tuned")
    adapter = folder.read_json(hub.ADAPTER) if hub.ADAPTER in folder.children() else {}
    if (base := hub.base_of_adapter(adapter, folder)) is not None and base.startswith(hub.PREFIX):
        return read_model(base)
    return _of_tensors(open_checkpoint(path, optimizer=False))


def model_of_settings(where: str, settings: Mapping[str, Any]) -> T5 | PaLM:
    """The model of a run's settings; `where` they were found, for messages."""
    name = next((name for name in MODELS if any(key.startswith(f"{name}.") for key in settings)), None)
    if name is None:
        raise UserError(f"{where} names none of flanx's models ({', '.join(MODELS)}): give load(..., model=...)")
    fields = {key.removeprefix(f"{name}."): value for key, value in settings.items() if key.startswith(f"{name}.")}
    known = [field.name for field in dataclasses.fields(MODELS[name])]
    for field in fields:
        if field not in known:
            raise UserError(
                f"{where}: {name} has no '{field}'{nearest(field, known)}; was it written by a later flanx?"
            )
    try:
        return MODELS[name](**{**fields, "kernels": "tuned"})
    except TypeError as error:
        raise UserError(f"{where}: {name}: {error}; copy the run again") from error


def _of_tensors(source: OpenCheckpoint) -> T5:
    """The T5 of a checkpoint's sizes and config."""
    if source.sizes is None:
        raise UserError(
            f"{source.given} is not a T5, and no run.json says its sizes: give a file of gin/models, in Python "
            "load(..., model=PaLM(...))"
        )
    model = logit_parity.model(source.sizes, dict(source.config))
    return dataclasses.replace(model, scan_layers=source.stacked, kernels="tuned")
