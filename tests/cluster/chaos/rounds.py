"""A round: some runs, what befalls them, and what must be true when it is over. All of it follows from a seed."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.client import ApiError, Unreachable
from controlplane.render.models import ATTEMPT, RUN_ID
from tests.cluster.chaos.api import CLAIM, JOBS, NAMESPACE, PODS, Down, Server, config
from tests.cluster.chaos.control import Control, points
from tests.cluster.chaos.node import KILLED, Life, Node
from tests.cluster.chaos.proxy import ANY, CHANGES, LISTS, WATCHES, Fault, Proxy

PATIENCE = float(os.environ.get("TERAGPT_CHAOS_PATIENCE", "1"))  # more on a loaded machine
CATCH_UP_S = 30.0
TERMINAL = {"succeeded", "failed", "cancelled"}
CHARGED = {1, KILLED}
TRIES = 2  # rounds for one point before another has its turn

SCENARIOS = {  # exit codes of the attempts' first rank
    "well": "0",
    "crash": "1,0",
    "kill": "137,0",
    "stop": "143,0",
    "config": "2",
    "diverge": "3",
    "spent": "1",
    "cancel": "0",
    "suspend": "0",
}
NEEDS = {  # what a point is passed by
    "cancel wanted": "cancel",
    "cancel stored": "cancel",
    "wish stored": "suspend",
    "resume decided": "suspend",
    "verdict noted": "crash",
    "restart decided": "crash",
}
WEATHER = {  # what a point needs to happen on the way to the API server
    "row put off": Fault("unavailable", "^POST .*/pytorchjobs", 2),
    "object adopted": Fault("forget", "^POST .*/pytorchjobs", 2),
    "leftover found": Fault("webhook", "^DELETE .*/pytorchjobs", 3),
    "object refused": Fault("invalid", "^POST .*/pytorchjobs", 1),
}
KINDS = {
    CHANGES: ("refuse", "forget", "delay", "truncate", "conflict", "too many", "webhook", "unavailable"),
    LISTS: ("refuse", "truncate", "gone", "unavailable", "delay"),
    WATCHES: ("refuse", "cut", "expire", "gone", "too many"),
    ANY: ("refuse", "unavailable", "too many", "truncate"),
}
BLOWS = ("strike", "outage", "hang", "cut", "pause", "jump", "delete job", "delete pod", "edit", "nothing", "nothing")
JUMPS = (-7200.0, -40.0, 40.0, 7200.0)  # seconds, of the control plane's wall clock
RESTORE = "an older snapshot"  # etcd goes back to an older snapshot


class Wrong(AssertionError):
    """An invariant does not hold."""


@dataclass
class Asked:
    """A run of this round. `id` once the control plane has said it; `cancelled` once a cancel was asked for."""

    name: str
    scenario: str
    nodes: int
    id: str = ""
    cancelled: bool = False


@dataclass
class Suite:
    """The parts, kept from round to round, and what was seen."""

    folder: Path
    seed: int
    server: Server = field(init=False)
    node: Node = field(init=False)
    proxy: Proxy = field(init=False)
    control: Control = field(init=False)
    slowest_s: float = 0.0
    blows: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    rounds: int = 0
    runs: int = 0
    deaths: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    outages: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        self.server = Server(self.folder)
        self.node = Node(self.server, self.seed)
        self.proxy = Proxy(self.server, self.node.log)
        kubeconfig = self.folder / "proxied"
        kubeconfig.write_text(json.dumps(config(self.proxy.url, self.server.token)))
        settings = {
            "cluster": "kubernetes",
            "kubeconfig": str(kubeconfig),
            "namespace": NAMESPACE,
            "storage": f"pvc://{CLAIM}/runs",
        }
        self.control = Control(self.folder / "home", settings)
        self._chance = random.Random(f"{self.seed}/points")
        self._left: list[str] = []
        self._tried = 0

    def close(self) -> None:
        self.control.close()
        self.proxy.close()
        self.node.close()
        self.server.close()

    def unhit(self) -> list[str]:
        return [name for name in points() if not self.control.hits[name]]

    def arm(self, point: str = "") -> str:
        """Have `point`, else one that was not hit yet, else any armed: its name, and at which pass it kills."""
        self._tried += 1
        if self.control.armed and self._tried <= TRIES and not point:
            return self.control.armed
        self.control.then = str if point else self._next
        self.control.strike(point or self._next())
        return self.control.armed

    def _next(self) -> str:
        chance, self._tried = self._chance, 0
        wanted = self.unhit() or points()
        if not any(one in wanted for one in self._left):
            self._left = chance.sample(wanted, len(wanted))
        name = next(one for one in self._left if one in wanted)
        self._left.remove(name)
        return f"{name}:{1 if name in NEEDS or name in WEATHER else chance.choice([1, 1, 2, 3])}"

    def table(self) -> str:
        """What was played, a line each."""
        rows = {
            "rounds": self.rounds,
            "runs": self.runs,
            f"deaths of the control plane at {len(points())} named points": sum(self.control.hits.values()),
            "other deaths of the control plane": self.control.kills,
            **{f"server side: {name}": count for name, count in sorted(self.deaths.items())},
            **{
                f"on the way to the API server: {name}": count for name, count in sorted(self.proxy.weather.met.items())
            },
            **{f"besides: {name}": count for name, count in sorted(self.blows.items())},
            "most seconds from the last fault of a round to its end": round(self.slowest_s, 1),
            **{f"seconds from the end of {name} to that of its runs": took for name, took in self.outages.items()},
        }
        return "\n".join(["| chaos | |", "|---|---|", *(f"| {name} | {value:,} |" for name, value in rows.items())])


def play(suite: Suite, number: int, *, dies: str | None = None, point: str = "", again: int = 0) -> None:
    """One round, in which `etcd` or `kube-apiserver` may die, or etcd is restored. Raises Wrong, with how to replay it.

    `point` and its count are armed where given; `again`: how often this round was played before.
    """
    chance = random.Random(f"{suite.seed}/{number}")
    armed = suite.arm(point)
    point = armed.partition(":")[0]
    began = suite.server.revision()
    asked = _plan(chance, f"r{number}-{again}" if again else f"r{number}", point)
    lost: list[dict[str, Any]] = []
    snapshot: Path | None = None
    try:
        if point in WEATHER:
            known = WEATHER[point]
            suite.proxy.weather.faults.append(Fault(known.kind, known.match, known.count))
        for run in asked:
            _post(suite, run)
        if dies == RESTORE:
            _wait(suite, chance.uniform(0, 1.5))
            snapshot = suite.server.snapshot()
        elif dies:
            suite.server.kill(dies)
        _befall(suite, chance, asked, point)
        if snapshot is not None:
            lost = suite.server.restore(snapshot, began)
        suite.server.revive()
        suite.control.jump(0)
        suite.proxy.weather.clear()
        calm = time.monotonic()
        _until(suite, asked, calm + CATCH_UP_S * PATIENCE)
        suite.slowest_s = max(suite.slowest_s, time.monotonic() - calm)
        judge(suite, asked, began, lost, restored=dies == RESTORE)
    except (AssertionError, ApiError) as error:
        raise Wrong(f"SEED={suite.seed} ROUND={number} POINT={armed!r} make chaos: {error}") from error
    suite.rounds, suite.runs = suite.rounds + 1, suite.runs + len(asked)
    if dies:
        suite.deaths[dies] += 1


def outage(suite: Suite, seconds: float) -> float:
    """Runs before, in and after an outage of the API server; how long all took from its end. Raises Wrong."""
    began, chance = suite.server.revision(), random.Random(f"{suite.seed}/outage")
    suite.proxy.weather.clear()
    suite.control.then = str
    suite.control.strike("")  # what is measured is an outage, not deaths in it
    asked = [Asked(f"outage-{i}", chance.choice(["well", "crash", "stop", "config"]), 1) for i in range(6)]
    try:
        for run in asked[:3]:
            _post(suite, run)
        _wait(suite, 1.0)
        suite.proxy.outage()
        for run in asked[3:]:
            _post(suite, run)
        _wait(suite, seconds)
        suite.proxy.weather.clear()
        calm = time.monotonic()
        _until(suite, asked, calm + CATCH_UP_S * PATIENCE)
        judge(suite, asked, began, [])
    except (AssertionError, ApiError) as error:
        raise Wrong(f"seed {suite.seed}, outage: {error}") from error
    suite.runs += len(asked)
    took = suite.outages[f"an outage of {seconds:.0f} s"] = round(time.monotonic() - calm, 1)
    return took


def _plan(chance: random.Random, name: str, point: str) -> list[Asked]:
    if point == "object refused":
        return [Asked(f"{name}-0", "well", 1)]
    scenarios = chance.choices([*SCENARIOS], k=chance.choice([2, 3]))
    scenarios[0] = NEEDS.get(point) or scenarios[0]
    return [Asked(f"{name}-{i}", scenario, chance.choice([1, 1, 2])) for i, scenario in enumerate(scenarios)]


def _post(suite: Suite, run: Asked) -> None:
    """Ask until it is answered, always with the same key."""
    spec = {
        "name": run.name,
        "size": "tiny",
        "compute": {"nodes": run.nodes, "processes_per_node": 1},
        "limits": {"max_restarts": 1},
        "env": [{"name": "CHAOS", "value": SCENARIOS[run.scenario]}],
    }
    run.id = _insist(suite, lambda: suite.control.client.create(spec, idempotency_key=run.name))["id"]


def _insist(suite: Suite, call: Callable[[], Any]) -> Any:
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
        time.sleep(0.05)


def _befall(suite: Suite, chance: random.Random, asked: list[Asked], point: str) -> None:
    """What happens to these runs, for some seconds."""
    if point not in WEATHER:
        for _ in range(chance.randrange(3)):
            match = chance.choice([*KINDS])
            suite.proxy.weather.faults.append(Fault(chance.choice(KINDS[match]), match, chance.choice([1, 1, 3])))
    blows = [] if point in WEATHER else chance.sample(BLOWS, 2)
    for blow in [*blows, *_wishes(asked)]:
        _wait(suite, chance.uniform(0.1, 1.0))
        suite.blows[blow] += 1
        _strike(suite, chance, asked, blow)
    _wait(suite, chance.uniform(0.2, 1.0))


def _wishes(asked: list[Asked]) -> list[str]:
    return [run.scenario for run in asked if run.scenario in {"cancel", "suspend"}]


def _wait(suite: Suite, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        suite.control.tend()
        time.sleep(0.05)


def _strike(suite: Suite, chance: random.Random, asked: list[Asked], blow: str) -> None:
    run = chance.choice(asked)
    if blow == "strike":
        suite.control.strike()
    elif blow in {"outage", "hang"}:
        suite.proxy.outage(hanging=blow == "hang")
        _wait(suite, chance.uniform(0.5, 3.0))
        suite.proxy.weather.out = suite.proxy.weather.hanging = False
    elif blow == "cut":
        suite.proxy.cut()
    elif blow == "pause":
        suite.control.pause(chance.uniform(1.0, 4.0))  # longer than its own patience with a silent API server
    elif blow == "jump":
        suite.control.jump(chance.choice(JUMPS))
    elif blow == "cancel":
        run = next(run for run in asked if run.scenario == "cancel" and not run.cancelled)
        run.cancelled = True
        _insist(suite, lambda: suite.control.client.cancel(run.id))
    elif blow == "suspend":
        _suspend(suite, next(run for run in asked if run.scenario == "suspend"))
    elif blow in {"delete job", "delete pod", "edit"}:
        _tamper(suite, chance, run, blow)


def _suspend(suite: Suite, run: Asked) -> None:
    for wish in (suite.control.client.suspend, suite.control.client.resume):
        name = wish.__name__
        try:
            _insist(suite, lambda name=name: getattr(suite.control.client, name)(run.id))  # type: ignore[misc]
        except ApiError as error:
            check(error.code == "not_alive", str(error))  # it had ended before
        if name == "suspend":
            _wait(suite, 0.7)


def _tamper(suite: Suite, chance: random.Random, run: Asked, blow: str) -> None:
    """Somebody else does something to the run's object, or to a pod of it."""
    where = PODS if blow == "delete pod" else JOBS
    try:
        mine = [one for one in suite.server.items(where) if one["metadata"]["labels"].get(RUN_ID) == run.id]
        if not mine:
            return
        path = f"{where}/{chance.choice(mine)['metadata']['name']}"
        if blow == "edit":
            suite.server.call("PATCH", path, {"metadata": {"labels": {"team": "x"}, "annotations": {"note": "y"}}})
        else:
            policy = "Background" if blow == "delete pod" else chance.choice(["Foreground", "Background"])
            suite.server.call("DELETE", path, {"propagationPolicy": policy})
    except Down:
        return


