"""Where notifications go: the destinations of the server's own configuration, and nothing that a run may name.

What is sent, and how it is signed, is here too: pure functions. Sending is `controlplane.reconcile.notifier`'s.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, HttpUrl, StringConstraints, ValidationError, model_validator

from controlplane.domain.diagnoses import diagnose
from controlplane.domain.errors import InvalidSpec
from controlplane.domain.fields import Section
from controlplane.domain.phases import Phase
from controlplane.domain.spec import problems_of

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,62})$")]
PREFIX = "whsec_"  # of a secret that is base64, as the Standard Webhooks write it


def _key(secret: str) -> bytes:
    """What a message is signed with. Raises ValueError."""
    if not secret.startswith(PREFIX):
        return secret.encode()
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)


def _usable(secret: str) -> str:
    try:
        _key(secret)
    except ValueError:
        raise ValueError(f"what follows {PREFIX} must be base64") from None
    return secret


Secret = Annotated[str, StringConstraints(min_length=16), AfterValidator(_usable)]
Announced = Literal["running", "restarting", "suspended", "succeeded", "failed", "cancelled"]
ANNOUNCED = frozenset(Phase(word) for word in get_args(Announced))  # phases that somebody may want to hear of


class Destination(Section):
    """A webhook (`url`) or a `command` of this machine, for runs that come into `phases` and carry `labels`."""

    name: Name
    url: HttpUrl | None = None
    format: Literal["json", "slack"] = "json"
    secret: Secret | None = None
    command: Annotated[list[str], Field(min_length=1)] | None = None
    phases: list[Announced] = Field(default=["succeeded", "failed"])
    labels: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.url is None) == (self.command is None):
            raise ValueError("one of url and command, and not both")
        return self

    def wants(self, phase: str, labels: Mapping[str, str]) -> bool:
        """Whether a run with these labels, come into this phase, is for here."""
        return phase in self.phases and self.labels.items() <= labels.items()


class _File(Section):
    destinations: list[Destination]

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [each.name for each in self.destinations]
        if len({*names}) < len(names):
            raise ValueError("each destination has a name of its own")
        return self


def parse_destinations(given: Mapping[str, Any]) -> list[Destination]:
    """The destinations that a JSON object describes. Raises InvalidSpec with a pointer to every bad field."""
    try:
        return _File.model_validate(given).destinations
    except ValidationError as error:
        raise InvalidSpec(problems_of(error)) from None


def headline(name: str, phase: str, reason: str | None, message: str | None) -> str:
    """What happened, in a paragraph for people."""
    told = f"Run {name} {'is' if phase in {'running', 'restarting', 'suspended'} else 'has'} {phase}"
    told = told.replace("has cancelled", "was cancelled")
    if reason is None:
        return f"{told}."
    row = diagnose(reason)
    return f"{told}: {reason}{f' ({message})' if message else ''}. {row.cause} {row.mend}"


def signature(secret: str, identity: str, seconds: int, body: bytes) -> str:
    """The `webhook-signature` of a message: HMAC-SHA256 over its id, its time and its body.

    As https://www.standardwebhooks.com has it, so that its libraries verify ours.
    """
    signed = hmac.new(_key(secret), f"{identity}.{seconds}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"
