"""What `POST /runs` costs beside the least that could be durable, and whether pages stay as quick as history grows.

`python -m benchmarks.controlplane.submissions [RUNS [URL]]` starts the API as the server does, on SQLite and without a
reconciler (what is posted here is not to be trained), and beside it a bare FastAPI route that inserts one row and
commits it under one lock, with the same server loop and the same WAL and synchronous=FULL; or both on the Postgres
database at URL, which is to be empty, or, with `postgres`, on a server of its own (Debian's, with fsync). 16 clients on
connections of their own post to each in turn until there are RUNS (10,000) runs. It prints requests a second of both
and their ratio (limits: 300/s, on Postgres 150/s, and 0.6), the p99 of `POST /runs` over the last thousand (100 ms),
and the p50 of `GET /runs?limit=50` and of `GET /runs/{id}` with RUNS runs over that with the first hundred (1.3). Where
other work shares the machine, the processor time of a request in either server says more than the clock:
`cpu_over_bare` is the bare route's over ours.
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
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import urlsplit

import psutil
from fastapi import FastAPI

from controlplane.api.app import create_app
from controlplane.api.streams import Hub
from controlplane.clusters.local import LocalCluster
from controlplane.server import bound, serve
from controlplane.services.context import Context
from controlplane.settings import Listen, Settings, Streams
from controlplane.store.store import Store
from tests.controlplane import postgres

CLIENTS, FIRST, TURNS, LOOKS = 16, 100, 8, 200
ON_POSTGRES, DURABLE = 150, {"fsync": "on", "shared_buffers": "128MB", "autovacuum": "on"}
LIMITS = {"posts_a_second": 300, "over_bare": 0.6, "post_p99_ms": 100, "pages_grow": 1.3}
BODY = {"size": "tiny", "train": {"steps": 50}, "labels": {"team": "lm"}}


def ours(home: Path, url: str) -> FastAPI:
    """The product's API."""
    context = Context(
        Store(home / "ours", url), LocalCluster(home / "ours" / "cluster"), home / "ours", "http://127.0.0.1"
    )
    return create_app(context, Settings(home=home / "ours"))


def bare(home: Path, url: str) -> FastAPI:
    """The least that stores a request durably."""
    if url:
        import psycopg

        database: Any = psycopg.connect(url)
        database.execute("CREATE TABLE bare (id bigserial PRIMARY KEY, spec text)")
        database.commit()
        insert = "INSERT INTO bare (spec) VALUES (%s) RETURNING id"
    else:
        database = sqlite3.connect(home / "bare.db", check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, spec TEXT)")
        insert = "INSERT INTO bare (spec) VALUES (?) RETURNING id"
    app, lock = FastAPI(), threading.Lock()

    @app.post("/v1/runs", status_code=201)
    def create(spec: dict[str, Any]) -> dict[str, int]:
        with lock:
            (made,) = database.execute(insert, (json.dumps(spec),)).fetchone()
            database.commit()
        return {"id": made}

    app.state.hub = Hub(Streams())  # which the server closes
    return app


