"""What a run's plan said beside what its steps took, for whoever wants to know how far a plan is to be believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

SEEN = ("tokens_per_s", "mfu", "memory_bytes")


@dataclass(frozen=True)
class Comparison:
    """`planned` and `measured` numbers by the same names, and what was measured over what was planned.

    Measured are medians over `points`, each attempt's first left out, in which it compiles; of memory the most.
    """

    planned: dict[str, float]
    measured: dict[str, float]
    measured_over_planned: dict[str, float]
    points: int


def compare(resolved: Mapping[str, Any], points: Iterable[Mapping[str, Any]]) -> Comparison:
    """The comparison of a run that became `resolved`, of whose points these are known, attempt by attempt."""
    told = [point for point in points if point.get(SEEN[0])]
    steps = {point["step"]: point for point in steady(told)}  # a later attempt's replace an earlier one's
    planned = forecast(resolved.get("planned", {}))
    measured = medians([*steps.values()], resolved["config"].get("global_batch_tokens", 0))
    if "mfu" in planned and "tokens_per_second" in measured:  # a trainer on cores knows no peak
        measured.setdefault("mfu", planned["mfu"] * measured["tokens_per_second"] / planned["tokens_per_second"])
    both = {name: measured[name] / planned[name] for name in planned if measured.get(name)}
    return Comparison(planned, measured, both, len(steps))


def steady(points: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Points without the first of each attempt."""
    before: list[Mapping[str, Any] | None] = [None, *points]
    return [point for last, point in zip(before, points, strict=False) if last and last["attempt"] == point["attempt"]]


def medians(points: list[Mapping[str, Any]], batch: int) -> dict[str, float]:
    """Numbers of the points by the plan's names; those that nobody reported are left out."""
    there = {name: [point[name] for point in points if point.get(name)] for name in SEEN}
    found: dict[str, float] = {}
    if there["tokens_per_s"]:
        found["tokens_per_second"] = median(there["tokens_per_s"])
        found["step_seconds"] = batch / found["tokens_per_second"]
    if there["mfu"]:
        found["mfu"] = median(there["mfu"])
    if there["memory_bytes"]:
        found["peak_memory"] = max(there["memory_bytes"])
    return found


def forecast(planned: Mapping[str, Any]) -> dict[str, float]:
    """The same numbers of a plan; none where there is none."""
    if "forecast" not in planned:
        return {}
    numbers = {name: planned["forecast"][name] for name in ("tokens_per_second", "step_seconds", "mfu")}
    return {**numbers, "peak_memory": planned["memory"]["peak"]}
