"""How much of a pod's log there is: all of it, unless its oldest part was given up for being too long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LogExtent:
    """A log holds the bytes from `first` to `end`; so many `lines` stood before that are not kept any more."""

    first: int = 0
    end: int = 0
    lines: int = 0

    def told(self) -> str:
        """What a reader finds in place of what was given up."""
        return f"[the first {self.lines:,} lines ({self.first:,} bytes) are not kept: longer than --log-keep-bytes]"
