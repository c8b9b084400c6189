"""A miniature of everything a reproduction reads, in the form of a real one: to walk its whole road on a laptop.

Stand-ins for the public files are drawn into FOLDER/sample: the files of a few real tasks of each collection behind
file:// URLs (set in their tables, see FLANX_TABLES), a SentencePiece vocabulary, and a parent in T5X's format for each
of three sizes. Everything else in the mixture is missing, as on a machine that has not fetched it.
"""

import dataclasses
import io
import json
import pathlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sentencepiece

from flanx.convert import t5x
from flanx.convert.conversion import for_t5x
from flanx.convert.formats import OpenCheckpoint
from flanx.convert.lazy_tensor import in_memory
from flanx.convert.t5_shapes import T5Sizes
from flanx.evals import registry
from flanx.files import read_json, write_atomic
from flanx.reproduction.row import Reproduction, Row
from flanx.storage import open_storage

# bindings that override the recipe's
SIZES: dict[str, dict[str, Any]] = {
    f"d{width}": {"emb_dim": width, "num_heads": width // 16, "head_dim": 16, "mlp_dim": 2 * width,
                  "num_encoder_layers": 2, "num_decoder_layers": 2}
    for width in (32, 48, 64)
}  # fmt: skip
PIECES, VOCAB_SIZE = 1000, 1152  # of the vocabulary; embedding rows: with 100 extra ids, padded to a multiple of 128
STEP = 1_100_000  # of the public checkpoint
EXAMPLES = 64  # per task
SUITES = ("mmlu_direct", "mmlu_cot", "bbh_direct", "bbh_cot", "tydiqa", "mgsm_cot")
BINDINGS = {
    "VOCAB_SIZE": VOCAB_SIZE, "TRAIN_STEPS": 20, "EVAL_PERIOD": 10, "CHECKPOINT_PERIOD": 10, "BATCH_SIZE": 4,
    "TASK_FEATURE_LENGTHS": {"inputs": 256, "targets": 48}, "EVAL_BATCH_SIZE": 32,
}  # fmt: skip
ABSENT = "task095_conala_max_absolute_value"  # there is no file at its URL: it is quarantined
FETCHED = (
    "cot_gsm8k", "cot_strategyqa", "niv2_task091_all_elements_from_index_i_to_j", "niv2_task094_conala_calculate_mean",
    "niv2_task097_conala_remove_duplicates", f"niv2_{ABSENT}", "muffin_task_master", "muffin_dr_repair_plain_code",
    "t0_sf_quartz_answer_question_below", "t0_sf_quartz_read_passage_below_choose",
)  # fmt: skip
NAMES = ("Ada", "Ben", "Chi", "Dina", "Emil", "Fay", "Gus", "Hana")
THINGS = ("apples", "books", "coins", "dishes", "eggs", "flowers", "glasses", "hats")


def reproduction(name: str, row: Row, folder: pathlib.Path, given: Sequence[str]) -> Reproduction:
    """The miniature of a row: three sizes of its recipe."""
    sample = folder / "sample"
    rows = [
        dataclasses.replace(
            row,
            name=f"{name}_{size}",
            bindings=BINDINGS
            | {f"t5.T5.{key}": number for key, number in numbers.items()}
            | {
                "VOCABULARY": str(sample / "sentencepiece.model"),
                "INITIAL_CHECKPOINT_PATH": str(sample / "t5x" / size),
            },
        )
        for size, numbers in SIZES.items()
    ]
    return Reproduction(
        folder,
        str(folder),
        rows,
        data_dir=str(folder / "data"),
        benchmarks="sample",
        how=["--dirty", "--yes"],
        topology="v5e:2x4",
        plan_flags=["--estimate"],
        planned=[row],
        given=given,
        fetched=FETCHED,
        choose_by=SUITES,  # the samples have no normalized average
        allow_missing=True,
    )


def environment(folder: pathlib.Path) -> dict[str, str]:
    """The environment variables of its commands: its tables, and none of this machine's TFDS data sets."""
    sample = folder / "sample"
    return {
        "FLANX_TABLES": str(sample),
        "TFDS_DATA_DIR": str(sample / "tfds"),
        "JAX_PLATFORMS": "cpu",
        "FLANX_CACHE": str(folder / "cache"),
    }


