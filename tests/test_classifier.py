"""Classifiers of transformers as scorers: small drawn ones, saved and read by the library."""

import pathlib
from typing import Any

import pytest

from flanx import hub
from flanx.errors import UserError
from flanx.evals.scorers import scorer

torch = pytest.importorskip("torch", reason="the extra hf")
transformers = pytest.importorskip("transformers", reason="the extra hf")

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fool", "kind", "day", "you", "are")
TEXTS = ["you are a fool", "a kind day", "fool fool fool fool fool fool fool fool fool fool fool fool fool", "a"]


def save(folder: pathlib.Path, labels: tuple[str, ...] = ("neutral", "toxic"), **config: Any) -> Any:
    """A drawn BERT with a classifier's head and its tokenizer; the model."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=12)
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    made = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, initializer_range=1.0, id2label=names,
            label2id={v: k for k, v in names.items()}, **config,
        )
    ).eval()  # fmt: skip
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return made


def logits(made: Any, folder: pathlib.Path, text: str) -> Any:
    """The model's own answer to one text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return made(**tokenizer(text, return_tensors="pt", truncation=True, max_length=12)).logits[0]


def test_the_probability_is_the_models_own_whatever_the_batch(tmp_path: pathlib.Path) -> None:
    made = save(tmp_path / "bert")
    read = scorer.load(str(tmp_path / "bert"))
    found = dict(read.score(TEXTS))
    for number, text in enumerate(TEXTS):
        wanted = logits(made, tmp_path / "bert", text).softmax(-1)[1].item()
        assert found[number].toxicity == pytest.approx(wanted, abs=1e-5), text
    assert len({round(verdict.toxicity or 0, 3) for verdict in found.values()}) > 2
    assert [number for number, verdict in found.items() if verdict.note == "its first 12 tokens"] == [2]
    assert read.name.startswith("bert ") and read.name.endswith("#toxic")


def test_labels_that_exclude_nothing_have_a_share_each(tmp_path: pathlib.Path) -> None:
    made = save(tmp_path / "bert", ("toxic", "obscene", "threat"), problem_type="multi_label_classification")
    for label, index in (("", 0), ("#Threat", 2)):
        found = dict(scorer.load(f"{tmp_path / 'bert'}{label}").score(TEXTS[:1]))
        assert found[0].toxicity == pytest.approx(logits(made, tmp_path / "bert", TEXTS[0]).sigmoid()[index].item())


def test_a_name_of_the_hub_is_recorded_with_its_revision(tmp_path: pathlib.Path, monkeypatch) -> None:
    save(tmp_path / "bert")
    found = hub.Snapshot("org/bert", tmp_path / "bert", "0123456789abcdef", {})
    monkeypatch.setattr(hub, "fetch", lambda name: found if name == "hf:org/bert@main" else pytest.fail(name))
    assert scorer.load("hf:org/bert@main#neutral").name == "org/bert@0123456789ab#neutral"


def test_what_is_no_classifier_is_refused(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "bert", ("LABEL_0", "LABEL_1"))
    with pytest.raises(UserError, match=r"which label is the toxic one\? .*#LABEL \(it has LABEL_0, LABEL_1\)"):
        scorer.load(str(tmp_path / "bert"))
    with pytest.raises(UserError, match="did you mean 'label_1'"):
        scorer.load(f"{tmp_path / 'bert'}#label_2")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no safetensors"):
        scorer.load(str(empty))
    (empty / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="no classifier of transformers can be read"):
        scorer.load(str(empty))
    made = save(tmp_path / "bare")
    made.bert.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="give a classifier, not a bare encoder"):
        scorer.load(f"{tmp_path / 'bare'}#label_1")
