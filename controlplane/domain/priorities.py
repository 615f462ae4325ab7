"""What a priority means on a machine of one's own; on Kubernetes it is the name of a class that the cluster defines."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

RANKS: Mapping[str, int] = MappingProxyType({"low": -1, "normal": 0, "high": 1})  # the higher goes first
SHARED_BY = "user"  # the label whose values share the machine fairly


def rank(priority: str | None) -> int:
    """The place of a priority among the others; that of `normal` for none."""
    return RANKS["normal" if priority is None else priority]
