"""Rounds of kill -9 on one machine: the control plane, shims and ranks of its local cluster. All follows from a seed.

The server, the cluster, shims and processes are real; what the ranks run keeps the trainer's contract and trains
nothing (`benchmarks/controlplane/stand_in.py`). docs/chaos.md says what must be true.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.controlplane.plane import clear
from benchmarks.controlplane.stand_in import environment
from controlplane.client import ApiError, Unreachable
from controlplane.clusters.local import shim
from controlplane.render.models import RUN_ID
from tests.cluster.chaos.control import CALL, Control, points
from tests.cluster.layout import CHECKOUT

T = TypeVar("T")
PATIENCE = float(os.environ.get("TERAGPT_CHAOS_PATIENCE", "1"))  # more on a loaded machine
CATCH_UP_S, LOOK_S = 120.0, 0.05
TESTS = "TESTS=tests/controlplane/test_chaos.py"
TERMINAL = {"succeeded", "failed", "cancelled"}
CODES = {"well": "0", "crash": "1,0", "spent": "1", "config": "2", "cancel": "0", "suspend": "0"}
STEPS, RUN_S, COMES_S = 6, 0.5, 3.0
TARGETS = ("control plane", "control plane", "rank", "shim", "guard", "shim and guard")
RARE = {"object refused", "row put off", "leftover found"}  # need trouble that only an API server makes: tests/cluster
NEEDS = {
    "cancel wanted": "cancel",
    "cancel stored": "cancel",
    "wish stored": "suspend",
    "resume decided": "suspend",
    "verdict noted": "crash",
    "restart decided": "crash",
}


class Wrong(AssertionError):
    """An invariant does not hold."""


@dataclass
class Asked:
    """A run of a round; `struck` once anything of it was killed, `wished` once its cancel or suspend was asked for."""

    name: str
    scenario: str
    id: str = ""
    folder: Path = Path()
    struck: bool = False
    wished: bool = False


def local_points() -> list[str]:
    """Every named instant that a run on the local cluster passes."""
    kubernetes = sorted((CHECKOUT / "controlplane/clusters/kubernetes").rglob("*.py"))
    elsewhere = {name for path in kubernetes for name in CALL.findall(path.read_text("utf-8"))} | RARE
    return [name for name in points() if name not in elsewhere]


@dataclass
class Suite:
    """A control plane that is killed and started again, and what was seen. `close` leaves no process."""

    home: Path
    seed: int
    control: Control = field(init=False)
    kills: Counter[str] = field(default_factory=Counter[str])
    rounds: int = 0
    runs: int = 0
    attempts: int = 0
    stored: int = 0
    slowest_s: float = 0.0
    began_with: str = ""  # the point that was armed as the last round began

    def __post_init__(self) -> None:
        self.control = Control(self.home / "home", {})
        self.control.then = self._next
        self._chance = random.Random(f"{self.seed}/points")

    def close(self) -> None:
        """End everything that was started."""
        self.control.close()
        clear(self.home)

    def unhit(self) -> list[str]:
        """Points at which it never died."""
        return [name for name in local_points() if not self.control.hits[name]]

    def instants(self) -> int:
        """Kills at random instants."""
        return sum(self.kills.values())

    def _next(self) -> str:
        """What the next start is armed with: a point that was not hit yet, as soon as it is passed."""
        return f"{self._chance.choice(self.unhit() or local_points())}:{self._chance.choice([1, 1, 2])}"

    def arm(self, point: str) -> str:
        """Start it anew with `point` armed, or with what it has, else with any.

        What a whole round has not come to gives way: some points are passed once in a process, and never twice.
        """
        left = "" if self.control.armed == self.began_with else self.control.armed
        self.control.strike(point or left or self._next())
        self.began_with = self.control.armed
        return self.began_with

    def table(self) -> str:
        """What was played, a line each."""
        rows = {
            "rounds": self.rounds,
            "runs that were accepted": self.runs,
            "attempts": self.attempts,
            "metric points": self.stored,
            f"deaths at {len(self.control.hits)} of {len(local_points())} named points": self.control.hits.total(),
            **{f"kills at random instants: {name}": count for name, count in sorted(self.kills.items())},
            "most seconds from the last kill of a round to its end": round(self.slowest_s, 1),
        }
        lost = "runs lost, attempts that ran twice, points and lines lost or doubled"
        told = [*(f"| {name} | {value:,} |" for name, value in rows.items()), f"| {lost} | 0 |"]
        return "\n".join(["| chaos on one machine | |", "|---|---|", *told])


def play(suite: Suite, number: int, *, strikes: int = 2, point: str = "") -> None:
    """One round with so many kills at random instants. Raises Wrong, with how to play it again."""
    chance = random.Random(f"{suite.seed}/{number}")
    armed = suite.arm(point)
    scenarios = chance.sample([*CODES], k=3)
    scenarios[0] = NEEDS.get(armed.partition(":")[0], scenarios[0])
    asked = [Asked(f"r{number}-{at}-{suite.rounds}", scenario) for at, scenario in enumerate(scenarios)]
    try:
        for run in asked:
            _post(suite, run)
        instants = sorted(chance.uniform(0, 2 * RUN_S) for _ in range(strikes))
        before = 0.0
        for at in instants:
            _wait(suite, at - before)
            before = at
            _strike(suite, chance.choice(TARGETS), chance.choice(asked))
        for run in asked:
            _wish(suite, run)
        calm = time.monotonic()
        _until_over(suite, asked, calm + CATCH_UP_S * PATIENCE)
        suite.slowest_s = max(suite.slowest_s, time.monotonic() - calm)
        for run in asked:
            judge(suite, run)
    except (AssertionError, ApiError) as error:
        raise Wrong(f"SEED={suite.seed} ROUND={number} POINT={armed!r} make chaos {TESTS}: {error}") from error
    suite.rounds, suite.runs = suite.rounds + 1, suite.runs + len(asked)


def _post(suite: Suite, run: Asked) -> None:
    """Ask until it is answered, always with the same key."""
    spec = {
        "name": run.name,
        "size": "tiny",
        "compute": {"processes_per_node": 1, "cpus_per_node": 0.5},
        "limits": {"max_restarts": 1 if run.scenario == "spent" else 9},
        "env": environment(suite.home / "stand-in", STEPS, RUN_S, CODES[run.scenario]),
    }
    made = _insist(suite, lambda: suite.control.client.create(spec, idempotency_key=run.name))
    run.id, run.folder = made["id"], Path(made["folder"])


def _insist(suite: Suite, call: Callable[[], T]) -> T:
    """What the control plane answers, started again where it died of the question."""
    deadline = time.monotonic() + CATCH_UP_S * PATIENCE
    while True:
        try:
            return call()
        except (Unreachable, RuntimeError):  # a client that was closed under it
            suite.control.tend()
        except ApiError as error:
            if error.status != 503:
                raise
        assert time.monotonic() < deadline, "the control plane does not answer"
        time.sleep(LOOK_S)


def _wait(suite: Suite, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        suite.control.tend()
        time.sleep(LOOK_S)


def _strike(suite: Suite, target: str, run: Asked) -> None:
    """kill -9, as soon as there is something to kill; the control plane where nothing of the run came in time."""
    deadline = time.monotonic() + COMES_S * PATIENCE
    while not (pids := _pids(suite, run, target)) and target != "control plane" and time.monotonic() < deadline:
        _wait(suite, LOOK_S)
    found = [pid for pid in pids if _killed(pid)]
    if target == "control plane" or not found:
        suite.kills["control plane"] += 1
        suite.control.strike()
    else:
        suite.kills[target] += 1
        run.struck = True


def _pids(suite: Suite, run: Asked, target: str) -> list[int]:
    """The processes of the run's newest attempt that are called so."""
    found: list[int] = []
    for record in _found(suite, "*/*/pod.json"):
        with suppress(OSError, ValueError, KeyError):
            labels = json.loads((record.parents[1] / "manifest.json").read_text())["metadata"]["labels"]
            if labels[RUN_ID] != run.id:
                continue
            child = json.loads(record.read_text())["pid"]
            guard = shim.processes()[child].parent
            parts = {"rank": [*shim.members(str(record.parent / shim.TERMINATION))], "control plane": []}
            parts |= {"shim": [child], "guard": [guard], "shim and guard": [guard, child]}
            found += parts[target]
    return found


