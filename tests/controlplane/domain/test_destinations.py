"""Destinations that cannot be used are named before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.destinations import parse_destinations, signature
from controlplane.domain.errors import InvalidSpec

GOOD = {"name": "ops", "url": "https://ops.example.com/hook"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{**GOOD, "url": "ftp://x"}], "/destinations/0/url"),
        ([{"name": "ops"}], "one of url and command"),
        ([{**GOOD, "command": ["x"]}], "one of url and command"),
        ([{**GOOD, "phases": ["queued"]}], "/destinations/0/phases/0"),
        ([{**GOOD, "secret": "short"}], "/destinations/0/secret"),
        ([{**GOOD, "secret": "whsec_no base64, this"}], "/destinations/0/secret: .*what follows whsec_ must be base64"),
        ([{**GOOD, "pasword": "x"}], "/destinations/0/pasword"),
        ([{**GOOD, "name": "Ops Team"}], "/destinations/0/name"),
        ([GOOD, GOOD], "a name of its own"),
    ],
)
def test_a_bad_destination_is_refused(given: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(InvalidSpec, match=told):
        parse_destinations({"destinations": given})


def test_an_empty_list_is_allowed() -> None:
    assert parse_destinations({"destinations": []}) == []


def test_a_message_is_signed_as_the_standard_webhooks_have_it() -> None:
    """The example of their own libraries' tests."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    signed = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
