"""From seconds of a step to days, GPU-hours, energy, cost, failures, and how often to write a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from teragpt.config import Config
from teragpt.plan.choice import Option
from teragpt.plan.hardware import Cluster

HOUR, DAY = 3600.0, 86_400.0
# Hours of one H100 and its share of the machine between unexpected interruptions: 419 in 54 days on 16,384 of them
# (Dubey et al. 2024, section 3.3.4).
GPU_HOURS_BETWEEN_FAILURES = 54 * 24 * 16_384 / 419
# An asynchronous checkpoint of 16.4 GB stops one H100 for 0.38 s and is written in 2.6 s (docs/notebook.md).
STALL_PER_BYTE, WRITE_PER_BYTE = 0.38 / 16.4e9, 2.6 / 16.4e9
FEWEST_CHECKPOINTS = 10  # of a run, unless it says how many
RESTART_SECONDS = 300.0  # an assumption, not a measurement: pods, imports, compilation, reading a checkpoint


@dataclass(frozen=True)
class Forecast:
    """Of a whole run: `seconds` of training, `lost` to failures and checkpoints besides; money where a price is known.

    `low` and `high` are the honest bounds of `step_seconds`: how far predictions were from what was measured.
    """

    step_seconds: float
    low: float
    high: float
    tokens_per_second: float
    mfu: float
    steps: int
    tokens: int
    seconds: float
    gpu_hours: float
    energy_kwh: float
    cost: float | None
    failures: float
    lost_seconds: float
    checkpoint_stall: float
    checkpoint_steps: int
    checkpoint_seconds: float

    @property
    def days(self) -> float:
        """From start to end, with what is lost."""
        return (self.seconds + self.lost_seconds) / DAY


def forecast(
    config: Config,
    option: Option,
    cluster: Cluster,
    bounds: tuple[float, float],
    price: float | None = None,
    every: int | None = None,
) -> Forecast:
    """What a run takes whose steps are the option's, with a checkpoint `every` so many, or as often as loses least.

    `price` is of one GPU for an hour.
    """
    gpus, each = option.cut.stages.ranks, option.seconds
    seconds = config.steps * each
    between = GPU_HOURS_BETWEEN_FAILURES * HOUR / gpus
    kinds = option.memory.kinds
    written = kinds["parameters"] + kinds["optimizer"]
    stall = STALL_PER_BYTE * written
    interval = min(max(daly(stall, between), WRITE_PER_BYTE * written, each), max(seconds, each))
    steps = every or max(1, min(config.steps // FEWEST_CHECKPOINTS, round(interval / each)))
    interval = steps * each
    failures = seconds / between
    lost = failures * (interval / 2 + RESTART_SECONDS) + seconds / interval * stall
    hours = gpus * (seconds + lost) / HOUR
    flops = config.shape.flops_per_token(config.num_tokens, config.context) * config.global_batch_tokens
    return Forecast(
        step_seconds=each,
        low=each * bounds[0],
        high=each * bounds[1],
        tokens_per_second=config.global_batch_tokens / each,
        mfu=flops / each / gpus / cluster.device.bf16,
        steps=config.steps,
        tokens=config.tokens,
        seconds=seconds,
        gpu_hours=hours,
        energy_kwh=hours * cluster.device.watts / 1000,
        cost=None if price is None else hours * price,
        failures=failures,
        lost_seconds=lost,
        checkpoint_stall=stall,
        checkpoint_steps=steps,
        checkpoint_seconds=interval,
    )


def daly(stall: float, between: float) -> float:
    """Seconds between checkpoints that lose the least: Daly's second order (2006, eq. 37) of Young's sqrt(2 d M)."""
    if stall >= 2 * between:
        return between
    ratio = sqrt(stall / (2 * between))
    return sqrt(2 * stall * between) * (1 + ratio / 3 + ratio**2 / 9) - stall


def affordable(rate: float, gpu_hours: float) -> tuple[float, float]:
    """Parameters and tokens that a budget trains best, 20 tokens a parameter (Hoffmann et al. 2022).

    `rate` is useful FLOP/s of a GPU: 6 FLOPs a parameter and token.
    """
    parameters = sqrt(rate * gpu_hours * HOUR / (6 * 20))
    return parameters, 20 * parameters
