"""What is common to the documents that the API shows, and how routes reach what they show."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Header, Path, Request
from pydantic import AfterValidator, BaseModel, ConfigDict
from starlette.types import Scope

from controlplane.api.addresses import named
from controlplane.api.streams import Hub
from controlplane.domain.errors import Unauthorized
from controlplane.domain.fields import WORDS
from controlplane.services.context import Context
from controlplane.services.runs import LOCAL

RUN_ID = "run_01JD3M7X9K5V2Q8R4T6W0Y1Z2A"
OBJECT = "first-try-6w0y1z2a-1"
CREATED = datetime(2026, 11, 24, 11, 5, 0, 250_000, UTC)
KEY, LONGEST_KEY = "[!-~]+", 255
STARTED = datetime(2026, 11, 24, 11, 5, 2, 500_000, UTC)
FINISHED = datetime(2026, 11, 24, 11, 6, 9, 750_000, UTC)


class View(BaseModel):
    """A document that the API shows."""

    model_config = ConfigDict(from_attributes=True)


async def _context(request: Request) -> Context:
    """Asynchronous, as its neighbours are: FastAPI sends what is not to a thread, which costs more than this does."""
    context: Context = request.app.state.context
    return context


async def _hub(request: Request) -> Hub:
    hub: Hub = request.app.state.hub
    return hub


async def _user(request: Request) -> str:
    """Who asks; `local` for whoever shows the API's own token, or none where none is needed."""
    return user_of(request.scope)


def user_of(scope: Scope) -> str:
    """Who sends a request."""
    return str(scope.get("state", {}).get("user", LOCAL))


Services = Annotated[Context, Depends(_context)]
User = Annotated[str, Depends(_user)]
Streams = Annotated[Hub, Depends(_hub)]
RunRef = Annotated[
    str,
    Path(description="A run's id, or its name while it lives.", examples=[RUN_ID], min_length=1, max_length=128),
    AfterValidator(named),
]
KEYS, ETAGS = f"^{KEY}$", r'^(\*|(W/)?"[!#-~]*"(, ?(W/)?"[!#-~]*")*)$'
WORDS[KEYS] = f"1 to {LONGEST_KEY} printable characters of ASCII without spaces"
WORDS[ETAGS] = """the ETag of a reply, such as "1", several with commas between, or *"""
IdempotencyKey = Annotated[
    str | None,
    Header(
        description="The same key with the same request gives the same run, for 7 days.",
        examples=["0f4c7b52a1"],
        min_length=1,
        max_length=LONGEST_KEY,
        pattern=KEYS,
    ),
]
IfMatch = Annotated[
    str | None,
    Header(
        description="ETags of the run as its caller knows it: with another the run stays as it is (412). `*` is any.",
        examples=['"1"'],
        max_length=1024,
        pattern=ETAGS,
    ),
]
LastEventId = Annotated[
    str | None,
    Header(description="The id of the last message received; the stream goes on after it.", examples=["1.0"]),
]

Authorization = Annotated[
    str,
    Header(
        description="`Bearer` and the attempt's own token, or the service account's of one of its pods.",
        examples=["Bearer Zm9vYmFy"],
        max_length=16_384,
    ),
]


def revisions(if_match: str | None) -> set[int] | None:
    """The revisions that an If-Match header allows; None where it allows any."""
    if if_match is None or if_match == "*":
        return None
    return {int(number) for number in re.findall(r'(?<!/)"([0-9]{1,9})"', if_match)}  # a weak one (W/) matches nothing


def bearer(authorization: str) -> str:
    """The token of an Authorization header. Raises Unauthorized where that is no bearer's."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized
    return token.strip()
