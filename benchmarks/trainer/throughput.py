"""Training throughput of the tiny size on this machine's cores against a plain, tuned PyTorch loop of its dimensions.

The baseline (plain_gpt.py) is compiled and swept over threads and batch. Ours trains for real, on one rank with every
core and on one rank a core; what is not training (evaluation, checkpoints) is left out of both.
`python benchmarks/trainer/throughput.py [ROUNDS]` alternates them and prints the ratios of the medians (limits: 1.0 on
one rank, 0.95 on two).
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

STEPS = 80
CORES = len(os.sched_getaffinity(0))
CONTEXT = 256
NEVER = "1000000"
LIMITS = {"one rank": 1.0, "a rank a core": 0.95}


def plain(threads: int, batch: int, steps: int) -> float:
    """Tokens per second of the baseline."""
    script = Path(__file__).with_name("plain_gpt.py")
    words = [sys.executable, str(script), str(threads), str(batch), "1", str(steps)]
    output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output)["tokens_per_s"])


def ours(ranks: int, batch: int) -> float:
    """Tokens per second of the trainer, over the second half of a short run."""
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "teragpt.launch", "--standalone", "--nproc-per-node", str(ranks)]
        settings = {
            "out": folder,
            "steps": STEPS,
            "global-batch-tokens": batch * CONTEXT,
            "micro-batch": batch // ranks,
            "eval-every": NEVER,
            "checkpoint-every": NEVER,
            "log-every": STEPS // 2,
            "compile": "on",
        }
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        environ = {**os.environ, "OMP_NUM_THREADS": str(CORES // ranks)}
        subprocess.run(
            [*launch, "-m", "teragpt.train", *words], check=True, stdout=subprocess.DEVNULL, env=environ, timeout=300
        )
        points = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        return float([point for point in points if "tokens_per_s" in point][-1]["tokens_per_s"])


def main(rounds: int) -> None:
    """Sweep the baseline, alternate, and print the medians and their ratios."""
    sweep = {(threads, batch): plain(threads, batch, 20) for threads in (1, CORES) for batch in (4, 8, 16, 32)}
    threads, batch = max(sweep, key=lambda key: sweep[key])
    rates: dict[str, list[float]] = {"plain": [], "one rank": [], "a rank a core": []}
    for _ in range(rounds):
        rates["plain"].append(plain(threads, batch, STEPS // 2))
        rates["one rank"].append(ours(1, batch))
        rates["a rank a core"].append(ours(CORES, batch))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{CORES} cores, {platform.machine()}",
        "plain": {"threads": threads, "batch": batch},
        "tokens_per_s": {name: [round(value) for value in values] for name, values in rates.items()},
        "ratio": {name: round(medians[name] / medians["plain"], 3) for name in LIMITS},
        "limit": LIMITS,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
