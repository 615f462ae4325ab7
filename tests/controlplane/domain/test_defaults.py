from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.defaults import parse_defaults
from controlplane.domain.errors import InvalidSpec
from controlplane.domain.spec import parse_spec

DEFAULTS = {
    "compute": {"image_pull_secrets": ["registry"], "node_selector": {"pool": "gpu"}, "tolerations": [{"key": "gpu"}]},
    "scheduling": {"priority": "low"},
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}, {"name": "MINE", "value": "default"}],
    "labels": {"team": "lm", "cost": "shared"},
    "pod_overrides": {"spec": {"schedulerName": "mine"}},
}


def test_a_spec_that_says_nothing_takes_every_default() -> None:
    spec = parse_defaults(DEFAULTS).under(parse_spec({"size": "tiny"}))
    assert spec.compute.image_pull_secrets == ["registry"]
    assert spec.compute.node_selector == {"pool": "gpu"}
    assert spec.scheduling.priority == "low"
    assert [variable.name for variable in spec.env] == ["HTTPS_PROXY", "MINE"]
    assert spec.labels == DEFAULTS["labels"]
    assert spec.pod_overrides == DEFAULTS["pod_overrides"]


def test_what_a_spec_says_goes_first_field_by_field() -> None:
    given: dict[str, Any] = {
        "size": "tiny",
        "compute": {"nodes": 2, "tolerations": [], "node_selector": {"pool": "cpu"}},
        "scheduling": {"priority": "high"},
        "env": [{"name": "MINE", "value": "own"}],
        "labels": {"cost": "own"},
        "pod_overrides": {"spec": {"schedulerName": "other"}},
    }
    spec = parse_defaults(DEFAULTS).under(parse_spec(given))
    assert (spec.compute.nodes, spec.compute.tolerations, spec.compute.node_selector) == (2, [], {"pool": "cpu"})
    assert spec.compute.image_pull_secrets == ["registry"]
    assert spec.scheduling.priority == "high"
    assert [(variable.name, variable.value) for variable in spec.env] == [
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("MINE", "own"),
    ]
    assert spec.labels == {"team": "lm", "cost": "own"}
    assert spec.pod_overrides == given["pod_overrides"]


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"size": "tiny"}, "/size"),
        ({"compute": {"nodes": 2}}, "/compute/nodes"),
        ({"compute": {"node_selector": {"pool": 1}}}, "/compute/node_selector/pool"),
        ({"env": [{"name": "RANK", "value": "0"}]}, "/env/0/name"),
    ],
)
def test_what_no_installation_may_decide_is_refused_by_name(given: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_defaults(given)
    assert [problem.pointer for problem in refused.value.problems] == [pointer]
