"""What a run's plan said beside what its steps took, for whoever wants to know how far a plan is to be believed."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from controlplane.services import metrics, runs
from controlplane.services.context import Context

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


def compared(context: Context, run_id: str) -> Comparison:
    """The comparison of a run, as far as it got. Raises NotFound."""
    run = runs.get(context, run_id)
    points = steady(metrics.curve(context, run.id, keys=SEEN))
    measured = medians(points, run.resolved["config"]["global_batch_tokens"])
    planned = forecast(run.resolved.get("planned", {}))
    both = {name: measured[name] / planned[name] for name in planned if measured.get(name)}
    return Comparison(planned, measured, both, len(points))


def steady(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points without the first of each attempt."""
    before: list[dict[str, Any] | None] = [None, *points]
    return [point for last, point in zip(before, points, strict=False) if last and last["attempt"] == point["attempt"]]


def medians(points: list[dict[str, Any]], batch: int) -> dict[str, float]:
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


def forecast(planned: dict[str, Any]) -> dict[str, float]:
    """The same numbers of a plan; none where there is none."""
    if "forecast" not in planned:
        return {}
    numbers = {name: planned["forecast"][name] for name in ("tokens_per_second", "step_seconds", "mfu")}
    return {**numbers, "peak_memory": planned["memory"]["peak"]}
