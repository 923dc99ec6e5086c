"""Rates come from calls that last, work is compared with what a device can do, and a share above 1 is refused."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from reval_jax import chips, timing
from reval_jax.tools.plan import topology


class Machine:
    """A clock that advances by a call's work at `rate`, and by `overhead` seconds a call."""

    def __init__(self, rate, overhead=1e-4):
        self.now, self.rate, self.overhead = 0.0, rate, overhead
        self.made = []

    def operation(self, size, count):
        self.made.append((size, count))
        work = float(size**3 * count)

        def call():
            self.now += self.overhead + work / self.rate
            return np.zeros(1)

        return timing.Timed(call, work)

    def clock(self):
        return self.now


@pytest.mark.parametrize("rate", [1e8, 1e11, 1e14, 1e17])
def test_an_operation_grows_until_its_call_lasts(rate):
    machine = Machine(rate)
    grown = timing.lasting(machine.operation, (64, 128, 256), least=0.01, clock=machine.clock)
    seconds = machine.overhead + grown.work / rate
    assert seconds >= 0.01
    assert grown.rate(seconds) <= rate
    # Only the last size is repeated, and a slow machine is not asked for more than the first.
    assert all(size == 256 for size, count in machine.made if count > 1)
    assert machine.made[0] == (64, 1)


def test_a_slow_machine_times_the_first_size():
    machine = Machine(rate=1e6)
    timing.lasting(machine.operation, (64, 128), least=0.01, clock=machine.clock)
    assert machine.made == [(64, 1)]


def test_the_timed_programs_do_all_of_their_work(monkeypatch):
    """Each of a call's operations depends on the one before it; the numbers are random and stay finite."""
    monkeypatch.setattr(timing, "lasting", lambda operations, sizes: operations(sizes[-1], 3))
    monkeypatch.setattr(timing, "NUM_ROWS", 32)
    monkeypatch.setattr(timing, "FIRST_SIZE", 64)
    monkeypatch.setattr(timing, "LARGEST_SIZE", 256)
    monkeypatch.setattr(timing, "MOST_ELEMENTS", 1024)
    monkeypatch.setattr(timing, "FIRST_ELEMENTS", 1024)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # whose sizes are several
    product = timing.matmul("float32")
    result = np.asarray(product.call(), np.float64)
    rng = np.random.default_rng(0)
    left = np.tile(rng.standard_normal((32, 64), np.float32), (1, 4)).astype(np.float64)
    right = np.tile(rng.standard_normal((64, 64), np.float32) / (4 * 8), (4, 4)).astype(np.float64)
    np.testing.assert_allclose(result, left @ right @ right @ right, rtol=1e-3, atol=1e-3)
    assert product.work == 3 * 2 * 32 * 256 * 256
    assert 0.1 < result.std() < 10
    passes = timing.memory()
    first, second = np.asarray(passes.call()).copy(), np.asarray(passes.call())
    assert passes.work == 3 * 2 * 4 * 1024
    np.testing.assert_allclose(second, first / 8 + 0.25 * (1 + 1 / 2 + 1 / 4), rtol=1e-6)
    assert np.unique(first).size > 100


def test_a_share_above_one_is_refused_and_the_message_names_the_cause():
    assert timing.share(50.0, 2.0, 100.0) == 0.25
    assert timing.share(200.0, 2.0, 100.0) == 1.0
    assert math.isnan(timing.share(201.0, 2.0, 100.0))
    assert "busy" in timing.impossible("MFU", "measured")
    assert "chips" in timing.impossible("MFU", "published")


def test_a_known_card_is_compared_with_its_published_rate(monkeypatch):
    rates = chips.published("NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(timing, "published", lambda: rates)
    monkeypatch.setattr(timing, "measured_peak", lambda dtype: pytest.fail("measured, though a rate is published"))
    assert timing.device_peak("bfloat16") == timing.Peak(rates.bfloat16, "published")
    assert timing.peak_of("float32", 1.0).flops == rates.float32


def test_an_unknown_device_is_measured(monkeypatch):
    assert chips.published(jax.devices()[0].device_kind) is None
    monkeypatch.setattr(timing, "measured_peak", lambda dtype: 7.0)
    assert timing.device_peak("float32") == timing.Peak(7.0, "measured")
    # A TPU's float32 products are several of bfloat16, and no rate is published for them.
    monkeypatch.setattr(timing, "published", lambda: chips.published("TPU v5 lite"))
    assert timing.device_peak("float32").source == "measured"
    assert timing.device_peak("bfloat16") == timing.Peak(topology.CHIPS["v5e"].peak_flops, "published")


def test_every_generation_of_the_plan_is_known_by_the_name_of_its_devices():
    assert {chips.published(kind) for kind in ("TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite")} == set(
        chips.TPU.values()
    )
    for rates in chips.GPU.values():
        assert rates.bfloat16 > rates.float32
        assert 1e11 < rates.memory < 1e13
