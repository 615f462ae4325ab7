"""What the control plane costs while nothing is asked of it: 1,000 finished runs and 2 that train for real.

`python -m benchmarks.controlplane.at_rest [SECONDS]` starts one on a fresh folder, fills it through its API, and prints
its time to ready (limit 2 s), resident memory (150 MB), and share of a core over SECONDS (1%), with and without live
runs. It imports no torch. It takes twice SECONDS (60), and what filling takes: stderr tells how far it is.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time

import httpx
import psutil

from benchmarks.controlplane.plane import opened, tell

FINISHED, LIVE, SHOWN = 1000, 2, 100
REST_S = 10.0  # after the last of what was asked of it
LIMITS = {"ready_s": 2.0, "resident_mb": 150, "core_percent": 1.0}


def settle(client: httpx.Client, gauge: str, value: float) -> None:
    """Wait until one of the control plane's own metrics has a value; looking costs it something, so seldom."""
    while f"{gauge} {value:.1f}" not in (lines := client.get("/metrics").text.splitlines()):
        now = next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{gauge} ")), "0")
        tell(f"{gauge} is {float(now):g}, and will be {value:g}")
        time.sleep(2)


def share(process: psutil.Process, seconds: float) -> float:
    """Percent of a core that the process takes over the next `seconds`."""
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / seconds


def main(seconds: float) -> None:
    """Start, fill, measure, stop."""
    with opened() as plane:
        client, process = plane.client, plane.process
        tell(f"ready in {plane.ready_s:.2f} s; {LIVE} runs that train and {FINISHED} others are asked for")
        one_core = {"processes_per_node": 1, "cpus_per_node": 1}
        live = [plane.create({"compute": one_core, "train": {"steps": 10**6}}) for _ in range(LIVE)]
        for number in range(1, FINISHED + 1):
            run = plane.create({"compute": one_core})
            client.post(f"/runs/{run}/cancel").raise_for_status()
            if number % SHOWN == 0:
                tell(f"{number} of {FINISHED} runs are asked for and cancelled")
        for run in live:
            plane.wait_for(run, "running")
        settle(client, "teragpt_outbox_rows", 0)
        settle(client, 'teragpt_runs{phase="cancelled"}', FINISHED)
        time.sleep(REST_S)
        tell(f"measures {seconds:g} s beside {LIVE} live runs")
        with_live = share(process, seconds)
        resident = process.memory_info().rss / 1e6
        for run in live:
            client.post(f"/runs/{run}/cancel")
            plane.wait_for(run, "cancelled")
        time.sleep(REST_S)
        tell(f"measures {seconds:g} s without a live run")
        without = share(process, seconds)
        torch_free = not any("libtorch" in mapped.path for mapped in process.memory_maps())
        ready_s = plane.ready_s
    result = {
        "command": " ".join(["python", "-m", "benchmarks.controlplane.at_rest", *sys.argv[1:]]),
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
