"""The plan of a run: what was asked, the best layout of it, the next best and why each loses, and what it all takes.

The one door to the planner. It reads no cluster: who asks says which GPUs there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from teragpt.config import Config, ConfigError, Problem, for_cores, precision_misfits, resolve
from teragpt.layout import gib
from teragpt.plan.calibration import Calibration, Speed, read, shipped
from teragpt.plan.choice import SHOWN, Option, dimensions
from teragpt.plan.cores import on_cores
from teragpt.plan.forecast import Forecast, affordable, forecast
from teragpt.plan.hardware import CORE, DEVICES, LINKS, Cluster, Device, device, link, node_link
from teragpt.plan.memory import Ledger
from teragpt.plan.search import DIMENSIONS, MOST_GPUS, Search, blamed, counts
from teragpt.plan.step import Clock
from teragpt.sizes import REFERENCE_VOCABULARY, SIZES, TINY

MOST = 1 << 20
MOST_PRICE = 1e6
MOST_HOURS = 1e12
CHOSEN = frozenset(
    {*DIMENSIONS, "micro_batch", "recompute", "recompute_layers", "gathered", "pipeline_schedule", "pipeline_chunks"}
)
# Bounds of a step's seconds, as parts of what is predicted. One H100 or H200: 47 steps that fixed no constant took 0.90
# to 1.13 of it. Several: other frameworks' published steps take 1.23 as long at the median (tests/teragpt/plan). Any
# other kind of GPU: nothing of ours was ever measured on it.
ALONE, TOGETHER, ELSEWHERE = (0.90, 1.14), (0.90, 1.30), (0.85, 1.50)
ON_CORES = (0.80, 2.00)  # `tiny` took 1.2 to 1.9 times as long: docs/notebook.md


class TooSmall(ConfigError):
    """Nothing fits the cluster; `enough` GPUs are the fewest on which something does, None where none ever are."""

    def __init__(self, problem: Problem, enough: int | None) -> None:
        super().__init__([problem])
        self.enough = enough


@dataclass(frozen=True)
class Plan:
    """A layout for a run, its step and bytes, the next best, what the run takes. `config` has the layout's settings."""

    config: Config
    cluster: Cluster
    best: Option
    others: tuple[tuple[Option, str], ...]
    forecast: Forecast
    speed: Speed

    @property
    def settings(self) -> dict[str, Any]:
        """What the trainer is to be told beside what was asked: the layout, and how often to write a checkpoint.

        Nothing on CPU cores, where it takes what it is given.
        """
        if self.on_cores:
            return {}
        return {**self.best.settings, "checkpoint_every": self.forecast.checkpoint_steps}

    @property
    def idle(self) -> int:
        """GPUs that the best layout leaves alone."""
        return self.cluster.gpus - self.best.cut.stages.ranks

    @property
    def on_cores(self) -> bool:
        """Whether its ranks have no GPU."""
        return self.cluster.device.name == CORE.name

    @property
    def precision(self) -> str:
        """What its products are computed in."""
        return self.config.precision if self.config.precision != "auto" else "fp32" if self.on_cores else "bf16"

    @cached_property
    def in_fp8(self) -> Option | None:
        """Of the layouts that are shown, the quickest that fits in fp8; None where products are in it, or cannot be."""
        device = self.cluster.device
        if self.precision != "bf16" or device.fp8 <= device.bf16:
            return None
        clock = Clock(replace(self.config, precision="fp8"), self.cluster, self.speed)
        ledger = Ledger(clock.config, device.memory)
        shown = (self.best, *(option for option, _ in self.others))
        meshes = (one for one in shown if not any(precision_misfits(in_eight(clock.config, one), blamed)))
        fitting = (one for one in meshes if ledger.fits(one.cut))
        timed = (Option(one.cut, clock.step(one.cut), ledger.memory(one.cut)) for one in fitting)
        return min(timed, key=lambda one: one.seconds, default=None)

    @property
    def measured(self) -> str:
        """What the plan's speeds rest on."""
        if self.speed.own:
            return f"measured on {self.speed.calibration.measured}"
        name, other = self.cluster.device.label, self.speed.measured_on.label
        given = f" ({self.cluster.device.source})" if self.cluster.device.name not in DEVICES else ""
        return f"not measured on {name}: the parts of its peaks that an {other} reaches{given}"

    def to_json(self) -> dict[str, Any]:
        """As the API and `--json` show it."""
        stages = self.best.cut.stages
        return {
            "size": self.config.size,
            "optimizer": self.config.optimizer,
            "gpu": self.cluster.device.name,
            "gpus": self.cluster.gpus,
            "gpus_used": stages.ranks,
            "gpus_per_node": self.cluster.per_node,
            "network": self.cluster.network.name,
            "network_gbs": self.cluster.network.rate / 1e9,
            "node_link_gbs": self.cluster.device.link / 1e9,
            "layout": {
                **asdict(stages),
                "micro_batch": self.best.cut.micro_batch,
                "micro_batches": self.best.cut.count,
                "recompute": self.best.cut.recompute,
                "recompute_layers": self.best.cut.again,
                "gathered": self.best.settings["gathered"],
                "precision": self.precision,
            },
            "settings": self.settings,
            "memory": {
                "kinds": self.best.memory.kinds,
                "peak": self.best.memory.peak,
                "where": self.best.memory.where,
                "limit": self.best.memory.limit,
            },
            "step": {"seconds": self.best.seconds, "parts": self.best.step.parts, "travels": self.best.step.travels},
            "in_fp8": self.in_fp8 and {"step_seconds": self.in_fp8.seconds, "layout": named(self.in_fp8)},
            "forecast": {**asdict(self.forecast), "days": self.forecast.days},
            "others": [
                {"layout": named(option), "step_seconds": option.seconds, "peak": option.memory.peak, "loses": why}
                for option, why in self.others
            ],
            "measured": self.measured,
        }


