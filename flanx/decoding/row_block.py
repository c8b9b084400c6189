"""Encodes the prompts of a batch a few rows at a time where that is faster, as on a CPU.

There a matrix product reaches its full rate at about a thousand tokens, and with more rows than that a layer's
activations fall out of the CPU caches between operations. Letters: B rows, S prompt length.
"""

import os

import jax

from flanx.models import Cache, Model, Params

TOKENS_OF_A_CORE = 1024  # 2 to 8 rows of 512 on two cores perform alike (docs/performance.md)


def prefill(
    model: Model, params: Params, inputs: jax.Array, max_new: int, prefix: Cache | None = None
) -> tuple[Cache, jax.Array]:
    """`model.prefill` of i32[B, S], or `prefill_after` a prefix, block by block: the same cache and first tokens."""
    rows, length = inputs.shape
    block = block_rows(rows, length)

    def read(part: jax.Array) -> tuple[Cache, jax.Array]:
        if prefix is None:
            return model.prefill(params, part, max_new)
        return model.prefill_after(params, prefix, part, max_new)

    if block == rows:
        return read(inputs)
    found = jax.lax.map(read, inputs.reshape(rows // block, block, length))
    return jax.tree.map(lambda leaf: leaf.reshape(rows, *leaf.shape[2:]), found)


def block_rows(rows: int, length: int) -> int:
    """Rows per block, a divisor of B; all rows unless they are on one CPU.

    A block has at least half the rows that the cores can handle at full rate; without such a divisor B is not split.
    """
    if not on_one_cpu():
        return rows
    most = max(1, TOKENS_OF_A_CORE * cores() // length)
    fit = [block for block in range(1, min(most, rows) + 1) if rows % block == 0]
    return fit[-1] if 2 * fit[-1] >= most else rows


def on_one_cpu() -> bool:
    """Whether all rows are computed by one CPU, where an empty row takes as long as any other."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
