"""How fast accepted runs become objects, beside the least that makes as many: bare `create` calls.

`python benchmarks/kubernetes/drain.py [RUNS]` works on the cluster of $KUBECONFIG, in a namespace of its own that goes
with it: `python -m tests.cluster up --only api --fsync` has one whose etcd writes through, and no controller. RUNS
(2,000) runs of one node are accepted by a control plane in this process, and then its reconciler is let loose until
their objects are made and the store knows it. Before and after that, half as many bare creations each go through the
same client, of the same manifests, by as many threads as the outbox asks at once. It prints objects a second and
seconds of processor time an object, of both, and the ratio of the rates (limit: 0.85).
"""

from __future__ import annotations

import copy
import gc
import json
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import undefer

from controlplane.clusters.base import Unavailable
from controlplane.clusters.kubernetes import KubernetesCluster
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.resources import KNOWN
from controlplane.clusters.shelf import Folder
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.spec import parse_spec
from controlplane.reconcile.outbox import AT_ONCE, Site
from controlplane.reconcile.reconciler import Reconciler
from controlplane.render import render
from controlplane.services.context import Context
from controlplane.services.runs import create_run
from controlplane.store.store import Store
from controlplane.store.tables import Outbox, Run
from controlplane.submission import attempt_of

LIMIT, LONGEST_S = 0.85, 600.0
LOOK_S = 0.25  # looking costs what is measured: a look a second object and more, on a slow machine
SITE = Site("http://127.0.0.1:8000", "trainer:none")
ROOM = {"cpu": "1000", "memory": "4Ti", "pods": "1000"}
STATUS = {"allocatable": ROOM, "capacity": ROOM, "conditions": [{"type": "Ready", "status": "True"}]}
Rate = tuple[float, float]  # objects a second, seconds of processor time an object


@contextmanager
def namespace(*, room: bool) -> Generator[Connection]:
    """A new namespace, and a node where there shall be `room` and is none, so that runs fit; both go at the end."""
    server = Connection(None, f"drain-{secrets.token_hex(4)}")
    made = ["/api/v1/namespaces"]
    if room and not server.call("GET", "/api/v1/nodes", query={"limit": "1"})["items"]:
        made.append("/api/v1/nodes")
    for kind in made:
        server.call("POST", kind, {"metadata": {"name": server.namespace}, "status": STATUS})
    try:
        yield server
    finally:
        for kind in made:
            server.call("DELETE", f"{kind}/{server.namespace}")
        server.close()


def seen(cluster: KubernetesCluster) -> None:
    """Wait until everything is watched."""
    cluster.watch(lambda: None)
    while True:
        with suppress(Unavailable):
            cluster.observe()
            return
        time.sleep(0.05)


def manifests(context: Context, several: int) -> list[dict[str, Any]]:
    """What so many of the accepted runs will be, under other names and of no installation."""
    traits = context.cluster.traits()
    found: list[dict[str, Any]] = []
    with context.store.read() as session:
        for run in session.scalars(select(Run).options(undefer(Run.resolved)).limit(several)):
            resolved, name = ResolvedRun.from_json(run.resolved), f"b{secrets.token_hex(8)}"
            asked = {"url": SITE.url, "image": SITE.image, "audience": traits.audience, "namespace": traits.namespace}
            found.append(render(attempt_of(run.id, name, 1, resolved, spec_hash=run.spec_hash, **asked)))  # type: ignore[arg-type]
    return found


def bare(server: Connection, objects: Sequence[dict[str, Any]]) -> Rate:
    """Make these by nothing but calls."""
    resource = KNOWN[objects[0]["apiVersion"], objects[0]["kind"]]

    def make(manifest: dict[str, Any]) -> None:
        placed = {**manifest, "metadata": {**manifest["metadata"], "namespace": server.namespace}}
        server.call("POST", resource.path(server.namespace), placed, query={"fieldValidation": "Strict"})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        began, spent = time.perf_counter(), time.process_time()
        for _ in pool.map(make, objects):
            pass
    return _rate(len(objects), began, spent)


def drained(context: Context, several: int) -> Rate:
    """Let the reconciler loose until the outbox is empty."""
    reconciler = Reconciler(context.store, context.cluster, site=SITE)
    waiting = select(func.count()).select_from(Outbox)
    began, spent = time.perf_counter(), time.process_time()
    reconciler.start()
    try:
        while True:
            with context.store.read() as session:
                left = session.scalar(waiting)
            if not left:
                return _rate(several, began, spent)
            if time.perf_counter() - began > LONGEST_S:
                raise SystemExit(f"{left} of {several} runs are not submitted within {LONGEST_S:g} s")
            time.sleep(LOOK_S)
    finally:
        reconciler.stop()


def _rate(several: int, began: float, spent: float) -> Rate:
    return several / (time.perf_counter() - began), (time.process_time() - spent) / several


def tell(what: str) -> None:
    """Say on stderr how far it is."""
    print(what, file=sys.stderr, flush=True)


def measure(runs: int, home: Path, server: Connection, other: Connection) -> dict[str, Any]:
    """Accept, and drain between two halves of the bare arm."""
    with closing(Store(home)) as store:
        cluster = KubernetesCluster(
            name="drain",
            kubeconfig=None,
            namespace=server.namespace,
            archive=Folder(home / "cluster"),
            instance=store.installation,
        )
        with closing(cluster):
            seen(cluster)
            context = Context(store, cluster, home, SITE.url, storage="s3://runs")
            for number in range(runs):
                create_run(context, parse_spec({"size": "tiny", "name": f"run-{number}", "compute": {"nodes": 1}}))
            tell(f"{runs} runs are accepted; {runs} bare creations, {AT_ONCE} at once, before and after they drain")
            objects = [copy.deepcopy(each) for each in manifests(context, runs)]
            gc.collect()
            gc.freeze()  # as the server does
            first = bare(other, objects[: runs // 2])
            tell(f"bare: {first[0]:.0f} a second, {1000 * first[1]:.2f} ms of this process each")
            ours = drained(context, runs)
            tell(f"drain: {ours[0]:.0f} a second, {1000 * ours[1]:.2f} ms of this process each")
            second = bare(other, objects[runs // 2 :])
            tell(f"bare: {second[0]:.0f} a second, {1000 * second[1]:.2f} ms of this process each")
    rate = 2 / (1 / first[0] + 1 / second[0])
    return {
        "kind": objects[0]["kind"],
        "bare_a_second": round(rate, 1),
        "bare_halves_a_second": [round(first[0], 1), round(second[0], 1)],
        "drained_a_second": round(ours[0], 1),
        "bare_cpu_ms": round(500 * (first[1] + second[1]), 2),
        "drained_cpu_ms": round(1000 * ours[1], 2),
        "ratio": round(ours[0] / rate, 3),
    }


def main(runs: int = 2000) -> int:
    """Print the measurements; 1 where the limit is missed."""
    with tempfile.TemporaryDirectory() as folder, namespace(room=True) as server, namespace(room=False) as other:
        found = measure(runs, Path(folder) / "home", server, other)
    print(
        json.dumps(
            {
                "command": " ".join(["python", *sys.argv]),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
                "runs": runs,
                "at_once": AT_ONCE,
                "limit": LIMIT,
                **found,
            },
            indent=2,
        )
    )
    return int(found["ratio"] < LIMIT)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
