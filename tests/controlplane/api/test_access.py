from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from controlplane.api.access import Access
from controlplane.authentication import Authentication
from controlplane.clusters.base import Unavailable
from tests.controlplane.identity.issuer import TestIssuer, issuing
from tests.controlplane.plane import Plane

HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
TOKEN = "a-token-of-forty-three-letters"


def client(*, any_address: bool = False, token: str | None = None) -> TestClient:
    async def hello(_: Request) -> Response:
        return PlainTextResponse("hello")

    app: Any = Starlette(routes=[Route("/{path:path}", hello, methods=["GET", "POST"])])
    return TestClient(Access(app, HOSTS, any_address=any_address, token=token), base_url="http://localhost:8000")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]", "[::1]:8000"])
def test_loopback_names_are_served(host: str) -> None:
    assert client().get("/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "[::2", "a:b:c",
     "localhost:99999", "localhost@evil.example"],
)  # fmt: skip
def test_other_names_are_refused_since_a_page_could_have_bound_them_to_us(host: str) -> None:
    reply = client().get("/runs", headers={"host": host})
    assert reply.status_code == 403
    assert reply.json()["code"] == "forbidden_host"


def test_where_every_interface_is_bound_any_address_is_ours_and_no_other_name() -> None:
    assert client(any_address=True).get("/", headers={"host": "10.1.2.3:8000"}).status_code == 200
    assert client(any_address=True).get("/", headers={"host": "evil.example"}).status_code == 403


def test_any_name_will_do_where_all_are_bound_and_a_token_is_asked_for() -> None:
    open_to_all = client(any_address=True, token="secret")
    by_service = {"host": "teragpt.lm.svc:8000"}
    assert open_to_all.get("/", headers=by_service).status_code == 401
    assert open_to_all.get("/", headers={**by_service, "authorization": "Bearer secret"}).status_code == 200
    assert open_to_all.get("/", headers={"host": "a b"}).status_code == 403


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://localhost:3000",
        "https://localhost",
        "file://",
        "ftp://localhost:8000",
    ],
)
def test_pages_of_other_origins_are_refused(method: str, origin: str) -> None:
    reply = client().request(method, "/runs", headers={"origin": origin})
    assert reply.status_code == 403
    assert reply.json()["code"] == "forbidden_origin"


def test_our_own_pages_are_served() -> None:
    assert client().post("/runs", headers={"origin": "http://localhost:8000"}).status_code == 200


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer ä"]
)
def test_who_shows_no_token_is_refused(header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    reply = client(token=TOKEN).get("/v1/runs", headers=headers)  # type: ignore[arg-type]
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.json()["code"] == "unauthorized"
    assert TOKEN not in reply.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_who_shows_the_token_is_served(scheme: str) -> None:
    assert client(token=TOKEN).get("/runs", headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/v1/readyz", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/v1/openapi.json"]
)
def test_probes_and_documentation_need_no_token(path: str) -> None:
    assert client(token=TOKEN).get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/metrics", "/runs/docs", "/docs/../runs", "/livez/x", "/v2/livez", "/runs/a/metrics"]
)
def test_everything_else_does(path: str) -> None:
    assert client(token=TOKEN).get(path).status_code == 401


def test_a_runs_own_token_is_left_to_its_route() -> None:
    assert client(token=TOKEN).post("/v1/runs/run_1/metrics").status_code == 200
    assert client(token=TOKEN).post("/runs/run_1/metrics").status_code == 200
    assert client(token=TOKEN).post("/runs/run_1/metrics/x").status_code == 401


def by_rights(plane: Plane) -> TestClient:
    """The API where users of the cluster are let in."""
    plane.settings = replace(plane.settings, authentication=Authentication(auth="kubernetes"))
    plane.secret = TOKEN
    plane.cluster.users = {("a.d.a", "get"): "ada", ("b.o.b", "get"): "bob", ("b.o.b", "create"): "bob"}
    plane.cluster.users |= {("b.o.b", "delete"): "bob"}
    return TestClient(plane.app(), base_url="http://localhost:8000")


