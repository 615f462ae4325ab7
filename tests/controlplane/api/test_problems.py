from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Header, Query
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from controlplane.api import problems
from controlplane.api.body import JsonRoute
from controlplane.api.problems import CODES, MEDIA_TYPE, Refusal, translate
from controlplane.domain import errors
from controlplane.domain.complaints import LONGEST_ECHO
from controlplane.domain.spec import RunSpec
from controlplane.settings import Settings

LIMIT = 1 << 20


@pytest.fixture
def client() -> TestClient:
    app, router = FastAPI(redirect_slashes=False), APIRouter(route_class=JsonRoute)
    app.state.settings = Settings()
    problems.install(app)

    @router.post("/runs")
    def create(spec: RunSpec, key: Annotated[str, Header(max_length=4)] = "") -> str:
        return spec.size + key

    @router.get("/runs")
    def runs(limit: Annotated[int, Query(ge=1, le=500)] = 5, steps: Annotated[list[int] | None, Query()] = None) -> int:
        return limit + len(steps or [])

    @router.get("/runs/{number}")
    def one(number: int) -> int:
        raise HTTPException(418, str(number))

    @router.post("/runs/{name}/stop")
    def stop(name: str, now: Annotated[bool, Query()] = False) -> str:
        return f"{name} {now}"

    app.include_router(router)
    return TestClient(app)


def post(client: TestClient, body: bytes | str, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    reply = client.post("/runs", content=body, headers={"content-type": kind})
    if reply.status_code >= 400:
        assert reply.headers["content-type"] == MEDIA_TYPE
    return reply.status_code, reply.json() if reply.status_code >= 400 else {"": reply.json()}


def test_a_problem_has_every_member_of_the_rfc_and_ours(client: TestClient) -> None:
    status, problem = post(client, '{"size": 4}')
    assert status == problem["status"] == 422
    assert problem["type"] == "urn:teragpt:problem:invalid_request"
    assert problem["code"] == "invalid_request"
    assert problem["instance"] == "/runs"
    assert problem["title"]
    assert problem["detail"] == "1 field is wrong: /size"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("null", "got null; allowed: an object"),
        ("[]", "got []; allowed: an object"),
        ('{"size": 4}', "got 4; allowed: text"),
        ('{"size": "tiny", "train": []}', "got []; allowed: an object"),
        ('{"size": "tiny", "name": ""}', 'got ""; allowed: 1 or more characters'),
        ('{"size": "tiny", "env": {}}', "got {}; allowed: a list"),
        ('{"size": "tiny", "compute": {"nodes": 0}}', "got 0; allowed: at least 1"),
        ('{"size": "tiny", "compute": {"nodes": "2"}}', 'got "2"; allowed: a whole number'),
        ('{"size": "tiny", "pinned": "yes"}', 'got "yes"; allowed: true or false'),
    ],
)
def test_a_bad_field_says_what_was_given_and_what_is_allowed(client: TestClient, body: str, detail: str) -> None:
    _, problem = post(client, body)
    assert [error["detail"] for error in problem["errors"]] == [detail]


def test_a_bad_query_says_it_once(client: TestClient) -> None:
    (error,) = client.get("/runs?limit=0").json()["errors"]
    assert (error["pointer"], error["detail"]) == ("?limit", 'got "0"; allowed: at least 1')


def test_every_bad_field_has_a_pointer(client: TestClient) -> None:
    body = {
        "size": "900m",
        "compute": {"nodes": 0, "gpus_per_node": "8", "cores": 3},
        "limits": {"max_restarts": -1},
        "env": [{"name": "OK", "value": "1"}, {"name": "RANK", "value": "1"}],
        "labels": {"a/b/c~d": "x"},
        "colour": "red",
    }
    _, problem = post(client, json.dumps(body))
    assert isinstance(problem["errors"], list)
    found = {error["pointer"]: error for error in problem["errors"]}
    assert {"/size", "/compute/nodes", "/compute/gpus_per_node", "/compute/cores", "/limits/max_restarts"} <= set(found)
    assert {"/env/1/name", "/colour"} <= set(found)
    assert any(pointer.startswith("/labels/a~1b~1c~0d") for pointer in found)
    assert "900m" in found["/size"]["detail"]
    assert "124m" in found["/size"]["detail"]
    assert "got 0" in found["/compute/nodes"]["detail"]
    assert all(error["code"] for error in problem["errors"])


