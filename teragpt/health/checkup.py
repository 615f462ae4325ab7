"""A few seconds before a run: how fast does each rank multiply, and how fast is each link between neighbours?

A card that runs hot or a cable that runs at half its speed costs every rank of the job as much, and shows in no loss
curve. Each rank is compared with the median, links with those of their kind: within a node, or between nodes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from teragpt.config import Config
from teragpt.launcher.environment import World

SLOW = 0.8  # of the median is named
WARM_UP, REPEATS = 3, 10


@dataclass(frozen=True)
class Load:
    """What is measured: a product of square matrices of this `width`, and `message` bytes to the next rank."""

    width: int
    message: int
    dtype: torch.dtype


GPU = Load(8192, 64 << 20, torch.bfloat16)
CPU = Load(512, 4 << 20, torch.float32)


def check_up(config: Config, world: World, device: torch.device) -> list[str]:
    """Measure every rank and every link from a rank to the next; lines to print, the same on every rank.

    None where the setting turns it off, which it does by itself on CPU.
    """
    if config.check_up == "off" or (config.check_up == "auto" and device.type == "cpu"):
        return []
    load = GPU if device.type == "cuda" else CPU
    rates = gathered(matmul_rate(load, device))
    lines = [f"matmul of {load.width} x {load.width}: {summary(rates, 1e12, 'TFLOP/s')}"]
    lines += [f"slow rank: {who} multiplies at {part:.0%} of the median" for who, part in slow(by_rank(rates))]
    if world.world_size == 1:
        return lines
    speeds = gathered(link_rate(load, device, world))
    nodes = gathered(float(world.rank // world.local_world_size))
    for kind, links in by_kind(speeds, nodes).items():
        lines.append(f"links {kind}: {summary(list(links.values()), 1e9, 'GB/s')}")
        lines += [f"slow link {kind}: {who} at {part:.0%} of the median" for who, part in slow(links)]
    return lines


def matmul_rate(load: Load, device: torch.device) -> float:
    """FLOP/s of this rank's matrix products."""
    a, b = (torch.randn(load.width, load.width, device=device, dtype=load.dtype) for _ in range(2))
    return 2 * load.width**3 / fastest(lambda: a @ b, device)


def link_rate(load: Load, device: torch.device, world: World) -> float:
    """Bytes a second to the next rank in the ring and back from it, with no other link of either in use."""
    message, answer = (torch.zeros(load.message, device=device, dtype=torch.uint8) for _ in range(2))
    count, rank, rate = world.world_size, world.rank, 0.0
    for first in rounds(count):
        dist.barrier()
        starts = first(rank) and (rank + 1 < count or count > 2)
        peer = (rank + 1) % count if starts else (rank - 1) % count
        if starts or (first((rank - 1) % count) and (rank > 0 or count > 2)):
            seconds = fastest(lambda peer=peer: exchange(message, answer, peer), device)  # type: ignore[misc]
            rate = load.message / seconds if starts else rate
    return rate


def rounds(count: int) -> list[Callable[[int], bool]]:
    """Which ranks measure the link to their next in each round: no rank is on two of a round's links."""
    last = count - 1
    even: list[Callable[[int], bool]] = [
        lambda rank: rank % 2 == 0 and (rank != last or count == 1),
        lambda rank: rank % 2 == 1 and rank != last,
    ]
    return [*even, lambda rank: rank == last] if count > 2 else even[:1]


def exchange(message: Tensor, answer: Tensor, peer: int) -> None:
    """Send a message to a rank while one comes from it."""
    works = dist.batch_isend_irecv([dist.P2POp(dist.isend, message, peer), dist.P2POp(dist.irecv, answer, peer)])
    for work in works:
        work.wait()


def fastest(work: Callable[[], object], device: torch.device) -> float:
    """The least seconds that `work` took."""
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[WARM_UP:])


def gathered(value: float) -> list[float]:
    """Every rank's value."""
    found: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def by_rank(rates: Sequence[float]) -> dict[str, float]:
    """Rates under the names of the ranks."""
    return {f"rank {rank}": rate for rank, rate in enumerate(rates)}


def by_kind(speeds: Sequence[float], nodes: Sequence[float]) -> dict[str, dict[str, float]]:
    """Speeds of the links from each rank to the next, by whether both ends are on one node."""
    kinds: dict[str, dict[str, float]] = {}
    for rank, speed in enumerate(speeds):
        after = (rank + 1) % len(speeds)
        if speed:
            kind = "within nodes" if nodes[rank] == nodes[after] else "between nodes"
            kinds.setdefault(kind, {})[f"{rank} to {after}"] = speed
    return kinds


def slow(rates: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Those far below the median, with their part of it."""
    middle = statistics.median(rates.values())
    for name, rate in rates.items():
        if rate < SLOW * middle:
            yield name, rate / middle


def summary(rates: Sequence[float], unit: float, name: str) -> str:
    """Least, median and most."""
    least, middle, most = min(rates) / unit, statistics.median(rates) / unit, max(rates) / unit
    return f"{least:,.3g} to {most:,.3g} {name}, median {middle:,.3g}"
