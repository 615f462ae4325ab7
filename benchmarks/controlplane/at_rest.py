"""What the control plane costs while nothing is asked of it: 1,000 finished runs and 2 that train for real.

`python benchmarks/controlplane/at_rest.py [SECONDS]` starts one on a fresh folder, fills it through its API, and prints
its time to ready (limit 2 s), resident memory (150 MB), and share of a core over SECONDS (1%), with and without live
runs. It imports no torch. It takes twice SECONDS (60), and what filling takes: stderr tells how far it is.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from controlplane.replies import TERMINAL

FINISHED, LIVE, SHOWN = 1000, 2, 100
REST_S = 10.0  # after the last of what was asked of it
BEGUN = time.perf_counter()
LIMITS = {"ready_s": 2.0, "resident_mb": 150, "core_percent": 1.0}


def started(home: Path) -> subprocess.Popen[bytes]:
    """A control plane of its own on a free port."""
    command = [sys.executable, "-m", "controlplane.server", "--home", str(home), "--port", "0"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def ready(server: subprocess.Popen[bytes], home: Path) -> httpx.Client:
    """A client for the server, once it says that it is ready."""
    while server.poll() is None:
        try:
            url = json.loads((home / "server.json").read_text())["url"]
            client = httpx.Client(base_url=url, timeout=30)
            if client.get("/readyz").is_success:
                return client
        except (OSError, httpx.TransportError):
            time.sleep(0.01)
    raise SystemExit(f"the control plane ended with {server.returncode}")


def create(client: httpx.Client, spec: dict[str, object]) -> str:
    """A new run's id."""
    reply = client.post("/runs", json={"size": "tiny", **spec})
    reply.raise_for_status()
    return str(reply.json()["id"])


def wait_for(client: httpx.Client, run: str, *phases: str) -> None:
    """Wait until a run is in one of the phases; one that ends otherwise ends the measurement."""
    while (found := client.get(f"/runs/{run}").json())["phase"] not in phases:
        if found["phase"] in TERMINAL:
            raise SystemExit(f"run {run} has {found['phase']}: {found['reason']}: {found['message']}")
        time.sleep(0.2)


def settle(client: httpx.Client, gauge: str, value: float) -> None:
    """Wait until one of the control plane's own metrics has a value; looking costs it something, so seldom."""
    while f"{gauge} {value:.1f}" not in (lines := client.get("/metrics").text.splitlines()):
        now = next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{gauge} ")), "0")
        tell(f"{gauge} is {float(now):g}, and will be {value:g}")
        time.sleep(2)


def tell(what: str) -> None:
    """Say on stderr how far it is."""
    print(f"{time.perf_counter() - BEGUN:6.1f} s  {what}", file=sys.stderr, flush=True)


def share(process: psutil.Process, seconds: float) -> float:
    """Percent of a core that the process takes over the next `seconds`."""
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / seconds


def main(seconds: float) -> None:
    """Start, fill, measure, stop."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        start = time.perf_counter()
        server = started(home)
        client = ready(server, home)
        ready_s = time.perf_counter() - start
        process = psutil.Process(server.pid)
        tell(f"ready in {ready_s:.2f} s; {LIVE} runs that train and {FINISHED} others are asked for")
        one_core = {"processes_per_node": 1, "cpus_per_node": 1}
        live = [create(client, {"compute": one_core, "train": {"steps": 10**6}}) for _ in range(LIVE)]
        for number in range(1, FINISHED + 1):
            run = create(client, {"compute": one_core})
            client.post(f"/runs/{run}/cancel").raise_for_status()
            if number % SHOWN == 0:
                tell(f"{number} of {FINISHED} runs are asked for and cancelled")
        for run in live:
            wait_for(client, run, "running")
        settle(client, "teragpt_outbox_rows", 0)
        settle(client, 'teragpt_runs{phase="cancelled"}', FINISHED)
        time.sleep(REST_S)
        tell(f"measures {seconds:g} s beside {LIVE} live runs")
        with_live = share(process, seconds)
        resident = process.memory_info().rss / 1e6
        for run in live:
            client.post(f"/runs/{run}/cancel")
            wait_for(client, run, "cancelled")
        time.sleep(REST_S)
        tell(f"measures {seconds:g} s without a live run")
        without = share(process, seconds)
        torch_free = not any("libtorch" in mapped.path for mapped in process.memory_maps())
        server.terminate()
        server.wait()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "ready_s": round(ready_s, 2),
        "resident_mb": round(resident),
        "core_percent": {"2 live runs": round(with_live, 2), "no live run": round(without, 2)},
        "torch_free": torch_free,
        "limit": LIMITS,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
