"""HEAD: what GET would answer, without its body, on every address that knows GET."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Heads:
    """Asks `app` as GET does, and stops it once its headers are known: a stream would have no end."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. The server's own scope stays that of HEAD: it sends no body."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}
        with anyio.CancelScope() as answering:

            async def headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    scope.update({name: asked[name] for name in ("route", "path_params") if name in asked})
                    await send(message)
                    await send({"type": "http.response.body", "body": b""})
                    answering.cancel()

            await self.app(asked, receive, headers)
