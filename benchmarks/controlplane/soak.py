"""A control plane that is kept busy: 1,000 runs queued on its local cluster, and whether its memory stays flat.

`make soak` (or `python -m benchmarks.controlplane.soak [MINUTES]`, 30) starts one on a fresh folder and holds 1,000
runs in its cluster's line while others run and end, pages are read, streams followed and runs cancelled. What runs are
real processes that keep the trainer's contract and train nothing (`stand_in.py`). Every 2 s it looks at resident
memory, open files, threads and `teragpt_scheduling_seconds`; the start, until the line stands, and the first third
after it are left out. It ends with 1 unless all of this holds:

- memory: the slope of a line through the rest (least squares over the means of its twentieths) is at most 20 MB an hour
  at the upper end of its 95% interval, which is at most ± 20 wide: a short soak cannot tell.
- open files and threads: no more at the end than in the middle, but for 10.
- scheduling: of the decisions with 1,000 queued, the p99 is at most 10 ms.
- no request failed, and no run ended otherwise than it was to.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import re
import statistics
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from benchmarks.controlplane.plane import Plane, opened, tell
from benchmarks.controlplane.stand_in import environment
from controlplane.replies import TERMINAL

QUEUED, LOOK_S, SHOWN_S, PARTS = 1000, 2.0, 30.0, 20
MB_AN_HOUR, MORE, DECISION_S = 20.0, 10, 0.010
STUDENT = 2.101  # 97.5% of Student's t with PARTS - 2 degrees of freedom
STEPS, RUN_S, HELD_S = 3, 0.5, 86_400.0
CLIENTS, USERS = 8, ("ann", "bob", "eve")
LIVE = ("queued", "submitting", "pending", "starting", "running", "restarting", "cancelling")
BUCKET = re.compile(r'teragpt_scheduling_seconds_bucket\{le="([^"]+)"\} (\S+)')
PHASE = re.compile(r'teragpt_runs\{phase="(\w+)"\} (\S+)')


@dataclass(frozen=True)
class Look:
    """What is seen at one moment, `at` seconds from the start; `decisions` counts those of up to so many seconds."""

    at: float
    resident_mb: float
    files: int
    threads: int
    cpu_s: float
    phases: dict[str, int]
    decisions: dict[float, int]


@dataclass
class Soak:
    """The work that is done meanwhile, in threads of its own; what failed is counted by what it was."""

    plane: Plane
    done: Counter[str] = field(default_factory=Counter[str])
    failed: Counter[str] = field(default_factory=Counter[str])
    phases: dict[str, int] = field(default_factory=dict[str, int])
    ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> list[threading.Thread]:
        """Begin."""
        works = [(self.submit, 0.1), (self.read, 0.1), (self.cancel, 5.0), *[(self.follow, 0.5)] * 4]
        threads = [threading.Thread(target=self._keep, args=work, daemon=True) for work in works]
        for one in threads:
            one.start()
        return threads

    def fill(self) -> None:
        """Ask for as many runs as are to wait."""

        def several(number: int) -> None:
            with httpx.Client(base_url=self.plane.client.base_url, timeout=60) as client:
                for asked in range(QUEUED // CLIENTS):
                    self.ask(client, USERS[(number + asked) % len(USERS)])

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(several, range(CLIENTS)))

    def submit(self, client: httpx.Client, chance: random.Random) -> None:
        """Fill the queue up to its length, where some have left it since they were last counted."""
        short = QUEUED + 4 - sum(self.phases.get(phase, 0) for phase in LIVE) if self.phases else 0
        for _ in range(short):
            self.ask(client, chance.choice(USERS))
        self.phases = {}

    def ask(self, client: httpx.Client, user: str, seconds: float = RUN_S) -> str:
        """The id of a new run of so many seconds."""
        env = environment(self.plane.home.parent / "stand-in", STEPS, seconds)
        compute = {"processes_per_node": 1, "cpus_per_node": 1}
        spec = {"size": "tiny", "env": env, "compute": compute, "labels": {"user": user}}
        reply = client.post("/runs", json=spec, headers={"idempotency-key": str(uuid.uuid4())}).raise_for_status()
        self.done["runs asked for"] += 1
        return str(reply.json()["id"])

    def read(self, client: httpx.Client, chance: random.Random) -> None:
        """A page of runs, and what one of them shows."""
        phase = chance.choice(["", "&phase=running", "&phase=succeeded", "&label=user=ann"])
        runs = client.get(f"/runs?limit=50{phase}").raise_for_status().json()["items"]
        for part in ("", "/events", "/metrics?downsample=100", "/attempts", "/logs", "/explanation"):
            if runs:
                self._get(client, f"/runs/{chance.choice(runs)['id']}{part}")
        self._get(client, chance.choice(["/queues", "/clusters", "/usage", "/sizes", "/readyz", "/sweeps"]))

    def cancel(self, client: httpx.Client, chance: random.Random) -> None:
        """Cancel one of those that run or wait."""
        phase = chance.choice(["running", "pending"])
        if runs := client.get(f"/runs?limit=50&phase={phase}").raise_for_status().json()["items"]:
            client.post(f"/runs/{chance.choice(runs)['id']}/cancel").raise_for_status()
            self.done["runs cancelled"] += 1

    def follow(self, client: httpx.Client, chance: random.Random) -> None:
        """Read a run's stream for up to a second, then go away in the middle of it."""
        runs = client.get("/runs?limit=50&phase=running").raise_for_status().json()["items"]
        if not runs:
            return
        path = f"/runs/{chance.choice(runs)['id']}/{chance.choice(['logs', 'events', 'metrics'])}/stream"
        end = time.monotonic() + 1
        with client.stream("GET", path) as reply:
            reply.raise_for_status()
            for _ in reply.iter_lines():
                if time.monotonic() > end:
                    break
        self.done["streams followed"] += 1

    def _get(self, client: httpx.Client, path: str) -> None:
        reply = client.get(path)
        if not (reply.is_client_error and path.startswith("/runs/")):  # it may be gone, or have nothing yet
            reply.raise_for_status()
        self.done["pages read"] += 1

    def _keep(self, work: Callable[[httpx.Client, random.Random], None], every_s: float) -> None:
        chance = random.Random(work.__name__)
        with httpx.Client(base_url=self.plane.client.base_url, timeout=60) as client:
            while not self.ended.wait(every_s):
                try:
                    work(client, chance)
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    if not self.ended.is_set():
                        self.failed[f"{work.__name__}: {error}"] += 1


