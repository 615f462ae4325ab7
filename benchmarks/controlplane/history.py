"""What years of metrics cost: bytes a value of packed runs, and whether pages stay as quick as history grows.

`python benchmarks/controlplane/history.py [RUNS]` packs RUNS (1) runs of 100,000 points and one of 1,000,000, with the
values that the trainer reports and their noise, on a fresh SQLite store of 100 runs. It prints bytes a value with
everything that packing leaves (blocks, tiers, the database's pages), counted over the values alone, without the places
of points (limit 3). Then a copy of that store gets 9,900 runs more, and both are looked at in turn, one request after
the other: `GET /runs?limit=50`, `GET /runs/{run}`, and `GET /runs/{run}/metrics?keys=loss&downsample=1000` of the long
run. It prints p50 and p99 with 10,000 runs (limit of the latter 50 ms), and what a look takes with 10,000 runs over
what it takes with 100 (limit 1.3), by the processor's time, which other work on the machine does not change much.

The long run takes some 90 seconds of processor time, each other one 9; a value takes as many bytes in one as in 100.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from benchmarks.controlplane import plane
from controlplane import heap
from controlplane.api.app import create_app
from controlplane.clusters.local import LocalCluster
from controlplane.domain.spec import parse_spec
from controlplane.reconcile.packer import Packer
from controlplane.services.context import Context
from controlplane.services.insertion import insert as insert_runs
from controlplane.services.runs import Asker, request_of
from controlplane.settings import Settings
from controlplane.store.rows import add_rows
from controlplane.store.store import DATABASE, Store
from controlplane.store.tables import MetricBlock, MetricPoint, MetricTier, Run

POINTS, LONG = 100_000, 1_000_000
FEW, MANY, GROUP = 100, 10_000, 500
LOOKS = 200
BASE = "http://localhost:8000"
LIMITS = {"bytes_a_value": 3, "p99_ms": 50, "grows": 1.3}
SPEC = {"size": "tiny", "compute": {"processes_per_node": 1}}


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
        store.write(lambda transaction: add_rows(transaction.session.connection(), MetricPoint.__table__, rows))
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


def packed(store: Store, made: list[str]) -> tuple[int, float]:
    """Give each of these runs its points, the last one the most, and pack them: values, and seconds of packing."""
    packer = Packer(store)
    values = seconds = 0.0
    for seed, run_id in enumerate(made):
        values += fill(store, run_id, trained(LONG if run_id == made[-1] else POINTS, seed))
        start = time.process_time()
        while packer.step():
            pass
        seconds += time.process_time() - start
        plane.tell(f"run {seed + 1} of {len(made)} is packed")
    return round(values), seconds


def ask(context: Context, numbers: range) -> list[str]:
    """Ask for as many runs, in bulk; their ids."""
    requests = [
        request_of(context, parse_spec({**SPEC, "name": f"run-{number}"}), Asker("local", None, str(number)))
        for number in numbers
    ]
    asked = [context.store.together(insert_runs, (request, context.clock())) for request in requests]
    return [one.result()[0] for one in asked]


def sizes(store: Store) -> dict[str, int]:
    """Bytes of the blocks and of the tiers, and of the whole database."""
    with store.read() as session:
        assert not session.scalar(select(func.count()).select_from(MetricPoint))
        parts = {
            name: session.scalar(select(func.sum(func.length(table.data)))) or 0
            for name, table in (("blocks", MetricBlock), ("tiers", MetricTier))
        }
    store.vacuum()
    return {**parts, "database": sum(store.sizes())}


class Page:
    """What looks at one address took: milliseconds by the clock and by this process's processor."""

    def __init__(self, client: TestClient, path: str) -> None:
        self._client, self._path = client, path
        self.clock: list[float] = []
        self.cpu: list[float] = []

    def look(self) -> None:
        """Ask for it once more."""
        start, cpu = time.perf_counter(), time.process_time()
        reply = self._client.get(self._path)
        self.cpu.append(1e3 * (time.process_time() - cpu))
        self.clock.append(1e3 * (time.perf_counter() - start))
        assert reply.is_success, reply.text


def compared(few: TestClient, many: TestClient, long_run: str) -> dict[str, dict[str, float]]:
    """Each page with many runs, and what it takes over the same with few."""
    paths = {
        "list": "/v1/runs?limit=50",
        "show": f"/v1/runs/{long_run}",
        "curve": f"/v1/runs/{long_run}/metrics?keys=loss&downsample=1000",
    }
    found: dict[str, dict[str, float]] = {}
    for name, path in paths.items():
        small, large = Page(few, path), Page(many, path)
        for _ in range(LOOKS):
            small.look()
            large.look()
        percentiles = quantiles(large.clock, n=100)
        found[name] = {
            "p50_ms": round(percentiles[49], 1),
            "p99_ms": round(percentiles[98], 1),
            "cpu_ms": round(median(large.cpu), 2),
            "cpu_p99_ms": round(quantiles(large.cpu, n=100)[98], 1),
            "grows": round(median(large.cpu) / median(small.cpu), 2),
        }
    return found


@contextmanager
def served(home: Path) -> Generator[tuple[Context, TestClient]]:
    """The API on the store in this folder."""
    with ExitStack() as stack:
        store = stack.enter_context(closing(Store(home)))
        cluster = stack.enter_context(closing(LocalCluster(home / "cluster")))
        context = Context(store, cluster, home, BASE)
        app = create_app(context, Settings(home=home))
        heap.keep_loaded()  # as the server does
        yield context, stack.enter_context(TestClient(app, base_url=BASE))


def main(runs: int) -> int:
    """Fill, pack, measure; 1 where a limit is missed."""
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "few", Path(folder) / "many"
        with served(small) as (context, _):
            made = ask(context, range(FEW))
            context.store.vacuum()
            empty = sum(context.store.sizes())
            values, seconds = packed(context.store, made[-runs - 1 :])
            told = sizes(context.store)
        large.mkdir()
        shutil.copy(small / DATABASE, large / DATABASE)
        with served(small) as (_, few), served(large) as (context, many):
            for at in range(FEW, MANY, GROUP):
                ask(context, range(at, min(at + GROUP, MANY)))
            pages = compared(few, many, made[-1])
    told["database"] -= empty
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "values": values,
        "bytes_a_value": {name: round(size / values, 2) for name, size in told.items()},
        "packed_values_a_cpu_second": round(values / seconds),
        "pages": pages,
        "limits": LIMITS,
    }
    print(json.dumps(result))
    slow = any(page["p99_ms"] > LIMITS["p99_ms"] or page["grows"] > LIMITS["grows"] for page in pages.values())
    return int(slow or told["database"] / values > LIMITS["bytes_a_value"])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
