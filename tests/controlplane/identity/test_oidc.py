from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jwt
import pytest

from controlplane.domain.errors import Forbidden, IssuerSilent, Unauthorized
from controlplane.identity.keys import FRESH_S, GOOD_S, PAUSE_S, Keys
from controlplane.identity.oidc import Issuer, Rules
from controlplane.identity.shown import Shown
from tests.controlplane.identity.issuer import TestIssuer, issuing

ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]


@pytest.fixture
def issuer() -> Iterator[TestIssuer]:
    with issuing() as issuer:
        yield issuer


class Door:
    """What lets users in, with a clock that a test moves."""

    def __init__(self, issuer: TestIssuer, **rules: Any) -> None:
        given = Rules(issuer.url, "teragpt", ALGORITHMS, 30, "sub", "groups", frozenset())
        self.now = 1000.0
        self.issuer = Issuer(replace(given, **rules), Keys(issuer.url, lambda: self.now))

    def user(self, token: str) -> str:
        return asyncio.run(self.issuer.user(Shown(token, "get", lambda _: [], "")))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_token_of_the_issuer_names_its_user(issuer: TestIssuer, algorithm: str) -> None:
    issuer.add("second", algorithm)
    assert Door(issuer).user(issuer.token()) == "ada"


def test_audiences_may_be_several(issuer: TestIssuer) -> None:
    assert Door(issuer).user(issuer.token(aud=["other", "teragpt"])) == "ada"


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"aud": "another"}, "Audience"),
        ({"aud": None}, 'missing the "aud"'),
        ({"iss": "https://elsewhere"}, "issuer"),
        ({"exp": None}, 'missing the "exp"'),
        ({"exp": time.time() - 31}, "expired"),
        ({"nbf": time.time() + 3600}, "not yet valid"),
        ({"exp": "soon"}, "integer"),
    ],
)
def test_a_token_that_is_not_for_us_or_not_for_now_is_refused(
    issuer: TestIssuer, claims: dict[str, Any], why: str
) -> None:
    with pytest.raises(Unauthorized, match=why):
        Door(issuer).user(issuer.token(**claims))


def test_clocks_may_differ_by_as_much_as_is_allowed_and_no_more(issuer: TestIssuer) -> None:
    late = issuer.token(exp=time.time() - 20)
    assert Door(issuer).user(late) == "ada"
    with pytest.raises(Unauthorized, match="expired"):
        Door(issuer, skew_s=5).user(late)


def unsigned(issuer: TestIssuer, algorithm: str) -> str:
    body = {"iss": issuer.url, "aud": "teragpt", "sub": "ada", "exp": time.time() + 300}
    if algorithm == "none":
        return jwt.encode(body, "", "none", headers={"kid": "first"})
    secret = json.dumps(issuer.public("first")) + "-" * 64  # what everybody may read
    return jwt.encode(body, secret, algorithm, headers={"kid": "first"})


@pytest.mark.parametrize("algorithm", ["none", "HS256", "HS512"])
def test_no_algorithm_is_taken_in_which_anybody_could_sign(issuer: TestIssuer, algorithm: str) -> None:
    with pytest.raises(Unauthorized, match=f"signed with {algorithm}, not RS256"):
        Door(issuer).user(unsigned(issuer, algorithm))
    assert not issuer.asked, "the issuer need not be asked"


def test_only_algorithms_that_are_listed_are_taken(issuer: TestIssuer) -> None:
    with pytest.raises(Unauthorized, match="signed with ES256, not RS256"):
        Door(issuer, algorithms=["RS256"]).user(issuer.token())


def test_a_key_is_for_its_own_algorithm_alone(issuer: TestIssuer) -> None:
    issuer.add("rsa", "RS256")
    forged = issuer.token("first", head={"kid": "rsa"})  # signed by the elliptic key, under the other's name
    with pytest.raises(Unauthorized):
        Door(issuer).user(forged)
    issuer.further = [issuer.public("rsa") | {"kid": "bound", "alg": "RS512"}]
    with pytest.raises(Unauthorized, match="the issuer's key is for RS512, not RS256"):
        Door(issuer).user(issuer.token("rsa", head={"kid": "bound"}))


def test_a_signature_by_somebody_else_is_refused(issuer: TestIssuer) -> None:
    with issuing() as other, pytest.raises(Unauthorized, match="Signature verification failed"):
        Door(issuer).user(other.token(iss=issuer.url))


def test_what_was_changed_after_signing_is_refused(issuer: TestIssuer) -> None:
    head, _, signature = issuer.token().split(".")
    body = {"iss": issuer.url, "aud": "teragpt", "sub": "root", "exp": time.time() + 300}
    changed = base64.urlsafe_b64encode(json.dumps(body).encode()).rstrip(b"=").decode()
    with pytest.raises(Unauthorized, match="Signature verification failed"):
        Door(issuer).user(f"{head}.{changed}.{signature}")


NESTED = base64.urlsafe_b64encode(b"[" * 9000).decode().rstrip("=")


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "..", "é.b.c", f"{NESTED}.{NESTED}.a", "e30.e30.e30"])
def test_what_is_no_token_is_refused(issuer: TestIssuer, token: str) -> None:
    with pytest.raises(Unauthorized):
        Door(issuer).user(token)


def test_who_shows_nothing_is_told_what_to_show(issuer: TestIssuer) -> None:
    with pytest.raises(
        Unauthorized, match=f"send the header .*, this API's own or one that {issuer.url} made for teragpt"
    ):
        Door(issuer).user("")


