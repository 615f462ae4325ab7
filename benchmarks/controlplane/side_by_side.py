"""What two runs side by side on one machine lose, each against itself alone on the same half of the cores.

`python -m benchmarks.controlplane.side_by_side [ROUNDS]` trains the tiny size through a control plane of its own: one
run on half the cores, then two at once, ROUNDS (3) times in turn. A run's speed is the median of its steps that no
other work of its own (compiling, evaluation, a checkpoint) falls into. The worse of each pair may lose 5%.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys

from benchmarks.controlplane.plane import Plane, opened, tell

STEPS, SETTLED, LIMIT = 150, 30, 0.95


def speeds(plane: Plane, runs: int, cpus: int) -> list[float]:
    """Tokens a second of each of so many runs that train at once."""
    compute = {"processes_per_node": 1, "cpus_per_node": cpus}
    train = {"steps": STEPS, "eval_every": STEPS, "checkpoint_every": STEPS}
    names = [plane.create({"compute": compute, "train": train}) for _ in range(runs)]
    for name in names:
        plane.wait_for(name, "succeeded")
    found = []
    for name in names:
        points = plane.client.get(f"/runs/{name}/metrics").raise_for_status().json()["points"]
        found.append(statistics.median(one["tokens_per_s"] for one in points if SETTLED < one["step"] < STEPS))
    tell(f"{runs} at once: {', '.join(f'{one:,.0f}' for one in found)} tokens/s")
    return found


def main(rounds: int) -> None:
    """Alternate, and print the medians and their ratio."""
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


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
