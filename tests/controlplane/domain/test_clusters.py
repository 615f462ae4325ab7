"""Further clusters that cannot be used are named before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.clusters import parse_clusters
from controlplane.domain.errors import InvalidSpec

GOOD = {"name": "east", "kubeconfig": "/etc/east.yaml", "context": "me@east", "namespaces": ["a"], "storage": "s3://x"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{**GOOD, "name": "East"}], "/clusters/0/name"),
        ([{**GOOD, "kubeconfig": "east.yaml"}], "/clusters/0/kubeconfig"),
        ([{**GOOD, "namespaces": ["A"]}], "/clusters/0/namespaces/0"),
        ([{**GOOD, "public_url": "ftp://x"}], "/clusters/0/public_url"),
        ([{**GOOD, "gpu_quotas": {"a": -1}}], "/clusters/0/gpu_quotas/a"),
        ([{**GOOD, "kubeconf": "/x"}], "/clusters/0/kubeconf"),
        ([GOOD, GOOD], "a name of its own"),
    ],
)
def test_a_bad_cluster_is_refused(given: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(InvalidSpec, match=told):
        parse_clusters({"clusters": given})


def test_what_a_cluster_says_is_kept() -> None:
    (one,) = parse_clusters({"clusters": [{**GOOD, "public_url": "https://x.example", "gpu_quotas": {"a": 8}}]})
    assert (one.name, one.context, one.namespaces, one.gpu_quotas) == ("east", "me@east", ["a"], {"a": 8})
