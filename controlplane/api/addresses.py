"""A slash that is part of a name: it comes as `%2F`, and must not be taken for one between the parts of an address.

Servers decode a path before it is routed. Here the two are told apart again, since a run may be called `lr/3e-4`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

HELD = "\x1f"  # stands for such a slash until the route has its parameters; no name has control characters
ENCODED = re.compile(rb"%2f", re.IGNORECASE)


class Addresses:
    """Holds the slashes of names back while `app` routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        raw = scope.get("raw_path") or b""
        if ENCODED.search(raw):
            scope["path"] = unquote(ENCODED.sub(HELD.encode(), raw).decode("latin-1"))
        await self.app(scope, receive, send)


def named(part: str) -> str:
    """A part of an address as its caller meant it."""
    return part.replace(HELD, "/")
