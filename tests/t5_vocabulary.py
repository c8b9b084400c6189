"""A SentencePiece model like T5's, and the labels that it can write."""

import io
import pathlib

import sentencepiece

# Labels as MGSM's exemplars have them; the rest are our own words.
LABELS = {
    "bn": "প্রশ্ন:", "de": "Frage:", "en": "Question:", "es": "Pregunta:", "fr": "Question :", "ja": "問題：",
    "ru": "Задача:", "sw": "Swali:", "te": "ప్రశ్న:", "th": "โจทย์:", "zh": "问题：",
}  # fmt: skip


def train(folder: pathlib.Path) -> str:
    """The path of a SentencePiece model like T5's: nmt_nfkc, white space collapsed, no piece for a line break."""
    text = [
        f"{label} {word} 0 1 2 3 4 5 6 7 8 9 A: Q: The answer is . + 5." for label in LABELS.values() for word in "ab"
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 4), model_writer=model, vocab_size=150, normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = folder / "sentencepiece.model"
    path.write_bytes(model.getvalue())
    return str(path)
