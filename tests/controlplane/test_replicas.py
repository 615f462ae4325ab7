"""Two real control planes on one Postgres database and one Kubernetes API: the leader is killed, sleeps, or stops."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.client import Client
from controlplane.clusters.kubernetes.connection import Connection
from tests.controlplane.clusters.kubernetes.hands import Hands, kubeconfig
from tests.controlplane.clusters.kubernetes.server import ApiServer, api_server

DEADLINE_S = 120.0
LEASE_S = 3
pytestmark = pytest.mark.unmeasured
WAY = ["submitting", "pending", "running", "succeeded"]


class Replica:
    """A control plane in a process of its own."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home, self.log = home, home.with_suffix(".log")
        command = [sys.executable, "-m", "controlplane.server", "--home", str(home), "--port", "0", *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log)
        self.url = str(until(self._facts)["url"])
        self.client = Client(self.url)

    @property
    def leads(self) -> bool:
        return "\nteragpt_leader 1.0" in httpx.get(f"{self.url}/metrics", timeout=DEADLINE_S).text

    def end(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def _facts(self) -> dict[str, Any]:
        assert self.process.poll() is None, self.log.read_text()
        facts: dict[str, Any] = {}
        with contextlib.suppress(OSError):
            facts = json.loads((self.home / "server.json").read_text())
        return facts


def until(look: Callable[[], Any]) -> Any:
    """What `look` returns once it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Site:
    """A Kubernetes API, a database, and the control planes on them."""

    def __init__(self, folder: Path, api: ApiServer, database: str) -> None:
        self.api = api
        config = kubeconfig(folder / "kubeconfig", api.url)
        shared = ("--cluster", "kubernetes", "--kubeconfig", str(config), "--database-url", database)
        usual = (*shared, "--kind", "Job", "--storage", "s3://runs", "--lease-s", str(LEASE_S), "--poll-s", "0.05")
        self.replicas = [Replica(folder / name, *usual) for name in ("one", "other")]
        self.connection = Connection(config, None)
        self.hands = Hands(self.connection)

    def close(self) -> None:
        for replica in self.replicas:
            replica.end()
        self.connection.close()

    @property
    def leader(self) -> Replica:
        found: Replica = until(lambda: next((one for one in self.replicas if one.leads), None))
        return found

    def other(self, than: Replica) -> Replica:
        return next(one for one in self.replicas if one is not than)

    def object(self, client: Client, run: str) -> dict[str, Any]:
        """The run's object, once it is there."""
        name = client.run(run)["kubernetes"]["name"]
        until(lambda: any(request.body["metadata"]["name"] == name for request in self.made))
        return dict(client.manifest(run))

    @property
    def made(self) -> list[Any]:
        """Every request that made an object."""
        return [one for one in [*self.api.requests] if one.path.endswith("/jobs") and one.method == "POST"]


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    with api_server() as api:
        api.forbidden.add(("list", "nodes"))  # so that nobody misses what they have
        made = Site(tmp_path, api, database)
        yield made
        made.close()


def start(site: Site, client: Client, name: str) -> tuple[str, str]:
    """A run whose one pod runs: its id and the pod."""
    run = client.create({"size": "tiny", "name": name, "compute": {"nodes": 1}})["id"]
    pod = site.hands.make_pod(site.object(client, run), 0)
    site.hands.run(pod)
    until(lambda: client.run(run)["phase"] == "running")
    return run, pod


def say(site: Site, pod: str, *lines: str, ended: bool = False) -> None:
    second = len(site.api.logs.get(pod, []))
    stamped = (f"2026-11-24T12:00:{at:02}.000000000Z {line}" for at, line in enumerate(lines, second))
    site.api.write_log(pod, *stamped, ended=ended)


def assert_told_once(client: Client, run: str) -> None:
    """No event is lost or doubled, and the run went one way: from what is seen of a pod, a phase may be told anew."""
    events = client.events(run)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    told = [event["data"]["phase"] for event in events if event["kind"] == "phase"]
    assert [phase for phase, _ in groupby(told) if phase != "starting"] == WAY


def test_killing_the_leader_in_the_middle_of_a_run_changes_nothing_that_a_user_sees(site: Site) -> None:
    leader = site.leader
    other = site.other(leader)
    assert other.client.ready()["components"]["leader"]["ready"]
    run, pod = start(site, other.client, "long")
    say(site, pod, "one", "two")
    until(lambda: other.client.logs(run).splitlines() == ["one", "two"])
    leader.process.kill()
    say(site, pod, "three", ended=True)
    until(lambda: other.leads)
    until(lambda: other.client.logs(run).splitlines() == ["one", "two", "three"])
    site.hands.end(pod, 0)
    until(lambda: other.client.run(run)["phase"] == "succeeded")
    assert len(other.client.attempts(run)) == 1
    assert len(site.made) == 1
    assert_told_once(other.client, run)


def test_a_leader_that_was_paused_wakes_and_writes_nothing(site: Site) -> None:
    leader = site.leader
    other = site.other(leader)
    run, pod = start(site, other.client, "first")
    leader.process.send_signal(signal.SIGSTOP)
    until(lambda: other.leads)
    second, second_pod = start(site, other.client, "second")
    site.hands.end(pod, 0)
    until(lambda: other.client.run(run)["phase"] == "succeeded")
    leader.process.send_signal(signal.SIGCONT)
    until(lambda: "another process leads: stepping back" in leader.log.read_text())
    assert not leader.leads
    site.hands.end(second_pod, 0)
    until(lambda: leader.client.run(second)["phase"] == "succeeded")  # it still serves
    for each in (run, second):
        assert_told_once(leader.client, each)
    assert len(site.made) == 2
    assert other.leads


def test_a_replica_that_stops_hands_over_at_once_and_both_answer_alike(site: Site) -> None:
    leader = site.leader
    other = site.other(leader)
    spec = {"size": "tiny", "name": "once", "compute": {"nodes": 1}}
    ids = {one.client.create(spec, idempotency_key="one-key")["id"] for one in site.replicas}
    assert len(ids) == 1
    leader.process.terminate()
    until(lambda: other.leads)
    assert "leads" in other.log.read_text()
    assert [run["id"] for run in other.client.runs()] == [*ids]
