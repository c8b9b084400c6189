"""Models of the Hugging Face hub by name: "google/flan-t5-small", "hf:google/flan-t5-small@REVISION".

Only what is data is fetched: safetensors, JSON and the SentencePiece model; nothing that would be unpickled or run. The
files lie in huggingface_hub's own cache, so that a second load needs no network. HF_TOKEN, HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE mean what they mean there.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from typing import Any

from flanx.errors import UserError

PREFIX = "hf:"
NAME = re.compile(r"(?:hf:)?([A-Za-z0-9][\w.-]*/[\w.-]+|(?<=hf:)[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
FETCHED = ("*.safetensors", "*.json", "spiece.model")
LEFT_OUT = ("*/*", "flax_model*", "tf_model*")
ANSWER_S = 10  # to the first question


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
        """What a result records of its origin."""
        return {"hub": self.name, "revision": self.revision, "files": dict(self.files)}


def is_name(text: str) -> bool:
    """Whether a text names a model of the hub and no folder here: it begins with "hf:", or has the form ORG/NAME where
    there is neither such a folder nor a folder ORG."""
    if text.startswith(PREFIX):
        return True
    return bool(NAME.fullmatch(text)) and not os.path.exists(text) and not os.path.isdir(text.partition("/")[0])


def fetch(text: str) -> Snapshot:
    """The files of a model by its name; those that are in the cache are not fetched again.

    Raises UserError where there is no such model, no access to it or no answer, and where it has no safetensors.
    """
    match = NAME.fullmatch(text)
    if not match:
        raise UserError(f"'{text}' is no name on the Hugging Face hub: write hf:ORG/NAME or hf:ORG/NAME@REVISION")
    try:
        import huggingface_hub  # noqa: PLC0415  (the extra `hf`)
        from huggingface_hub import errors  # noqa: PLC0415
    except ImportError as error:
        raise UserError(
            f"'{text}' is on the Hugging Face hub: pip install huggingface_hub, or give a folder"
        ) from error
    name, revision = match[1], match[2]
    here = "" if text.startswith(PREFIX) else f"no folder '{text}' here; "
    api = huggingface_hub.HfApi()
    try:
        try:
            info = api.model_info(name, revision=revision, timeout=ANSWER_S)
        except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except Exception as error:  # no network, or the hub is down: whatever its client raises
            folder = _cached(name, revision, error, here)
        else:
            held = {sibling.rfilename for sibling in info.siblings or ()}
            if not any(file.endswith(".safetensors") and "/" not in file for file in held):
                raise UserError(
                    f"{name} on the hub has no safetensors: download what it has and give that folder, or ask its "
                    "authors (huggingface.co/spaces/safetensors/convert makes them)"
                )
            folder = _snapshot(name, revision)
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
        raise UserError(
            f"{name}: the download from the hub failed ({line}); the same call takes it up again"
        ) from error
    path = pathlib.Path(folder)
    return Snapshot(name, path, path.name, {file.name: _sha256(file) for file in sorted(path.iterdir())})


def _snapshot(name: str, revision: str | None, only_cached: bool = False) -> str:
    """The folder of a model's files."""
    import huggingface_hub  # noqa: PLC0415  (the extra `hf`)

    return huggingface_hub.snapshot_download(
        name,
        revision=revision,
        allow_patterns=list(FETCHED),
        ignore_patterns=list(LEFT_OUT),
        etag_timeout=ANSWER_S,
        local_files_only=only_cached,
    )


def _cached(name: str, revision: str | None, cause: Exception, here: str) -> str:
    """The snapshot in the cache, where the hub gives no answer."""
    import huggingface_hub  # noqa: PLC0415  (the extra `hf`)

    try:
        return _snapshot(name, revision, only_cached=True)
    except (OSError, ValueError) as error:
        endpoint = huggingface_hub.constants.ENDPOINT
        why = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else type(cause).__name__
        raise UserError(
            f"{here}{name} is not in the hub's cache, and {endpoint} gives no answer ({why}): is there a network? Or "
            "copy the model's folder here and give its path"
        ) from error


def _sha256(file: pathlib.Path) -> str:
    """Of a file's content; the cache names a large file's content by it."""
    name = file.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return name
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
