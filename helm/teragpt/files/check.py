"""`helm test`: trains a run through the API, from inside the cluster, checks what it left behind, and removes it.

It runs in the control plane's image and reads its token where the chart mounts it. A run that did not do what it should
is kept, so that somebody can look at it.
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
            problems = verdict(client, followed(client, run, deadline))
            print("it is kept" if problems else removed(client, run["id"]))
        except (ApiError, Unreachable) as error:
            problems = [str(error)]
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
    """The run as it ended, or as it is at `deadline`, after which it is cancelled."""
    told = ""
    while run["phase"] not in TERMINAL and time.monotonic() < deadline:
        state = f"{run['phase']} {run['reason'] or ''} {run['message'] or ''}".strip()
        if state != told:
            print(state, flush=True)
        told = state
        time.sleep(PAUSE_S)
        run = client.run(run["id"])
    if run["phase"] not in TERMINAL:
        client.cancel(run["id"])
    return run


def verdict(client: Client, run: Run) -> list[str]:
    """What is wrong with a run that should have trained."""
    if run["phase"] != "succeeded":
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


def removed(client: Client, run: str) -> str:
    """What went with the run, once it is removed for good, and what of it only pods can reach."""
    client.delete(run)
    gone = client.purge(run)
    left = "" if gone["folder_removed"] else f"; its checkpoints stay at {gone['folder']}"
    return f"the run is removed: {gone['attempts']} attempts, {gone['points']} points{left}"


if __name__ == "__main__":
    sys.exit(main())
