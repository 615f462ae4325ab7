"""Who may use the shared cluster now: tests of several processes beside each other, or one alone.

Two locks, so that who wants to be alone is not kept waiting for ever: it closes the gate and waits for those inside.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from tests.cluster.layout import HOME

_joined: list[IO[str]] = []  # this process's hold of the cluster, from its first test to the end of its session


def join() -> None:
    """Say that this process has tests on the cluster."""
    if not _joined:
        HOME.mkdir(parents=True, exist_ok=True)
        _joined.append((HOME / "joined.lock").open("w"))
        fcntl.flock(_joined[0], fcntl.LOCK_SH)


def outlast() -> None:
    """Wait until no other process has tests on the cluster any more."""
    join()
    fcntl.flock(_joined[0], fcntl.LOCK_EX)


def leave() -> None:
    """Have none any more."""
    while _joined:
        _joined.pop().close()


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
