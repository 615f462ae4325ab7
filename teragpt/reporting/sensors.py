"""What a node's GPUs say of themselves while they train: heat, power and clocks, which explain a speed that changes.

A thread samples them, since what slows a card comes and goes between two lines of the record. Where there is no NVML,
as on CPU or on AMD's cards, there is nothing to tell. It must not know what runs on them.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

SAMPLE_S = 1.0


@dataclass(frozen=True)
class Sample:
    """A node's cards at a moment: the hottest (°C), the mean power (W), the slowest clock (MHz), what slows any."""

    heat: float
    power: float
    clock: float
    throttled: bool
    capped: bool


class Sensors:
    """The GPUs that this process sees, sampled once a second."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.lock, self.over = threading.Lock(), threading.Event()
        if torch.cuda.is_available():
            threading.Thread(target=self.run, name="sensors", daemon=True).start()

    def run(self) -> None:
        """The thread: sample until the end, or until the driver does not answer."""
        try:
            import pynvml as nvml
        except ImportError:
            return
        with suppress(nvml.NVMLError):
            nvml.nvmlInit()
            cards = [nvml.nvmlDeviceGetHandleByUUID(uuid(index)) for index in range(torch.cuda.device_count())]
            while not self.over.wait(SAMPLE_S):
                taken = sample(nvml, cards)
                with self.lock:
                    self.samples.append(taken)

    def take(self) -> dict[str, float]:
        """What was seen since the last call, by the record's names; nothing where nothing was."""
        with self.lock:
            seen, self.samples = self.samples, []
        if not seen:
            return {}
        return {
            "gpu_temperature_c": max(one.heat for one in seen),
            "gpu_power_w": sum(one.power for one in seen) / len(seen),
            "gpu_clock_mhz": min(one.clock for one in seen),
            "gpu_throttled": sum(one.throttled for one in seen) / len(seen),
            "gpu_power_capped": sum(one.capped for one in seen) / len(seen),
        }

    def close(self) -> None:
        """Sample no more."""
        self.over.set()


def uuid(index: int) -> str:
    """What NVML calls a card of this process, whichever of the node's it sees."""
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def sample(nvml: Any, cards: list[Any]) -> Sample:
    """A sample of some cards."""
    slow = (
        nvml.nvmlClocksEventReasonHwSlowdown
        | nvml.nvmlClocksEventReasonHwThermalSlowdown
        | nvml.nvmlClocksEventReasonSwThermalSlowdown
        | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    )
    reasons = [nvml.nvmlDeviceGetCurrentClocksEventReasons(card) for card in cards]
    powers = [nvml.nvmlDeviceGetPowerUsage(card) / 1000 for card in cards]
    return Sample(
        max(nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU) for card in cards),
        sum(powers) / len(powers),
        min(nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM) for card in cards),
        any(reason & slow for reason in reasons),
        any(reason & nvml.nvmlClocksEventReasonSwPowerCap for reason in reasons),
    )
