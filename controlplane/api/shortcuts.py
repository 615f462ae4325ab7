"""What the short ways share: they answer requests that are certainly in order, and hand all others on as they came.

A short way passes by the framework's routing, dependencies and threads, which cost more than what is asked for. It
takes only what its route takes, does the same with it, and refuses nothing itself: the long way knows every rule and
points at what is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.types import Message, Receive, Scope, Send

from controlplane.api import body
from controlplane.api.problems import render, translate
from controlplane.domain.errors import ControlPlaneError


def plain(scope: Scope, max_body_bytes: int) -> dict[bytes, bytes] | None:
    """The headers of a POST of JSON with nothing odd about it, its body apart; else None."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
        return None
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    fits = length.isdigit() and int(length) <= max_body_bytes
    once = len(headers) == len(scope["headers"])
    json = headers.get(b"content-type") == b"application/json" and b"content-encoding" not in headers
    return headers if fits and once and json else None


async def read(scope: Scope, receive: Receive, send: Send) -> list[Message] | None:
    """A request's whole body; None where its client has gone before, or was refused since it did not come in time."""
    try:
        async with asyncio.timeout(body.BODY_S):
            messages = [await receive()]
            while messages[-1].get("more_body"):
                messages.append(await receive())
    except TimeoutError:
        await render(body.late(), scope)(scope, receive, send)
        return None
    return messages if messages[-1]["type"] == "http.request" else None


def body_of(messages: Sequence[Message]) -> bytes:
    """What was read."""
    return b"".join(message.get("body", b"") for message in messages)


def again(messages: Sequence[Message], receive: Receive) -> Receive:
    """What was read once more, and then what is still to come."""
    left = iter(messages)

    async def repeated() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return repeated


async def refuse(error: ControlPlaneError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as the long way does where a service refuses."""
    await render(translate(error), scope)(scope, receive, send)
