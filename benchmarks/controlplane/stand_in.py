"""A pod's program that keeps the trainer's contract with the control plane and trains nothing: docs/environment.md.

It notes in `attempts` that it began, and which other attempt still worked. For each step it writes a point of
`metrics.jsonl` and a numbered line, and reports the point until that is acknowledged. It ends with the code that it was
given; with 143 where it is told to stop. `environment` is what a run's `env` has to say so that this is started in the
trainer's place. The standard library alone: it starts in 0.1 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ORDERS, PATIENCE_S, AGAIN_S = "STAND_IN", 60.0, 0.05


def environment(folder: Path, steps: int, seconds: float, codes: str = "0") -> list[dict[str, str]]:
    """The `env` of a run whose attempts take so many steps in so many seconds and end with `codes`, by attempt.

    `folder` is where the program is put, once, in the trainer's place.
    """
    package = folder / "teragpt"
    if not package.exists():
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        shutil.copyfile(__file__, package / "launch.py")
    return [{"name": "PYTHONPATH", "value": str(folder)}, {"name": ORDERS, "value": f"{steps} {seconds} {codes}"}]


def main() -> int:
    """Be an attempt."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    steps, seconds, codes = os.environ[ORDERS].split()
    attempt, out = int(os.environ["TERAGPT_ATTEMPT"]), Path(json.loads(os.environ["TERAGPT_SPEC"])["out"])
    _note(out / "attempts", " ".join([str(attempt), str(os.getpid()), *_others(out / "attempts")]))
    for step in range(1, int(steps) + 1):
        point = {"attempt": attempt, "seq": step, "step": step, "time": time.time(), "loss": 2 + 1 / step}
        _note(out / "metrics.jsonl", json.dumps(point))
        print(f"line {step}", flush=True)
        _report(attempt, {name: value for name, value in point.items() if name != "attempt"})
        time.sleep(float(seconds) / int(steps))
    ends = codes.split(",")
    return int(ends[min(attempt, len(ends)) - 1])


def _others(attempts: Path) -> list[str]:
    """Earlier attempts of this run that still work, which must not be."""
    mine = f"TERAGPT_RUN_ID={os.environ['TERAGPT_RUN_ID']}".encode()
    found: list[str] = []
    for line in attempts.read_text().splitlines() if attempts.exists() else []:
        pid = line.split()[1]
        with contextlib.suppress(OSError):
            found += [f"beside-{pid}"] if mine in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") else []
    return found


def _note(file: Path, line: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        opened.write(line + "\n")


def _report(attempt: int, point: dict[str, Any]) -> None:
    """Until it is acknowledged, as long as a control plane may take to come back."""
    body = json.dumps({"attempt": attempt, "points": [point]}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ['TERAGPT_RUN_TOKEN']}"}
    url = f"{os.environ['TERAGPT_RUN_URL']}/metrics"
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - of the control plane that started it
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        except urllib.error.HTTPError as refused:
            if refused.code < 500:
                raise
        except OSError:
            time.sleep(AGAIN_S)
        else:
            return
    sys.exit("no control plane has answered")


if __name__ == "__main__":
    sys.exit(main())
