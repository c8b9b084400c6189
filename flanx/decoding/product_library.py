"""Which library multiplies in a decoding step on a CPU.

XLA's CPU compiler gives products to YNNPACK, which packs a kernel at every call. With the few rows of a step on a
processor without AVX-512 that takes longer than the product, and Eigen, the compiler's other library, is faster for all
but the smallest models (docs/performance.md). Chosen by instruction sets and size and not by a timing, so that a
machine always gets the same numbers.
"""

import functools
import pathlib

import jax

from flanx.decoding import row_block
from flanx.models import Params

EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}  # no fusion for YNNPACK
SMALLEST = 8 << 20  # bytes of parameters: of 4 and 14 MB measured, Eigen is slower for the first, faster for the second
CPU_INFO = pathlib.Path("/proc/cpuinfo")


def has_eigen_steps(params: Params) -> bool:
    """Whether the decoding steps of a model with these parameters are compiled with the options `EIGEN`."""
    is_large = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)) >= SMALLEST
    return is_large and row_block.on_one_cpu() and _prefers_eigen()


@functools.cache
def _prefers_eigen() -> bool:
    return is_avx2_only() and _is_known(EIGEN)


def is_avx2_only() -> bool:
    """Whether the processor has AVX2 but not AVX-512; False where the system does not tell."""
    try:
        flags = CPU_INFO.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return "avx2" in flags and "avx512f" not in flags


def _is_known(options: dict[str, str]) -> bool:
    """Whether this jaxlib has these options, which are experimental."""
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
