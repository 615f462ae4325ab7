"""Follows a run from the command line, and says how it ended."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

from controlplane.cli.errors import CliError, Code

if TYPE_CHECKING:
    from controlplane.client import Client, Run

ENDED = frozenset({"succeeded", "failed", "cancelled"})


def follow(client: Client, run: str, look: Callable[[], None] = lambda: None) -> Run:
    """Show the run until it has ended, and return it as it ended; `look` is called twice a second, and may raise."""
    from controlplane.client.progress import screen

    with screen() as show:

        def shown(now: Run) -> None:
            show(now)
            look()

        return client.wait(run, shown)


def called(run: Run) -> str:
    """How a command names the run: by the name that its user gave, else by its id."""
    name = run["spec"].get("name")
    return shlex.quote(name) if name and not name.startswith("-") else run["id"]


def check(run: Run) -> None:
    """Raise CliError unless the run ended well."""
    if run["phase"] == "succeeded":
        return
    why = run["message"] or run["reason"]
    sentence = f"run {run['id']} {run['phase']}{f': {why}' if why else ''}"
    raise CliError(" ".join(sentence.split()), Code.RUN_FAILED, next=f"teragpt logs {called(run)}")
