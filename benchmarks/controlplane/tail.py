"""How far a follower is behind a log: from a line's writing to its arrival over `GET /runs/{run}/logs/stream`.

`python -m benchmarks.controlplane.tail [SECONDS]` starts a control plane and a run whose pod writes the time 20 times a
second for SECONDS (20) in the trainer's place. It prints p50 and p99 in milliseconds (limit of the latter: 200).
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import quantiles

from benchmarks.controlplane import plane

LIMIT_MS = 200
PROGRAM = """
import sys, time
for _ in range({lines}):
    print(time.time(), flush=True)
    time.sleep(0.05)
"""


def followed(server: plane.Plane, run: str) -> list[float]:
    """Milliseconds that each line took, from the second on which the stream had caught up."""
    behind: list[float] = []
    with server.client.stream("GET", f"/runs/{run}/logs/stream", params={"tail": 0}) as stream:
        for line in stream.iter_lines():
            now = time.time()
            if line == "event: end":
                break
            if line.startswith("data: {") and "lines" in line:
                behind += [1000 * (now - float(told)) for told in json.loads(line[6:])["lines"] if told[:1].isdigit()]
    return behind


def main(seconds: int) -> int:
    """Print the measurements; 1 where the limit is missed."""
    with plane.opened() as server:
        package = Path(server.home).parent / "program" / "teragpt"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "launch.py").write_text(PROGRAM.format(lines=20 * seconds))
        env = [{"name": "PYTHONPATH", "value": str(package.parent)}]
        run = server.create({"env": env, "compute": {"processes_per_node": 1}})
        server.wait_for(run, "running")
        before = server.process.cpu_times()
        behind = followed(server, run)
        after = server.process.cpu_times()
    percentiles = quantiles(behind, n=100)
    result = {
        "command": " ".join(["python", "-m", "benchmarks.controlplane.tail", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "lines": len(behind),
        "behind_ms": {"p50": round(percentiles[49], 1), "p99": round(percentiles[98], 1)},
        "core_percent": round(100 * (after.user + after.system - before.user - before.system) / seconds, 1),
        "limit_p99_ms": LIMIT_MS,
    }
    print(json.dumps(result))
    return int(percentiles[98] > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