def _until(suite: Suite, asked: list[Asked], deadline: float) -> None:
    """Until every run has ended and nothing of it is left in the cluster or in the outbox."""
    left: object = None
    while time.monotonic() < deadline:
        suite.control.tend()
        assert not suite.node.trouble, suite.node.trouble
        try:
            left = [(one.name, view["phase"], view["reason"], view["message"]) for one, view in _views(suite, asked)]
            left = [one for one in left if one[1] not in TERMINAL] or suite.control.read("SELECT * FROM outbox")
            left = left or [one["metadata"]["name"] for one in suite.server.items(JOBS) + suite.server.items(PODS)]
        except (Unreachable, Down):
            continue
        if not left:
            return
        time.sleep(0.1)
    raise Wrong(f"not over within {CATCH_UP_S * PATIENCE:.0f} s: {left}")


def _views(suite: Suite, asked: list[Asked]) -> Iterator[tuple[Asked, Any]]:
    for run in asked:
        yield run, suite.control.client.run(run.id)


# --- what must be true --------------------------------------------------------------------------------------------


def judge(suite: Suite, asked: list[Asked], began: int, lost: list[dict[str, Any]], *, restored: bool = False) -> None:
    """Every invariant, over the runs of a round. Raises Wrong.

    `lost`: objects that etcd, `restored`, knows no more; it may have brought back an attempt beside a later one.
    """
    for run in asked:
        made = suite.control.read("SELECT id FROM runs WHERE name = ?", [run.name])
        check(made == [(run.id,)], f"{run} was lost or doubled: {made}")
    objects: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    for one in [*lost, *suite.server.history(began)]:
        labels = one["metadata"]["labels"]
        objects[labels[RUN_ID], int(labels[ATTEMPT])].add(one["metadata"]["uid"])
    for key, uids in objects.items():
        check(len(uids) == 1, f"{key} had {len(uids)} objects")
    for run in asked:
        view = _insist(suite, lambda run=run: suite.control.client.run(run.id))  # type: ignore[misc]
        attempts = _insist(suite, lambda run=run: suite.control.client.attempts(run.id))  # type: ignore[misc]
        lives = suite.node.of_run(run.id)
        told = {key[1] for key in objects if key[0] == run.id}
        check(told <= {one["attempt"] for one in attempts}, f"{run}: objects of attempts {told} that it never had")
        if not restored:
            _alone(run, lives)
        _phase(suite, run, view, attempts, lives, restored=restored)
        _points(suite, run, lives)
        _events(suite, run)


