"""lm-evaluation-harness over flanx against its own `hf` model: T5-small's shapes, same tasks, same batch, one run.

    python -P benchmarks/lm_eval.py [--docs 64] [--batch 16] [--rounds 3] [--task bench_text]

One JSON object a line: documents per second of each model on each task, and the ratio. Rounds alternate between the
two and the best of each counts; the first round of flanx, which compiles, is printed by itself. Weights are drawn,
texts are bytes. Needs lm-eval, torch and transformers; -P, as this file has the name of the package.
"""

import argparse
import json
import logging
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np

from flanx.convert import hf
from flanx.convert.lazy_tensor import in_memory
from flanx.convert.t5_shapes import T5Sizes
from flanx.storage import open_storage

T5_SMALL = T5Sizes(
    vocab_size=32_128, emb_dim=512, num_heads=8, head_dim=64, mlp_dim=2048, num_encoder_layers=6, num_decoder_layers=6,
    gated=False, tied=True,
)  # fmt: skip
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = (
    TASK
    + """output_type: multiple_choice
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
)
TEXT = (
    TASK
    + """output_type: generate_until
doc_to_target: answer
generation_kwargs: {{until: ["Q:"], max_gen_toks: 32, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
)


TASKS = {"bench_choice": CHOICE, "bench_text": TEXT}


def prepare(folder: pathlib.Path, docs: int) -> None:
    """Writes a random model in Hugging Face's form, and two tasks over `docs` documents of about 250 bytes."""
    draws = np.random.default_rng(0)
    shapes = T5_SMALL.shapes()
    values = {name: (0.05 * draws.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    values["token_embedder/embedding"][259:] = 0  # never the most likely: transformers only decodes bytes
    tensors = {f"target/{name}": in_memory(value) for name, value in values.items()}
    hf.write(open_storage(folder / "model"), tensors, T5_SMALL, {})
    config = {"tokenizer_class": "ByT5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    words = ["river", "stone", "seven", "green", "house", "because", "nine", "of", "the", "warm"]
    rows = []
    for number in range(docs):
        text = " ".join(draws.choice(words, 50 + number % 10))
        rows.append({"question": f"{text}?", "choices": ["yes", "no", "maybe", "both"], "gold": 0, "answer": "x"})
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    for name, task in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(task.format(name=name, data=folder / "docs.jsonl"))


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", choices=TASKS, action="append", help="one of them alone; may be given again")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        os.environ["HF_DATASETS_CACHE"], os.environ["HF_HUB_OFFLINE"] = str(folder / "cache"), "1"
        prepare(folder, args.docs)
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from flanx.lm_eval import FlanxLM

        sys.path.append(str(pathlib.Path(__file__).parent))  # last: this file has the name of the package
        import record

        class Peer(HFLM):
            """Decodes only the 32 requested tokens: lm-eval adds the context's, as for a decoder-only model."""

            def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
                return super()._model_generate(context, 1 + 32, stop, **kwargs)

        manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
        path = str(folder / "model")
        models: dict[str, Any] = {
            "hf": Peer(pretrained=path, batch_size=args.batch, device="cpu", max_length=2048),
            "flanx": FlanxLM(path, batch_size=args.batch, max_length=2048),
        }
        for task in args.task or TASKS:
            seconds: dict[str, list[float]] = {name: [] for name in models}
            answers: dict[str, Any] = {}
            for _ in range(args.rounds):
                for name, model in models.items():
                    began = time.perf_counter()
                    result = simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0)
                    seconds[name].append(time.perf_counter() - began)
                    answers[name] = [row["resps"] for row in result["samples"][task]]
            line: dict[str, Any] = {"benchmark": "lm_eval", "metric": task, "docs": args.docs, "batch": args.batch}
            line |= {f"{name}_docs_per_s": round(args.docs / min(each), 2) for name, each in seconds.items()}
            line["flanx_first_s"] = round(seconds["flanx"][0], 1)
            line["ratio"] = round(min(seconds["hf"]) / min(seconds["flanx"]), 2)
            line["same"] = same(answers["hf"], answers["flanx"])
            record.write(line)


def same(theirs: Any, ours: Any) -> float:
    """The fraction of equal answers: texts, or log-probabilities within 0.001."""
    pairs = list(zip(theirs, ours, strict=True))
    if isinstance(theirs[0][0][0], str):
        return sum(a == b for a, b in pairs) / len(pairs)
    return sum(all(abs(x[0][0] - y[0][0]) < 1e-3 for x, y in zip(a, b, strict=True)) for a, b in pairs) / len(pairs)


if __name__ == "__main__":
    main()