def _found(suite: Suite, pattern: str) -> list[Path]:
    """Files of objects; folders come and go meanwhile."""
    while True:
        with suppress(FileNotFoundError):
            return [*(suite.home / "home/cluster/objects").glob(pattern)]


def _killed(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _wish(suite: Suite, run: Asked) -> None:
    """Ask for the cancel, or the suspend and the resume, of a run that is to have one."""
    client = suite.control
    wishes = {"cancel": ("cancel",), "suspend": ("suspend", "resume")}.get(run.scenario, ())
    for wish in wishes:
        try:
            _insist(suite, lambda wish=wish: getattr(client.client, wish)(run.id))  # type: ignore[misc]
            run.wished = True
        except ApiError as error:
            check(error.code == "not_alive", str(error))  # it had ended before
        _wait(suite, 0.3)


def _until_over(suite: Suite, asked: list[Asked], deadline: float) -> None:
    """Until every run has ended, and neither an errand nor an object is left."""
    left: object = None
    while time.monotonic() < deadline:
        suite.control.tend()
        with suppress(Unreachable, RuntimeError):
            left = [(one.name, one.scenario, suite.control.client.run(one.id)["phase"]) for one in asked]
            left = [one for one in left if one[2] not in TERMINAL] or suite.control.read("SELECT * FROM outbox")
            left = left or [path.name for path in _found(suite, "*")]
            if not left:
                return
        time.sleep(LOOK_S)
    raise Wrong(f"not over within {CATCH_UP_S * PATIENCE:.0f} s: {left}")


# --- what must be true --------------------------------------------------------------------------------------------


def check(sound: bool, told: str) -> None:
    """Raise Wrong unless it is so."""
    if not sound:
        raise Wrong(told)


def judge(suite: Suite, run: Asked) -> None:
    """Every invariant of one run that is over. Raises Wrong."""
    made = suite.control.read("SELECT id FROM runs WHERE name = ?", [run.name])
    check(made == [(run.id,)], f"{run} was lost or doubled: {made}")
    view = _insist(suite, lambda: suite.control.client.run(run.id))
    attempts: list[Any] = _insist(suite, lambda: suite.control.client.attempts(run.id))
    ran = [line.split() for line in _lines(run.folder / "attempts")]
    began = Counter(int(words[0]) for words in ran)
    check(set(began.values()) <= {1}, f"{run}: an attempt ran twice: {ran}")
    check(set(began) <= {one["attempt"] for one in attempts}, f"{run}: ran {ran}, stored {attempts}")
    check(all(len(words) == 2 for words in ran), f"{run}: two attempts worked at once: {ran}")
    _end(run, view, attempts, began)
    _points(suite, run, [one["attempt"] for one in attempts])
    for number in began:
        _log(suite, run, number)
    events = _insist(suite, lambda: suite.control.client.events(run.id))
    numbers = [one["seq"] for one in events]
    check(numbers == list(range(1, len(numbers) + 1)), f"{run}: events {numbers}")
    ends = [one for one in events if one["kind"] == "phase" and one["data"]["phase"] in TERMINAL]
    check(len(ends) == 1, f"{run}: {len(ends)} ends")
    suite.attempts += len(began)


def _end(run: Asked, view: Any, attempts: list[Any], began: Counter[int]) -> None:
    """The end is the one that it was to come to."""
    allowed = {"spent": {"failed"}, "config": {"failed"}}.get(run.scenario, {"succeeded"})
    if run.scenario == "cancel" and run.wished:
        allowed = {"cancelled", "succeeded"}
    told = f"{run}: {view['phase']} ({view['reason']}: {view['message']})"
    check(view["phase"] in allowed, told)
    if view["phase"] == "succeeded":
        check(
            _steps(run, view["attempt"]) == list(range(1, STEPS + 1)), f"{told}: steps {_steps(run, view['attempt'])}"
        )
    charged = [one["attempt"] for one in attempts if one["charged"]]
    if not run.struck:
        check(len(charged) == {"crash": 1, "spent": 2}.get(run.scenario, 0) or view["phase"] == "cancelled", told)
    early = run.struck  # what is killed may not have come to say that it began
    check(early or set(charged) <= set(began), f"{told}: charged {charged}, began {began}")


def _points(suite: Suite, run: Asked, attempts: list[int]) -> None:
    """What an attempt wrote down is stored, each point once, and each step is in the curve once."""
    for attempt in attempts:
        stored, record = suite.control.points(run.id, attempt), _steps(run, attempt)
        check([seq for seq, _ in stored] == record, f"{run}: attempt {attempt} stored {stored} of {record}")
        check(all(seq == step for seq, step in stored), f"{run}: points changed: {stored}")
        suite.stored += len(stored)
    curve = [point["step"] for point in _insist(suite, lambda: suite.control.client.metrics(run.id))]
    check(curve == sorted(set(curve)), f"{run}: steps of the curve: {curve}")


def _log(suite: Suite, run: Asked, attempt: int) -> None:
    """Each line that a rank wrote is there once, in order; it may have died between its record and its line."""
    text = _insist(suite, lambda: suite.control.client.logs(run.id, attempt=attempt))
    lines = [line for line in text.splitlines() if line.startswith("line ")]
    steps = len(_steps(run, attempt))
    whole = [f"line {step}" for step in range(1, steps + 1)]
    check(lines in (whole, whole[:-1]), f"{run}: attempt {attempt} with {steps} steps has the lines {lines}")


def _steps(run: Asked, attempt: int) -> list[int]:
    """What the attempt's own record says; a torn last line is none."""
    found: list[int] = []
    for line in _lines(run.folder / "metrics.jsonl"):
        with suppress(ValueError):
            point = json.loads(line)
            found += [point["step"]] if point["attempt"] == attempt else []
    return found


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
