"""What watching many pods costs, and how soon what happens to them is stored.

`python -m benchmarks.kubernetes.pods [PODS [NODES [SECONDS]]] [--stand-in]` starts an etcd and a kube-apiserver of its
own (built for tests/cluster where they are not there yet), with nodes and pods that kwok plays, and a control plane
beside them; or, for more pods than the machine has room for, a process that stands in for all but that (`standin.py`).
Runs of NODES (64) pods are asked for until PODS (10,000) run; it then measures, each for SECONDS (60), the control
plane's processor time by its own clock, so that what the API server takes beside it counts for nothing:

- at rest: percent of a core (limit 1; `idle` is that before there were any), and bytes a pod of resident memory over
  the idle process, which has seen three runs come and go (1,000);
- at 200 events a second, each a container that starts or runs, or at as many as the API server takes: percent of a core
  (15), CPU an event, and the seconds from the API server's answer to the event until the pod's phase is stored, 99th
  percentile (1);
- after `kill -9` of the API server, whose successor knows no version that was watched: seconds until everything is
  listed (5), and the longest that the control plane's own API took to answer meanwhile.

At rest means that what pods wrote at their start was read, twice: logs are asked for no more than they ever are.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import sqlite3
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.controlplane.plane import tell
from benchmarks.kubernetes.fleet import AT_ONCE, Fleet
from benchmarks.kubernetes.standin import StandIn
from tests.cluster.chaos.api import JOBS, NAMESPACE, Server, config
from tests.cluster.plane import Plane, until

LIMITS = {
    "rest_core_percent": 1.0,
    "bytes_a_pod": 1000,
    "events_core_percent": 15.0,
    "event_to_stored_p99_s": 1.0,
    "relist_s": 5.0,
}
EVENTS_A_SECOND = 200
SEQUENCE = 256  # tokens of the tiny size, one for each rank
FIRST = 3  # runs that the idle process has seen: one after the other had to wait
SETTLE_S, LONGEST_S = 20.0, 1800.0
AT_REST = 5.0  # reads of logs a second, at most
LISTED = re.compile(r'msg="\S+/pods: (\d+) listed anew within ([\d.]+) s')
STORED = "SELECT pods FROM attempts WHERE finished_at IS NULL"


@dataclass
class Site:
    """The parts."""

    home: Path
    fleet: Fleet | StandIn
    jobs: Callable[[], list[Any]]
    forget: Callable[[], None]
    plane: Plane
    process: psutil.Process

    def ask(self, runs: int, nodes: int) -> None:
        """So many runs more, and wait until they run."""
        want = len(self.fleet.names) + runs * nodes
        spec = {"size": "tiny", "compute": {"nodes": nodes}, "train": {"global_batch_tokens": SEQUENCE * nodes}}
        for _ in range(runs):
            self.plane.client.create(spec)

        def there() -> bool | None:
            running = sum(pod["phase"] == "Running" for pod in self.stored())
            return running == want or None

        until(there, LONGEST_S, self.plane.log.read_text)

    def settle(self) -> None:
        """Wait until logs are read no more often than they ever are."""

        def rests() -> bool | None:
            before = self.fleet.reads
            time.sleep(SETTLE_S)
            return self.fleet.reads - before < AT_REST * SETTLE_S or None

        until(rests, LONGEST_S)

    def stored(self) -> list[dict[str, Any]]:
        """The pods of live attempts, as the control plane's database has them."""
        with closing(sqlite3.connect(f"file:{self.home / 'state.db'}?mode=ro", uri=True)) as database:
            return [pod for (pods,) in database.execute(STORED) for pod in json.loads(pods)]

    def over(self, seconds: float) -> float:
        """Percent of a core that the control plane takes over the next seconds."""
        before, began = self.spent(), time.monotonic()
        time.sleep(seconds)
        return 100 * (self.spent() - before) / (time.monotonic() - began)

    def spent(self) -> float:
        """Seconds of processor time so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def opened(folder: Path, pods: int) -> Generator[Site]:
    """An API server, a fleet and a control plane in `folder`, all of which end with this."""
    with closing(Server(folder)) as server, closing(Fleet(server, folder, pods)) as fleet:

        def forget() -> None:
            server.kill("kube-apiserver")
            server.history(server.revision())  # leaves a revision behind that no watch has seen
            server.revive()

        known = config(f"https://{server.address}", server.token, folder / "pki/ca.crt")
        with beside(folder, known) as (home, plane):
            yield Site(home, fleet, lambda: server.items(JOBS), forget, plane, psutil.Process(plane.process.pid))


@contextmanager
def standing_in(folder: Path) -> Generator[Site]:
    """The same with a stand-in for everything but the control plane."""
    with closing(StandIn()) as fleet, beside(folder, config(fleet.url, "any")) as (home, plane):
        yield Site(home, fleet, fleet.jobs, fleet.forget, plane, psutil.Process(plane.process.pid))


@contextmanager
def beside(folder: Path, known: dict[str, Any]) -> Generator[tuple[Path, Plane]]:
    """A control plane of that kubeconfig, and where it has its data."""
    kubeconfig, home = folder / "config", folder / "home"
    kubeconfig.write_text(json.dumps(known))
    settings = {"cluster": "kubernetes", "kubeconfig": str(kubeconfig), "storage": "s3://runs"}
    plane = Plane(home, "127.0.0.1", {**settings, "namespace": NAMESPACE, "require_token": "true"})
    try:
        yield home, plane
    except BaseException:
        tell(plane.log.read_text()[-3000:])
        raise
    finally:
        plane.stop()


def warm(site: Site, nodes: int) -> int:
    """Let first runs come and go, so that all that is loaded once is there; resident bytes of the idle process."""
    site.ask(FIRST, nodes)
    for run in [run["id"] for run in site.plane.client.runs()]:
        site.plane.client.cancel(run)
        site.plane.ended(run)
    until(lambda: True if not site.jobs() else None, LONGEST_S)
    time.sleep(SETTLE_S)
    return int(site.process.memory_info().rss)


@dataclass
class Events:
    """Flips containers at a steady rate, and notes when each new phase was stored."""

    site: Site
    latencies: list[float] = field(default_factory=list[float])
    sent: int = 0
    _wanted: dict[str, tuple[str, float]] = field(default_factory=dict[str, tuple[str, float]])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def over(self, seconds: float) -> tuple[float, float]:
        """Events a second over these seconds, and the control plane's seconds of processor time for each."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        before, began, asked = self.site.spent(), time.monotonic(), 0
        names = random.Random(7).sample(self.site.fleet.names, len(self.site.fleet.names))
        pool = ThreadPoolExecutor(AT_ONCE)
        while (passed := time.monotonic() - began) < seconds:
            for number in range(asked, int(passed * EVENTS_A_SECOND)):
                turn, place = divmod(number, len(names))
                pool.submit(self._flip, names[place], running=turn % 2 == 1)
                asked = number + 1
            time.sleep(0.01)
        sent, spent = self.sent, self.site.spent() - before
        pool.shutdown(cancel_futures=True)
        until(lambda: None if self._wanted else True, 60.0, lambda: f"{len(self._wanted)} events are not stored")
        self._over.set()
        watcher.join()
        return sent / passed, spent / sent

    def _flip(self, name: str, *, running: bool) -> None:
        self.site.fleet.flip(name, running=running)
        with self._lock:
            self._wanted[name] = ("Running" if running else "Pending", time.monotonic())
            self.sent += 1

    def _watch(self) -> None:
        """Look at the store whenever it has changed."""
        with closing(sqlite3.connect(f"file:{self.site.home / 'state.db'}?mode=ro", uri=True)) as database:
            version, known = None, set[str]()
            while not self._over.wait(0.005):
                if version == (version := database.execute("PRAGMA data_version").fetchone()):
                    continue
                with self._lock:
                    wanted = dict(self._wanted)
                rows, now = database.execute(STORED).fetchall(), time.monotonic()
                before, known = known, {pods for (pods,) in rows}
                for pods in known - before:  # to read all of them would take as long as what is measured
                    for pod in json.loads(pods):
                        phase, since = wanted.get(pod["name"], ("", 0.0))
                        if pod["phase"] == phase:
                            self.latencies.append(max(0.0, now - since))
                            with self._lock:
                                self._wanted.pop(pod["name"], None)


