"""A control plane of a benchmark's own: a real server on loopback and the local cluster, in a folder that goes with it.

Pods outlive a control plane, and are meant to. Here a guard stands by: however the benchmark ends, by `kill -9` too,
nothing that it started goes on, and its folder is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import httpx
import psutil

from controlplane.replies import TERMINAL

BEGUN = time.perf_counter()


class Plane:
    """The server's `process`, a `client` of it, its data folder `home`, and the seconds until it was ready."""

    def __init__(self, home: Path, ready_s: float, process: psutil.Process, client: httpx.Client) -> None:
        self.home, self.ready_s, self.process, self.client = home, ready_s, process, client

    def create(self, spec: dict[str, object]) -> str:
        """A new run's id; of size tiny, unless it says otherwise."""
        reply = self.client.post("/runs", json={"size": "tiny", **spec})
        reply.raise_for_status()
        return str(reply.json()["id"])

    def wait_for(self, run: str, *phases: str) -> None:
        """Wait until a run is in one of the phases; one that ends otherwise ends the measurement."""
        while (found := self.client.get(f"/runs/{run}").json())["phase"] not in phases:
            if found["phase"] in TERMINAL:
                raise SystemExit(f"run {run} has {found['phase']}: {found['reason']}: {found['message']}")
            time.sleep(0.2)


@contextlib.contextmanager
def opened() -> Generator[Plane]:
    """A control plane on a free port, once it is ready; afterwards nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="teragpt-benchmark-"))
    guard = subprocess.Popen([sys.executable, __file__, str(os.getpid()), str(folder)], start_new_session=True)
    home = folder / "home"
    try:
        start = time.perf_counter()
        command = [sys.executable, "-m", "controlplane.server", "--home", str(home), "--port", "0"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stderr=log)
        try:
            with contextlib.closing(_client(server, home)) as client:
                yield Plane(home, time.perf_counter() - start, psutil.Process(server.pid), client)
        except BaseException:
            tell(f"the control plane's end: {server.poll()}; its last lines:\n{(folder / 'log').read_text()[-2000:]}")
            raise
        server.terminate()
        server.wait()
    finally:
        clear(folder)
        guard.kill()
        guard.wait()


def tell(what: str) -> None:
    """Say on stderr how far it is."""
    print(f"{time.perf_counter() - BEGUN:6.1f} s  {what}", file=sys.stderr, flush=True)


def clear(folder: Path) -> None:
    """End every process that was started for this folder, and remove it."""
    while found := list(_of(folder)):
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, 1)
    shutil.rmtree(folder, ignore_errors=True)


def _client(server: subprocess.Popen[bytes], home: Path) -> httpx.Client:
    while server.poll() is None:
        try:
            client = httpx.Client(base_url=json.loads((home / "server.json").read_text())["url"], timeout=60)
            if client.get("/readyz").is_success:
                return client
        except (OSError, ValueError, httpx.TransportError):
            time.sleep(0.01)
    raise SystemExit(f"the control plane ended with {server.returncode}: {(home.parent / 'log').read_text()}")


def _of(folder: Path) -> Iterator[psutil.Process]:
    """The server, shims and pods: their arguments or their environment name the folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = [*process.cmdline(), *process.environ().values()]
            here = any(str(folder) in one for one in told) and process.status() != psutil.STATUS_ZOMBIE
            if here and process.pid != os.getpid() and __file__ not in told:
                yield process


def _guard(benchmark: int, folder: Path) -> None:
    """Wait for the benchmark's end, then clear up."""
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(benchmark)], [], [])
    clear(folder)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), Path(sys.argv[2]))
