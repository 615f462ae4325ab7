"""Alerts and dashboard ask for measurements that the control plane has."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from controlplane.api.telemetry import Measurements
from controlplane.clusters.decisions import DECISIONS
from controlplane.domain.phases import Phase
from tools.blocks import ROOT

FOLDER = ROOT / "deploy/observability"
METRIC = re.compile(r"\bteragpt_\w+")
LABELLED = re.compile(r"(teragpt_\w+)\{([^}]*)\}")


def expressions() -> dict[str, str]:
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
    panels = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))["panels"]
    return {rule["alert"]: rule["expr"] for rule in rules} | {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel["targets"]
    }


@pytest.fixture(scope="module")
def samples() -> dict[str, set[str]]:
    """The measurements of a control plane by name, with the names of their labels."""
    measurements = Measurements(
        phases=lambda: {str(phase): 0 for phase in Phase},
        outbox=lambda: 0,
        outbox_age=lambda: 0,
        notifications=lambda: dict.fromkeys(("waiting", "delivered", "given up"), 0),
        watch_restarts=lambda: {"/api/v1/pods": 0},
        streams=lambda: 0,
        scheduling=DECISIONS,
    )
    measurements.requests.labels("GET", "/runs", "200").inc()
    measurements.seconds.labels("/runs").observe(0.1)
    with measurements.look():
        pass
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(measurements.page().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("expression", expressions().values(), ids=expressions().keys())
def test_expression_asks_for_what_there_is(samples: dict[str, set[str]], expression: str) -> None:
    assert METRIC.findall(expression), "no measurement of ours"
    assert set(METRIC.findall(expression)) <= samples.keys()
    for name, matchers in LABELLED.findall(expression):
        assert set(re.findall(r"(\w+)[=!]~?\"", matchers)) <= samples[name]
    for phase in re.findall(r'phase[=!]~?"([^"]*)"', expression):
        assert set(phase.split("|")) <= {str(each) for each in Phase}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((FOLDER / "dashboard.json").read_text("utf-8"))["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        assert at["x"] + at["w"] <= 24
