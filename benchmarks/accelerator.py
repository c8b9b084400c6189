"""The first machine with a GPU or TPU that meets flanx: is it right there, and how fast? One command, ten minutes.

    python benchmarks/accelerator.py [--budget 600] [--quick] [--only PATTERN] [--out FILE]

What matters most comes first, each measurement in a process of its own that the budget ends (accelerator_work.py), and
every result is a line of JSON on standard output and in FILE as it comes; FILE with the ending .md is the table.

1. the floor: a matrix product in bfloat16 and a copy in memory, with which the others are compared
2. parity with plain kernels on this machine's CPU, in float32: logits, the losses of 20 steps, greedy tokens
3. a training step of T5.1.1 large and XL: bfloat16, rows packed to 2,048 + 512 tokens, Adafactor; with and without
   remat, in microbatches; tokens/s, MFU (model FLOPs over the measured product's), peak memory; beside transformers
4. greedy decoding and 40 samples of each prompt, beside transformers' `generate`
5. the loader (packed rows/s from a token store); saving and restoring a state, beside a plain write of as many bytes

--quick has tiny models and runs whole on a CPU. Exit status 1 where parity does not hold or a measurement failed.
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import record

WORK = pathlib.Path(__file__).with_name("accelerator_work.py")
LARGE = {"emb_dim": 1024, "num_heads": 16, "head_dim": 64, "mlp_dim": 2816, "layers": 24, "vocab_size": 32_128}
XL = LARGE | {"emb_dim": 2048, "num_heads": 32, "mlp_dim": 5120}
SMALL = LARGE | {"emb_dim": 512, "num_heads": 6, "mlp_dim": 1024, "layers": 8}
TINY = {"emb_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 64, "layers": 2, "vocab_size": 512}
LEAST_S = 25.0  # remaining budget below which nothing more is started


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A row of the table: a worker, its arguments, and its time limit in seconds."""

    name: str
    worker: str
    arguments: dict[str, Any]
    limit: float = 150.0


