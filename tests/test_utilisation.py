"""Model FLOPs utilisation: the peak of known devices, of a measured product, and of none."""

import dataclasses
import types

import numpy as np
import pytest

from flanx import optim, probe
from flanx.plan import hardware, utilisation
from flanx.train_step import Trainer
from tests import plan_case

LENGTHS = {"inputs": 32, "targets": 16}
TRAINER = Trainer(plan_case.SMALL, optim.adafactor(1e-3))


def speed(kind: str, count: int = 1, peak: float | str | None = None, trainer: Trainer = TRAINER) -> float | None:
    devices = np.array([types.SimpleNamespace(device_kind=kind)] * count, object)
    return utilisation.full_speed(trainer, 8, LENGTHS, devices, peak)


def test_at_the_peak_every_flop_of_every_chip_is_the_models() -> None:
    flops = plan_case.SMALL.flops_per_token(32, 16) * 8 * 48
    assert speed("TPU v5 lite", 4) == pytest.approx(4 * 197e12 / flops)
    assert speed("NVIDIA H100 80GB HBM3") == pytest.approx(989e12 / flops)
    assert speed("cpu", 2, peak=1e9) == pytest.approx(2e9 / flops)


def test_no_peak_is_made_up() -> None:
    """Nor that of a namesake with another one."""
    for kind in ("cpu", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "TPU v9"):
        assert speed(kind) is None
    frozen = dataclasses.replace(TRAINER, trainable=["decoder/.*"])
    assert speed("TPU v4") and speed("TPU v4", trainer=frozen) is None


def test_every_device_of_the_table_has_a_source() -> None:
    assert all(chip.source and hardware.CHIPS[chip.family] is chip for chip in hardware.KINDS.values())


def test_a_measured_peak_is_that_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "time_product", lambda: probe.Product(flops=6e9, seconds=2.0))
    assert speed("cpu", 1, peak="measured") == speed("cpu", 1, peak=3e9)
