"""Why a run failed or went on, from real causes: ranks that end at once, each in its own way, before torch is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import RUN_ID, Cluster, Namespace
from tests.cluster.plane import Plane, until

CODE = "/mnt/teragpt/{claim}/code"
HALF = 0.7  # of which a run has two: there is room for one such run, and for half of another
MOST = 1.2  # of the node's two CPUs: there is room for one that asks so much
RANK = """
import os, signal, sys, time, traceback

def exits():
    print("\\n".join(f"line {number}" for number in range(60)), flush=True)
    os._exit(7)

def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)

def fills_the_disk():
    with open("/dev/shm/full", "wb") as file:
        file.write(bytes(2 << 20))
        file.flush()

def eats_memory():
    held = [b"x" * (1 << 30) for _ in range(3)]

def finishes():
    time.sleep(3)
    os._exit(0)

def sleeps():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    time.sleep(600)

if "LOCAL_RANK" in os.environ:
    try:
        globals()[os.environ["CAUSE"]]()
    except OSError:
        traceback.print_exc()
        os._exit(1)
"""


@pytest.fixture(scope="module")
def namespace(furnished: Namespace) -> Namespace:
    """With a sitecustomize.py on its claim, which every Python of a run imports first."""
    furnished.start(
        "writer", "sh", "-c", 'mkdir /claim/code; echo "$0" >/claim/code/sitecustomize.py', RANK, claim=True
    )
    furnished.output("writer")
    return furnished


@pytest.fixture
def post(plane: Plane, namespace: Namespace) -> Any:
    """Starts a run whose rank ends so; its id."""

    def post(cause: str, *, limits: dict[str, Any] | None = None, **compute: Any) -> str:
        path = f"{CODE.format(claim=namespace.claim)}:/opt/teragpt/code"
        env = [{"name": "PYTHONPATH", "value": path}, {"name": "CAUSE", "value": cause}]
        shape = {"nodes": 1, "processes_per_node": 1, "cpus_per_node": 0.1, **compute}
        spec = {"size": "tiny", "compute": shape, "limits": {"max_restarts": 0, **(limits or {})}, "env": env}
        return str(plane.client.create(spec)["id"])

    return post


def test_a_failure_is_told_with_its_reason_its_rank_its_last_lines_and_what_was_done(plane: Plane, post: Any) -> None:
    runs = {
        "exit": post("exits", limits={"max_restarts": 1}),
        "kill": post("is_killed"),
        "disk": post("fills_the_disk", shm="1Mi"),
        "memory": post("eats_memory"),
        "deadline": post("sleeps", limits={"max_runtime_s": 15}),
    }
    ended = {name: plane.ended(run) for name, run in runs.items()}
    last = {name: plane.client.attempts(run)[-1] for name, run in runs.items()}
    assert {name: run["phase"] for name, run in ended.items()} == dict.fromkeys(runs, "failed")
    told = {name: (run["reason"], last[name]["rank"], last[name]["exit_code"]) for name, run in ended.items()}
    assert told == {
        "exit": ("Crash", 0, 7),
        "kill": ("Killed", 0, 137),
        "disk": ("DiskFull", 0, 1),
        "memory": ("OOMKilled", 0, 137),
        "deadline": ("DeadlineExceeded", None, None),
    }
    assert last["exit"]["last_lines"] == [f"line {number}" for number in range(10, 60)]
    assert {name: run["restarts"] for name, run in ended.items()} == {**dict.fromkeys(runs, 0), "exit": 1}
    assert (last["exit"]["attempt"], last["kill"]["signal"]) == (2, "SIGKILL")
    assert "No space left on device" in (ended["disk"]["message"] or "")


@pytest.mark.alone
def test_runs_of_several_pods_never_wait_for_each_other_with_half_of_their_pods(
    plane: Plane, namespace: Namespace, post: Any
) -> None:
    runs = [post("finishes", nodes=2, cpus_per_node=HALF) for _ in range(3)]
    ended: dict[str, str] = {}

    def look() -> bool | None:
        ended.update({run: plane.client.run(run)["phase"] for run in runs})
        assert sum(has_half(namespace, run) for run in runs) <= 1, "one run at a time looks for places"
        return set(ended.values()) == {"succeeded"} or None

    until(look, 180, lambda: f"{ended}\n{plane.log.read_text()[-2000:]}")


def has_half(namespace: Namespace, run: str) -> bool:
    """Whether some of its pods hold their share of a node while others have none."""
    pods = namespace.read("pods", f"--selector={RUN_ID}={run}")["items"]
    alive = [pod for pod in pods if pod["status"].get("phase") in {"Pending", "Running"}]
    return 0 < sum("nodeName" in pod["spec"] for pod in alive) < len(alive)


def test_an_evicted_pod_is_not_charged_to_its_run(plane: Plane, namespace: Namespace, post: Any) -> None:
    run = post("sleeps")
    plane.wait(run, "running")
    (pod,) = namespace.pods(run)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace.name}}
    namespace.kubectl(
        "create", f"--raw=/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction", "-f-", stdin=json.dumps(eviction)
    )
    assert begun_again(plane, run) == ("Evicted", False)


@pytest.mark.alone
def test_a_run_on_a_node_that_is_drained_waits_for_another_and_goes_on_uncharged(
    plane: Plane, own_cluster: Cluster, post: Any
) -> None:
    run = post("sleeps")
    plane.wait(run, "running")
    of_it = f"--pod-selector={RUN_ID}={run}"
    try:
        own_cluster.kubectl("drain", own_cluster.node, "--force", "--delete-emptydir-data", of_it)
        until(lambda: plane.client.run(run)["reason"] == "Unschedulable" or None, 60)
    finally:
        own_cluster.kubectl("uncordon", own_cluster.node)
    assert begun_again(plane, run) == ("Evicted", False)


@pytest.mark.alone
def test_a_preempted_run_gives_way_and_goes_on_uncharged(
    plane: Plane, namespace: Namespace, post: Any, urgent: str
) -> None:
    run = post("sleeps", cpus_per_node=MOST)
    plane.wait(run, "running")
    namespace.start("urgent", "sleep", "600", resources={"requests": {"cpu": str(MOST)}}, priorityClassName=urgent)
    namespace.wait("pod/urgent", "condition=Ready")
    until(lambda: plane.client.run(run)["reason"] == "Unschedulable" or None, 60)
    namespace.kubectl("delete", "pod", "urgent", "--wait=false")
    assert begun_again(plane, run) == ("Preempted", False)


def begun_again(plane: Plane, run: str) -> tuple[str | None, bool | None]:
    """Why the first attempt ended and whether it was charged, once the second one runs."""
    until(lambda: plane.client.run(run)["attempt"] == 2 or None, 60)
    now = plane.wait(run, "running")
    assert now["restarts"] == 0
    first = plane.client.attempts(run)[0]
    return first["reason"], first["charged"]


@pytest.fixture
def urgent(cluster: Cluster, namespace: Namespace) -> Iterator[str]:
    """A priority class."""
    name = f"{namespace.name}-urgent"
    cluster.apply(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 1000}
    )
    yield name
    cluster.kubectl("delete", "priorityclass", name)