def draw(folder: pathlib.Path) -> None:
    """Draws what is missing; the result is the same on every machine."""
    sample, done = folder / "sample", folder / "sample" / "drawn.json"
    wanted = {"sizes": list(SIZES), "pieces": PIECES, "examples": EXAMPLES}
    if read_json(done) == wanted:
        return
    print(f"draws what stands for the public files into {sample}", flush=True)
    texts = draw_tasks(folder)
    train_vocabulary(sample / "sentencepiece.model", texts)
    for size in SIZES:
        draw_parent(size, sample / "t5x" / size)
    write_atomic(done, json.dumps(wanted) + "\n")


# ---- tasks -----------------------------------------------------------------------------------------------------------


def draw_tasks(folder: pathlib.Path) -> list[str]:
    """Writes the task files and the tables that point to them; returns their texts."""
    public, data = folder / "sample" / "public", folder / "data"
    drawn = {
        "cot/gsm8k_train.tsv": _tsv(sums()),
        "cot/strategyqa_train.tsv": _tsv(comparisons()),
        "niv2/task091_all_elements_from_index_i_to_j.json": _instructions("Return elements i to j.", slices()),
        "niv2/task094_conala_calculate_mean.json": _instructions("Calculate the mean of the list.", means()),
        "niv2/task097_conala_remove_duplicates.json": _instructions("Remove duplicates from the list.", sets()),
    }
    for name, text in drawn.items():
        write_atomic(public / name, text)
    supplied = {  # files without a URL, put in place directly
        "program_synthesis/dr_repair_plain_code_train.jsonl": _jsonl(repairs()),
        "dialog/task_master_train.jsonl": _jsonl(dialogs()),
    }
    for prompt in ("quartz_answer_question_below", "quartz_read_passage_below_choose"):
        for split in ("train", "validation", "test"):
            supplied[f"p3/{prompt}/{split}.jsonl"] = _jsonl(topics(prompt, split))
    for name, text in supplied.items():
        write_atomic(data / name, text)
    tables: dict[str, list[str]] = {"cot": [], "niv2": []}
    for name in [*drawn, f"niv2/{ABSENT}.json"]:
        collection, _, file = name.partition("/")
        task = file.removesuffix("_train.tsv").removesuffix(".json")
        url = f"{(public / collection).resolve().as_uri()}/{{file}}"
        tables[collection].append(f'[{task}]\nurl = "{url}"\nnum_examples = {EXAMPLES}\n')
    for collection, sections in tables.items():
        write_atomic(folder / "sample" / "tables" / f"{collection}.toml", "\n".join(sections))
    return [*drawn.values(), *supplied.values()]


