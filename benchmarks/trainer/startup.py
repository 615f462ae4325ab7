"""From a fresh process to step 1 of the tiny size on two CPU ranks, against a bare two-rank torchrun.

The baseline imports torch, FSDP and DCP and runs one all-reduce: what no distributed trainer can do without.
`python benchmarks/trainer/startup.py [ROUNDS]` alternates the two and prints the ratio of their medians (limit: 1.3).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 1.3
BARE = """
import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
print("done", flush=True)
"""


def seconds_to(line: str, command: list[str]) -> float:
    """Seconds from starting `command` to a printed line that begins with `line`; the process is then ended."""
    start = time.perf_counter()
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
    ) as process:
        assert process.stdout is not None
        for said in process.stdout:
            if said.startswith(line):
                took = time.perf_counter() - start
                process.terminate()
                process.communicate()
                return took
    raise SystemExit(f"{' '.join(command)} ended with {process.returncode} before it printed {line!r}")


def main(rounds: int) -> None:
    """Alternate the two, and print both medians and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(BARE)
        bare = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        ours = [sys.executable, "-m", "teragpt.launch", "--standalone", "--nproc-per-node", "2", "-m", "teragpt.train"]
        times: dict[str, list[float]] = {"bare": [], "ours": []}
        for index in range(rounds + 1):  # the first round warms the disk's cache
            pair = {
                "bare": seconds_to("done", bare),
                "ours": seconds_to("step 1/", [*ours, "--out", f"{folder}/run-{index}"]),
            }
            for name, took in pair.items() if index else ():
                times[name].append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["ours"] / medians["bare"]
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "bare_s": times["bare"],
        "ours_s": times["ours"],
        "ratio": round(ratio, 3),
        "limit": LIMIT,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