def check(sound: bool, told: str) -> None:
    if not sound:
        raise Wrong(told)


def _alone(run: Asked, lives: list[Life]) -> None:
    """Never do two attempts work at once."""
    for one, other in itertools.permutations(lives, 2):
        if one.attempt < other.attempt:
            apart = other.began - one.ended
            check(apart >= 0, f"{run}: attempt {other.attempt} began {-apart:.2f} s before {one.attempt} had ended")


def _phase(suite: Suite, run: Asked, view: Any, attempts: list[Any], lives: list[Life], *, restored: bool) -> None:
    """The end of the run is what its pods did. With etcd `restored`, one may have been made again after it was done."""
    phase, last = view["phase"], [life for life in lives if life.attempt == view["attempt"]]
    newest = {life.rank: life for life in sorted(last, key=lambda life: restored and life.left)}
    whole = len(newest) == run.nodes and all(life.left for life in newest.values())
    done = whole and newest[0].exit == 0  # a worker may have been stopped on its way out: cleanPodPolicy Running
    well = done and all(life.exit == 0 for life in newest.values())
    final = any(life.exit in {2, 3} for life in last)
    charged = [one for one in attempts if one["charged"]]
    ends = [(one.attempt, one.rank, one.exit) for one in lives]
    told = f"{run}: {phase} ({view['reason']}), but its pods ended {ends}"
    if phase == "succeeded":
        check(done, told)
    elif phase == "cancelled":
        check(run.cancelled, told)
    elif view["reason"] == "ManifestRejected":
        check(suite.proxy.weather.met["invalid"] > 0 and not last, told)
    else:
        check(final or len(charged) == 2, told)
    if well and not run.cancelled and not restored:  # nobody may have seen it before it was forgotten
        check(phase == "succeeded", told)
    for one in charged:
        mine = [life for life in lives if life.attempt == one["attempt"]]
        really = any(life.exit in CHARGED and life.exit == life.code for life in mine)
        check(really, f"{run}: attempt {one['attempt']} was charged for {one['reason']}, which no pod did")


