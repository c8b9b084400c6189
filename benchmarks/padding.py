"""Padding of a suite's prompts: with the lengths that flanx compiles on one CPU, and with those on accelerators.

    python benchmarks/padding.py [--suites bbh_cot bbh_direct mmlu_test_direct] [--data_dir DIR] [--size 64] [--quick]

Tokens are counted as four bytes each, about what T5's vocabulary needs for English. `value`: the percentage of encoded
tokens that are padding, or in rows without a prompt, on one CPU; `peer_value`: the same with a length for each octave.
`--quick`, or no `--data_dir`: sample data. Only counted, so the machine does not matter.
"""

import argparse
import os

import record

from flanx.decoding import length_buckets, row_block
from flanx.errors import UserError
from flanx.evals import registry


def padding(prompts: list[range], size: int, on_one_cpu: bool) -> tuple[float, int]:
    """(percentage of encoded tokens that belong to no prompt, lengths compiled), in batches of `size`."""
    row_block.on_one_cpu = lambda: on_one_cpu
    batching = length_buckets.Batching(size)
    encoded = sum(batch.size for _, batch in batching.batches(prompts))
    return 100 * (1 - sum(map(len, prompts)) / encoded), len(batching.buckets(prompts))


def main() -> None:
    """Prints one JSON object for each suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="*", default=["bbh_cot", "bbh_direct", "mmlu_test_direct"])
    parser.add_argument("--data_dir", default=os.environ.get("FLANX_DATA_DIR"), help="a folder of benchmark data")
    parser.add_argument("--size", type=int, default=64, help="prompts in a batch")
    parser.add_argument("--quick", action="store_true", help="sample data")
    args = parser.parse_args()
    for name in args.suites:
        try:
            suite = registry.load(name, registry.SAMPLE if args.quick or not args.data_dir else args.data_dir)
        except UserError as error:
            raise SystemExit(f"padding: {error}") from error
        prompts = [range(-(-len(item.prompt().encode()) // 4)) for item in suite.items]
        (value, lengths), (before, octaves) = (padding(prompts, args.size, on_one_cpu) for on_one_cpu in (True, False))
        line = {"benchmark": "padding", "metric": f"{name}, {len(prompts)} prompts", "unit": "%"}
        line |= {"value": round(value, 2), "lengths": lengths, "peer_value": round(before, 2), "peer_lengths": octaves}
        record.write(line | {"tokens": round(sum(map(len, prompts)) / len(prompts), 1), "peer": "a length per octave"})


if __name__ == "__main__":
    main()
