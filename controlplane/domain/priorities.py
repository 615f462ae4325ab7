"""What a priority means where the order is ours; on Kubernetes it is the name of a class of the cluster's too."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

RANKS: Mapping[str, int] = MappingProxyType({"low": -1, "normal": 0, "high": 1})  # the higher goes first
SHARED_BY = "user"  # the label whose values share the machine fairly


def rank(priority: str | None) -> int:
    """The place of a priority among the others; that of `normal` for none, and for a class of a cluster's own."""
    return RANKS.get(priority or "normal", RANKS["normal"])
