"""When a call is sent again, and when its failure is the caller's. It sends nothing and waits for nothing itself.

Sent again is what does no more the second time: reads, changes that set a state, and what carries an idempotency key
(the same key on every try). Anything else only where its first try certainly never arrived.
"""

from __future__ import annotations

import time

import httpx

from controlplane.client.errors import ApiError, ClientError, Unreachable

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
PASSING = frozenset({429, 502, 503, 504})  # statuses that say: not now


class Tries:
    """The tries of one call, or the connections of one stream, given `patience_s` seconds without success."""

    def __init__(self, url: str, patience_s: float, *, repeats: bool = True) -> None:
        self._url, self._patience_s, self._repeats = url, patience_s, repeats
        self.succeeded()

    def succeeded(self) -> None:
        """Something came: patience begins anew."""
        self._since, self._pause = time.monotonic(), FIRST_PAUSE_S

    def pause(self, failure: Exception) -> float:
        """Seconds until the next try. Raises what the caller is told where there is none."""
        told, asked = self._told(failure), self._asked(failure)
        if asked is None or time.monotonic() + asked > self._since + self._patience_s:
            raise told from failure
        return asked

    def next(self) -> float:
        """Seconds until the next connection, longer each time."""
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_S)
        return pause

    def _told(self, failure: Exception) -> ClientError:
        return failure if isinstance(failure, ClientError) else Unreachable(self._url, failure)

    def _asked(self, failure: Exception) -> float | None:
        if isinstance(failure, ApiError):
            return self.next() if self._repeats and failure.status in PASSING else None
        return self.next() if self._repeats or isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout) else None
