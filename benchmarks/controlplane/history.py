"""What years of metrics cost: bytes a value of packed runs, and how long a curve of a million points takes to draw.

`python benchmarks/controlplane/history.py [RUNS]` packs RUNS (100) runs of 100,000 points and one of 1,000,000, with
the values that the trainer reports and their noise, on a fresh SQLite store. It prints bytes a value with everything
that packing leaves (blocks, tiers, the database's pages), counted over the values alone, without the places of points
(limit 3), and the p50 and p99 of `GET /runs/{run}/metrics?keys=loss&downsample=1000` for a short and for the long run
(50 ms).
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, update
from starlette.testclient import TestClient

from controlplane.api.app import create_app
from controlplane.clusters.local import LocalCluster
from controlplane.reconcile.packer import Packer
from controlplane.services.context import Context
from controlplane.settings import Settings
from controlplane.store.store import Store
from controlplane.store.tables import MetricBlock, MetricPoint, MetricTier, Run

POINTS, LONG, SHORT = 100_000, 1_000_000, 1_000
LOOKS = 200
BASE = "http://localhost:8000"
LIMITS = {"bytes_a_value": 3, "curve_p99_ms": 50}


def trained(steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """What a run of so many steps reports; nothing is rounded."""
    noise, clock, tokens = random.Random(seed), 1.8e9, 1 << 19
    for step in range(1, steps + 1):
        seconds = 0.35 * math.exp(noise.gauss(0, 0.02))
        clock, speed = clock + seconds, tokens / seconds
        values = {
            "loss": struct.unpack("f", struct.pack("f", 2 + 8 * step**-0.2 + noise.gauss(0, 0.03)))[0],
            "lr": 6e-5 + 2.7e-4 * (1 + math.cos(math.pi * step / steps)),
            "grad_norm": math.sqrt(abs(0.3 + noise.gauss(0, 0.05))),
            "tokens_per_s": speed,
            "tokens": tokens * step,
            "mfu": 7.1e-8 * speed,
            "memory_bytes": 60_000_000_000 + noise.choice([0, 0, 0, 2 << 20]),
            "eta_s": (steps - step) * tokens / speed,
        }
        yield {"attempt": 1, "seq": step, "step": step, "time": clock, "values": values}


def fill(store: Store, run_id: str, points: Iterator[dict[str, Any]]) -> int:
    """Store a run's points as rows, and let it have ended long ago; how many values they have."""
    batch: list[dict[str, Any]] = []
    values = 0

    def write() -> None:
        rows = list(batch)
        store.write(lambda transaction: transaction.session.execute(insert(MetricPoint), rows))
        batch.clear()

    for point in points:
        batch.append({"run_id": run_id, **point})
        values += len(point["values"])
        if len(batch) == 10_000:
            write()
    if batch:
        write()
    ended = update(Run).where(Run.id == run_id).values(phase="succeeded", finished_at=1.0)
    store.write(lambda transaction: transaction.session.execute(ended))
    return values


def look(client: TestClient, run_id: str) -> dict[str, float]:
    """Milliseconds of a curve of 1,000 pixels."""
    taken: list[float] = []
    for _ in range(LOOKS):
        start = time.perf_counter()
        reply = client.get(f"/v1/runs/{run_id}/metrics?keys=loss&downsample=1000")
        taken.append(1e3 * (time.perf_counter() - start))
        assert 500 < len(reply.json()["points"]) <= 1000
    taken.sort()
    return {"p50_ms": round(taken[LOOKS // 2], 1), "p99_ms": round(taken[LOOKS * 99 // 100], 1)}


def main(runs: int) -> None:
    """Fill, pack, measure."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        store = Store(home)
        cluster = LocalCluster(home / "cluster")
        context = Context(store, cluster, home, BASE)
        packer = Packer(store)
        values = seconds = 0.0
        with TestClient(create_app(context, Settings(home=home)), base_url=BASE) as client:
            made = [
                client.post("/v1/runs", json={"size": "tiny", "compute": {"processes_per_node": 1}}).json()["id"]
                for _ in range(runs + 2)
            ]
            store.vacuum()
            empty = sum(store.sizes())
            for seed, run_id in enumerate(made):
                steps = LONG if seed == runs else SHORT if seed > runs else POINTS
                values += fill(store, run_id, trained(steps, seed))
                start = time.perf_counter()
                while packer.step():
                    pass
                seconds += time.perf_counter() - start
            with store.read() as session:
                assert not session.scalar(select(func.count()).select_from(MetricPoint))
                blocks, tiers = (
                    session.scalar(select(func.sum(func.length(table.data)))) or 0
                    for table in (MetricBlock, MetricTier)
                )
            store.vacuum()
            whole = sum(store.sizes()) - empty
            curves = {"1,000 points": look(client, made[-1]), "1,000,000 points": look(client, made[-2])}
        cluster.close()
        store.close()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "values": round(values),
        "bytes_a_value": {
            "blocks": round(blocks / values, 2),
            "tiers": round(tiers / values, 2),
            "database": round(whole / values, 2),
        },
        "packed_values_a_second": round(values / seconds),
        "curve": curves,
        "limit": LIMITS,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
