"""What taking in the points of 200 live runs costs: processor seconds of the server, however loaded the machine is.

`python -m benchmarks.controlplane.ingest [SECONDS]` starts the API as `submissions.py` does, with 200 runs. Each of
them reports 10 points once a second, as its rank 0 would, on a connection of its own for SECONDS (20). It prints points
a second, the part of a core that the server took, also for 2,000 points a second (limit 25%), and p50 and p99.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

import psutil

from benchmarks.controlplane import submissions
from controlplane.store.store import DATABASE

RUNS, POINTS, THREADS = 200, 10, 8
VALUES = {"loss": 3.125, "lr": 0.0041, "grad_norm": 0.82, "tokens_per_s": 35120.0, "tokens": 819200, "eta_s": 41.0}
LIMIT_PERCENT = 25


class Reporter:
    """Rank 0 of a run."""

    def __init__(self, url: str, run: str, token: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._path = f"/v1/runs/{run}/metrics"
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}

    def report(self, turn: int) -> float:
        """Seconds that this turn's points took to be acknowledged."""
        steps = range(1 + turn * POINTS, 1 + (turn + 1) * POINTS)
        points = [{"seq": step, "step": step, "time": 1.8e9 + step, **VALUES} for step in steps]
        started = time.perf_counter()
        self._connection.request("POST", self._path, json.dumps({"attempt": 1, "points": points}), self._headers)
        reply = self._connection.getresponse()
        told = json.loads(reply.read())
        took = time.perf_counter() - started
        if told.get("acknowledged") != steps[-1]:
            raise RuntimeError(f"{reply.status} {told}")
        return took


def reported(reporters: list[Reporter], seconds: int) -> tuple[float, list[float]]:
    """Each reports once a second for so long; the seconds that it took, and those of each report."""
    began = time.monotonic()

    def some(number: int) -> list[float]:
        took: list[float] = []
        for turn in range(seconds):
            time.sleep(max(0.0, began + turn + number / THREADS - time.monotonic()))
            took += [one.report(turn) for one in reporters[number::THREADS]]
        return took

    with ThreadPoolExecutor(THREADS) as pool:
        took = [each for several in pool.map(some, range(THREADS)) for each in several]
    return time.monotonic() - began, took


def main(seconds: int) -> int:
    """Print the measurements; 1 where the limit is missed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, submissions.__file__, "--serve", "ours", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                url = server.stdout.readline().strip()
                submissions.posted(url, range(RUNS))
                with sqlite3.connect(Path(folder) / "ours" / DATABASE) as database:
                    secrets = database.execute("SELECT run_id, token FROM outbox").fetchall()
                reporters = [Reporter(url, run, token) for run, token in secrets]
                process = psutil.Process(server.pid)
                before = process.cpu_times()
                wall, took = reported(reporters, seconds)
                after = process.cpu_times()
            finally:
                server.terminate()
    core = (after.user + after.system - before.user - before.system) / wall
    percentiles = quantiles(took, n=100)
    points = len(took) * POINTS / wall
    for_2000 = 100 * core * 2000 / points
    result = {
        "command": " ".join(["python", "-m", "benchmarks.controlplane.ingest", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "points_a_second": round(points),
        "core_percent": round(100 * core, 1),
        "core_percent_for_2000": round(for_2000, 1),
        "limit_percent": LIMIT_PERCENT,
        "report_ms": {"p50": round(1e3 * percentiles[49], 1), "p99": round(1e3 * percentiles[98], 1)},
    }
    print(json.dumps(result))
    return int(for_2000 > LIMIT_PERCENT)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
