"""Who may use the shared cluster now: tests of several processes beside each other, or one alone.

Two locks, so that who wants to be alone is not kept waiting for ever: it closes the gate and waits for those inside.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.layout import HOME


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait for it. Nobody else uses the cluster meanwhile where it is `alone`."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "gate.lock").open("w") as gate, (HOME / "inside.lock").open("w") as inside:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield
