"""Models on the Hugging Face hub by name: "google/flan-t5-small", "hf:google/flan-t5-small@REVISION".

Only data is fetched: safetensors, JSON and the tokenizer's files; nothing that would be unpickled or run. The files are
in huggingface_hub's own cache, so that a second load needs no network. HF_TOKEN, HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE have their usual meaning.
"""

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from flanx.errors import UserError

PREFIX = "hf:"
NAME = re.compile(r"(?:hf:)?([A-Za-z0-9][\w.-]*/[\w.-]+|(?<=hf:)[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
WEIGHTS = "*.safetensors"
FETCHED = ("*.json", "spiece.model", "vocab.txt", "merges.txt")  # the last two for scorers' tokenizers
LEFT_OUT = ("*/*", "flax_model*", "tf_model*")
ANSWER_S = 10  # for the first request


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A model's files on this machine.

    Attributes:
      folder: a Hugging Face folder as `flanx.convert` reads it.
      revision: the commit's hash; files: {name: SHA-256}.
    """

    name: str
    folder: pathlib.Path
    revision: str
    files: dict[str, str]

    def record(self) -> dict[str, Any]:
        """The origin as recorded with a result."""
        return {"hub": self.name, "revision": self.revision, "files": dict(self.files)}


def is_name(text: str) -> bool:
    """Whether a text names a model on the hub rather than a local folder: it begins with "hf:", or has the form
    ORG/NAME and there is neither such a folder nor a folder ORG."""
    if text.startswith(PREFIX):
        return True
    return bool(NAME.fullmatch(text)) and not os.path.exists(text) and not os.path.isdir(text.partition("/")[0])


def split(text: str) -> tuple[str, str | None]:
    """(ORG/NAME, revision or None) of a name. Raises UserError for an invalid name."""
    if match := NAME.fullmatch(text):
        return match[1], match[2]
    raise UserError(f"'{text}' is not a name on the Hugging Face hub: write hf:ORG/NAME or hf:ORG/NAME@REVISION")


def base_of_adapter(config: Any, folder: str | os.PathLike) -> str | None:
    """The base that PEFT's adapter_config.json in `folder` names: on the hub, with "hf:" and the revision, which PEFT
    keeps separately; or a subfolder. None if it names none."""
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        return None
    if not os.path.isabs(base) and os.path.isdir(inside := os.path.join(folder, base)):
        return inside
    if not is_name(base):
        return base
    name, revision = split(base)
    revision = revision or config.get("revision")
    return f"{PREFIX}{name}@{revision}" if revision else f"{PREFIX}{name}"


def record(path: str | os.PathLike | None) -> dict[str, Any]:
    """The origin of a checkpoint on the hub, as recorded with a result; {} for any other path."""
    text = os.fspath(path) if path is not None else ""
    return fetch(text).record() if text.startswith(PREFIX) else {}


def expect_unmoved(text: str, recorded: Mapping[str, Any]) -> None:
    """Compares what a name resolves to now with the `record` of a run that started from it; prints a line if it has
    moved but the weights are the same, or if the hub does not answer.

    Raises UserError if its weights are no longer the recorded ones, with the name that still resolves to them.
    """
    name, revision = split(text)
    was = recorded.get("revision")
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return
    try:
        info = _library().HfApi().model_info(name, revision=revision, timeout=ANSWER_S, files_metadata=True)
    except Exception as error:  # whatever the hub's client raises: the run has what it needs
        print(f"note: the hub does not say whether {text} has moved ({type(error).__name__}); the run began from {was}")
        return
    if info.sha == was:
        return
    now = {each.rfilename: each.lfs.sha256 for each in info.siblings or () if each.lfs}
    weights = {file: sha for file, sha in recorded.get("files", {}).items() if file.endswith(".safetensors")}
    moved = f"{text} has moved since the run began, from revision {was} to {info.sha}"
    if weights and all(now.get(file) == sha for file, sha in weights.items()):
        print(f"note: {moved}; its weights are the same")
        return
    raise UserError(f"{moved}: give {PREFIX}{name}@{was} to resume, or another MODEL_DIR")


# ---- giving a model away ---------------------------------------------------------------------------------------------

ADAPTER = "adapter_config.json"  # of a PEFT folder, which has no config.json and no tokenizer
SENT = (*FETCHED, WEIGHTS, "README.md", "DATA.md")
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")


def sendable(folder: pathlib.Path) -> dict[str, int]:
    """{name: bytes} of the files in a folder that `push` sends.

    Raises UserError unless it is a model with tokenizer and card, or an adapter with a card whose base is on the hub;
    and if a text contains an access token.
    """
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}': `flanx convert RUN {folder} --to hf` makes it")
    found = sorted(file for file in folder.iterdir() if file.is_file() and any(map(file.match, SENT)))
    names = {file.name for file in found}
    wanted = {
        "config.json": "config.json" in names,
        "safetensors": any(name.endswith(".safetensors") for name in names),
        "a tokenizer (spiece.model, tokenizer_config.json)": bool(names & {"spiece.model", "tokenizer_config.json"}),
        "a card (README.md)": "README.md" in names,
    }
    kind = "peft" if ADAPTER in names else "hf"
    if kind == "peft":
        _expect_base_on_hub(folder)
        wanted = {what: wanted[what] for what in ("safetensors", "a card (README.md)")}
    if absent := [what for what, there in wanted.items() if not there]:
        raise UserError(f"{folder} lacks {', '.join(absent)}: make it by `flanx convert RUN {folder} --to {kind}`")
    for file in found:
        if file.suffix in (".json", ".md") and TOKEN.search(file.read_bytes()):
            raise UserError(f"{file} holds an access token of the hub: take it out, and revoke it")
    return {file.name: file.stat().st_size for file in found}


def _expect_base_on_hub(folder: pathlib.Path) -> None:
    """Raises UserError for an adapter whose base others cannot fetch."""
    try:
        base = base_of_adapter(json.loads((folder / ADAPTER).read_bytes()), folder)
    except (ValueError, RecursionError):
        raise UserError(f"{folder / ADAPTER} is not JSON: copy the folder again") from None
    if base is None or not base.startswith(PREFIX):
        raise UserError(
            f"{folder / ADAPTER} names the base '{base}', which the hub does not have: `flanx convert RUN {folder} "
            "--to peft --base hf:ORG/NAME` names it as the hub does"
        )


def push(folder: pathlib.Path, text: str, private: bool) -> str:
    """Sends a folder's `sendable` files to ORG/NAME as one commit, and returns its URL. Creates the repository if it
    does not exist. Raises UserError if the hub refuses or does not answer."""
    name, revision = split(text)
    if revision:
        raise UserError(f"'{text}' names a revision; a push makes a new one: leave it out")
    names = list(sendable(folder))
    api = _library().HfApi()
    try:
        api.model_info(name, timeout=ANSWER_S)  # what follows has no time limit
    except Exception as error:  # a hub that answers says that there is none yet, or what is wrong with the token
        if getattr(error, "response", None) is None:
            raise UserError(f"{text}: the hub does not answer ({type(error).__name__}): is there a network?") from error
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=names).commit_url)
    except Exception as error:  # whatever the hub's client raises
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            raise UserError(f"{text}: the hub refuses ({status}): set HF_TOKEN to one that may write there") from error
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(f"{text}: not sent ({type(error).__name__}: {line}); the same command tries again") from error


def _library() -> Any:
    """huggingface_hub, from the extra `hf`."""
    try:
        import huggingface_hub  # noqa: PLC0415  (the extra `hf`)
    except ImportError as error:
        raise UserError("names of the Hugging Face hub need its library: pip install huggingface_hub") from error
    return huggingface_hub


@functools.lru_cache(maxsize=64)
def fetch(text: str, weights: bool = True) -> Snapshot:
    """The files of a model by name, the same ones throughout a process; what is in the cache is not fetched again.

    Args:
      weights: False: only the configuration and tokenizer.

    Raises UserError if there is no such model, no access to it or no answer, or if it has no safetensors.
    """
    name, revision = split(text)
    library = _library()
    errors = importlib.import_module("huggingface_hub.errors")
    here = "" if text.startswith(PREFIX) else f"no folder '{text}' here; "
    api = library.HfApi()
    try:
        try:
            info = api.model_info(name, revision=revision, timeout=ANSWER_S)
        except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception as error:  # no network, or the hub is down: anything its client raises
            if (status := getattr(getattr(error, "response", None), "status_code", 0)) in (401, 403):
                raise UserError(
                    f"{name}: the hub refuses the access token ({status}): fix or unset HF_TOKEN"
                ) from error
            folder = _cached(name, revision, weights, error, here)
        else:
            held = {sibling.rfilename for sibling in info.siblings or ()}
            if weights and not any(file.endswith(".safetensors") and "/" not in file for file in held):
                raise UserError(
                    f"{name} on the hub has no safetensors: download what it has and give that folder, or ask its "
                    "authors (huggingface.co/spaces/safetensors/convert makes them)"
                )
            folder = _snapshot(name, revision, weights)
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name} on the hub asks for its conditions to be accepted: do so there, set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name} on the hub has no revision '{revision}'") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{here}no model '{name}' on the hub, or none that HF_TOKEN gives access to") from error
    except (OSError, ValueError, RuntimeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{name}: the download from the hub failed ({line}); the same call resumes it") from error
    path = pathlib.Path(folder)
    return Snapshot(name, path, path.name, {file.name: _sha256(file) for file in sorted(path.iterdir())})


def _snapshot(name: str, revision: str | None, weights: bool, only_cached: bool = False) -> str:
    """The folder of a model's files."""
    return _library().snapshot_download(
        name,
        revision=revision,
        allow_patterns=[*FETCHED, *([WEIGHTS] if weights else [])],
        ignore_patterns=list(LEFT_OUT),
        etag_timeout=ANSWER_S,
        local_files_only=only_cached,
    )


def _cached(name: str, revision: str | None, weights: bool, cause: Exception, here: str) -> str:
    """The snapshot in the cache, if the hub does not answer. Raises UserError if the model is not cached."""
    constants = importlib.import_module("huggingface_hub.constants")
    try:
        folder = _snapshot(name, revision, weights, only_cached=True)
        held = {file.name for file in pathlib.Path(folder).iterdir()}
        if not {"config.json", ADAPTER} & held or (weights and not any(file.endswith(".safetensors") for file in held)):
            raise FileNotFoundError(folder)  # another call fetched only its tokenizer
        return folder
    except (OSError, ValueError) as error:
        endpoint = constants.ENDPOINT
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else type(cause).__name__
        raise UserError(
            f"{here}{name} is not in the hub's cache, and {endpoint} does not answer ({why}): is there a network? Or "
            "copy the model's folder here and give its path"
        ) from error


def _sha256(file: pathlib.Path) -> str:
    """The SHA-256 of a file's content, by which the cache names a large file."""
    name = file.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return name
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