def test_an_unknown_field_is_told_what_is_allowed_and_what_was_probably_meant(client: TestClient) -> None:
    _, problem = post(client, '{"size": "tiny", "compute": {"node": 2}}')
    (error,) = problem["errors"]
    assert "did you mean nodes?" in error["detail"]
    assert "gpus_per_node" in error["detail"]


def test_a_long_value_is_not_sent_back_whole(client: TestClient) -> None:
    _, problem = post(client, json.dumps({"size": "tiny", "name": "n" * 5000}))
    (error,) = problem["errors"]
    assert len(error["detail"]) < LONGEST_ECHO + 100


def test_a_bad_query_parameter_and_a_bad_header_are_pointed_at(client: TestClient) -> None:
    assert client.get("/runs?limit=0").json()["errors"][0]["pointer"] == "?limit"
    assert client.get("/runs?limit=x").json()["errors"][0]["pointer"] == "?limit"
    assert client.get("/runs?steps=1&steps=x").json()["errors"][0]["pointer"] == "?steps"
    reply = client.post("/runs", json={"size": "tiny"}, headers={"key": "too long"})
    assert reply.json()["errors"][0]["pointer"] == "header:key"
    assert client.get("/runs/x").json()["errors"][0]["pointer"] == "path:number"


def test_a_query_parameter_that_is_no_list_comes_once(client: TestClient) -> None:
    (error,) = client.get("/runs?limit=1&limit=2&steps=1&steps=2").json()["errors"]
    assert (error["pointer"], error["detail"]) == ("?limit", "got it 2 times; allowed: once")


def test_a_header_comes_once(client: TestClient) -> None:
    reply = client.post("/runs", json={"size": "tiny"}, headers=[("key", "a"), ("key", "b")])
    (error,) = reply.json()["errors"]
    assert (error["pointer"], error["detail"]) == ("header:key", "got it 2 times; allowed: once")


def test_a_compressed_body_is_refused_as_such(client: TestClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = client.post("/runs", content=gzip.compress(b'{"size": "tiny"}'), headers=headers)
    assert (reply.status_code, reply.json()["detail"]) == (415, "got content-encoding gzip; allowed: none")


def test_an_unknown_query_parameter_is_told_what_is_allowed_and_what_was_probably_meant(client: TestClient) -> None:
    problem = client.get("/runs?limt=3&limit=2&colour=red").json()
    assert (problem["status"], problem["code"]) == (422, "invalid_request")
    assert {error["pointer"]: error["detail"] for error in problem["errors"]} == {
        "?limt": "there is no such parameter; did you mean limit? allowed: limit, steps",
        "?colour": "there is no such parameter; allowed: limit, steps",
    }
    (error,) = client.post("/runs?limit=3", json={"size": "tiny"}).json()["errors"]
    assert error["detail"] == "there is no such parameter; allowed: none"
    assert len(client.get(f"/runs?{'x' * 5000}=1").json()["errors"][0]["pointer"]) <= LONGEST_ECHO + 1


@pytest.mark.parametrize(
    ("body", "pointers"), [({"steps": 3, "a/b": 1}, ["/steps", "/a~1b"]), ([1], [""]), ("x", [""]), (1, [""])]
)
def test_a_body_where_none_is_taken_is_refused(client: TestClient, body: Any, pointers: list[str]) -> None:
    reply = client.post("/runs/first/stop", json=body)
    assert reply.status_code == 422
    assert [error["pointer"] for error in reply.json()["errors"]] == pointers
    assert {error["detail"] for error in reply.json()["errors"]} == {"this address takes no body; leave it out"}


@pytest.mark.parametrize("body", [b"", b" ", b"{}", b"null"])
def test_an_empty_body_where_none_is_taken_is_none(client: TestClient, body: bytes) -> None:
    reply = client.post("/runs/first/stop?now=true", content=body, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()) == (200, "first True")


def test_a_body_where_none_is_taken_is_read_as_any_other(client: TestClient) -> None:
    assert client.post("/runs/first/stop", content=b"x").status_code == 415
    headers = {"content-type": "application/json"}
    assert client.post("/runs/first/stop", content=b"{", headers=headers).status_code == 400
    assert client.post("/runs/first/stop", content=b" " * (LIMIT + 1), headers=headers).status_code == 413


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"3", b'"tiny"'])
def test_a_body_that_is_no_object_is_refused(client: TestClient, body: bytes) -> None:
    status, problem = post(client, body)
    assert status == 422
    assert [error["pointer"] for error in problem["errors"]] == [""]


