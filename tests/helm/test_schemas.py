"""Every manifest against the schemas of every supported version of Kubernetes, offline."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from controlplane.render import companions_of, render
from tests.controlplane.render.attempts import attempt
from tests.helm import renders, schemas
from tests.helm.rendered import CASES, CHART, objects
from tools.blocks import ROOT

FOREIGN = ("gateway.networking.k8s.io/", "monitoring.coreos.com/")  # their schemas: tests/cluster/test_helm.py
MINIMUM = re.compile(r">=1\.(\d+)")


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    """Those of the chart for every case, those for kubectl, and those that the control plane makes of a run."""
    found = [each for case in CASES for each in objects(yaml.safe_load(case.read_text("utf-8")))]
    for name in renders.RELEASES:
        found += yaml.safe_load_all((ROOT / renders.MANIFESTS / name).read_text("utf-8"))
    job = render(attempt(kind="Job", nodes=2))
    found += [job, *companions_of(job)]
    distinct = {json.dumps(each, sort_keys=True): each for each in found if each}
    return [each for each in distinct.values() if not each["apiVersion"].startswith(FOREIGN)]


@pytest.mark.parametrize("version", schemas.versions())
def test_every_version_knows_every_field(version: str, manifests: list[dict[str, Any]]) -> None:
    kinds = {each["kind"] for each in manifests}
    assert kinds >= {"Deployment", "Ingress", "Job", "NetworkPolicy", "PodDisruptionBudget", "Role", "Service"}
    for manifest in manifests:
        told = [*schemas.complaints(manifest, version)]
        assert not told, f"{manifest['kind']} {manifest['metadata']['name']} on {version}: {told}"


def test_the_versions_are_those_that_the_chart_admits() -> None:
    oldest = MINIMUM.match(yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["kubeVersion"])
    assert oldest
    assert schemas.versions()[0] == f"1.{oldest[1]}"
    assert len(schemas.versions()) >= 9


def test_a_field_that_a_version_does_not_know_or_that_is_wrong_is_named() -> None:
    service: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "spec": {"trafficDistribution": "PreferClose"}}
    assert any("trafficDistribution" in told for told in schemas.complaints(service, "1.29"))
    assert not [*schemas.complaints(service, "1.31")]
    assert next(iter(schemas.complaints({**service, "spec": {"type": 1}}, "1.31"))).startswith("spec.type: 1 is not")
