"""The chart's Roles hold all that control planes do, by the API server's record of the tests before. It comes last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from controlplane.clusters.kubernetes.resources import ATTEMPTS
from tests.cluster.conftest import Cluster
from tests.cluster.layout import AUDIT
from tests.helm.rendered import CASES, Values, objects

OURS = "teragpt"  # the control plane's User-Agent
ACCOUNT = "system:serviceaccount:"
EVERYBODYS = {"selfsubjectaccessreviews"}  # what Kubernetes lets any account ask


class Right(NamedTuple):
    """What somebody may do; `everywhere`: in no namespace or in all of them."""

    verb: str
    group: str
    resource: str
    everywhere: bool


TRAINJOB = ATTEMPTS["TrainJob"]
ALL = {"rbac": {"nodes": True, "tokenReviews": True}, "auth": {"mode": "kubernetes"}}
OPTIONAL = {  # what is done where an account may, and left where not; docs/kubernetes-cluster.md
    Right("list", "", "pods", everywhere=True),
    Right("list", "apps", "deployments", everywhere=True),
    Right("list", "storage.k8s.io", "storageclasses", everywhere=True),
    Right("list", "", "persistentvolumeclaims", everywhere=False),
}
UNSEEN = {  # what no release of this suite has occasion for
    *(Right("get", kind.group, kind.plural, everywhere=False) for kind in ATTEMPTS.values()),  # after a lost answer
    Right("get", "", "services", everywhere=False),  # likewise
    *(
        Right(verb, TRAINJOB.group, TRAINJOB.plural, everywhere=False) for verb in ("create", "list", "watch", "delete")
    ),  # the suite's Kubeflow Trainer comes when no release is there
    *(Right(verb, TRAINJOB.group, "trainingruntimes", everywhere=False) for verb in ("get", "create")),
    *(Right(verb, "kueue.x-k8s.io", "workloads", everywhere=False) for verb in ("list", "watch")),
    Right("list", "", "nodes", everywhere=True),  # rbac.nodes
    Right("create", "authorization.k8s.io", "subjectaccessreviews", everywhere=True),  # auth.mode: kubernetes
}
WHOLE = {
    Right("create", "authentication.k8s.io", "tokenreviews", everywhere=True),
    *(Right("create", ATTEMPTS[kind].group, ATTEMPTS[kind].plural, everywhere=False) for kind in ("PyTorchJob", "Job")),
}


def held(values: Values) -> set[Right]:
    """All that the chart's Roles give."""
    roles = [each for each in objects(values) if each["kind"] in {"Role", "ClusterRole"}]
    return {
        Right(verb, group, resource, everywhere=role["kind"] == "ClusterRole")
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(log: Path) -> set[Right]:
    """All that control planes asked for and got, by the API server's record."""
    return {right(entry["objectRef"], entry["verb"]) for entry in entries(log) if entry["responseStatus"]["code"] < 400}


def right(target: dict[str, Any], verb: str) -> Right:
    resource = "/".join(part for part in (target["resource"], target.get("subresource", "")) if part)
    return Right(verb, target.get("apiGroup", ""), resource, everywhere="namespace" not in target)


def entries(log: Path) -> Iterator[dict[str, Any]]:
    with log.open() as lines:
        for line in lines:
            entry: dict[str, Any] = json.loads(line)
            ours = entry.get("userAgent") == OURS and "responseStatus" in entry and "objectRef" in entry
            installed = entry["user"]["username"].startswith(ACCOUNT)  # tests use the same client, as administrators
            if ours and installed and entry["objectRef"]["resource"] not in EVERYBODYS:
                yield entry


@pytest.fixture
def log(cluster: Cluster) -> Path:
    if not cluster.registry:
        pytest.skip("another's API server keeps its record for itself")
    return AUDIT


def test_the_roles_hold_all_that_control_planes_do(log: Path) -> None:
    asked = used(log)
    if not asked:
        pytest.skip("no control plane ran before this")
    beyond = asked - held(ALL) - OPTIONAL
    assert not beyond, sorted(beyond)


def test_the_roles_hold_nothing_that_no_control_plane_does(log: Path) -> None:
    asked = used(log)
    if not asked >= WHOLE:
        pytest.skip("control planes did not run with each kind of object and with reviews before this")
    unused = held(ALL) - asked - UNSEEN
    assert not unused, sorted(unused)


def test_the_admin_of_a_namespace_holds_all_that_the_role_gives_there(cluster: Cluster) -> None:
    case = next(path for path in CASES if path.stem == "namespace-only")
    rules = cluster.read("clusterrole/admin")["rules"]
    owned = {
        (verb, group, resource)
        for rule in rules
        for group in rule.get("apiGroups", ())
        for resource in rule.get("resources", ())
        for verb in rule["verbs"]
    }
    given = held(yaml.safe_load(case.read_text("utf-8")))
    beyond = {each for each in given if each.everywhere or (each.verb, each.group, each.resource) not in owned}
    assert given
    assert not beyond, "Kubernetes lets nobody give what they do not hold"
