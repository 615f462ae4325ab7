"""What both clients' connections have in common: addresses, headers, time limits."""

from __future__ import annotations

import time
from typing import Any

import httpx

from controlplane.client.requests import Call, Download, Feed

PATIENCE_S = 10.0  # how long a call that may be sent again is tried
STREAM_PATIENCE_S = 60.0  # how long a stream is connected anew, and a wait goes on, while nobody answers
HEARTBEATS_MISSED_S = 45.0  # the server pings every 15 s; a stream silent for longer is dead
LOOK_EVERY_S = 0.5  # at a run that is waited for
PIECE_BYTES = 1 << 20  # of a file


def options(url: str, token: str | None, timeout_s: float) -> dict[str, Any]:
    """What an HTTP client of httpx is made with."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return {"base_url": f"{url}/v1", "headers": headers, "timeout": timeout_s, "trust_env": False}


def request(
    http: httpx.Client | httpx.AsyncClient, what: Call[Any] | Download | Feed[Any], after: str | None = None
) -> httpx.Request:
    """`what` as `http` sends it; a feed resumes after the message `after`."""
    if isinstance(what, Feed):
        place = {"accept": "text/event-stream", **({"last-event-id": after} if after else {})}
        return what.to(http, headers=place, timeout=httpx.Timeout(http.timeout.connect, read=HEARTBEATS_MISSED_S))
    if what.unhurried:
        return what.to(http, timeout=httpx.Timeout(http.timeout.connect, read=None))
    return what.to(http)


class Deadline:
    """Bounds a wait. Raises TimeoutError where it is over."""

    def __init__(self, run: str, timeout_s: float | None) -> None:
        self._run, self._timeout_s, self._began = run, timeout_s, time.monotonic()

    def check(self, phase: str) -> None:
        """Raise TimeoutError, which says what the run does instead of ending, if the time is over."""
        if self._timeout_s is not None and time.monotonic() - self._began > self._timeout_s:
            raise TimeoutError(f"run {self._run} is {phase} after {self._timeout_s:g} s")
