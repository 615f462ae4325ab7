"""The short way of what comes most often: a trainer's report of points, under a token that was seen before.

The long way is `controlplane.api.metrics`, to which a token that is new here goes, too.
"""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from controlplane.api.body import LARGEST_INTEGER, objects
from controlplane.api.metrics import LATEST, MOST_POINTS, NAME
from controlplane.api.shortcuts import again, body_of, plain, read, refuse
from controlplane.domain.errors import ControlPlaneError, NotFound
from controlplane.services import attempts
from controlplane.services.context import Context
from controlplane.services.gathering import Gathering

ADDRESS = re.compile(r"(?:/v1)?/runs/(run_[0-9A-Z]{26})/metrics")
ROUTE = SimpleNamespace(path="/runs/{run}/metrics")  # as telemetry calls it
NAMES = re.compile(NAME)
BEARER = b"Bearer "
DECODER = json.JSONDecoder(object_pairs_hook=objects)
Points = list[dict[str, Any]]


class Reports:
    """Stores reports that are in order, and hands everything else to `app`."""

    def __init__(self, app: ASGIApp, context: Context, max_body_bytes: int) -> None:
        self.app, self.context, self.max_body_bytes = app, context, max_body_bytes
        self.gathering = Gathering(context)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a report, or pass the request on as it came."""
        address = ADDRESS.fullmatch(scope["path"]) if scope["type"] == "http" else None
        headers = plain(scope, self.max_body_bytes) if address else None
        shown = (headers or {}).get(b"authorization", b"")
        if address is None or not shown.startswith(BEARER) or not self.context.store.opened:
            await self.app(scope, receive, send)
            return
        run_id, token = address[1], bytes(shown[len(BEARER) :]).decode("latin-1")
        attempt = attempts.remembered(self.context, run_id, token)
        if attempt is not None:
            if (messages := await read(scope, receive, send)) is None:
                return
            points = points_of(body_of(messages), attempt)
            if points and await self._stored(scope, receive, send, (run_id, token, attempt, points)):
                return
            receive = again(messages, receive)
        await self.app(scope, receive, send)

    async def _stored(self, scope: Scope, receive: Receive, send: Send, report: tuple[str, str, int, Points]) -> bool:
        """Store the points and answer; False, with nothing done, where the attempt has been purged."""
        run_id, token, attempt, points = report
        scope["route"], scope["path_params"] = ROUTE, {"run": run_id}
        try:
            heard = await self.gathering.add(run_id, attempt, points)
        except NotFound:
            attempts.forget(self.context, token)
            return False
        except ControlPlaneError as error:
            await refuse(error, scope, receive, send)
            return True
        body = b'{"acknowledged":%d,"save":%d,"wait_s":%.2f}' % (*heard, self.context.pace.heard(run_id))
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return True


def points_of(body: bytes, attempt: int) -> Points | None:
    """The points of a report of this attempt; None where anything is not certainly in order.

    What is in order here is so for `controlplane.api.metrics.NewPoints`, too, with the same values.
    """
    try:
        report = DECODER.decode(body.decode())
    except (ValueError, RecursionError):
        return None
    if type(report) is not dict or report.keys() != {"attempt", "points"} or type(report["attempt"]) is not int:
        return None
    points = report["points"]
    if report["attempt"] != attempt or type(points) is not list or not 0 < len(points) <= MOST_POINTS:
        return None
    names = set[str]()
    for point in points:
        if type(point) is not dict or not _in_place(point) or not all(map(_number, point.values())):
            return None
        names.update(point)
    return points if all(map(NAMES.fullmatch, names)) else None


def _in_place(point: dict[str, Any]) -> bool:
    seq, step, time = point.get("seq"), point.get("step"), point.get("time")
    whole = type(seq) is int and type(step) is int and seq >= 1 and step >= 0
    return whole and isinstance(time, int | float) and 0 <= time <= LATEST


def _number(value: Any) -> bool:
    """Whether it is null, a finite number, or an integer of 64 bits."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    return value is None or (kind is int and -LARGEST_INTEGER <= value <= LARGEST_INTEGER)
