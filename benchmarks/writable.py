"""What vocabularies can write of the suites: line breaks, signs, scripts, and the share of unknown tokens.

    python benchmarks/writable.py                                  # our samples; three vocabularies
    python benchmarks/writable.py --data DIR                       # the benchmarks' own files, 20 items of each task
    python benchmarks/writable.py --data DIR t5/sentencepiece.model mt5/sentencepiece.model byte

A table in Markdown, the one of docs/evaluation.md. Without names the vocabularies are bytes and two SentencePiece
models that are trained on the prompts themselves: one like T5's (nmt_nfkc; English, German, French and Spanish text
alone, without the signs that T5's model is known to lack), one like mT5's (every language, bytes for what is rare).
"""

import argparse
import io
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping

import sentencepiece

from flanx.data import vocabulary
from flanx.data.vocabulary import Vocabulary
from flanx.errors import UserError
from flanx.evals import registry
from flanx.evals.spec import Suite
from flanx.evals.writable import unwritable

SUITES = (
    *("mmlu_test_direct[:20]", "bbh_direct[:20]", "bbh_cot[:20]", "gsm8k_zero_shot[:20]", "tydiqa[:20]"),
    *("mgsm_cot[:20]", *(f"mgsm_cot[{language},:20]" for language in ("de", "sw", "ru", "bn", "zh"))),
)
T5_LANGUAGES = ("en", "de", "fr", "es")
T5_LACKS = r"[{}<\\^~`]"  # missing from the cc_all.32000 model, as far as reported (huggingface/transformers issues)
T5_HAS = "‘’“”–—…€"  # outside Latin


def suites(data: str) -> list[Suite]:
    """The suites, from `data` if it has their files, else from our samples."""
    found = []
    for name in SUITES:
        for folder in (data, registry.SAMPLE):
            try:
                found.append(registry.load(name, folder))
                break
            except UserError:
                continue
    return found


def texts(suite: Suite) -> dict[str, list[str]]:
    """{language: prompts and gold answers}."""
    found: dict[str, list[str]] = {}
    for item in suite.items:
        found.setdefault(item.language, []).extend([item.prompt(), *item.targets])
    return found


def train(path: pathlib.Path, lines: Iterable[str], size: int, bytes_: bool) -> str:
    """Trains a SentencePiece model with T5's special ids; returns its path."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=size, normalization_rule_name="nmt_nfkc",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0, byte_fallback=bytes_, hard_vocab_limit=False,
        minloglevel=2, max_sentence_length=100_000,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return str(path)


def made(folder: pathlib.Path, given: Iterable[Suite]) -> dict[str, str]:
    """{title: spec} of the three vocabularies."""
    lines: dict[str, list[str]] = {}
    for suite in given:
        for language, each in texts(suite).items():
            lines.setdefault(language, []).extend(line for text in each for line in text.split("\n") if line.strip())
    latin = [re.sub(T5_LACKS, " ", line) for language in T5_LANGUAGES for line in lines.get(language, ())]
    latin = ["".join(c for c in line if ord(c) < 0x250 or c in T5_HAS) for line in latin]
    every = [line for each in lines.values() for line in each]
    return {
        "like T5's": train(folder / "t5.model", dict.fromkeys(latin), 4000, False),
        "like mT5's": train(folder / "mt5.model", dict.fromkeys(every), 8000, True),
        "bytes": "byte",
    }


def row(title: str, suite: Suite, words: Vocabulary) -> str:
    """A row of the table."""
    shares = []
    for kind in ([item.prompt() for item in suite.items], [text for item in suite.items for text in item.targets]):
        ids = [i for text in kind for i in words.encode(text)]
        shares.append(f"{ids.count(words.unk_id) / max(len(ids), 1):.1%}")
    lost = unwritable(words, {text for each in texts(suite).values() for text in each})
    name = re.sub(r"\[:20\]|,:20", "", suite.spec.name) + (
        " (sample)" if suite.data["folder"] == registry.SAMPLE else ""
    )
    return f"| {title} | {name} | {' | '.join(shares)} | {', '.join(lost).replace('|', chr(92) + '|') or 'nothing'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabularies", nargs="*", help="'byte', or paths of SentencePiece models")
    parser.add_argument("--data", default=registry.SAMPLE, help="folder of benchmark data (default: our samples)")
    args = parser.parse_args()
    given = suites(args.data)
    with tempfile.TemporaryDirectory() as folder:
        specs: Mapping[str, str] = {name: name for name in args.vocabularies} or made(pathlib.Path(folder), given)
        print("| vocabulary | suite | unknown in prompts | in gold answers | cannot write |\n|---|---|---|---|---|")
        for title, spec in specs.items():
            words = vocabulary.load(spec)
            for suite in given:
                print(row(title, suite, words), flush=True)


if __name__ == "__main__":
    main()
