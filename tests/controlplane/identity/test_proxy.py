from __future__ import annotations

import asyncio
import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.errors import Unauthorized
from controlplane.identity.proxy import SECRET_HEADER, Proxy
from controlplane.identity.shown import Shown


def user(proxy: Proxy, peer: str = "10.0.0.7", **headers: str | list[str]) -> str:
    sent = {name.replace("_", "-"): [value] if isinstance(value, str) else value for name, value in headers.items()}
    return asyncio.run(proxy.user(Shown("", "get", lambda name: sent.get(name.lower(), []), peer)))


NAMED = Proxy(["10.0.0.0/24", "fd00::/64"], "", "X-Forwarded-User")
SECRET = Proxy([], "hush", "Remote-User")


@pytest.mark.parametrize("peer", ["10.0.0.7", "::ffff:10.0.0.7", "fd00::1"])
def test_a_proxy_of_the_networks_names_the_user(peer: str) -> None:
    assert user(NAMED, peer, x_forwarded_user=" ada ") == "ada"


@pytest.mark.parametrize(
    "peer", ["10.0.1.7", "127.0.0.1", "::ffff:10.0.1.7", "fd01::1", "", "proxy.example", "testclient"]
)
def test_anybody_elses_word_counts_for_nothing(peer: str) -> None:
    with pytest.raises(Unauthorized, match="no proxy of --proxy-networks"):
        user(NAMED, peer, x_forwarded_user="ada", x_forwarded_for="10.0.0.7")


@settings(max_examples=25)
@given(st.ip_addresses(v=4))
def test_no_address_outside_of_the_networks_is_within(address: ipaddress.IPv4Address) -> None:
    if address in ipaddress.ip_network("10.0.0.0/24"):
        assert user(NAMED, str(address), x_forwarded_user="ada") == "ada"
    else:
        with pytest.raises(Unauthorized):
            user(NAMED, str(address), x_forwarded_user="ada")


def test_a_proxy_is_known_by_its_secret() -> None:
    secret = SECRET_HEADER.replace("-", "_")
    assert user(SECRET, "192.0.2.1", remote_user="ada", **{secret: "hush"}) == "ada"
    for wrong in ("", "hus", "hush!", ["hush", "hush"]):
        with pytest.raises(Unauthorized, match="does not hold the secret"):
            user(SECRET, "192.0.2.1", remote_user="ada", **{secret: wrong})


def test_where_both_are_given_both_must_hold() -> None:
    both, secret = Proxy(["10.0.0.0/24"], "hush", "Remote-User"), SECRET_HEADER.replace("-", "_")
    assert user(both, remote_user="ada", **{secret: "hush"}) == "ada"
    for peer, word in (("10.0.0.7", "no"), ("10.0.1.7", "hush")):
        with pytest.raises(Unauthorized):
            user(both, peer, remote_user="ada", **{secret: word})


@pytest.mark.parametrize("names", [[], [""], [" "], ["ada", "root"]])
def test_a_user_who_is_not_named_once_is_nobody(names: list[str]) -> None:
    with pytest.raises(Unauthorized, match="has to name the user in one header X-Forwarded-User"):
        user(NAMED, x_forwarded_user=names)
