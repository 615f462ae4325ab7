"""Instants at which the chaos suite ends this process as `kill -9` does: docs/chaos.md. Otherwise nothing happens here.

`TERAGPT_FAULT=name:count` in the environment at start arms one: the process dies as it comes by for the count-th time.
It is no setting: no flag, no documentation for users, and nothing else reads it.
"""

from __future__ import annotations

import itertools
import os
import signal

VARIABLE = "TERAGPT_FAULT"


class Armed:
    """One point, and how often it is passed before it kills. Threads may share it."""

    def __init__(self, told: str) -> None:
        self.name, _, count = told.partition(":")
        self.count = int(count or 1)
        self._passed = itertools.count(1)  # counts under the interpreter's lock

    def reach(self, name: str) -> None:
        """Come by a point."""
        if name == self.name and next(self._passed) == self.count:
            os.kill(os.getpid(), signal.SIGKILL)


_armed = Armed(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def fault(name: str) -> None:
    """This is the instant `name`."""
    if _armed is not None:
        _armed.reach(name)