def bearing(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_user_does_what_the_cluster_lets_them_do_with_jobs(plane: Plane) -> None:
    client, body = by_rights(plane), {"size": "tiny", "name": "mine"}
    assert client.get("/runs", headers=bearing("a.d.a")).status_code == 200
    refused = client.post("/runs", headers=bearing("a.d.a"), json=body)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert "may create jobs where runs live" in refused.json()["detail"]
    made = client.post("/runs", headers=bearing("b.o.b"), json=body)
    assert (made.status_code, made.json()["user"]) == (201, "bob")
    client.patch("/runs/mine", headers=bearing("b.o.b"), json={"notes": "hello"})
    told = client.get("/runs/mine/events", headers=bearing("a.d.a")).json()["items"]
    assert [event["data"]["actor"] for event in told if event["kind"] == "change"] == ["bob"]
    assert client.get("/runs/mine", headers=bearing(TOKEN)).status_code == 200, "the API's own token is good too"
    for stranger in ("c.a.l", "ada", ""):
        assert client.get("/runs", headers=bearing(stranger)).status_code == 401


def test_a_cluster_that_cannot_say_who_asks_is_no_refusal_for_good(plane: Plane) -> None:
    client = by_rights(plane)
    plane.cluster.fail = Unavailable("it is away")
    reply = client.get("/runs", headers=bearing("a.d.a"))
    assert (reply.status_code, reply.json()["code"]) == (503, "cluster_unavailable")
    assert client.get("/livez").status_code == 200
    assert client.get("/runs", headers=bearing(TOKEN)).status_code == 200


def test_without_users_of_the_cluster_their_tokens_open_nothing(plane: Plane) -> None:
    by_rights(plane)
    plane.settings = replace(plane.settings, authentication=Authentication())
    client = TestClient(plane.app(), base_url="http://localhost:8000")
    assert client.get("/runs", headers=bearing("a.d.a")).status_code == 401


@pytest.fixture
def issuer() -> Iterator[TestIssuer]:
    with issuing() as issuer:
        yield issuer


def by(plane: Plane, peer: str = "192.0.2.1", **means: Any) -> TestClient:
    """The API where users are known by the means given."""
    plane.settings = replace(plane.settings, authentication=Authentication(**means))
    plane.secret = TOKEN
    return TestClient(plane.app(), base_url="http://localhost:8000", client=(peer, 50_000))


def actors(client: TestClient, run: str) -> set[str]:
    """Whom the run and its events name, as the holder of the API's own token sees it."""
    told = client.get(f"/runs/{run}/events", headers=bearing(TOKEN)).json()["items"]
    named = {event["data"]["actor"] for event in told if "actor" in event["data"]}
    return named | {client.get(f"/runs/{run}", headers=bearing(TOKEN)).json()["user"]}


def test_a_user_of_the_issuer_is_named_wherever_they_act(plane: Plane, issuer: TestIssuer) -> None:
    client, body = by(plane, auth="oidc", oidc_issuer=issuer.url), {"size": "tiny", "name": "mine"}
    ada = bearing(issuer.token())
    assert client.post("/runs", json=body).status_code == 401
    assert client.post("/runs", headers=ada, json=body).status_code == 201
    assert client.patch("/runs/mine", headers=ada, json={"notes": "hello"}).status_code == 200
    assert actors(client, "mine") == {"ada"}


def test_whatever_a_user_does_to_a_run_bears_their_name(plane: Plane, caplog: pytest.LogCaptureFixture) -> None:
    client = by(plane, "10.0.0.7", auth="proxy", proxy_networks="10.0.0.0/24")
    ada, eve = {"x-forwarded-user": "ada"}, {"x-forwarded-user": "eve"}
    made = client.post("/runs", headers=ada, json={"size": "tiny", "name": "mine"}).json()["id"]
    for verb in ("suspend", "resume", "cancel"):
        assert client.post(f"/runs/{made}/{verb}", headers=eve).status_code == 202
    swept = {"spec": {"size": "tiny"}, "grid": {"/train/seed": [1, 2]}, "name": "two"}
    assert client.post("/sweeps", headers=ada, json=swept).status_code == 201
    assert client.post("/sweeps/two/cancel", headers=eve).status_code == 202
    for run in (made, "two-0", "two-1"):
        told = client.get(f"/runs/{run}/events", headers=eve).json()["items"]
        done = [(event["kind"], event["data"]["actor"]) for event in told if "actor" in event["data"]]
        assert done[0] == ("created", "ada")
        assert ("cancel", "eve") in done
        assert {actor for kind, actor in done if kind != "created"} == {"eve"}
    for verb in ("pause", "drain", "resume"):
        changed = client.post(f"/queues/default/{verb}", headers=eve).json()
        assert changed["changed_by"] == "eve"
    plane.reconciler.step()
    assert client.delete(f"/runs/{made}", headers=eve).status_code == 204
    with caplog.at_level("INFO"):
        assert client.delete(f"/deleted/{made}", headers=eve).status_code == 200
    assert f"run {made} (mine) is purged by eve" in caplog.text


def test_without_a_token_of_the_issuer_nothing_is_shown(plane: Plane, issuer: TestIssuer) -> None:
    client = by(plane, auth="oidc", oidc_issuer=issuer.url)
    late = issuer.token(exp=1.0)
    for path in ("/runs", "/v1/runs", "/metrics", "/runs/events/stream", "/runs/x/logs/stream", "/store"):
        for headers in ({}, bearing(late), bearing("a.b.c")):
            reply = client.get(path, headers=headers)
            assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized"), path
            assert reply.headers["www-authenticate"] == "Bearer"
    assert client.get("/livez").status_code == client.get("/docs").status_code == 200


def test_an_issuer_that_is_away_is_no_refusal_for_good_and_no_open_door(plane: Plane, issuer: TestIssuer) -> None:
    client, issuer.away = by(plane, auth="oidc", oidc_issuer=issuer.url), True
    reply = client.get("/runs", headers=bearing(issuer.token()))
    assert (reply.status_code, reply.json()["code"]) == (503, "issuer_unavailable")
    assert reply.headers["retry-after"]
    assert f"{issuer.url} cannot be asked for its keys" in reply.json()["detail"]
    assert client.get("/runs", headers=bearing(TOKEN)).status_code == 200


def test_a_user_whose_name_would_be_told_as_somebody_elses_is_refused(plane: Plane, issuer: TestIssuer) -> None:
    client = by(plane, auth="oidc", oidc_issuer=issuer.url)
    for name in ("local", "retention", "a\nb", "x" * 254):
        reply = client.get("/runs", headers=bearing(issuer.token(sub=name)))
        assert (reply.status_code, reply.json()["code"]) == (403, "forbidden"), name


def test_a_token_of_the_file_names_its_user(plane: Plane, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"bob sha256:{hashlib.sha256(b'of-bob').hexdigest()}")
    client = by(plane, auth="tokens", tokens_file=str(file))
    assert client.get("/runs", headers=bearing("of-eve")).status_code == 401
    assert client.post("/runs", headers=bearing("of-bob"), json={"size": "tiny", "name": "mine"}).status_code == 201
    assert actors(client, "mine") == {"bob"}


def test_a_proxy_names_the_user_and_nobody_else_can(plane: Plane) -> None:
    means = {"auth": "proxy", "proxy_networks": "10.0.0.0/24"}
    named = {"x-forwarded-user": "ada"}
    client = by(plane, "10.0.0.7", **means)
    assert client.post("/runs", headers=named, json={"size": "tiny", "name": "mine"}).status_code == 201
    assert actors(client, "mine") == {"ada"}
    twice = [("x-forwarded-user", "root"), ("x-forwarded-user", "ada")]
    assert client.get("/runs", headers=twice).status_code == 401
    for headers in (named, {**named, "x-forwarded-for": "10.0.0.7"}, {**named, "forwarded": "for=10.0.0.7"}):
        assert by(plane, "10.0.1.7", **means).get("/runs", headers=headers).status_code == 401
