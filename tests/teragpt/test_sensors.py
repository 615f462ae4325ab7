"""No GPU here: the driver's library is a stand-in with NVML's names and units; on a card `SAMPLE_S` seconds show it."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from teragpt.reporting import sensors
from teragpt.reporting.sensors import Sensors

THERMAL, CAP = 0x40, 0x4


class NVMLError(Exception):
    pass


def driver(reasons: list[int]) -> SimpleNamespace:
    """Two cards: one of 60 °C, 300 W and 1,980 MHz, one of 80 °C, 500 W and 1,700 MHz, slowed for `reasons`."""
    left = iter(reasons)

    def reason(card: int) -> int:
        if card == 0:
            return 0
        try:
            return next(left)
        except StopIteration:
            raise NVMLError from None

    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_SM=1,
        nvmlClocksEventReasonHwSlowdown=0x8,
        nvmlClocksEventReasonHwThermalSlowdown=THERMAL,
        nvmlClocksEventReasonSwThermalSlowdown=0x20,
        nvmlClocksEventReasonHwPowerBrakeSlowdown=0x80,
        nvmlClocksEventReasonSwPowerCap=CAP,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: int(uuid.removeprefix("GPU-")),
        nvmlDeviceGetCurrentClocksEventReasons=reason,
        nvmlDeviceGetPowerUsage=lambda card: [300_000, 500_000][card],
        nvmlDeviceGetTemperature=lambda card, _: [60, 80][card],
        nvmlDeviceGetClockInfo=lambda card, _: [1980, 1700][card],
    )


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=index))
    monkeypatch.setattr(sensors, "SAMPLE_S", 0.001)


@pytest.mark.usefixtures("gpus")
def test_the_hottest_and_slowest_card_and_how_often_any_was_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver([0, CAP, THERMAL | CAP, 0]))
    watched = Sensors()
    deadline = time.monotonic() + 60
    while len(watched.samples) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert watched.take() == {
        "gpu_temperature_c": 80,
        "gpu_power_w": 400.0,
        "gpu_clock_mhz": 1700,
        "gpu_throttled": 0.25,
        "gpu_power_capped": 0.5,
    }
    assert watched.take() == {}


@pytest.mark.usefixtures("gpus")
def test_without_the_drivers_library_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    watched = Sensors()
    watched.run()
    assert watched.take() == {}


def test_a_cpu_has_no_sensors() -> None:
    assert Sensors().take() == {}
