"""Which part of a data sheet's numbers a step of training reaches: measured once on a card, kept as a small JSON file.

`teragpt bench --calibrate FILE` makes one. Those that ship are of an H100 and of a CPU core; a card without a file of
its own is taken to reach the H100's parts of its own peaks, and a plan for it says so.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from teragpt.config import ConfigError, Problem
from teragpt.plan.hardware import Device, device

SHIPPED = "h100"
NVLINK_PART = 370 / 450  # of the line rate, in all-gathers (github.com/NVIDIA/nccl-tests/issues/212, a maintainer)
NETWORK_PART = 47 / 50  # of NDR InfiniBand's (github.com/NVIDIA/nccl-tests/issues/290, a maintainer: 46 to 48 GB/s)
# Of each rank to each collective, beside the bytes: what llm-foundry's 7b loses from 128 to 512 H100s, 1.173 to 1.271 s
# a step with 96 collectives (its scripts/train/benchmarking/README.md).
HOP_SECONDS = 2.7e-6


@dataclass(frozen=True)
class Calibration:
    """What was measured on a `device`, in parts of its peaks.

    `products`: by precision, points of (FLOPs of a product, part of the peak), a core's under bf16 though it computes
    in fp32. `copy`: of the memory's bandwidth by a copy; `pointwise`: of a copy's by norms, rotations and gates as they
    are compiled. `attention`: FLOP/s forward and backward by (head width, tokens), and the part of it that is left
    within a step. `loss_passes` over the logits in bf16 that the loss takes; `quantise_bytes` an element of a product
    in fp8. `launch_seconds` of one kernel by the host, `context_bytes` of CUDA's context and libraries: None where
    nobody has measured them.
    """

    device: str
    measured: str
    products: dict[str, list[tuple[float, float]]] = field(hash=False)
    copy: float
    pointwise: float
    attention: Sequence[tuple[float, float, float]] = field(hash=False)
    attention_in_step: float
    loss_passes: float
    quantise_bytes: float
    launch_seconds: float | None
    context_bytes: int | None

    def product(self, flops: float, precision: str) -> float:
        """The part of the peak that a product of so many FLOPs reaches: between the points by its logarithm."""
        points = self.products["fp8" if precision == "fp8" else "bf16"]
        if len(points) == 1:
            return points[0][1]
        return between([(math.log(work), part) for work, part in points], math.log(flops))

    def attention_rate(self, width: int, tokens: int) -> float:
        """FLOP/s of attention within a step on the measured device: of the nearest head width, by log of tokens."""
        nearest = min({one[0] for one in self.attention}, key=lambda one: abs(math.log(one / width)))
        points = sorted((math.log(length), rate) for head, length, rate in self.attention if head == nearest)
        return between(points, math.log(tokens)) * self.attention_in_step


def between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at a place, on the lines between points; beyond them, that of the last."""
    after = bisect_left(points, (at,))
    if after in (0, len(points)):
        return points[min(after, len(points) - 1)][1]
    (left, low), (right, high) = points[after - 1], points[after]
    return low + (high - low) * (at - left) / (right - left)


@cache
def shipped(kind: str = SHIPPED) -> Calibration:
    """The calibration that comes with the package: of this kind where one does, of an H100 for any other GPU."""
    own = Path(__file__).with_name(f"{kind}.json")
    return read(own if own.is_file() else own.with_name(f"{SHIPPED}.json"))


def read(path: Path) -> Calibration:
    """A calibration's file. Raises ConfigError that names it."""
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return Calibration(**{one.name: values[one.name] for one in fields(Calibration)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        wanted = f"a file that `teragpt bench --calibrate` wrote ({type(error).__name__}: {error})"
        raise ConfigError([Problem("calibration", str(path), wanted)]) from None


def recalibrated(gpu: str, ratios: Sequence[float]) -> Calibration:
    """The shipped calibration, slower by the median of what steps of runs took over what was planned with it.

    All that computes is; links stay. Raises ConfigError: no such kind, or no run of it.
    """
    kind = device(gpu)
    if not ratios:
        raise ConfigError([Problem("gpu", gpu, "a kind that runs which have ended computed on")])
    base, slower = shipped(kind.name), median(ratios)
    like = kind.bf16 / device(base.device).bf16  # attention is in FLOP/s, all else in parts of a peak
    spread = f"{slower:.3g} of what was planned ({min(ratios):.3g} to {max(ratios):.3g})"
    return replace(
        base,
        device=kind.name,
        measured=f"{len(ratios)} runs, whose steps took {spread} with what was {base.measured}",
        products={name: [(work, part / slower) for work, part in points] for name, points in base.products.items()},
        copy=base.copy / slower,
        attention=[(width, tokens, rate * like / slower) for width, tokens, rate in base.attention],
    )


def write(file: Path, found: Calibration) -> None:
    """Store a calibration in a file that is not there yet. Raises ConfigError."""
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(json.dumps(asdict(found), indent=2) + "\n")
    except OSError as error:
        wanted = f"a file that is not there yet, and can be written ({error.strerror})"
        raise ConfigError([Problem("calibrate", str(file), wanted)]) from None


@dataclass(frozen=True)
class Speed:
    """A device as a step finds it: what a calibration, `measured_on` this kind or another, says in units a second."""

    device: Device
    calibration: Calibration
    measured_on: Device

    @property
    def own(self) -> bool:
        """Whether the measured device is of this kind."""
        return self.device.name == self.measured_on.name

    def product_seconds(self, rows: float, inner: float, columns: float, precision: str) -> float:
        """Of a product of (rows, inner) by (inner, columns): its FLOPs at what such a one reaches, or its bytes."""
        flops = 2 * rows * inner * columns
        bytes_moved = 2 * (rows * inner + inner * columns + rows * columns)
        computed = flops / (self.device.peak(precision) * self.calibration.product(flops, precision))
        return max(computed, bytes_moved / self.copy_rate)

    @property
    def copy_rate(self) -> float:
        """Bytes a second, read and written."""
        return self.device.bandwidth * self.calibration.copy

    @property
    def pointwise_rate(self) -> float:
        """Bytes a second of compiled kernels that only pass over memory."""
        return self.copy_rate * self.calibration.pointwise

    def attention_seconds(self, flops: float, width: int, tokens: int) -> float:
        """Of causal attention, forward and backward, at the part of the peak that the measured device reaches."""
        part = self.calibration.attention_rate(width, tokens) / self.measured_on.bf16
        return flops / (part * self.device.bf16)
