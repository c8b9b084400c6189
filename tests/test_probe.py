"""A matrix product, timed on every device of the process."""

import types

import jax
import pytest

from flanx import probe
from flanx.partition import Partitioner


def test_a_product_runs_on_every_device_and_the_best_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SIZE", {"cpu": (8, "float32")})
    probe._product.cache_clear()
    times = iter([0.0, 3.0, 10.0, 12.0, 0.0, 1.0])
    monkeypatch.setattr(probe, "time", types.SimpleNamespace(perf_counter=lambda: next(times)))
    assert probe.time_product(rounds=2) == probe.Product(2 * 8**3, 2.0)
    programs, operands, _ = probe._product()
    assert {each.devices().pop() for each in operands} == set(jax.local_devices())
    assert programs[-1](operands[-1]).devices() == operands[-1].devices()
    probe._product.cache_clear()
    with Partitioner().scope():  # as in the loop of a run
        assert probe.time_product(rounds=1).flops == 2 * 8**3
    probe._product.cache_clear()
