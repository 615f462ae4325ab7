"""A plan for people: a table of a screen. Its formulas are told by `explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeAlias

from teragpt.config import Config
from teragpt.plan.planner import Budget, Plan, named
from teragpt.sizes import SIZES, Shape

Row: TypeAlias = tuple[str, str]


def table(plan: Plan) -> list[Row]:
    """A plan in a few sentences."""
    cut, whole, cluster, config = plan.best.cut, plan.forecast, plan.cluster, plan.config
    stages = cut.stages
    idle = f"; {plan.idle:,} of {cluster.gpus:,} stay idle, since fewer are quicker" if plan.idle else ""
    parts = sorted(plan.best.step.parts.items(), key=lambda one: -one[1])
    kinds = [(kind, taken) for kind, taken in plan.best.memory.kinds.items() if taken and kind != "left free"]
    return [
        ("size", f"{model(config)}: {count(config.shape.parameters(config.num_tokens))} parameters"),
        ("trains on", f"{count(whole.tokens)} tokens: {whole.steps:,} steps of {config.global_batch_tokens:,}"),
        ("optimizer", f"{config.optimizer}, learning rate {config.learning_rate:g}"),
        ("GPUs", f"{stages.ranks:,} x {cluster.device.label}, {cluster.per_node} a node, {cluster.network.name}{idle}"),
        ("layout", f"{stages}"),
        ("micro-batches", f"{cut.count:,} of {cut.micro_batch}, recompute {cut.recomputed}, {plan.precision}"),
        *(
            [("weights", "gathered once a step" if cut.gathered else "gathered for each use")]
            if stages.fsdp > 1
            else []
        ),
        ("memory", f"{giga(plan.best.memory.peak)} of {giga(plan.best.memory.limit)} at {plan.best.memory.where}"),
        *((f"  {kind}", giga(taken)) for kind, taken in kinds),
        ("step", f"{seconds(whole.step_seconds)} ({seconds(whole.low)} to {seconds(whole.high)})"),
        *((f"  {kind}", f"{seconds(took)}, {took / whole.step_seconds:.1%}") for kind, took in parts),
        *([("  in fp8", narrower(plan))] if plan.in_fp8 else []),
        ("speed", f"{whole.tokens_per_second:,.0f} tokens/s, MFU {whole.mfu:.1%}"),
        ("takes", takes(plan)),
        ("failures", f"{whole.failures:,.3g} expected; {seconds(whole.lost_seconds)} lost to them and to checkpoints"),
        ("checkpoints", f"every {whole.checkpoint_steps:,} steps, {seconds(whole.checkpoint_seconds)}"),
        *((f"next best {at}", f"{named(option)}: {why}") for at, (option, why) in enumerate(plan.others, 1)),
        ("rests on", plan.measured),
    ]


def narrower(plan: Plan) -> str:
    """What products in fp8 would bring, which is for who trains to choose."""
    quickest = plan.in_fp8 or plan.best
    much, same = 1 - quickest.seconds / plan.best.seconds, quickest.cut == plan.best.cut
    layout = "this layout" if same else named(quickest)
    return (
        f"{seconds(quickest.seconds)}, {much:.0%} less, with {layout}; --set precision=fp8 plans it, its loss is to be "
        "looked at"
    )


def model(config: Config) -> str:
    """The size, and what of its shape is another."""
    named, shape = SIZES[config.size], config.shape
    changed = [f"{one.name} {getattr(shape, one.name)}" for one in fields(Shape)]
    same = {f"{one.name} {getattr(named, one.name)}" for one in fields(Shape)}
    others = ", ".join(one for one in changed if one not in same)
    return f"{config.size} with {others}" if others else config.size


def rows(plans: Sequence[Plan]) -> list[list[str]]:
    """Plans over several numbers of GPUs, a row each, under a head."""
    head = ["GPUs", "layout", "micro-batches", "memory", "step", "tokens/s", "MFU", "days", "GPU-hours"]
    return [head, *(row(one) for one in plans)]


def row(plan: Plan) -> list[str]:
    """A plan in a row."""
    cut, whole = plan.best.cut, plan.forecast
    used = f"{cut.stages.ranks:,}" + (f" of {plan.cluster.gpus:,}" if plan.idle else "")
    batches = f"{cut.count} x {cut.micro_batch}, {cut.recomputed}"
    speed = [seconds(whole.step_seconds), f"{whole.tokens_per_second:,.0f}", f"{whole.mfu:.1%}"]
    return [
        used,
        str(cut.stages),
        batches,
        giga(plan.best.memory.peak),
        *speed,
        f"{whole.days:,.3g}",
        f"{whole.gpu_hours:,.0f}",
    ]


def takes(plan: Plan) -> str:
    """Days, GPU-hours, energy, and money where a GPU's price is known."""
    whole = plan.forecast
    cost = "" if whole.cost is None else f", {whole.cost:,.0f} in money"
    unit, places = ("core", 2) if plan.on_cores else ("GPU", 0)
    low, high = (whole.days * bound / whole.step_seconds for bound in (whole.low, whole.high))
    return (
        f"{whole.days:,.3g} days ({low:,.3g} to {high:,.3g}), {whole.gpu_hours:,.{places}f} {unit}-hours, "
        f"{whole.energy_kwh:,.0f} kWh{cost}"
    )


def budget(found: Budget) -> list[Row]:
    """What a budget trains best."""
    best = found.plan
    return [
        ("budget", f"{found.gpu_hours:,.6g} GPU-hours of {best.cluster.device.label}, at MFU {found.mfu:.1%}"),
        ("trains best", f"{count(found.parameters)} parameters on {count(found.tokens)} tokens, 20 a parameter"),
        ("largest size", f"{found.size}: {best.forecast.gpu_hours:,.0f} GPU-hours, {best.forecast.days:,.3g} days"),
        (
            "rests on",
            f"{best.measured}; Hoffmann et al. 2022; failures and checkpoints as of `teragpt plan {found.size}`",
        ),
    ]


def seconds(value: float) -> str:
    """Seconds for people."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if value >= 2 * size:
            return f"{value / size:,.3g} {unit}"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def giga(value: float) -> str:
    """Bytes for people: decimal, as cards are sold."""
    return f"{value / 1e9:,.3g} GB"


def count(value: float) -> str:
    """A large number for people."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:,.3g} {unit}"
    return f"{value:,.0f}"
