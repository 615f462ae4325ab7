"""`helm test`: trains a run through the API, from inside the cluster, checks what it left behind, and removes it.

It runs in the control plane's image and reads its token where the chart mounts it. Whether the run did what it should
or not, nothing of it stays: of one that did not, its explanation and its last lines are printed first.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from controlplane.client import TERMINAL, ApiError, Client, JsonObject, Run, Unreachable

PAUSE_S = 1.0
PATIENCE_S = 60.0
END_S = 240.0  # until a run that is cancelled has ended, and until a pod has removed its folder
LINES = 30


def main() -> int:
    """Exit code 0, or 1 with the reason on stderr."""
    file = Path("/token/token")  # there is none where nobody is asked for one
    token = file.read_text("ascii").strip() if file.exists() else None
    spec = json.loads(Path("/check/spec.json").read_text("utf-8"))
    deadline = time.monotonic() + float(os.environ["TIMEOUT_S"])
    with Client(os.environ["API"], token) as client:
        try:
            print(f"the API answers: {json.dumps(reached(client))}")
            if not spec:
                return 0
            run = client.create(spec)
            print(f"run {run['id']} ({run['name']}): {json.dumps(run['kubernetes'])}", flush=True)
        except (ApiError, Unreachable) as error:
            return failed([str(error)])
        problems = []
        for part in (lambda: verdict(client, followed(client, run, deadline)), lambda: removed(client, run["id"])):
            try:
                problems += part()
            except (ApiError, Unreachable, TimeoutError) as error:
                problems.append(str(error))
    return failed(problems)


def failed(problems: list[str]) -> int:
    """Say what is wrong. The exit code."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


def reached(client: Client) -> JsonObject:
    """What the control plane says of itself, once it can be reached: a new Service's name takes seconds to be known."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return client.ready()
        except Unreachable:
            if time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_S)


def followed(client: Client, run: Run, deadline: float) -> Run:
    """The run as it ended, or as it is at `deadline`."""
    told = ""
    while run["phase"] not in TERMINAL and time.monotonic() < deadline:
        state = f"{run['phase']} {run['reason'] or ''} {run['message'] or ''}".strip()
        if state != told:
            print(state, flush=True)
        told = state
        time.sleep(PAUSE_S)
        run = client.run(run["id"])
    return run


def verdict(client: Client, run: Run) -> list[str]:
    """What is wrong with a run that should have trained."""
    if run["phase"] != "succeeded":
        print(f"{client.explain(run['id'])['text']}\n{client.logs(run['id'], tail=LINES)}", flush=True)
        return [f"the run is {run['phase']}, not succeeded: {run['reason']}: {run['message']}"]
    losses = [point["loss"] for point in client.metrics(run["id"], keys=["loss"]) if point.get("loss") is not None]
    log = client.logs(run["id"], tail=5)
    print(f"succeeded; {len(losses)} points, last checkpoint at step {run['checkpoint_step']}\n{log}")
    facts = {
        "no loss reached the control plane": bool(losses),
        "no checkpoint was reported": bool(run["checkpoint_step"]),
        "its log is empty": bool(log.strip()),
    }
    return [problem for problem, fine in facts.items() if not fine]


def removed(client: Client, run: str) -> list[str]:
    """Remove the run for good, its files, logs and history; why it could not be."""
    if client.run(run)["phase"] not in TERMINAL:
        client.cancel(run)
        client.wait(run, timeout_s=END_S)
    client.delete(run)
    gone = client.purge(run)
    while gone["removal"]:
        ended = client.wait(gone["removal"], timeout_s=END_S)
        if ended["phase"] != "succeeded":
            said = f"{ended['phase']}: {ended['reason']}: {ended['message']}"
            return [f"the run's files stay at {gone['folder']} ({said}); try again: teragpt purge --yes {run}"]
        gone = client.purge(run)
    files = f", with its files at {gone['folder']}" if gone["folder_removed"] else ""
    print(f"the run is removed for good{files}")
    return []


if __name__ == "__main__":
    sys.exit(main())