def relisted(site: Site) -> dict[str, Any]:
    """Kill the API server; what came of that."""
    answers: list[float] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            began = time.monotonic()
            next(site.plane.client.runs())
            answers.append(time.monotonic() - began)

    asking = threading.Thread(target=ask, daemon=True)
    told = len(site.plane.log.read_text())
    asking.start()
    before = site.spent()
    site.forget()
    found = until(lambda: LISTED.search(site.plane.log.read_text()[told:]), 120.0, site.plane.log.read_text)
    spent = site.spent() - before
    time.sleep(5)
    over.set()
    asking.join()
    assert int(found[1]) == len(site.fleet.names), found[0]
    return {
        "relist_s": float(found[2]),
        "relist_cpu_s": round(spent, 2),
        "api_answers": len(answers),
        "api_longest_s": round(max(answers), 3),
        "api_median_s": round(sorted(answers)[len(answers) // 2], 3),
    }


def measure(site: Site, pods: int, nodes: int, seconds: float) -> dict[str, Any]:
    """All three."""
    tell("the control plane and the API server are there")
    idle = warm(site, nodes)
    before = site.over(seconds)
    tell(f"idle: {before:.2f}% of a core, {idle / 1e6:.1f} MB; {pods} pods are asked for")
    site.ask(pods // nodes, nodes)
    several = len(site.fleet.names)
    tell(f"{several} pods run, {site.process.memory_info().rss / 1e6:.1f} MB")
    site.settle()
    reads, rest = site.fleet.reads, site.over(seconds)
    reads, resident = site.fleet.reads - reads, int(site.process.memory_info().rss)
    tell(f"at rest: {rest:.2f}% of a core, {resident / 1e6:.1f} MB, {reads / seconds:.1f} reads of logs a second")
    events = Events(site)
    rate, each = events.over(seconds)
    ordered = sorted(events.latencies)
    tell(f"events: {rate:.0f} a second, {1000 * each:.2f} ms of CPU each, median {ordered[len(ordered) // 2]:.2f} s")
    return {
        "pods": several,
        "idle_core_percent": round(before, 2),
        "rest_core_percent": round(rest, 2),
        "log_reads_a_second": round(reads / seconds, 1),
        "idle_mb": round(idle / 1e6, 1),
        "rest_mb": round(resident / 1e6, 1),
        "bytes_a_pod": round((resident - idle) / several),
        "events_a_second": round(rate, 1),
        "event_cpu_ms": round(1000 * each, 3),
        "events_core_percent": round(100 * each * rate, 2),
        "event_to_stored_median_s": round(ordered[len(ordered) // 2], 3),
        "event_to_stored_p99_s": round(ordered[int(0.99 * len(ordered))], 3),
        **relisted(site),
    }


def main() -> int:
    """Print the measurements; 1 where a limit is missed."""
    asked = ArgumentParser()
    for name, usual in (("pods", 10000), ("nodes", 64), ("seconds", 60)):
        asked.add_argument(name, nargs="?", type=int, default=usual)
    asked.add_argument("--stand-in", action="store_true")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with standing_in(place) if given.stand_in else opened(place, given.pods) as site:
            found = measure(site, given.pods, given.nodes, given.seconds)
    about = {
        "command": " ".join(["python", "-m", "benchmarks.kubernetes.pods", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "nodes": given.nodes,
        "limits": LIMITS,
    }
    print(json.dumps({**about, **found}, indent=2))
    return int(any(found[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