def start(name: str, home: Path, url: str = "") -> None:
    """Serve one of the two, and say where on standard output."""
    with bound(Listen(host="127.0.0.1", port=0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        serve({"ours": ours, "bare": bare}[name](home, url), listener)


class Caller:
    """One client on a connection of its own."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

    def post(self, number: int) -> tuple[float, Any]:
        """Seconds that a new run took, and the reply."""
        headers = {"content-type": "application/json", "idempotency-key": f"key-{number}"}
        return self._timed("POST", "/v1/runs", json.dumps({**BODY, "name": f"run-{number}"}), headers)

    def get(self, path: str) -> tuple[float, Any]:
        """Seconds that a page took, and what is on it."""
        return self._timed("GET", path)

    def _timed(self, method: str, path: str, body: str | None = None, headers: Any = None) -> tuple[float, Any]:
        started = time.perf_counter()
        self._connection.request(method, path, body, headers or {})
        reply = self._connection.getresponse()
        text = reply.read()
        took = time.perf_counter() - started
        if reply.status >= 400:
            raise RuntimeError(f"{method} {path}: {reply.status} {text[:500]!r}")
        return took, json.loads(text)


def posted(url: str, numbers: range) -> tuple[float, list[float]]:
    """Requests a second of all clients together, and what each request took, in seconds."""
    left, lock = iter(numbers), threading.Lock()

    def client(_: int) -> list[float]:
        caller, took = Caller(url), list[float]()
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return took
            took.append(caller.post(number)[0])

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        took = [each for several in pool.map(client, range(CLIENTS)) for each in several]
    return len(numbers) / (time.perf_counter() - started), took


def pages(url: str) -> dict[str, float]:
    """Median seconds of the first page of runs and of one run."""
    caller = Caller(url)
    newest = caller.get("/v1/runs?limit=50")[1]["items"][-1]["id"]
    return {
        name: median(caller.get(path)[0] for _ in range(LOOKS))
        for name, path in (("list", "/v1/runs?limit=50"), ("show", f"/v1/runs/{newest}"))
    }


class Arm:
    """One of the two servers, and what was seen of it: requests a second of each turn, and its processor seconds."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self._process = url, psutil.Process(pid)
        self.rates: list[float] = []
        self.seconds, self.requests = 0.0, 0

    def turn(self, numbers: range) -> list[float]:
        """Post these; what each request took."""
        before = self._process.cpu_times()
        rate, took = posted(self.url, numbers)
        after = self._process.cpu_times()
        self.seconds += after.user + after.system - before.user - before.system
        self.requests += len(numbers)
        self.rates.append(rate)
        return took

    @property
    def cpu_ms(self) -> float:
        """Processor milliseconds of a request in the server's process."""
        return 1000 * self.seconds / self.requests


def measure(ours: Arm, bare: Arm, runs: int) -> dict[str, float]:
    """Post to both in turn until there are so many runs; what LIMITS bounds, and what that is made of."""
    for arm in (ours, bare):
        posted(arm.url, range(FIRST))
    before, at = pages(ours.url), FIRST
    each = (runs - FIRST) // TURNS
    last: list[float] = []
    for _ in range(TURNS):
        last += ours.turn(range(at, at + each))
        bare.turn(range(at, at + each))
        at += each
    after = pages(ours.url)
    return {
        "posts_a_second": median(ours.rates),
        "bare_a_second": median(bare.rates),
        "over_bare": median(a / b for a, b in zip(ours.rates, bare.rates, strict=True)),
        "cpu_ms": ours.cpu_ms,
        "bare_cpu_ms": bare.cpu_ms,
        "cpu_over_bare": bare.cpu_ms / ours.cpu_ms,
        "post_p99_ms": 1000 * quantiles(last[-1000:], n=100)[98],
        **{f"{name}_ms": 1000 * seconds for name, seconds in after.items()},
        "pages_grow": max(after[name] / before[name] for name in after),
    }


def main(runs: int, url: str) -> int:
    """Print the measurements; 1 where a limit is missed."""
    limits = {**LIMITS, "posts_a_second": ON_POSTGRES} if url else LIMITS
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if url == "postgres":
            server = stack.enter_context(postgres.server(**DURABLE))
            url = stack.enter_context(server.database())
        arms: list[Arm] = []
        for name in ("ours", "bare"):
            command = [sys.executable, "-m", "benchmarks.controlplane.submissions", "--serve", name, folder, url]
            arm = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(arm.terminate)
            assert arm.stdout is not None
            arms.append(Arm(arm.stdout.readline().strip(), arm.pid))
        found = measure(arms[0], arms[1], runs)
    load = f"load {os.getloadavg()[0]:.1f}"
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {load}"
    shown = {name: round(value, 3) for name, value in found.items()}
    store = "Postgres" if url else "SQLite"
    print(
        json.dumps(
            {"runs": runs, "store": store, "clients": CLIENTS, "machine": machine, "limits": limits, **shown}, indent=2
        )
    )
    low = any(found[name] < limits[name] for name in ("posts_a_second", "over_bare"))
    return int(low or any(found[name] > limits[name] for name in ("post_p99_ms", "pages_grow")))


if __name__ == "__main__":
    if "--serve" in sys.argv:
        start(sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
    else:
        sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 10_000, "".join(sys.argv[2:])))
