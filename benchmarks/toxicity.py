"""What an evaluation of toxicity takes in addition to decoding: 25 continuations of each prompt, T5.1.1-tiny's layers.

    python benchmarks/toxicity.py [--prompts 40 120] [--new 128] [--rounds 2]

Two numbers of prompts, so that the time of a prompt is a slope, without compiling and loading. One JSON object a line:
seconds of a prompt of `decode.stream` alone with the same arguments; of `flanx.evaluate` with the suite
real_toxicity_prompts, its texts, files and scores, where precomputed toxicities are read; their ratio, and what 10,000
prompts would take. Weights are drawn, so that few continuations end early; words are drawn; the vocabulary is bytes.
"""

import argparse
import contextlib
import io
import json
import pathlib
import random
import tempfile
import time
from typing import Any

import flax.linen as nn
import jax
import record

from flanx import evaluate, malloc
from flanx.data import vocabulary
from flanx.decoding import decode
from flanx.evals import registry, rescore
from flanx.models import t5
from flanx.predictor import Predictor

TINY = {"vocab_size": 259, "emb_dim": 64, "num_heads": 2, "head_dim": 32, "mlp_dim": 128}
TINY |= {"num_encoder_layers": 2, "num_decoder_layers": 2}
SUITE = "real_toxicity_prompts"
LENGTHS = {"inputs": 128, "targets": 128}


def write(folder: pathlib.Path, count: int) -> None:
    """Writes prompts as long as the real ones, 11 words."""
    draw = random.Random(0)
    path = folder / SUITE / "prompts.jsonl"
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join("".join(draw.choices("aeinorst", k=draw.randint(2, 8))) for _ in range(11))
            prompt = {"text": text, "toxicity": number % 10 / 10}
            file.write(json.dumps({"filename": f"{number}", "begin": 0, "end": len(text), "prompt": prompt}) + "\n")


def decoding(predictor: Predictor, data: str, new: int) -> float:
    """Seconds to decode all prompts of the suite, with the method, samples and batches of the evaluation."""
    suite = registry.load(SUITE, data)
    prompts = [[*predictor.vocabulary.encode(item.query), predictor.vocabulary.eos_id] for item in suite.items]
    method = decode.Sample(suite.spec.temperature, suite.spec.top_k, suite.spec.top_p)
    batching = predictor._batching(suite.spec.samples)
    began = time.perf_counter()
    outputs = decode.stream(
        predictor.model, predictor.params, prompts, max_new=new, method=method, samples=suite.spec.samples,
        eos_id=predictor.vocabulary.eos_id, batching=batching,
    )  # fmt: skip
    for _ in outputs:
        pass
    return time.perf_counter() - began


def evaluating(predictor: Predictor, data: str, new: int, scorer: str | None) -> float:
    """Seconds of the whole evaluation; with `scorer`, a file made from its texts scores them first."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        given: dict[str, Any] = {
            "model": predictor.model, "params": predictor.params, "vocabulary": predictor.vocabulary,
            "lengths": LENGTHS | {"targets": new}, "batch_size": predictor.batch_size, "data_dir": data, "out_dir": out,
        }  # fmt: skip
        began = time.perf_counter()
        evaluate.evaluate(suites=[SUITE], scorer=scorer, **given)
        seconds = time.perf_counter() - began
        if scorer and not pathlib.Path(scorer).stat().st_size:
            texts = rescore.unscored(pathlib.Path(out))
            lines = "".join(json.dumps({"text": text, "toxicity": len(text) % 10 / 10}) + "\n" for text in texts)
            pathlib.Path(scorer).write_text(lines, encoding="utf-8")
    return seconds


def main() -> None:
    """Prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs=2, default=[40, 120])
    parser.add_argument("--new", type=int, default=128, help="tokens of a continuation")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=200, help="EVAL_BATCH_SIZE")
    args = parser.parse_args()
    malloc.keep_freed_memory()
    model = t5.T5(**TINY)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0)))
    predictor = Predictor(model, params, vocabulary.load("byte"), LENGTHS | {"targets": args.new}, args.batch)
    best: dict[tuple[str, int], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in args.prompts:
            write(pathlib.Path(folder) / str(count), count)
            pathlib.Path(folder, f"{count}.jsonl").touch()
        for turn in range(args.rounds + 1):  # the first one compiles, and creates the file of toxicities
            for count in args.prompts:
                data, scores = str(pathlib.Path(folder) / str(count)), str(pathlib.Path(folder, f"{count}.jsonl"))
                found = {"decoding": decoding(predictor, data, args.new)}
                found["evaluation"] = evaluating(predictor, data, args.new, scores)
                for name, seconds in found.items() if turn else ():
                    best[name, count] = min(seconds, best.get((name, count), seconds))
    few, many = args.prompts
    slope = {name: (best[name, many] - best[name, few]) / (many - few) for name in ("decoding", "evaluation")}
    for name, seconds in slope.items():
        line = {
            "benchmark": "toxicity",
            "metric": name,
            "value": seconds,
            "unit": "s a prompt",
            "prompts": args.prompts,
        }
        record.write(line | {"10000_prompts_h": 10_000 * seconds / 3600})
    line = {
        "benchmark": "toxicity",
        "metric": "evaluation by decoding",
        "value": slope["evaluation"] / slope["decoding"],
    }
    record.write(line | {"target": 2.0, "samples": 25, "new_tokens": args.new})


if __name__ == "__main__":
    main()
