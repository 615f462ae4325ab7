"""A report's short way: what it takes it stores as the long way does, and what it does not take it hands on whole."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.testclient import TestClient

from controlplane.api.body import parse
from controlplane.api.metrics import NewPoints
from controlplane.api.problems import Refusal
from controlplane.api.reports import points_of
from controlplane.clusters.base import Caller
from controlplane.domain.errors import StoreUnavailable
from controlplane.services import attempts, gathering, metrics, purges
from controlplane.services.context import Context
from controlplane.store.points import Heard, Report
from tests.controlplane.plane import Plane


def point(seq: int, **values: Any) -> dict[str, Any]:
    return {"seq": seq, "step": seq, "time": 1795518320.5 + seq, "loss": 5.0 - seq / 100, **values}


def post(client: TestClient, run: str, token: str, points: Any, attempt: Any = 1) -> Any:
    body = {"attempt": attempt, "points": points}
    return client.post(f"/v1/runs/{run}/metrics", json=body, headers={"authorization": f"Bearer {token}"})


@pytest.fixture
def long_way(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The points of each report that took the long way."""
    taken: list[Any] = []
    add = metrics.add_metrics

    def noted(context: Context, run_id: str, attempt: int, points: Any) -> Heard:
        taken.append(points)
        return add(context, run_id, attempt, points)

    monkeypatch.setattr(metrics, "add_metrics", noted)
    return taken


def test_once_a_token_is_known_its_reports_go_the_short_way_with_the_same_answer(
    client: TestClient, plane: Plane, run: dict[str, Any], long_way: list[Any]
) -> None:
    token = plane.token(run["id"])
    replies = [post(client, run["id"], token, [point(n, lr=0.1), point(n + 1, mfu=None)]) for n in (1, 2, 2)]
    assert [one.json() for one in replies] == [{"acknowledged": n, "save": 0, "wait_s": 0.01} for n in (2, 3, 3)]
    assert len(long_way) == 1
    assert {name.lower() for name in replies[0].headers} == {name.lower() for name in replies[1].headers}
    assert [one["seq"] for one in client.get(f"/runs/{run['id']}/metrics").json()["points"]] == [1, 2, 3]
    assert client.get(f"/runs/{run['id']}").json()["progress"]["step"] == 3


@pytest.mark.parametrize(
    ("points", "status"),
    [
        ([], 200),
        ([{**point(2), "time": 5}], 200),
        ([point(2, loss="low")], 422),
        ([point(2, loss=True)], 422),
        ([point(2, loss=float("nan"))], 422),
        ([point(2, tokens=1 << 63)], 422),
        ([{"step": 2, "time": 1.0}], 422),
        ([{**point(2), "seq": 2.0}], 422),
        ([{**point(2), "seq": 0}], 422),
        ([{**point(2), "time": True}], 422),
        ([{**point(2), "a b": 1}], 422),
        ([7], 422),
        ({}, 422),
    ],
)
def test_what_the_short_way_does_not_take_is_answered_as_ever(
    client: TestClient, plane: Plane, run: dict[str, Any], points: Any, status: int
) -> None:
    token = plane.token(run["id"])
    url, headers = f"/v1/runs/{run['id']}/metrics", {"authorization": f"Bearer {token}"}
    body = json.dumps({"attempt": 1, "points": points})
    before = client.post(url, content=body, headers={**headers, "content-type": "application/json"})
    assert post(client, run["id"], token, [point(1)]).status_code == 200
    after = client.post(url, content=body, headers={**headers, "content-type": "application/json"})
    assert before.status_code == after.status_code == status
    if status != 200:
        assert before.json()["errors"] == after.json()["errors"]


def test_a_report_that_says_it_is_compressed_is_refused_as_ever(
    client: TestClient, plane: Plane, run: dict[str, Any]
) -> None:
    token = plane.token(run["id"])
    assert post(client, run["id"], token, [point(1)]).status_code == 200
    headers = {"authorization": f"Bearer {token}", "content-encoding": "gzip"}
    body = {"attempt": 1, "points": [point(2)]}
    reply = client.post(f"/v1/runs/{run['id']}/metrics", json=body, headers=headers)
    assert (reply.status_code, reply.json()["detail"]) == (415, "got content-encoding gzip; allowed: none")


def test_a_known_token_still_serves_its_own_run_and_attempt_alone(
    client: TestClient, plane: Plane, run: dict[str, Any]
) -> None:
    other, token = client.post("/runs", json={"size": "tiny"}).json()["id"], plane.token(run["id"])
    assert post(client, run["id"], token, [point(1)]).status_code == 200
    assert post(client, other, token, [point(1)]).status_code == 401
    assert post(client, run["id"], token, [point(2)], attempt=2).status_code == 401
    assert post(client, run["id"], token + "x", [point(2)]).status_code == 401
    assert client.get(f"/runs/{other}/metrics").json()["points"] == []


