"""An object's pods as they are observed, of which those that run cost no more than what the cluster knows of them.

Thousands of pods run for days, and what is decided about them depends on the few that do something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, overload

from controlplane.clusters.base import ObservedPod


class RunningPod(Protocol):
    """What a cluster knows of a pod that runs."""

    @property
    def name(self) -> str:
        """The pod's name."""
        ...

    @property
    def uid(self) -> str:
        """Which pod of that name it is."""
        ...

    def observed(self) -> ObservedPod:
        """The pod as the protocol shows it: its phase is Running, and it has no reason."""
        ...


class Pods(Sequence[ObservedPod]):
    """Pods in the order of their ranks; of those that run what the cluster knows is `kept`. `not_running`: the rest."""

    __slots__ = ("kept", "not_running")

    def __init__(self, kept: tuple[ObservedPod | RunningPod, ...]) -> None:
        self.kept = kept
        self.not_running = _not_running(kept)

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> ObservedPod: ...
    @overload
    def __getitem__(self, index: slice) -> list[ObservedPod]: ...
    def __getitem__(self, index: int | slice) -> ObservedPod | list[ObservedPod]:
        if isinstance(index, slice):
            return [_observed(one) for one in self.kept[index]]
        return _observed(self.kept[index])

    def __iter__(self) -> Iterator[ObservedPod]:
        return map(_observed, self.kept)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and not changed(self, other)

    def __hash__(self) -> int:
        return hash(len(self.kept))


def not_running(pods: Sequence[ObservedPod]) -> Sequence[ObservedPod]:
    """Those that wait or have ended."""
    return pods.not_running if isinstance(pods, Pods) else _not_running(pods)


def changed(pods: Sequence[ObservedPod], before: Sequence[ObservedPod]) -> Mapping[int, ObservedPod]:
    """Those of `pods` that differ from the one in the same place of `before`, which has as many; by place."""
    new = pods.kept if isinstance(pods, Pods) else pods
    old = before.kept if isinstance(before, Pods) else before
    places = [place for place, (one, two) in enumerate(zip(new, old, strict=True)) if one is not two]
    return {place: pods[place] for place in places if pods[place] != before[place]}


def _not_running(pods: Sequence[ObservedPod | RunningPod]) -> tuple[ObservedPod, ...]:
    return tuple([one for one in pods if isinstance(one, ObservedPod) and one.phase != "Running"])


def _observed(one: ObservedPod | RunningPod) -> ObservedPod:
    return one if isinstance(one, ObservedPod) else one.observed()