def cluster_of(
    gpu: Device | str | Mapping[str, object],
    gpus: int,
    *,
    nodes: int | None = None,
    network: str | float | None = None,
    inside: str | float | None = None,
    gpu_memory: float | None = None,
) -> Cluster:
    """GPUs by the name or the numbers of their kind (`hardware.device`), and how many; `gpu_memory`: GB of each.

    `network`: the link between nodes, by its name or GB/s each way a GPU; `inside`: that between the GPUs of a node.
    What such cards are sold with unless given. Raises ConfigError that names the field.
    """
    found = device(gpu)
    for name, value in (("gpus", gpus), ("nodes", 1 if nodes is None else nodes)):
        if value != int(value) or not 1 <= value <= MOST:
            raise ConfigError([Problem(name, value, f"a whole number from 1 to {MOST:,}")])
    if gpu_memory is not None:
        if not 1 <= gpu_memory <= 1e6:
            raise ConfigError([Problem("gpu_memory", gpu_memory, "GB of one GPU, from 1 to 1,000,000")])
        found = replace(found, memory=int(gpu_memory * 1e9))
    if inside is not None:
        found = replace(found, link=node_link(inside).rate)
    if nodes is not None and gpus % nodes:
        raise ConfigError([Problem("nodes", nodes, f"a divisor of gpus {gpus}")])
    per_node = gpus // nodes if nodes else min(gpus, found.per_node)
    return Cluster(found, gpus, per_node, link(network) if network is not None else LINKS[found.network])


def plan(
    settings: Mapping[str, object],
    cluster: Cluster,
    *,
    calibration: Path | None = None,
    price: float | None = None,
    exactly: bool = False,
) -> Plan:
    """The best layout of a run with these settings of the trainer, of which those of the layout stay as they are given.

    `exactly` where every GPU is to be used. Raises ConfigError: settings that cannot be, or a cluster too small, with
    the smallest that would do.
    """
    check_price(price)
    frozen = tuple(sorted((name, value) for name, value in settings.items()))
    return planned(frozen, cluster, read(calibration) if calibration else None, price, exactly)