def _points(suite: Suite, run: Asked, lives: list[Life]) -> None:
    """What was acknowledged is there, what is there was sent, and each step is in the curve once."""
    curve = [point["step"] for point in _insist(suite, lambda: suite.control.client.metrics(run.id))]
    check(curve == sorted(set(curve)), f"{run}: steps of the curve: {curve}")
    for attempt in {life.attempt for life in lives}:
        mine = [life for life in lives if life.attempt == attempt and life.rank == 0]
        stored = suite.control.points(run.id, attempt)
        seqs = [seq for seq, _ in stored]
        kept = max((life.kept for life in mine), default=0)
        sent = max((len(life.sent) for life in mine), default=0)
        check(seqs == list(range(1, len(seqs) + 1)), f"{run}: attempt {attempt} has the points {seqs}")
        told = f"{run}: attempt {attempt}: {kept} acknowledged, {len(seqs)} stored, {sent} sent"
        check(kept <= len(seqs) <= sent, told)
        check(all(seq == step for seq, step in stored), f"{run}: points changed: {stored}")


def _events(suite: Suite, run: Asked) -> None:
    """The run's history has no gap, and one end."""
    events = _insist(suite, lambda: suite.control.client.events(run.id))
    numbers = [one["seq"] for one in events]
    check(numbers == list(range(1, len(numbers) + 1)), f"{run}: events {numbers}")
    ends = [one for one in events if one["kind"] == "phase" and one["data"]["phase"] in TERMINAL]
    check(len(ends) == 1, f"{run}: {len(ends)} ends")
