"""How close a run comes to its chips' peak: model FLOPs utilisation, MFU (PaLM, arXiv:2204.02311, appendix B).

MFU = model FLOPs of a step / (chips x peak FLOP/s x seconds of a step). Model FLOPs are those of `flanx plan`: forward
and backward over all positions of a batch, padding included, without recomputation. The peak is for dense bfloat16,
whatever the run's dtypes.
"""

from collections.abc import Mapping
from typing import Any

from flanx import probe
from flanx.plan import hardware
from flanx.plan.planned_run import PlannedRun
from flanx.train_step import Trainer

MEASURED = "measured"


def full_speed(
    trainer: Trainer, batch_size: int, lengths: Mapping[str, int], devices: Any, peak: float | str | None = None
) -> float | None:
    """Steps per second if `devices`, an array of jax.Device, computed at their peak; None if unknown.

    peak: FLOP/s of one device; "measured": of a product, timed here; None: as published, in `hardware`.

    Also None for a run that freezes parameters: the FLOP counts here include the gradients that such a run skips.
    """
    if trainer.patterns is not None or set(lengths) != {"inputs", "targets"}:
        return None
    if peak == MEASURED:
        product = probe.time_product()
        peak = product.flops / product.seconds
    elif peak is None:
        kind = devices.flat[0].device_kind
        peak = hardware.KINDS[kind].flops if kind in hardware.KINDS else None
    flops = PlannedRun(trainer, batch_size, lengths).flops_per_step
    return float(peak) * devices.size / flops if peak else None
