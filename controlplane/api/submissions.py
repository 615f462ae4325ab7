"""The short way of `POST /runs`: a spec that is in order, without the framework, which takes a third of such a request.

The long way is `controlplane.api.runs`, whose reply this is, too.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from controlplane.api import runs
from controlplane.api.body import parse
from controlplane.api.problems import Refusal
from controlplane.api.shortcuts import again, body_of, plain, read, refuse
from controlplane.api.views import KEY, LONGEST_KEY, user_of
from controlplane.domain.errors import ControlPlaneError
from controlplane.domain.spec import RunSpec
from controlplane.services.context import Context

ADDRESSES = {"/v1/runs", "/runs"}
ROUTE = SimpleNamespace(path="/runs")  # as telemetry calls it
KEYS = re.compile(KEY.encode())


class Submissions:
    """Stores runs that are asked for as they should be, and hands everything else to `app`."""

    def __init__(self, app: ASGIApp, context: Context, max_body_bytes: int) -> None:
        self.app, self.context, self.max_body_bytes = app, context, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a submission, or pass the request on as it came."""
        headers = plain(scope, self.max_body_bytes) if scope.get("path") in ADDRESSES else None
        key = None if headers is None else headers.get(b"idempotency-key")
        if headers is None or (key is not None and not (KEYS.fullmatch(key) and len(key) <= LONGEST_KEY)):
            await self.app(scope, receive, send)
            return
        if (messages := await read(scope, receive, send)) is None:
            return
        try:
            spec = RunSpec.model_validate(parse(body_of(messages)))
        except (Refusal, ValidationError):
            await self.app(scope, again(messages, receive), send)
            return
        scope["route"] = ROUTE
        try:
            reply = await runs.create(spec, self.context, user_of(scope), None if key is None else key.decode("ascii"))
        except ControlPlaneError as error:
            await refuse(error, scope, receive, send)
        else:
            await reply(scope, receive, send)