def check_price(price: float | None) -> None:
    """Raise ConfigError for a price that cannot be."""
    if price is not None and not 0 <= price < MOST_PRICE:
        raise ConfigError([Problem("price", price, f"money for an hour of one GPU, from 0 to below {MOST_PRICE:,.0f}")])


@lru_cache(maxsize=256)
def planned(
    given: tuple[tuple[str, object], ...],
    cluster: Cluster,
    calibration: Calibration | None,
    price: float | None,
    exactly: bool,  # noqa: FBT001 - a key
) -> Plan:
    """As `plan`, remembered."""
    settings = dict(given)
    vocabulary = None if str(settings.get("size", TINY)).lower() == TINY else REFERENCE_VOCABULARY
    config = resolve(settings, vocabulary)
    on_core = cluster.device.name == CORE.name
    config = for_cores(config, settings) if on_core else config
    found = calibration or shipped(cluster.device.name)
    speed = Speed(cluster.device, found, device(found.device))
    pinned = CHOSEN if on_core else CHOSEN & settings.keys()
    search = Search(Clock(config, cluster, speed), Ledger(config, cluster.device.memory), pinned)
    if on_core:
        only = on_cores(search)
        whole = forecast(config, only, cluster, ON_CORES if speed.own else ELSEWHERE, price, config.checkpoint_every)
        return Plan(config, cluster, only, (), whole, speed)
    numbers = [cluster.gpus] if exactly else counts(cluster.gpus, cluster.per_node)
    options = search.best(numbers)
    if not options:
        raise too_small(search, numbers)
    best = options[0]
    every = config.checkpoint_every if "checkpoint_every" in settings else None
    bounds = ELSEWHERE if not speed.own else ALONE if best.cut.stages.ranks == 1 else TOGETHER
    others = tuple((option, loses(option, best)) for option in options[1:SHOWN])
    whole = forecast(config, best, cluster, bounds, price, every)
    chosen: dict[str, Any] = {**best.settings, "checkpoint_every": whole.checkpoint_steps}
    return Plan(replace(config, **chosen), cluster, best, others, whole, speed)


def too_small(search: Search, numbers: list[int]) -> TooSmall:
    """Why nothing fits, and the smallest cluster on which something does."""
    cluster, config = search.clock.cluster, search.config
    least = search.least(numbers)
    if cluster.gpus == cluster.per_node:  # a part of a node, of which a larger cluster has whole ones
        cluster = replace(cluster, per_node=max(cluster.per_node, cluster.device.per_node))
    larger = Search(Clock(config, cluster, search.clock.speed), search.ledger, search.pinned)
    enough = larger.smallest(counts(MOST_GPUS, cluster.per_node))
    mend = f"{enough:,} GPUs are the fewest that do" if enough else "no number of these GPUs does"
    if least is None:
        pinned = ", ".join(f"{name} {getattr(config, name)}" for name in sorted(search.pinned)) or "these settings"
        detail = f"a number that {pinned} and {config.sequences:,} sequences a step can be cut over; {mend}"
        return TooSmall(Problem("gpus", cluster.gpus, detail), enough)
    kinds = {kind: taken for kind, taken in least.kinds.items() if kind != "left free"}
    most = max(kinds, key=lambda kind: kinds[kind])
    detail = (
        f"enough to hold {config.size}: the thriftiest layout takes {gib(least.peak)} of the {gib(least.limit)} that "
        f"may be used of a {cluster.device.label}, {gib(kinds[most])} of it {most}; {mend}"
    )
    return TooSmall(Problem("gpus", cluster.gpus, detail), enough)


