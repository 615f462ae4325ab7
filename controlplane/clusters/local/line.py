"""Who is next before the machine, and who gives way to whom. Pure: what is held and asked for in, an order out.

The higher priority goes first; among equals, whoever's runs hold the smallest part of the machine, then whose last one
began the longest ago; then who came first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from controlplane.clusters.local.share import Share, lacks, total


@dataclass(frozen=True)
class Claim:
    """What an object asks for or holds: its place of arrival, its priority's rank, and whose it is."""

    name: str
    number: int
    rank: int
    owner: str
    share: Share
    stopping: bool = False


def in_order(waiting: Iterable[Claim], held: Iterable[Claim], machine: Share, served: Mapping[str, int]) -> list[Claim]:
    """Those that wait, the next one first. `served` grows with each owner's last beginning."""
    parts: dict[str, float] = {}
    for claim in held:
        parts[claim.owner] = parts.get(claim.owner, 0.0) + part(claim.share, machine)
    return sorted(waiting, key=lambda one: (-one.rank, parts.get(one.owner, 0.0), served.get(one.owner, 0), one.number))


def giving_way(claim: Claim, held: Sequence[Claim], free: Share) -> list[Claim]:
    """Who has to stop so that `claim` finds room: of lower priority, the lowest and latest first, and no more of them.

    Nobody where that would not be enough; who stops already counts as room.
    """
    room = free + total(one.share for one in held if one.stopping)
    lower = [one for one in held if one.rank < claim.rank and not one.stopping]
    chosen: list[Claim] = []
    for one in sorted(lower, key=lambda one: (one.rank, -one.number)):
        if not lacks(claim.share, room):
            break
        chosen.append(one)
        room += one.share
    if lacks(claim.share, room):
        return []
    for one in reversed(chosen[:]):  # one that came before the last may have held nothing of what is lacking
        if not lacks(claim.share, room - one.share):
            room -= one.share
            chosen.remove(one)
    return chosen


def part(share: Share, machine: Share) -> float:
    """The part of the machine that a share takes: of its scarcest resource (dominant resource fairness)."""
    kinds = ((share.cpus, machine.cpus), (share.memory, machine.memory), (share.gpus, machine.gpus))
    return max(float(some / all_) for some, all_ in kinds if all_)