def test_a_token_of_a_purged_run_is_known_no_more(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    token = plane.token(run["id"])
    assert post(client, run["id"], token, [point(1)]).status_code == 200
    plane.end(run["id"])
    assert client.delete(f"/runs/{run['id']}").status_code < 300
    purges.purge(plane.context, run["id"])
    assert [post(client, run["id"], token, [point(2)]).status_code for _ in range(2)] == [401, 401]


def test_a_pods_token_is_asked_for_again_after_a_while(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.reconciler.step()
    pod = client.get(f"/runs/{run['id']}/attempts").json()["items"][0]["pods"][0]["name"]
    plane.cluster.callers["a.b.c"] = Caller(pod, plane.cluster.observe()[0].pods[0].uid)
    assert post(client, run["id"], "a.b.c", [point(1)]).status_code == 200
    plane.cluster.callers.clear()
    assert post(client, run["id"], "a.b.c", [point(2)]).status_code == 200
    known = plane.context.reporters
    known.update({token: one._replace(until=one.until - attempts.POD_KNOWN_S) for token, one in known.items()})
    assert post(client, run["id"], "a.b.c", [point(3)]).status_code == 401


def test_a_store_that_is_away_is_told_of_as_ever(
    client: TestClient, plane: Plane, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = plane.token(run["id"])
    assert post(client, run["id"], token, [point(1)]).status_code == 200

    def away(*_: Any) -> Future[Any]:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(plane.context.store, "together", away)
    reply = post(client, run["id"], token, [point(2)])
    assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "unavailable", "5")


def test_reports_of_many_runs_at_once_are_stored_together_each_with_its_own_answer(
    client: TestClient, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [client.post("/runs", json={"size": "tiny"}).json()["id"] for _ in range(6)]
    tokens = {one: plane.token(one) for one in made}
    for one in made:
        post(client, one, tokens[one], [point(1)])
    groups: list[int] = []
    add_all = metrics.add_all

    def noted(context: Context, reports: list[Report]) -> Future[Any]:
        groups.append(len(reports))
        return add_all(context, reports)

    monkeypatch.setattr(metrics, "add_all", noted)
    monkeypatch.setattr(gathering, "GATHER_S", 0.3)

    def report(turn: int) -> Any:
        return post(client, made[turn % 6], tokens[made[turn % 6]], [point(2 + turn // 6), point(3 + turn // 6)]).json()

    with ThreadPoolExecutor(6) as pool:
        told = [*pool.map(report, range(24))]
    assert [one["acknowledged"] for one in told[-6:]] == [6] * 6
    assert sum(groups) == 24
    assert max(groups) > 1
    for one in made:
        assert [each["seq"] for each in client.get(f"/runs/{one}/metrics").json()["points"]] == list(range(1, 7))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(-(1 << 65), 1 << 65),
    st.sampled_from(["", "low"]),
    st.lists(st.none(), max_size=1),
)
NAMES = st.sampled_from(["seq", "step", "time", "loss", "a.b", "a b", "", "x" * 65, "é"])
PLACED = st.builds(
    lambda place, more: {**place, **more},
    st.fixed_dictionaries({"seq": st.integers(0, 9), "step": st.integers(-1, 9), "time": st.floats(-1, 2e11)}),
    st.dictionaries(NAMES, VALUES, max_size=2),
)


@given(body=st.fixed_dictionaries({"attempt": st.integers(0, 2), "points": st.lists(PLACED, max_size=3)}))
def test_what_the_short_way_takes_the_models_take_with_the_same_values(body: Any) -> None:
    text = json.dumps(body).encode()
    taken = points_of(text, 1)
    try:
        told = NewPoints.model_validate(parse(text))
    except (Refusal, ValidationError):
        assert taken is None
        return
    if body["attempt"] == 1 and body["points"]:  # what is in order is taken, or nothing would be won
        assert taken == [one.model_dump() for one in told.points]
    else:
        assert taken is None


def test_a_key_that_comes_twice_is_not_taken() -> None:
    assert points_of(b'{"attempt":1,"points":[{"seq":1,"step":1,"time":1,"loss":1,"loss":2}]}', 1) is None
    assert points_of(b'{"attempt":1,"attempt":1,"points":[{"seq":1,"step":1,"time":1}]}', 1) is None
    assert points_of(b'{"attempt":1,"points":[{"seq":1,"step":1,"time":1}]}', 1) is not None
