"""Pods' tokens, known by the API server's signatures where the account may not have them reviewed."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from controlplane.clusters.base import Caller, Unavailable
from controlplane.clusters.kubernetes import identity, signatures
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.identity import Callers, Users
from tests.controlplane.clusters.kubernetes.server import ApiServer, status
from tests.controlplane.identity.issuer import TestIssuer

ISSUER = "https://kubernetes.default.svc"
POD = {"namespace": "default", "pod": {"name": "run-1-master-0", "uid": "u-1"}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def signer(server: ApiServer) -> TestIssuer:
    """Who signs as the API server does, where the account may not have tokens reviewed."""
    server.forbidden = {("create", "tokenreviews")}
    made = TestIssuer(ISSUER)
    made.add("one", "RS256")
    server.keys = [made.public("one")]
    return made


def token(signer: TestIssuer, kid: str = "", **changes: Any) -> str:
    told = {"sub": "system:serviceaccount:default:default", "aud": ["teragpt"], "kubernetes.io": POD}
    return signer.token(kid, **(told | changes))


def asked(server: ApiServer) -> int:
    return sum(request.path == signatures.KEYS for request in server.requests)


def reviews(server: ApiServer) -> int:
    return sum(request.path.endswith("/tokenreviews") for request in server.requests)


def test_a_pods_token_names_it_and_the_keys_are_asked_for_once(
    server: ApiServer, connection: Connection, signer: TestIssuer
) -> None:
    callers = Callers(connection, "teragpt", ["default"])
    for number in range(3):
        shown = token(signer, jti=str(number))
        assert callers.authenticate(shown) == callers.authenticate(shown) == Caller("run-1-master-0", "u-1")
    assert asked(server) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["https://kubernetes.default.svc"]},
        {"aud": None},
        {"iss": "https://elsewhere.example.com"},
        {"exp": time.time() - 3600},
        {"exp": None},
        {"nbf": time.time() + 3600},
        {"sub": "system:serviceaccount:elsewhere:default"},
        {"sub": "system:serviceaccount:default-too:default"},
        {"sub": None},
        {"kubernetes.io": {"namespace": "default"}},
        {"kubernetes.io": None},
    ],
    ids="-".join,
)
def test_any_other_token_names_nobody(connection: Connection, signer: TestIssuer, changes: dict[str, Any]) -> None:
    assert Callers(connection, "teragpt", ["default"]).authenticate(token(signer, **changes)) is None


def test_reviews_that_may_not_be_made_are_asked_for_again_after_ten_minutes(
    server: ApiServer, connection: Connection, signer: TestIssuer
) -> None:
    clock = Clock()
    callers = Callers(connection, "teragpt", ["default"], clock)
    for number in range(3):
        assert callers.authenticate(token(signer, jti=str(number))) is not None
    assert reviews(server) == 1
    server.forbidden.clear()
    clock.now = identity.UNALLOWED_S
    assert callers.authenticate(token(signer, jti="later")) is None, "the API server knows no such token"
    assert reviews(server) == 2


def test_while_no_key_can_be_read_reviews_are_asked_for_again_at_once(
    server: ApiServer, connection: Connection, signer: TestIssuer
) -> None:
    callers = Callers(connection, "teragpt", ["default"])
    server.keys, shown = [], token(signer)
    with pytest.raises(Unavailable):
        callers.authenticate(shown)
    server.forbidden.clear()
    extra = {identity.POD_NAME: ["run-1-master-0"], identity.POD_UID: ["u-1"]}
    user = {"username": "system:serviceaccount:default:default", "extra": extra}
    server.tokens[shown] = {"authenticated": True, "audiences": ["teragpt"], "user": user}
    assert callers.authenticate(shown) == Caller("run-1-master-0", "u-1")


def test_a_token_that_another_signed_names_nobody(connection: Connection, signer: TestIssuer) -> None:
    other = TestIssuer(ISSUER)
    other.add("one", "RS256")
    callers = Callers(connection, "teragpt", ["default"])
    said = jwt.decode(token(signer), options={"verify_signature": False})
    unsigned = jwt.encode(said, "", "none", headers={"kid": "one"})
    confused = symmetric(said, jwt.PyJWK(signer.public("one")).key)
    cut = token(signer).rpartition(".")[0] + "."
    for shown in (token(other), unsigned, confused, cut, "a.b.c", "", token(signer, head={"kid": "two"})):
        assert callers.authenticate(shown) is None, shown


def symmetric(claims: dict[str, Any], key: Any) -> str:
    """A token whose secret is the public key, for verifiers that take the algorithm from the token's head."""
    public = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    parts = (json.dumps(one).encode() for one in ({"alg": "HS256", "typ": "JWT", "kid": "one"}, claims))
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    digest = hmac.new(public, signed, "sha256").digest()
    return (signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


def test_new_keys_are_taken_up_and_asked_for_at_most_every_ten_seconds(
    server: ApiServer, connection: Connection, signer: TestIssuer
) -> None:
    clock = Clock()
    callers = Callers(connection, "teragpt", ["default"], clock)
    assert callers.authenticate(token(signer)) is not None
    signer.add("two")
    server.keys = [signer.public("two")]
    assert [callers.authenticate(token(signer, "two", jti=str(number))) for number in range(3)] == [None] * 3
    assert asked(server) == 1
    clock.now = signatures.PAUSE_S + 1
    assert callers.authenticate(token(signer, "two")) is not None
    assert callers.authenticate(token(signer, "one", jti="late")) is None, "the old key is withdrawn"
    assert asked(server) == 2


def test_keys_that_may_not_be_read_or_do_not_come_are_no_answer(
    server: ApiServer, connection: Connection, signer: TestIssuer
) -> None:
    clock = Clock()
    callers = Callers(connection, "teragpt", ["default"], clock)
    server.fail(status(500, "InternalError", "no"), path=signatures.KEYS)
    with pytest.raises(Unavailable, match="tokens cannot be checked"):
        callers.authenticate(token(signer))
    with pytest.raises(Unavailable, match="tokens cannot be checked"):
        callers.authenticate(token(signer, jti="another at once"))
    assert asked(server) == 1
    server.keys = []
    clock.now = signatures.PAUSE_S + 1
    with pytest.raises(Unavailable, match="cannot get path"):
        callers.authenticate(token(signer))


def test_known_keys_are_good_while_they_cannot_be_read_anew(
    server: ApiServer, connection: Connection, signer: TestIssuer
) -> None:
    clock = Clock()
    callers = Callers(connection, "teragpt", ["default"], clock)
    assert callers.authenticate(token(signer)) is not None
    clock.now = signatures.FRESH_S + 1
    server.fail(status(500, "InternalError", "no"), path=signatures.KEYS)
    assert callers.authenticate(token(signer, jti="later")) is not None
    assert asked(server) == 2


def test_users_are_not_known_by_signatures(connection: Connection, signer: TestIssuer) -> None:
    with pytest.raises(Unavailable, match="tokens cannot be checked"):
        Users(connection, "teragpt", ["default"]).admit(token(signer), "get")
