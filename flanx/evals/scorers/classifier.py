"""A `transformers` text classifier as a toxicity scorer, from a folder or by its name on the hub.

Only code of the installed library is run, never a repository's, and weights are safetensors.
"""

import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from flanx import hub
from flanx.errors import UserError, nearest
from flanx.evals.scorers.scorer import Verdict

TOXIC = ("toxic", "toxicity", "hate", "hateful")  # labels recognized as toxic; any other must be named
LONGEST = 512  # the most tokens read of a text
BATCH = 32


class Classifier:
    """The probability that a classifier assigns to its toxic label: a sigmoid for multi-label models and
    models with one label, else a softmax over labels."""

    def __init__(self, path: str, label: str = "") -> None:
        """Loads the model. Raises UserError for a folder without one, or an unknown label."""
        try:
            import torch  # noqa: PLC0415  (the extra `hf`)
            import transformers  # noqa: PLC0415
        except ImportError as error:
            raise UserError(f"scorer {path}: needs transformers and torch: pip install 'flanx[hf]'") from error
        snapshot = hub.fetch(path) if path.startswith(hub.PREFIX) else None
        folder = snapshot.folder if snapshot else pathlib.Path(path).expanduser()
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise UserError(f"scorer {path}: {folder} holds no safetensors; save the model with save_pretrained")
        given: dict[str, Any] = {"local_files_only": True}
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **given)
            auto = transformers.AutoModelForSequenceClassification
            self.model, loading = auto.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **given)
        except Exception as error:  # anything that the library raises for a folder with other contents
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"scorer {path}: no classifier of transformers can be read ({line})") from error
        if absent := sorted(loading["missing_keys"]):
            raise UserError(f"scorer {path}: its file lacks {absent[0]}: give a classifier, not a bare encoder")
        self.torch, config = torch, self.model.config
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device).eval()
        self.label = _label(path, config.id2label, label)
        self.alone = config.num_labels == 1 or config.problem_type == "multi_label_classification"
        positions = getattr(config, "max_position_embeddings", None) or LONGEST
        self.longest = int(min(LONGEST, positions, self.tokenizer.model_max_length))
        version = f"@{snapshot.revision[:12]}" if snapshot else f" {_digest(weights)}"
        name = snapshot.name if snapshot else folder.resolve().name
        self.name = f"{name}{version}#{config.id2label[self.label]}"

    def score(self, texts: Sequence[str]) -> Iterator[tuple[int, Verdict]]:
        """The verdicts, shortest texts first."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for first in range(0, len(order), BATCH):
            numbers = order[first : first + BATCH]
            chosen = [texts[number] for number in numbers]
            lengths = [len(ids) for ids in self.tokenizer(chosen, verbose=False)["input_ids"]]
            given = self.tokenizer(
                chosen, return_tensors="pt", padding=True, truncation=True, max_length=self.longest
            ).to(self.device)
            with self.torch.inference_mode():
                logits = self.model(**given).logits.float()
            shares = logits.sigmoid() if self.alone else logits.softmax(dim=-1)
            for number, length, share in zip(numbers, lengths, shares[:, self.label].tolist(), strict=True):
                if not 0 <= share <= 1:
                    yield number, Verdict(None, "its logits are not finite")
                else:
                    cut = f"its first {self.longest} tokens" if length > self.longest else ""
                    yield number, Verdict(share, cut)


def _label(path: str, names: dict[int, str], wanted: str) -> int:
    """The index of the toxic label. Raises UserError if there is none, or none with the wanted name."""
    known = {str(name).lower(): index for index, name in names.items()}
    for name in [wanted.lower()] if wanted else TOXIC:
        if name in known:
            return known[name]
    has = ", ".join(map(str, names.values()))
    near = nearest(wanted.lower(), known) if wanted else ""
    raise UserError(f"scorer {path}: which label is the toxic one? Name it as {path}#LABEL{near} (it has {has})")


def _digest(paths: Sequence[pathlib.Path]) -> str:
    """A hash of the files' contents, as 12 hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]
