"""What two runs side by side on one machine lose, each against itself alone on the same half of the cores.

`python -m benchmarks.controlplane.side_by_side [ROUNDS]` trains the tiny size through a control plane of its own: one
run on half the cores, then two at once; then the same without one, as bare processes with that affinity and as many
threads, which tells what the machine itself takes (its cores may share memory, caches, or be one core's two threads);
all of it ROUNDS (3) times in turn. A run's speed is the median of its steps that no other work of its own (compiling,
evaluation, a checkpoint) falls into, and that both take at the same time. The worse of each pair may lose 5% of what
the worse of two bare processes keeps, else it ends with 1. What else computes is told as `load_before`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.controlplane.plane import Plane, opened, tell

STEPS, SETTLED, LIMIT = 150, 30, 0.95
LEAST = 60  # steps that two runs take at the same time, to be compared
TRAIN = {"steps": STEPS, "eval_every": STEPS, "checkpoint_every": STEPS}

Points = list[dict[str, Any]]


def planned(plane: Plane, runs: int, cpus: int) -> list[Points]:
    """What so many runs report that train at once."""
    compute = {"processes_per_node": 1, "cpus_per_node": cpus}
    names = [plane.create({"compute": compute, "train": TRAIN}) for _ in range(runs)]
    for name in names:
        plane.wait_for(name, "succeeded")
    return [plane.client.get(f"/runs/{name}/metrics").raise_for_status().json()["points"] for name in names]


def bare(runs: int, cpus: int) -> list[Points]:
    """The same of trainers that nobody looks after, each on its own cores."""
    cores = sorted(os.sched_getaffinity(0))
    given = [word for name, value in TRAIN.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, str(number)) for number in range(runs)]
        processes: list[subprocess.Popen[bytes]] = []
        for number, out in enumerate(outs):
            mine = ",".join(map(str, cores[number * cpus : (number + 1) * cpus]))
            command = ["taskset", "-c", mine, sys.executable, "-m", "teragpt.train", "--size", "tiny", f"--out={out}"]
            environ = {**os.environ, "OMP_NUM_THREADS": str(cpus)}
            processes.append(subprocess.Popen([*command, *given], env=environ, stdout=subprocess.DEVNULL))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit("a bare trainer has failed")
        return [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in outs]


def speeds(what: str, reported: list[Points]) -> float:
    """Tokens a second of the slowest of runs that trained at once."""
    taken = [[one for one in points if "tokens_per_s" in one and SETTLED < one["step"] < STEPS] for points in reported]
    begin, end = max(each[0]["time"] for each in taken), min(each[-1]["time"] for each in taken)
    together = [[one for one in each if begin <= one["time"] <= end] for each in taken]
    if min(map(len, together)) < LEAST:
        raise SystemExit(f"two runs took fewer than {LEAST} steps at the same time: {what}")
    found = [float(statistics.median(one["tokens_per_s"] for one in each)) for each in together]
    tell(f"{what}, {len(found)} at once: {', '.join(f'{one:,.0f}' for one in found)} tokens/s")
    return min(found)


def main(rounds: int) -> int:
    """Alternate, and print the medians and their ratio; 1 where that is below the limit."""
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        raise SystemExit(f"this process may use {cores} core, and two runs need one each")
    load, half = os.getloadavg()[0], cores // 2
    with opened() as plane:
        played = [
            {
                "alone": speeds("ours", planned(plane, 1, half)),
                "the slower of two": speeds("ours", planned(plane, 2, half)),
                "bare, alone": speeds("bare", bare(1, half)),
                "bare, the slower of two": speeds("bare", bare(2, half)),
            }
            for _ in range(rounds)
        ]
    found = {name: statistics.median(one[name] for one in played) for name in played[0]}
    alone, beside, bare_alone, bare_beside = found.values()
    ratio, machine = beside / alone, min(1.0, bare_beside / bare_alone)
    result = {
        "command": " ".join(["python", "-m", "benchmarks.controlplane.side_by_side", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_before": round(load, 1),
        "tokens_per_s": {name: round(value) for name, value in found.items()},
        "ratio": round(ratio, 3),
        "bare_ratio": round(bare_beside / bare_alone, 3),
        "over_bare": round(ratio / machine, 3),
        "limit": LIMIT,
    }
    print(json.dumps(result))
    return int(ratio < LIMIT * machine)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
