"""Time to a loss on this machine's cores: AdamW's last held-out loss at a size, and what Muon takes to get there.

`python benchmarks/trainer/optimizers.py [--size tiny] [--ranks 2] [--seeds 0 1 2] [--steps 640] [--shares 1 0.7 0.5]`
trains for real and alternates: for each seed AdamW over the steps, then Muon over each share of them, each with the
size's own recipe and its decay within its own steps. A run's seconds are those of its steps, by the clock and by the
processors' count (less that of a run of one step), without start and evaluations by the clock.
A line of JSON a run, and last the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CORES = len(os.sched_getaffinity(0))


def train(asked: argparse.Namespace, **settings: object) -> dict[str, Any]:
    """One run: its held-out losses by step, seconds of its steps, seconds of all that its processes computed."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "teragpt.launch", "--standalone", "--nproc-per-node", str(asked.ranks)]
        every = {"size": asked.size, "out": folder, "checkpoint_every": 10**6, **settings}
        words = [word for key, value in every.items() for word in (f"--{key}", str(value))]
        environ = {**os.environ, "OMP_NUM_THREADS": str(CORES // asked.ranks)}
        with (Path(folder) / "said").open("w") as said:
            process = subprocess.Popen([*launch, "-m", "teragpt.train", *words], stdout=said, env=environ)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit((Path(folder) / "said").read_text())
        points = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    tokens = [point["tokens"] for point in points if "tokens" in point]
    rates = [point["tokens_per_s"] for point in points if "tokens_per_s" in point]
    return {
        "losses": {point["step"]: round(point["val_loss"], 4) for point in points if "val_loss" in point},
        "seconds": round(sum(tokens[0] / rate for rate in rates), 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    }


def main() -> None:
    """Alternate, print each run, and then what Muon's time is of AdamW's, and how its loss lies beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--ranks", type=int, default=CORES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.7, 0.5])
    asked = parser.parse_args()
    start = train(asked, steps=1, eval_every=1)["cpu_seconds"]
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for seed in asked.seeds:
        for optimizer, share in [("adamw", 1.0), *(("muon", share) for share in asked.shares)]:
            steps = round(asked.steps * share)
            run = train(asked, optimizer=optimizer, steps=steps, seed=seed, eval_every=max(1, steps // 10))
            run["cpu_seconds"] = round(run["cpu_seconds"] - start, 1)
            found.setdefault((optimizer, share), []).append(run)
            print(json.dumps({"optimizer": optimizer, "share": share, "seed": seed, **run}), flush=True)
    for (optimizer, share), runs in found.items():
        pairs = list(zip(runs, found["adamw", 1.0], strict=True))
        above = [list(one["losses"].values())[-1] - list(other["losses"].values())[-1] for one, other in pairs]
        told = {"optimizer": optimizer, "share": share, "loss above AdamW's": [round(value, 4) for value in above]}
        for kind in ("seconds", "cpu_seconds"):
            told[f"part of its {kind}"] = round(statistics.median(one[kind] / other[kind] for one, other in pairs), 3)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