def measurements(quick: bool) -> list[Measurement]:
    """All measurements, most important first."""
    big, huge, short = (TINY, TINY, "tiny") if quick else (LARGE, XL, "")
    parity = {"sizes": TINY if quick else SMALL, "rows": 2 if quick else 8, "steps": 20, "prompts": 4 if quick else 16}
    lengths = {"inputs": 64, "targets": 16} if quick else {"inputs": 2048, "targets": 512}
    decode = {"prompts": 4 if quick else 64, "inputs": 32 if quick else 512, "new": 8 if quick else 64}
    scale = 8 if quick else 1

    def step(size: str, sizes: dict[str, int], rows: int, remat: str, microbatches: int) -> Measurement:
        name = f"train step {short or size}, {rows} rows, remat {remat}, {microbatches} microbatches"
        arguments = {"sizes": sizes, "rows": rows, "remat": remat, "microbatches": microbatches, **lengths}
        return Measurement(name, "train_step", arguments)

    def peer_step(size: str, sizes: dict[str, int], rows: int) -> Measurement:
        arguments = {"sizes": sizes, "rows": rows, **lengths}
        return Measurement(f"train step {short or size}, {rows} rows, transformers on torch", "torch_step", arguments)

    found = [
        Measurement("floor", "floor", {"width": 512 if quick else 8192, "megabytes": 8 if quick else 1024}),
        Measurement("parity, reference", "reference", parity),
        Measurement("parity", "parity", parity),
        step("large", big, 16 // scale, "none", 1),
        peer_step("large", big, 16 // scale),
        step("large", big, 64 // scale, "full", 4),
        Measurement(f"decode {short or 'xl'}", "decode", {"sizes": huge, **decode}),
        Measurement(f"decode {short or 'xl'}, transformers on torch", "torch_decode", {"sizes": huge, **decode}),
        step("xl", huge, 16 // scale, "full", 1),
        Measurement("loader", "loader", {"rows": 64 // scale, "steps": 4 if quick else 200, **lengths}),
        Measurement(f"save and restore {short or 'large'}", "checkpoint", {"sizes": big}),
        step("xl", huge, 64 // scale, "full", 4),
        step("large", big, 64 // scale, "none", 4),
        step("xl", huge, 8 // scale, "none", 1),
    ]
    return [*{one.name: one for one in found}.values()]  # with --quick two are the same


# ---- the driver ------------------------------------------------------------------------------------------------------


def run(one: Measurement, limit: float, scratch: str) -> Iterator[dict[str, Any]]:
    """The results of one measurement as they arrive; if it failed, the last one says how."""
    env = {**os.environ, "ACCELERATOR_SCRATCH": scratch, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    env |= {"JAX_PLATFORMS": "cpu"} if one.worker == "reference" else {}
    command = [sys.executable, str(WORK), one.worker, json.dumps(one.arguments)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=env)
        timer = threading.Timer(limit, process.kill)
        timer.start()
        with process:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("{"):  # libraries print too
                    yield json.loads(line)
        is_late = not timer.is_alive()
        timer.cancel()
        if process.returncode:
            said.seek(0)
            lines = [line.strip() for line in said if line.strip()]
            memory = any("RESOURCE_EXHAUSTED" in line or "OutOfMemory" in line for line in lines)
            why = "out of memory" if memory else (lines or ["it said nothing"])[-1]
            why = f"not done in {limit:.0f} s" if is_late else why
            yield {"metric": "failed", "value": None, "unit": "", "why": why[:300], "expected": memory or is_late}


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown, with transformers' result of the same name next to ours."""
    theirs = {}
    for each in results:
        if each["name"].endswith(", transformers on torch") and each.get("value"):
            theirs[each["name"].removesuffix(", transformers on torch"), each["metric"]] = each["value"]
    lines = ["| measurement | result | | transformers on torch | more |", "|---|---|---|---|---|"]
    kept = ("name", "metric", "value", "unit", "benchmark", "machine", "versions", "load")
    for each in results:
        peer = theirs.get((each["name"].partition(", remat")[0], each["metric"]))
        ratio = f"{peer:,g} ({each['value'] / peer:.2f} x)" if peer and each.get("value") else ""
        ratio = "" if each["name"].endswith("on torch") else ratio
        rest = {
            key: f"{value:g}" if isinstance(value, float) else value for key, value in each.items() if key not in kept
        }
        more = ", ".join(f"{key} {value}" for key, value in rest.items())
        value = "" if each["value"] is None else f"{each['value']:,g} {each['unit']}".strip()
        lines.append(f"| {each['name']} | {each['metric']} | {value} | {ratio} | {more} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs as much as the budget allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models: runs whole on a CPU")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for everything (600)")
    parser.add_argument("--only", default="*", help="pattern of names, such as 'train step*'")
    parser.add_argument("--out", type=pathlib.Path, help="file of the results (out/accelerator.jsonl; of --quick none)")
    args = parser.parse_args()
    out = args.out or (None if args.quick else pathlib.Path("out/accelerator.jsonl"))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("")
    over, results, peak, failed = time.monotonic() + args.budget, [], None, False
    with tempfile.TemporaryDirectory(prefix="flanx-accelerator-") as scratch:
        for one in measurements(args.quick):
            if not fnmatch.fnmatch(one.name, args.only):
                continue
            left = over - time.monotonic()
            late = {
                "metric": "not begun",
                "value": None,
                "unit": "",
                "why": f"{max(left, 0):.0f} s left",
                "expected": True,
            }
            for result in run(one, min(one.limit, left), scratch) if left > LEAST_S else [late]:
                peak = result["value"] * 1e12 if result["unit"] == "TFLOP/s" else peak
                if (flops := result.pop("flops", None)) and peak:
                    result["MFU"] = float(f"{flops / peak:.3g}")
                failed |= result.get("holds") is False or not result.pop("expected", True)
                line = {"benchmark": "accelerator", "name": one.name, **result}  # a worker's includes machine and load
                results.append(line if "machine" in line else record.judged(line, None))
                print(json.dumps(results[-1]), flush=True)
                if out:
                    with open(out, "a", encoding="utf-8") as file:
                        file.write(json.dumps(results[-1]) + "\n")
                    out.with_suffix(".md").write_text(table(results), encoding="utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