def _tsv(rows: Iterator[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def _jsonl(rows: Iterator[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _instructions(definition: str, rows: Iterator[tuple[str, str]]) -> str:
    """A file of Super-NaturalInstructions."""
    pairs = [{"input": given, "output": wanted} for given, wanted in rows]
    examples = [pair | {"explanation": "It follows from the definition."} for pair in pairs[:2]]
    instances = [{"id": f"{n}", **pair, "output": [pair["output"]]} for n, pair in enumerate(pairs)]
    return json.dumps({"Definition": [definition], "Positive Examples": examples, "Instances": instances})


def sums() -> Iterator[Sequence[str]]:
    """Word problems: question, answer, rationale."""
    rng = random.Random(1)
    for _ in range(EXAMPLES):
        who, what, a, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 40), rng.randint(2, 40)
        question = f"{who} has {a} {what} and buys {b} more. How many {what} does {who} have now?"
        yield question, str(a + b), f"{who} starts with {a} {what}. {a} + {b} = {a + b}."


def comparisons() -> Iterator[Sequence[str]]:
    """Yes/no questions: question, answer, rationale."""
    rng = random.Random(2)
    for _ in range(EXAMPLES):
        what, a, b = rng.choice(THINGS), rng.randint(1, 60), rng.randint(61, 99)
        first, second = rng.choice(((a, b), (b, a)))
        answer = "yes" if first > second else "no"
        yield f"Are {first} {what} more than {second} {what}?", answer, f"{b} is greater than {a}."


def slices() -> Iterator[tuple[str, str]]:
    """Slices of word lists."""
    rng = random.Random(3)
    for _ in range(EXAMPLES):
        words = rng.choices(THINGS, k=6)
        i, j = sorted(rng.sample(range(1, 7), 2))
        yield f"{i}, {j}, {words}", f"{words[i - 1 : j]}"


def means() -> Iterator[tuple[str, str]]:
    """Means of numbers."""
    rng = random.Random(4)
    for _ in range(EXAMPLES):
        numbers = [rng.randint(0, 99) for _ in range(4)]
        yield f"{numbers}", f"{sum(numbers) / 4:.2f}"


def sets() -> Iterator[tuple[str, str]]:
    """Lists without the numbers that occur more than once."""
    rng = random.Random(5)
    for _ in range(EXAMPLES):
        numbers = rng.choices(range(9), k=7)
        yield f"{numbers}", f"{[n for n in numbers if numbers.count(n) == 1]}"


def repairs() -> Iterator[dict[str, Any]]:
    """Programs with a mistake, and corrected."""
    rng = random.Random(6)
    for _ in range(EXAMPLES):
        line = f'printf("%d {rng.choice(THINGS)}\\n", {rng.randint(1, 99)} + {rng.randint(1, 99)})'
        yield {"broken": line, "fixed": f"{line};"}


def dialogs() -> Iterator[dict[str, Any]]:
    """Four-turn dialogs."""
    rng = random.Random(7)
    for _ in range(EXAMPLES):
        who, what, count = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 9)
        turns = ("What would you like?", f"{count} {what}, please.", "What name is it for?", f"For {who}, thank you.")
        yield {"text": turns}


def topics(prompt: str, split: str) -> Iterator[dict[str, Any]]:
    """Sentences and their topics, in the form of a P3 prompt-task."""
    rng, choices = random.Random(f"{prompt}{split}"), ("Sports", "Business")
    for _ in range(EXAMPLES if split == "train" else 8):
        topic, who, count = rng.choice(choices), rng.choice(NAMES), rng.randint(2, 60)
        text = f"{who} scores {count} points." if topic == "Sports" else f"{who} sells {count} {rng.choice(THINGS)}."
        parts = (f"Is this about {' or '.join(choices)}?", text)
        yield {
            "inputs_pretokenized": " ".join(parts if prompt.endswith("below") else reversed(parts)),
            "targets_pretokenized": topic,
            "answer_choices": choices,
        }


# ---- vocabulary and parents ------------------------------------------------------------------------------------------


def train_vocabulary(path: pathlib.Path, texts: Sequence[str]) -> None:
    """Trains a SentencePiece model with T5's settings on these texts and the benchmark samples."""
    lines = [line for text in texts for line in text.splitlines()]
    for suite in SUITES:
        for item in registry.load(suite, "sample", ()).items:
            lines += [*item.prompt().splitlines(), *item.targets]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=PIECES, normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0,
        hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    write_atomic(path, model.getvalue())


def draw_parent(size: str, folder: pathlib.Path) -> None:
    """Writes a random T5.1.1 in T5X's format, under the step number of the public checkpoints."""
    sizes = T5Sizes(vocab_size=VOCAB_SIZE, **SIZES[size], gated=True, tied=False)
    rng, tensors = np.random.default_rng(sizes.emb_dim), {}
    for name, shape in sizes.shapes().items():
        noise = rng.standard_normal(shape).astype(np.float32)
        is_scale, width = name.endswith("scale"), shape[0] if "kernel" in name else 1
        tensors[f"target/{name}"] = in_memory(np.ones_like(noise) if is_scale else noise * width**-0.5)
    step_folder = open_storage(folder / f"checkpoint_{STEP}")
    whole, _ = for_t5x(OpenCheckpoint("t5x", step_folder, tensors, sizes, {}, step_folder), stacked=False)
    t5x.write_legacy(step_folder, whole, STEP)