def test_a_new_key_is_asked_for_when_it_is_first_seen(issuer: TestIssuer) -> None:
    door = Door(issuer)
    assert door.user(issuer.token()) == door.user(issuer.token()) == "ada"
    assert issuer.asked.count("/keys") == 1
    issuer.add("second")
    door.now += PAUSE_S
    assert door.user(issuer.token()) == "ada"
    assert issuer.asked.count("/keys") == 2


def test_unknown_keys_cause_few_questions_however_many_there_are(issuer: TestIssuer) -> None:
    door = Door(issuer)
    for number in range(20):
        with pytest.raises(Unauthorized, match="the issuer has no such key"):
            door.user(issuer.token(head={"kid": f"made up {number}"}))
    assert issuer.asked.count("/keys") == 1


def test_callers_who_come_at_once_cause_one_question_and_all_are_known(issuer: TestIssuer) -> None:
    door, shown = Door(issuer), Shown(issuer.token(), "get", lambda _: [], "")

    async def crowd() -> list[str]:
        return await asyncio.gather(*(door.issuer.user(shown) for _ in range(20)))

    assert asyncio.run(crowd()) == ["ada"] * 20
    assert issuer.asked.count("/keys") == 1


def test_a_key_that_was_withdrawn_is_not_good_for_long(issuer: TestIssuer) -> None:
    door = Door(issuer)
    stolen = issuer.token()
    assert door.user(stolen) == "ada"
    issuer.add("second")
    del issuer.keys["first"]
    door.now += FRESH_S + 1
    with pytest.raises(Unauthorized, match="the issuer has no such key"):
        door.user(stolen)


def test_an_issuer_that_is_away_refuses_for_now_and_lets_nobody_in(issuer: TestIssuer) -> None:
    door, issuer.away = Door(issuer), True
    with pytest.raises(IssuerSilent, match=r"cannot be asked for its keys: .*answers with status 503"):
        door.user(issuer.token())
    issuer.away = False
    with pytest.raises(IssuerSilent):
        door.user(issuer.token())
    door.now += PAUSE_S
    assert door.user(issuer.token()) == "ada"


def test_keys_that_are_known_outlast_an_absence_of_the_issuer_for_a_while(issuer: TestIssuer) -> None:
    door = Door(issuer)
    door.user(issuer.token())
    issuer.away = True
    door.now += FRESH_S + 1
    assert door.user(issuer.token()) == "ada"
    with pytest.raises(IssuerSilent):
        door.user(issuer.token(head={"kid": "perhaps a new one"}))
    door.now += GOOD_S
    with pytest.raises(IssuerSilent):
        door.user(issuer.token())


def test_nobody_answers_at_the_issuers_address(issuer: TestIssuer) -> None:
    rules = Rules("http://127.0.0.1:9", "teragpt", ALGORITHMS, 30, "sub", "groups", frozenset())
    with pytest.raises(IssuerSilent, match=r"http://127.0.0.1:9 cannot be asked for its keys"):
        asyncio.run(Issuer(rules).user(Shown(issuer.token(), "get", lambda _: [], "")))


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"issuer": "https://elsewhere"}, "it calls itself 'https://elsewhere'"),
        (
            {"jwks_uri": "http://keys.example.com/keys"},
            "its jwks_uri is 'http://keys.example.com/keys'; allowed: a URL",
        ),
        ({"jwks_uri": None}, "its jwks_uri is None"),
    ],
)
def test_an_issuer_that_says_something_else_of_itself_is_not_believed(
    issuer: TestIssuer, about: dict[str, Any], why: str
) -> None:
    issuer.about |= about
    with pytest.raises(IssuerSilent, match=why):
        Door(issuer).user(issuer.token())


def test_a_claim_of_choice_names_the_user(issuer: TestIssuer) -> None:
    door = Door(issuer, user_claim="email")
    assert door.user(issuer.token(email="ada@example.com", email_verified=True)) == "ada@example.com"
    with pytest.raises(Forbidden, match="has not verified"):
        door.user(issuer.token(email="root@example.com", email_verified=False))
    for nobody in (None, "", 7):
        with pytest.raises(Forbidden, match="no text as its claim 'email'"):
            door.user(issuer.token(email=nobody))


@pytest.mark.parametrize(
    ("groups", "let_in"), [(["lm", "x"], True), ("lm", True), (["x"], False), (None, False), (7, False)]
)
def test_only_users_of_a_group_are_let_in_where_groups_are_given(issuer: TestIssuer, groups: Any, let_in: bool) -> None:
    door = Door(issuer, groups=frozenset({"lm", "ops"}), groups_claim="teams")
    if let_in:
        assert door.user(issuer.token(teams=groups)) == "ada"
    else:
        with pytest.raises(Forbidden, match=r"ada is in no group that may call \(claim 'teams'\)"):
            door.user(issuer.token(teams=groups))


def test_a_token_without_a_key_id_is_good_where_the_issuer_has_one_key(issuer: TestIssuer) -> None:
    _, key = issuer.keys["first"]
    claims = {"iss": issuer.url, "aud": "teragpt", "sub": "ada", "exp": time.time() + 300}
    nameless = jwt.encode(claims, key, "ES256")
    assert Door(issuer).user(nameless) == "ada"
    issuer.add("second")
    with pytest.raises(Unauthorized, match="the issuer has no such key"):
        Door(issuer).user(nameless)
