"""From `import flanx` to a first token: `flanx.load` of a folder with T5-small's shapes, in a fresh process.

    python benchmarks/load.py [--quick] [--rounds N]

One JSON line: seconds of the import, of `flanx.load` (drawn weights in Hugging Face's form, float32, 240 MB) and of
`generate` of one new token for one prompt of 40 bytes, and their sum, the median over processes. Without a cache of
compiled programs, as on the first day.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import record

from flanx.convert import hf
from flanx.convert.lazy_tensor import in_memory
from flanx.convert.t5_shapes import T5Sizes
from flanx.storage import open_storage

SHAPES = {"vocab_size": 32_128, "emb_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 2048}
PROGRAM = """
import json, sys, time
began = time.perf_counter()
import flanx
imported = time.perf_counter()
model = flanx.load(sys.argv[1], vocabulary="byte")
loaded = time.perf_counter()
model.generate(["Translate to German: the house is green."], max_new_tokens=1)
said = time.perf_counter()
taken = {"import": imported - began, "load": loaded - imported, "first_token": said - loaded, "all": said - began}
print(json.dumps(taken))
"""


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one layer, one process")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    layers, rounds = (1, 1) if args.quick else (6, args.rounds)
    sizes = T5Sizes(**SHAPES, num_encoder_layers=layers, num_decoder_layers=layers, gated=True, tied=False)
    draws = np.random.default_rng(0)
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "model"
        tensors = {
            f"target/{name}": in_memory((0.05 * draws.standard_normal(shape)).astype(np.float32))
            for name, shape in sizes.shapes().items()
        }
        hf.write(open_storage(folder), tensors, sizes, {})
        taken = []
        for _ in range(rounds):
            command = [sys.executable, "-c", PROGRAM, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
            taken.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {name: round(statistics.median(each[name] for each in taken), 2) for name in taken[0]}
    value = medians.pop("all")
    record.write({"benchmark": "load", "metric": "seconds_to_first_token", "value": value, "unit": "s", **medians})


if __name__ == "__main__":
    main()
