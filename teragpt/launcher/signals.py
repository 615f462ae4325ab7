"""What a rank is told while it trains: to stop or to save now, by signals or otherwise, and that its time is up.

A rank only notes it. The trainer adds up what all ranks noted, once a step, so that they act on it together.
"""

from __future__ import annotations

import math
import signal
import time
from types import TracebackType
from typing import Any, Self

NOTHING, STOP, FENCED = 0.0, 1.0, math.inf  # sums of them over ranks stay apart
SAVE = 2.0**-21  # the sum over a million ranks is less than STOP
LEAVE_S = 1.0  # what a rank needs to end once all is written


class Requests:
    """SIGTERM: stop with a checkpoint. SIGUSR1: write one and go on. `max_seconds` (0: none) end as SIGTERM does."""

    def __init__(self, grace_s: float, max_seconds: float) -> None:
        self.grace_s = grace_s
        self.until = time.monotonic() + max_seconds if max_seconds else math.inf
        self.wanted = False  # a checkpoint
        self.ends_by = math.inf  # on the monotonic clock; sooner once told to stop
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.before = {
            number: signal.signal(number, handler)
            for number, handler in ((signal.SIGTERM, self.stop), (signal.SIGUSR1, self.save))
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> float:
        """NOTHING, SAVE or STOP."""
        if time.monotonic() >= self.until:
            self.until = math.inf
            self.stop()
        return STOP if self.ends_by < math.inf else SAVE if self.wanted else NOTHING

    def stop(self, *_: Any) -> None:
        """Finish the step, write a checkpoint, and end with code 143 before the launcher's patience ends."""
        self.ends_by = time.monotonic() + self.grace_s - LEAVE_S

    def save(self, *_: Any) -> None:
        """Write a checkpoint after this step; may be called from any thread."""
        self.wanted = True

    def saved(self) -> None:
        """A checkpoint of now is written: whoever asked for one has it."""
        self.wanted = False

    def seconds_left(self) -> float:
        """Seconds that this process may still take once told to stop; no end before."""
        return self.ends_by - time.monotonic()
