from __future__ import annotations

from typing import Any

import pytest

from controlplane.clusters.base import Caller, Unavailable
from controlplane.clusters.kubernetes import identity
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.identity import POD_NAME, POD_UID, Callers, Users
from tests.controlplane.clusters.kubernetes.server import ApiServer, status


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def review(**changes: Any) -> dict[str, Any]:
    extra = changes.pop("extra", {POD_NAME: ["run-1-master-0"], POD_UID: ["u-1"]})
    user = {"username": changes.pop("username", "system:serviceaccount:default:default"), "extra": extra}
    return {"authenticated": True, "audiences": ["teragpt"], "user": user, **changes}


def asked(server: ApiServer) -> int:
    return sum(request.path.endswith("/tokenreviews") for request in server.requests)


def test_a_pods_token_names_it_and_is_asked_about_once_a_minute(server: ApiServer, connection: Connection) -> None:
    clock = Clock()
    callers = Callers(connection, "teragpt", ["default"], clock)
    server.tokens["good"] = review()
    for _ in range(3):
        assert callers.authenticate("good") == Caller("run-1-master-0", "u-1")
    assert asked(server) == 1
    assert server.requests[-1].body["spec"] == {"token": "good", "audiences": ["teragpt"]}
    server.tokens.clear()
    clock.now = 61
    assert callers.authenticate("good") is None
    assert asked(server) == 2


@pytest.mark.parametrize(
    "told",
    [
        {},
        review(authenticated=False),
        review(audiences=["https://kubernetes.default.svc"]),
        review(audiences=None),
        review(username="system:serviceaccount:elsewhere:default"),
        review(username="system:serviceaccount:default-too:default"),
        review(username="alice"),
        review(extra={}),
        review(extra={POD_NAME: ["run-1-master-0"]}),
    ],
)
def test_any_other_token_names_nobody(server: ApiServer, connection: Connection, told: dict[str, Any]) -> None:
    callers = Callers(connection, "teragpt", ["default"])
    server.tokens["bad"] = told
    assert callers.authenticate("bad") is None
    assert callers.authenticate("bad") is None
    assert asked(server) == 1


def test_a_server_that_does_not_answer_is_no_answer(server: ApiServer, connection: Connection) -> None:
    callers = Callers(connection, "teragpt", ["default"])
    server.fail(status(500, "InternalError", "no"), path="/tokenreviews$")
    server.tokens["good"] = review()
    with pytest.raises(Unavailable, match="tokens cannot be checked"):
        callers.authenticate("good")
    assert callers.authenticate("good") is not None


def test_only_so_many_are_remembered_and_no_token_is(
    server: ApiServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "REMEMBERED", 2)
    callers = Callers(connection, "teragpt", ["default"])
    for token in ("canary-a", "canary-b", "canary-c", "canary-c", "canary-a"):
        callers.authenticate(token)
    assert asked(server) == 4
    known: dict[bytes, object] = vars(vars(callers)["_answers"])["_known"]
    assert len(known) == 2
    assert b"canary" not in b"".join(known)


def test_a_user_is_let_in_by_their_rights_on_jobs_in_every_namespace(server: ApiServer, connection: Connection) -> None:
    clock = Clock()
    users = Users(connection, "teragpt", ["team-a", "team-b"], clock)
    server.tokens["ada's"] = review(username="ada", extra={})
    server.tokens["ada's"]["user"]["groups"] = ["lm"]
    server.rights["ada"] = {("team-a", "get", "jobs"), ("team-b", "get", "jobs"), ("team-a", "create", "jobs")}
    assert users.admit("ada's", "get") == users.admit("ada's", "get") == "ada"
    assert asked(server) == 1
    assert users.admit("ada's", "create") is None, "not in the other namespace"
    server.rights["ada"].add(("team-b", "create", "jobs"))
    clock.now = 11.0
    assert users.admit("ada's", "create") == "ada"
    reviewed = [request.body["spec"] for request in server.requests if request.path.endswith("/subjectaccessreviews")]
    assert {spec["resourceAttributes"]["group"] for spec in reviewed} == {"batch"}
    assert all(spec["groups"] == ["lm"] for spec in reviewed)


@pytest.mark.parametrize(
    "told", [{}, review(authenticated=False), review(audiences=["https://kubernetes.default.svc"])]
)
def test_a_token_that_is_not_for_us_is_nobodys_whatever_they_may(
    server: ApiServer, connection: Connection, told: dict[str, Any]
) -> None:
    server.tokens["other"] = told
    server.rights["system:serviceaccount:default:default"] = {("default", "get", "jobs")}
    assert Users(connection, "teragpt", ["default"]).admit("other", "get") is None
