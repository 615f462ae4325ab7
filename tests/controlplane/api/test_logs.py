from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.controlplane.plane import Plane

LINES = "".join(f"step {step}/200 | loss 3.1\n[rank 1] noise {step}\n" for step in range(1, 201))


def test_each_ranks_lines_are_told_apart(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.write(run["kubernetes"]["name"], LINES)
    reply = client.get(f"/runs/{run['id']}/logs")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    assert reply.text.splitlines() == [f"step {step}/200 | loss 3.1" for step in range(1, 201)]
    other = client.get(f"/runs/{run['id']}/logs?rank=1&attempt=1").text
    assert other.splitlines() == [f"noise {step}" for step in range(1, 201)]


@pytest.mark.parametrize("tail", [0, 1, 7, 1000])
def test_the_last_lines_are_shown(client: TestClient, plane: Plane, run: dict[str, Any], tail: int) -> None:
    plane.write(run["kubernetes"]["name"], LINES)
    shown = client.get(f"/runs/{run['id']}/logs?tail={tail}").text.splitlines()
    assert shown == ([f"step {step}/200 | loss 3.1" for step in range(1, 201)][-tail:] if tail else [])


def test_a_log_of_any_length_is_shown_whole(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.write(run["kubernetes"]["name"], "x" * 99 + "\n")
    plane.write(run["kubernetes"]["name"], ("y" * 99 + "\n") * 30_000)
    text = client.get(f"/runs/{run['id']}/logs").text
    assert len(text) == 100 * 30_001
    assert text.startswith("x" * 99 + "\ny")


def test_a_run_that_has_written_nothing_has_an_empty_log(client: TestClient, run: dict[str, Any]) -> None:
    assert client.get(f"/runs/{run['id']}/logs").text == ""
    assert client.get(f"/runs/{run['id']}/logs?tail=5").text == ""


def test_bytes_that_are_no_text_and_odd_lines_do_no_harm(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    key = f"{run['kubernetes']['name']}/{run['kubernetes']['name']}-master-0"
    plane.cluster.written[key] = b"\xff\xfe\0 half\n 10%\r 20%\rdone\n"
    assert client.get(f"/runs/{run['id']}/logs").status_code == 200


@pytest.mark.parametrize("query", ["rank=-1", "rank=x", "tail=-1", "attempt=0"])
def test_a_bad_query_is_pointed_at(client: TestClient, run: dict[str, Any], query: str) -> None:
    reply = client.get(f"/runs/{run['id']}/logs?{query}")
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["pointer"] == f"?{query.partition('=')[0]}"


@pytest.mark.parametrize("path", ["logs", "logs/stream"])
def test_a_rank_that_the_run_does_not_have_is_told_those_that_it_has(
    client: TestClient, run: dict[str, Any], path: str
) -> None:
    reply = client.get(f"/runs/{run['id']}/{path}?rank=7")
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    (error,) = reply.json()["errors"]
    assert error["pointer"] == "?rank"
    assert error["detail"] == f"got 7; allowed: 0 to 1, the ranks of run {run['id']}"
    body = {"size": "tiny", "compute": {"processes_per_node": 1}}
    one = client.post("/runs", json=body).json()["id"]
    assert "allowed: 0, the only rank" in client.get(f"/runs/{one}/{path}?rank=1").json()["detail"]


def test_a_search_tells_rank_line_and_offset(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.write(run["kubernetes"]["name"], LINES)
    page = client.get(f"/runs/{run['id']}/logs", params={"search": "step 20", "limit": 1}).json()
    offset = LINES.index("step 20/200")
    text = "step 20/200 | loss 3.1"
    assert page["items"] == [{"attempt": 1, "rank": 0, "line": 39, "offset": offset, "text": text}]
    more = {"search": "step 20", "cursor": page["next_cursor"]}
    rest = client.get(f"/runs/{run['id']}/logs", params=more).json()
    assert ([one["text"] for one in rest["items"]], rest["next_cursor"]) == (["step 200/200 | loss 3.1"], None)
    other = client.get(f"/runs/{run['id']}/logs", params={"search": "noise 7", "rank": 0}).json()
    assert other["items"] == []


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("search=", "?search"),
        ("search=a%0Ab", "?search"),
        ("search=a&tail=1", "?tail"),
        ("search=(&regex=true", "?search"),
        ("search=a&since=yesterday", "?since"),
        ("search=a&until=2026-11-30T00:00:00", "?until"),
        ("regex=true", "?regex"),
        ("since=2026-11-30T00:00:00Z", "?since"),
        ("limit=1", "?limit"),
        ("cursor=x", "?cursor"),
        ("search=a&limit=0", "?limit"),
        ("ignore_case=true", "?ignore_case"),
        ("search=a&rank=x", "?rank"),
    ],
)
def test_a_bad_search_is_pointed_at(client: TestClient, run: dict[str, Any], query: str, pointer: str) -> None:
    reply = client.get(f"/runs/{run['id']}/logs?{query}")
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, pointer)


def test_a_search_of_what_is_not_there_is_not_found(client: TestClient, run: dict[str, Any]) -> None:
    assert client.get(f"/runs/{run['id']}/logs?search=a&rank=7").status_code == 404
    assert client.get(f"/runs/{run['id']}/logs?search=a&attempt=7").status_code == 404
    assert client.get(f"/runs/{run['id']}/logs?search=a&cursor=x").json()["code"] == "invalid_request"


@pytest.mark.parametrize("given", ["0.0", "2.0"])
def test_a_stream_goes_on_in_an_attempt_that_the_run_has_had(
    client: TestClient, run: dict[str, Any], given: str
) -> None:
    reply = client.get(f"/runs/{run['id']}/logs/stream", headers={"last-event-id": given})
    (problem,) = reply.json()["errors"]
    assert (reply.status_code, problem["pointer"]) == (422, "header:last-event-id")
    assert "allowed: 1 to 1" in problem["detail"]
