"""What a caller shows to say who they are, and what finds their name in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Shown:
    """What comes with a request: its bearer `token`, or an empty one, and every value of a header by its name.

    `peer` is the network address that it came from, `verb` the word of Kubernetes for what it asks.
    """

    token: str
    verb: str
    headers: Callable[[str], Sequence[str]]
    peer: str


Users: TypeAlias = Callable[[Shown], Awaitable[str]]
"""The name of the user. Raises Unauthorized, Forbidden, ClusterSilent and IssuerSilent."""