def loses(option: Option, best: Option) -> str:
    """Why an option is not the best: the kind of time that grows most, or a mesh that is less simple."""
    slower = option.seconds / best.seconds - 1
    mine, its = option.step.parts, best.step.parts
    grown = {kind: mine.get(kind, 0.0) - its.get(kind, 0.0) for kind in {**its, **mine}}
    worst = max(grown, key=lambda kind: grown[kind])
    if slower <= -5e-4:
        return f"{-slower:.1%} quicker, which is not worth {harder(option, best)}"
    if grown[worst] <= 1e-4 * best.seconds:
        return "as quick, with a mesh of more dimensions"
    if abs(slower) < 5e-4:
        spared = min(grown, key=lambda kind: grown[kind])
        return f"as quick: {worst} {grown[worst] * 1000:+,.1f} ms, {spared} {grown[spared] * 1000:+,.1f} ms"
    return f"{slower:+.1%} a step: {worst} {grown[worst] * 1000:+,.1f} ms"


def harder(option: Option, best: Option) -> str:
    """What of an option's mesh is less simple than the best one's."""
    more = dimensions(option) - dimensions(best)
    if more > 0:
        return f"{more} more dimension{'s' * (more > 1)} of the mesh"
    theirs, ours = option.cut.stages, best.cut.stages
    sizes = (("pp", theirs.pp, ours.pp), ("cp", theirs.cp, ours.cp), ("tp", theirs.tp, ours.tp))
    larger = [f"{name} {one} in place of {other}" for name, one, other in sizes if one > other]
    return larger[0] if larger else "another mesh"


def in_eight(config: Config, option: Option) -> Config:
    """A configuration on an option's mesh, as far as products depend on it."""
    return replace(config, tp=option.cut.stages.tp, cp=option.cut.stages.cp)


def named(option: Option) -> str:
    """A layout in words."""
    cut = option.cut
    return f"{cut.stages}; {cut.count} x {cut.micro_batch}, recompute {cut.recomputed}"


def sweep(
    settings: Mapping[str, object], numbers: list[int], cluster: Cluster, **named: Any
) -> list[Plan | ConfigError]:
    """Plans over several numbers of GPUs, or why there is none."""
    found: list[Plan | ConfigError] = []
    for gpus in numbers:
        per_node = min(gpus, cluster.per_node)
        try:
            found.append(plan(settings, replace(cluster, gpus=gpus, per_node=per_node), **named))
        except ConfigError as error:
            found.append(error)
    return found


@dataclass(frozen=True)
class Budget:
    """What a number of GPU-hours trains best: `parameters` and `tokens`; the largest named size that it pays for."""

    gpu_hours: float
    parameters: float
    tokens: float
    mfu: float
    size: str
    plan: Plan


def within(
    gpu_hours: float, cluster: Cluster, *, calibration: Path | None = None, price: float | None = None
) -> Budget:
    """The model that a budget trains best. Raises ConfigError for one that pays for no size, and as `plan`."""
    if not 0 < gpu_hours < MOST_HOURS:
        raise ConfigError([Problem("gpu_hours", gpu_hours, f"hours of one GPU, more than 0, below {MOST_HOURS:,.0f}")])
    check_price(price)
    if calibration:
        read(calibration)
    best: Plan | None = None
    cheapest = 0.0
    for size in SIZES:
        if size == TINY:
            continue
        try:
            one = plan({"size": size}, cluster, calibration=calibration, price=price)
        except TooSmall:
            continue
        cheapest = min(cheapest or one.forecast.gpu_hours, one.forecast.gpu_hours)
        if one.forecast.gpu_hours <= gpu_hours:
            best = one
    if best is None:
        least = (
            f"at least {cheapest:,.3g}, which the smallest size takes" if cheapest else "a cluster that holds any size"
        )
        raise ConfigError([Problem("gpu_hours", gpu_hours, least)])
    lost = 1 + best.forecast.lost_seconds / best.forecast.seconds
    parameters, tokens = affordable(best.forecast.mfu * cluster.device.bf16 / lost, gpu_hours)
    return Budget(gpu_hours, parameters, tokens, best.forecast.mfu, best.config.size, best)


__all__ = ["Budget", "Cluster", "Device", "Plan", "cluster_of", "plan", "sweep", "within"]