def test_a_body_that_is_no_json_is_refused_with_its_place(client: TestClient) -> None:
    status, problem = post(client, b'{"size": tiny}')
    assert (status, problem["code"]) == (400, "invalid_json")
    assert "line 1, column 10" in str(problem["detail"])


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "", "application/jsonp"])
def test_only_json_is_read(client: TestClient, kind: str) -> None:
    status, problem = post(client, b'{"size": "tiny"}', kind)
    assert (status, problem["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_recognised_with_its_parameters(client: TestClient, kind: str) -> None:
    assert post(client, b'{"size": "tiny"}', kind)[0] == 200


def test_a_body_may_fill_the_limit_and_not_pass_it(client: TestClient) -> None:
    body = b'{"size": "tiny"}'
    assert post(client, body + b" " * (LIMIT - len(body)))[0] == 200
    status, problem = post(client, body + b" " * (LIMIT + 1 - len(body)))
    assert (status, problem["code"]) == (413, "body_too_large")


def test_a_large_body_without_a_length_is_not_read_to_its_end(client: TestClient) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10):
            sent += 1
            yield b" " * (LIMIT // 4)

    reply = client.post("/runs", content=chunks(), headers={"content-type": "application/json"})
    assert reply.status_code == 413
    assert reply.headers["connection"] == "close"


def test_an_unknown_address_and_a_wrong_method_are_told_apart(client: TestClient) -> None:
    reply = client.get("/nowhere")
    assert (reply.status_code, reply.json()["code"]) == (404, "unknown_route")
    reply = client.delete("/runs")
    assert (reply.status_code, reply.json()["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "GET, HEAD, POST"
    assert client.post("/runs/5").headers["allow"] == "GET, HEAD"


def test_a_text_that_nothing_stores_is_refused_in_an_address_too(client: TestClient) -> None:
    places = {"/runs?limit=%00": "?limit", "/runs?steps=1&steps=%00": "?steps", "/runs/%00": "path:number"}
    for address, pointer in places.items():
        reply = client.get(address)
        assert reply.status_code == 422, address
        assert [error["pointer"] for error in reply.json()["errors"]] == [pointer]


def test_a_bad_key_is_pointed_at_as_a_member_of_the_body(client: TestClient) -> None:
    reply = client.post("/runs", json={"size": "tiny", "labels": {"a b": "c"}})
    assert [error["pointer"] for error in reply.json()["errors"]] == ["/labels/a b"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidSpec([errors.Problem("/size", "bad", "no")]), 422, "invalid_request"),
        (errors.NotFound("run", "x"), 404, "not_found"),
        (errors.NameInUse("n", "run_1"), 409, "name_in_use"),
        (errors.FolderInUse("/f", "run_1"), 409, "folder_in_use"),
        (errors.StillRunning("run_1", "running", "retry"), 409, "still_running"),
        (errors.Changed("run_1", 3), 412, "changed"),
        (errors.BeingPurged("run_1"), 409, "being_purged"),
        (errors.NeededByRun("run_1", "run_2"), 409, "needed_by_run"),
        (errors.NotTraining("run_1", "sample", "run_2"), 409, "not_training"),
        (errors.ClusterSilent("no route"), 503, "cluster_unavailable"),
        (errors.NotAlive("run_1", "failed", "resumed"), 409, "not_alive"),
        (errors.KeyReused("k", "run_1"), 422, "idempotency_key_reused"),
        (errors.BadCursor("c"), 422, "invalid_request"),
        (errors.Unauthorized(), 401, "unauthorized"),
        (errors.StoreUnavailable("disk full"), 503, "unavailable"),
        (errors.StoreDamaged("torn page"), 500, "store_damaged"),
        (errors.ControlPlaneError("?"), 500, "internal"),
    ],
)
def test_each_refusal_of_the_domain_has_its_status(error: errors.ControlPlaneError, status: int, code: str) -> None:
    refusal = translate(error)
    assert (refusal.status_code, refusal.code) == (status, code)


def test_a_taken_name_says_who_holds_it() -> None:
    refusal = translate(errors.NameInUse("mine", "run_42"))
    assert refusal.extra == {"holder": "run_42"}
    assert refusal.fields[0].pointer == "/name"


def test_a_store_that_is_away_says_when_to_come_back() -> None:
    assert translate(errors.StoreUnavailable("disk full")).headers == {"retry-after": "5"}


def test_every_refusal_names_a_known_code() -> None:
    for code, (status, title) in CODES.items():
        assert Refusal(code, "x").status_code == status
        assert title
