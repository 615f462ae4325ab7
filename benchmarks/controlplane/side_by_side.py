"""What two runs side by side on one machine lose, each against itself alone on the same half of the cores.

`python -m benchmarks.controlplane.side_by_side [ROUNDS]` trains the tiny size through a control plane of its own: one
run on half the cores, then two at once, ROUNDS (3) times in turn. A run's speed is the median of its steps that no
other work of its own (compiling, evaluation, a checkpoint) falls into, and that both take at the same time. The worse
of each pair may lose 5%, else it ends with 1. The machine has to be quiet: what else computes is told as `load_before`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from typing import Any

from benchmarks.controlplane.plane import Plane, opened, tell

STEPS, SETTLED, LIMIT = 150, 30, 0.95
LEAST = 60  # steps that two runs take at the same time, to be compared


def speeds(plane: Plane, runs: int, cpus: int) -> list[float]:
    """Tokens a second of each of so many runs that train at once."""
    compute = {"processes_per_node": 1, "cpus_per_node": cpus}
    train = {"steps": STEPS, "eval_every": STEPS, "checkpoint_every": STEPS}
    names = [plane.create({"compute": compute, "train": train}) for _ in range(runs)]
    for name in names:
        plane.wait_for(name, "succeeded")
    taken = [settled(plane, name) for name in names]
    begin, end = max(each[0]["time"] for each in taken), min(each[-1]["time"] for each in taken)
    together = [[one for one in each if begin <= one["time"] <= end] for each in taken]
    if min(map(len, together)) < LEAST:
        raise SystemExit(f"{', '.join(names)} took fewer than {LEAST} steps at the same time")
    found = [statistics.median(one["tokens_per_s"] for one in each) for each in together]
    tell(f"{runs} at once: {', '.join(f'{one:,.0f}' for one in found)} tokens/s")
    return found


def settled(plane: Plane, run: str) -> list[dict[str, Any]]:
    """A run's steps beside which it does nothing else."""
    points = plane.client.get(f"/runs/{run}/metrics").raise_for_status().json()["points"]
    return [one for one in points if "tokens_per_s" in one and SETTLED < one["step"] < STEPS]


def main(rounds: int) -> int:
    """Alternate, and print the medians and their ratio; 1 where that is below the limit."""
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        raise SystemExit(f"this process may use {cores} core, and two runs need one each")
    load = os.getloadavg()[0]
    with opened() as plane:
        played = [(speeds(plane, 1, cores // 2)[0], min(speeds(plane, 2, cores // 2))) for _ in range(rounds)]
    alone, beside = (statistics.median(values) for values in zip(*played, strict=True))
    result = {
        "command": " ".join(["python", "-m", "benchmarks.controlplane.side_by_side", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_before": round(load, 1),
        "tokens_per_s": {"alone": round(alone), "the slower of two": round(beside)},
        "ratio": round(beside / alone, 3),
        "limit": LIMIT,
    }
    print(json.dumps(result))
    return int(beside < LIMIT * alone)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
