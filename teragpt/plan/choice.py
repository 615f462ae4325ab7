"""Which of several layouts is the best, and which others are worth showing beside it. It knows no search."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from teragpt.plan.memory import Cut, Memory
from teragpt.plan.step import Step

SHOWN = 6  # the best and the next best five
NEAR = 0.03  # what a plan may be wrong by between meshes of several GPUs: within it the simpler one is taken


@dataclass(frozen=True)
class Option:
    """A cut that fits, how long its step takes, and what it keeps."""

    cut: Cut
    step: Step
    memory: Memory

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.step.seconds

    @property
    def settings(self) -> dict[str, int | str]:
        """As the trainer takes it, but for `dp_shard`, which is what the others leave."""
        stages = self.cut.stages
        schedule = "interleaved" if stages.chunks > 1 else "1f1b"
        sizes: dict[str, int | str] = {
            "dp_replicate": stages.dp_replicate,
            "tp": stages.tp,
            "cp": stages.cp,
            "pp": stages.pp,
        }
        pipeline: dict[str, int | str] = {"pipeline_schedule": schedule, "pipeline_chunks": stages.chunks}
        gathered = "auto" if self.cut.gathered is None else "on" if self.cut.gathered else "off"
        cut: dict[str, int | str] = {"micro_batch": self.cut.micro_batch, "recompute": self.cut.recompute}
        return {**sizes, **pipeline, **cut, "recompute_layers": self.cut.again, "gathered": gathered}


def signature(cut: Cut) -> tuple[object, ...]:
    """What makes a layout another one for its reader."""
    stages = cut.stages
    return stages.tp, stages.cp, stages.pp, cut.recompute, stages.ranks


def dimensions(option: Option) -> int:
    """Of the mesh, beside shards: how many are in use."""
    stages = option.cut.stages
    return sum(size > 1 for size in (stages.tp, stages.cp, stages.pp, stages.dp_replicate))


def preferred(option: Option) -> tuple[float, int, int]:
    """Quicker first; of equals, the mesh with fewer dimensions, then fewer micro-batches."""
    return float(f"{option.seconds:.6g}"), dimensions(option), option.cut.count


def simpler(option: Option) -> tuple[float, ...]:
    """The mesh with fewer dimensions first, then the smaller `pp`, `cp`, `tp`; of equals, the quicker."""
    stages = option.cut.stages
    return dimensions(option), stages.pp, stages.cp, stages.tp, *preferred(option)


def worth(found: Iterable[Option]) -> float:
    """Seconds from which a further option is neither near the quickest nor among those that are shown."""
    seconds: dict[tuple[object, ...], float] = {}
    for one in found:
        mine = signature(one.cut)
        seconds[mine] = min(one.seconds, seconds.get(mine, inf))
    ordered = sorted(seconds.values())
    return inf if len(ordered) < SHOWN else max(ordered[SHOWN - 1], ordered[0] * (1 + NEAR))


def chosen_first(found: list[Option]) -> list[Option]:
    """The simplest of those within `NEAR` of the quickest, then the others by speed."""
    if not found:
        return []
    least = min(one.seconds for one in found)
    best = min((one for one in found if one.seconds <= least * (1 + NEAR)), key=simpler)
    return [best, *sorted((one for one in found if one is not best), key=preferred)]


def together(better: list[Option], found: list[Option]) -> list[Option]:
    """The best of the first list, if there is one, before all others by speed, each layout once; as many as are shown.

    Of options that look the same, the quickest is shown, but beside the best only what is quicker than it.
    """
    if not better:
        return found
    best, shown = better[0], {signature(better[0].cut)}
    others = []
    for one in sorted([*better[1:], *found], key=preferred):
        mine = signature(one.cut)
        if mine not in shown or (one.seconds < best.seconds and one.cut.stages.dp_replicate > 1):
            others.append(one)
            shown.add(mine)
    return [best, *others][:SHOWN]
