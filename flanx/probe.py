"""Times a matmul of known size on this process's devices, to measure their current speed."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SIZE = {"cpu": (1024, jnp.float32)}  # platform -> rows of the square operands and their type
OF_ACCELERATORS = (4096, jnp.bfloat16)  # about a millisecond, far more than the overhead of a call


class Product(NamedTuple):
    """The best of several rounds.

    Attributes:
      flops: of one device's product.
      seconds: until the slowest device finished; all begin together.
    """

    flops: float
    seconds: float


def time_product(rounds: int = 3) -> Product:
    """Times a product on all devices of this process at once."""
    programs, operands, flops = _product()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready([program(each) for program, each in zip(programs, operands, strict=True)])
        seconds.append(time.perf_counter() - began)
    return Product(flops, min(seconds))


@functools.cache
def _product() -> tuple[list[Any], list[jax.Array], float]:
    """For each device, the compiled product, which needs no mesh, and its operand; FLOPs."""
    devices = jax.local_devices()
    size, dtype = SIZE.get(devices[0].platform, OF_ACCELERATORS)
    operands = [jax.device_put(np.full((size, size), 1 / size, dtype), device) for device in devices]
    with jax.set_mesh(None):
        multiply = jax.jit(lambda a: jnp.einsum("ij,jk->ik", a, a))
        programs = [multiply.lower(each).compile() for each in operands]
    jax.block_until_ready([program(each) for program, each in zip(programs, operands, strict=True)])
    return programs, operands, 2.0 * size**3
