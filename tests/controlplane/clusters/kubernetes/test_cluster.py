from __future__ import annotations

from tests.controlplane.clusters.kubernetes.scenarios import Scenarios


class TestAgainstTheSmallServer(Scenarios):
    """Every scenario, over the real client and loopback."""
