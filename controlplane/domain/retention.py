"""How long an installation keeps what has ended: for ever, unless it says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

DAY_S = 86_400.0


@dataclass(frozen=True)
class Retention:
    """Days after which a run that has ended is deleted, which hides it, and a deleted one purged; 0 is never."""

    delete_after_days: float = 0.0
    purge_after_days: float = 0.0