def look(plane: Plane, began: float) -> Look:
    """Look at the process and at its measurements."""
    process: psutil.Process = plane.process
    page = plane.client.get("/metrics").raise_for_status().text
    times = process.cpu_times()
    return Look(
        at=time.monotonic() - began,
        resident_mb=process.memory_info().rss / 1e6,
        files=process.num_fds(),
        threads=process.num_threads(),
        cpu_s=times.user + times.system,
        phases={phase: int(float(count)) for phase, count in PHASE.findall(page)},
        decisions={float(bound): int(float(count)) for bound, count in BUCKET.findall(page)},
    )


def waits(seen: Look) -> int:
    """How many runs wait in the cluster's own line."""
    return seen.phases.get("pending", 0)


def looked(plane: Plane, soak: Soak, over: Callable[[list[Look]], bool]) -> list[Look]:
    """Look again and again until that is over; what was seen."""
    began, shown = time.monotonic(), -SHOWN_S
    looks: list[Look] = []
    while not looks or not over(looks):
        time.sleep(LOOK_S)
        looks.append(seen := look(plane, began))
        soak.phases = seen.phases
        if seen.at > shown + SHOWN_S:
            shown = seen.at
            told = f"{seen.resident_mb:.1f} MB, {seen.files} files, {seen.threads} threads"
            tell(f"{told}; {waits(seen)} wait, {seen.phases.get('succeeded', 0)} have succeeded")
    return looks


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The slope of a line through the means of PARTS parts of equal length, and half of its 95% interval."""
    size = len(points) // PARTS
    if size == 0:
        return math.nan, math.inf
    means = [
        tuple(statistics.fmean(column) for column in zip(*points[part * size : (part + 1) * size], strict=True))
        for part in range(PARTS)
    ]
    xs, ys = zip(*means, strict=True)
    line = statistics.linear_regression(xs, ys)
    left = sum((y - line.intercept - line.slope * x) ** 2 for x, y in zip(xs, ys, strict=True)) / (PARTS - 2)
    spread = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
    return line.slope, STUDENT * math.sqrt(left / spread)


def ended(seen: Look) -> int:
    """How many runs have ended."""
    return sum(count for phase, count in seen.phases.items() if phase in TERMINAL)


def growth(looks: Sequence[Look]) -> float:
    """MB that memory grew by for each 1,000 runs that ended, of the second half of these looks."""
    half = looks[len(looks) // 2 :]
    if ended(half[0]) == ended(half[-1]):
        return math.nan
    line = statistics.linear_regression([ended(one) / 1000 for one in half], [one.resident_mb for one in half])
    return line.slope


def within(part: float, first: Look, last: Look) -> float:
    """The bound under which so large a part of the decisions between two looks were made, in seconds."""
    made = {bound: last.decisions[bound] - first.decisions.get(bound, 0) for bound in last.decisions}
    return next((bound for bound, count in sorted(made.items()) if count >= part * made[math.inf]), math.inf)


def picture(points: Sequence[tuple[float, float]], columns: int = 72, rows: int = 8) -> str:
    """The points as a curve in text."""
    (begin, _), (end, _) = points[0], points[-1]
    cells: dict[int, list[float]] = {}
    for at, value in points:
        cells.setdefault(min(columns - 1, int(columns * (at - begin) / max(end - begin, 1e-9))), []).append(value)
    means = {column: statistics.fmean(values) for column, values in cells.items()}
    low, high = min(means.values()), max(means.values())
    width = max(high - low, 1e-9)
    row_of = {column: round((rows - 1) * (value - low) / width) for column, value in means.items()}
    lines = ["".join("*" if row_of.get(column) == row else " " for column in range(columns)) for row in range(rows)]
    axis = f"{'minutes':>10} {begin / 60:<{columns - 6}.1f}{end / 60:>6.1f}"
    told = [f"{low + width * row / (rows - 1):>7.1f} MB|{lines[row]}" for row in reversed(range(rows))]
    return "\n".join([*told, axis])


def verdicts(looks: list[Look], soak: Soak) -> dict[str, tuple[bool, Any]]:
    """What is asked for, whether it holds, and what was seen of it."""
    rest = looks[len(looks) // 3 :]
    middle, end = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    each, half = (3600 * value for value in slope([(one.at, one.resident_mb) for one in rest]))
    more = {
        name: statistics.median(getattr(one, name) for one in end)
        - statistics.median(getattr(one, name) for one in middle)
        for name in ("files", "threads")
    }
    bound = within(0.99, looks[0], looks[-1])
    wrong = looks[-1].phases.get("failed", 0)
    return {
        "memory_mb_an_hour": (max(half, each + half) <= MB_AN_HOUR, f"{each:.1f} ± {half:.1f}, at most {MB_AN_HOUR:g}"),
        "more_files_and_threads": (max(more.values()) <= MORE, more),
        "scheduling_p99_ms": (bound <= DECISION_S, f"at most {1e3 * bound:g}"),
        "failed": (not soak.failed and not wrong, {**soak.failed, "runs": wrong}),
    }


def main(minutes: float) -> int:
    """Soak it, draw its memory, and say what holds; 1 where something does not."""
    with opened() as plane:
        tell(f"ready in {plane.ready_s:.1f} s; {QUEUED} runs come into line, then it is busy for {minutes:g} minutes")
        environment(plane.home.parent / "stand-in", STEPS, RUN_S)
        soak = Soak(plane)
        hold = [soak.ask(plane.client, "ann", HELD_S) for _ in range(os.cpu_count() or 1)]
        for run in hold:
            plane.wait_for(run, "running")
        soak.fill()
        looked(plane, soak, lambda looks: waits(looks[-1]) >= 0.98 * QUEUED)
        for run in hold:  # they kept the machine until the line stood
            plane.client.post(f"/runs/{run}/cancel").raise_for_status()
        threads = soak.start()
        looks = looked(plane, soak, lambda looks: looks[-1].at >= 60 * minutes)
        soak.ended.set()
        for one in threads:
            one.join(60)
    found = verdicts(looks, soak)
    span = looks[-1].at - looks[0].at
    result = {
        "command": " ".join(["python", "-m", "benchmarks.controlplane.soak", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[1]:.1f}",
        "minutes": round(span / 60, 1),
        "resident_mb": {"first": round(looks[0].resident_mb, 1), "last": round(looks[-1].resident_mb, 1)},
        "ended": ended(looks[-1]) - ended(looks[0]),
        "second_half_mb_per_1000_ended": round(growth(looks), 1),
        "core_percent": round(100 * (looks[-1].cpu_s - looks[0].cpu_s) / span),
        "decisions": looks[-1].decisions[math.inf] - looks[0].decisions[math.inf],
        "scheduling_p50_ms": 1e3 * within(0.5, looks[0], looks[-1]),
        "done": dict(soak.done),
        "runs": looks[-1].phases,
        **{name: {"holds": holds, "seen": seen} for name, (holds, seen) in found.items()},
    }
    print(picture([(one.at, one.resident_mb) for one in looks]))
    print(json.dumps(result, indent=2))
    return int(not all(holds for holds, _ in found.values()))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0))
