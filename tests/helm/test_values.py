"""Values that are refused, each by its name and with a sentence that says the mend; and where values come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema_rs
import pytest
import yaml

from tests.helm.rendered import CASES, CHART, Values, refusal
from tools import chart
from tools.blocks import ROOT

Capture: TypeAlias = pytest.CaptureFixture[str]

ABSENT = "value must be 'left out, since there is no such key; allowed"
SCHEMA = [  # values, and what the sentence names
    ({"replica": 1}, f"at '/replica': {ABSENT}: global, enabled, nameOverride, fullnameOverride, commonLabels"),
    ({"image": {"tga": "1"}}, f"at '/image/tga': {ABSENT}: registry, repository, tag, digest, pullPolicy'"),
    ({"runs": {"storage": {"class": "fast"}}}, f"at '/runs/storage/class': {ABSENT}: uri, existingClaim, size"),
    ({"settings": {"loglevel": "info"}}, f"at '/settings/loglevel': {ABSENT}: heartbeatS, pollS, queueBytes"),
    ({"auth": {"kubernetes": True}}, f"at '/auth/kubernetes': {ABSENT}: mode, existingSecret, existingSecretKey"),
    ({"settings": {"logLevel": "loud"}}, "at '/settings/logLevel': value must be one of 'debug', 'info'"),
    ({"settings": {"heartbeatS": 0}}, "at '/settings/heartbeatS'"),
    ({"replicas": -1}, "at '/replicas': minimum: got -1, want 0"),
    ({"replicas": "1"}, "at '/replicas'"),
    ({"runs": {"kind": "MPIJob"}}, "at '/runs/kind': value must be one of 'auto', 'PyTorchJob', 'TrainJob', 'Job'"),
    ({"runs": {"storage": {"accessModes": []}}}, "at '/runs/storage/accessModes'"),
    ({"runs": {"storage": {"accessModes": ["RWX"]}}}, "at '/runs/storage/accessModes/0': value must be one of"),
    ({"store": {"keep": "yes"}}, "at '/store/keep': got string, want boolean"),
    ({"image": {"repository": ""}}, "at '/image/repository'"),
    ({"image": {"pullPolicy": "always"}}, "at '/image/pullPolicy': value must be one of 'IfNotPresent'"),
    ({"imagePullSecrets": "registry"}, "at '/imagePullSecrets': got string, want array"),
    ({"service": {"port": 70_000}}, "at '/service/port'"),
    ({"service": {"type": "Ingress"}}, "at '/service/type': value must be one of 'ClusterIP', 'NodePort'"),
    ({"nodeSelector": ["gpu"]}, "at '/nodeSelector': got array, want object"),
    ({"commonLabels": {"cost": 7}}, "at '/commonLabels/cost': got number, want string"),
    ({"extraEnv": [{"value": "x"}]}, "at '/extraEnv/0': missing property 'name'"),
    ({"ingress": {"hosts": [{"host": "a"}]}}, "at '/ingress/hosts/0': got object, want string"),
    ({"monitor": {"kind": "Scrape"}}, "at '/monitor/kind': value must be one of 'ServiceMonitor', 'PodMonitor'"),
    ({"networkPolicy": {"apiServerPorts": ["https"]}}, "at '/networkPolicy/apiServerPorts/0'"),
    ({"test": {"timeoutSeconds": 1}}, "at '/test/timeoutSeconds'"),
    ({"auth": {"mode": "ldap"}}, "at '/auth/mode': value must be one of 'token', 'tokens', 'kubernetes', 'oidc'"),
    ({"auth": {"oidc": {"algorithms": ["HS256"]}}}, "at '/auth/oidc/algorithms/0': value must be one of 'RS256'"),
    ({"fullnameOverride": "x" * 41}, "at '/fullnameOverride': maxLength: got 41, want 40"),
]
RULES = [
    ({"runs": {"namespace": "Team_A"}}, "runs.namespace: got Team_A; allowed: the name of a namespace"),
    (
        {"runs": {"storage": {"uri": "/mnt/models"}}},
        "runs.storage.uri: got /mnt/models; allowed: pvc://CLAIM/PATH, or an",
    ),
    (
        {"runs": {"storage": {"size": "10 GB"}}},
        "runs.storage.size: got 10 GB; allowed: a quantity of Kubernetes, as 100Gi",
    ),
    (
        {"store": {"existingClaim": "My Claim"}},
        "store.existingClaim: got My Claim; allowed: the name of a PersistentVolume",
    ),
    ({"image": {"digest": "sha256:abc"}}, "image.digest: got sha256:abc; allowed: sha256: and 64 hexadecimal digits"),
    (
        {"publicUrl": "teragpt.example.com"},
        "publicUrl: got teragpt.example.com; allowed: a URL that begins with http://",
    ),
    ({"monitor": {"interval": "often"}}, "monitor.interval: got often; allowed: a duration such as 30s"),
    ({"ingress": {"path": "api"}}, "ingress.path: got api; allowed: a path that begins with /"),
    ({"podDisruptionBudget": {"maxUnavailable": "half"}}, "got half; allowed: a number of replicas, or a percentage"),
    (
        {"auth": {"mode": "oidc", "oidc": {"issuer": "http://id.example.com"}}},
        "auth.oidc.issuer: got http://id.example.com; allowed: a URL that begins with https://",
    ),
]
CONTRADICTIONS = [
    ({"replicas": 2}, "replicas: got 2 with SQLite, which one process at a time may hold; set replicas to 1, or name"),
    (
        {"database": {"existingSecret": "db"}},
        "database: with Postgres no volume keeps an access token that a start makes; put one into a Secret and name",
    ),
    (
        {
            "replicas": 2,
            "database": {"existingSecret": "db"},
            "auth": {"existingSecret": "a"},
            "store": {"existingClaim": "state"},
        },
        "store.existingClaim: got state with database.existingSecret, where all is in Postgres; leave one of them",
    ),
    (
        {"podDisruptionBudget": {"enabled": True}},
        "podDisruptionBudget: enabled with replicas 1, which leaves nothing to keep; set replicas to 2",
    ),
    ({"settings": {"leaseS": 5}}, "settings: leaseS and databaseConnections are Postgres' alone; name the Secret"),
    (
        {"extraEnv": [{"name": "TERAGPT_IMAGE", "value": "x"}]},
        "extraEnv: TERAGPT_IMAGE is set by the chart; use the value that stands for it",
    ),
    (
        {"extraEnv": [{"name": "TERAGPT_POLL_S", "value": "1"}]},
        "extraEnv: TERAGPT_POLL_S is TeraGPT's own; use the map `settings`",
    ),
    (
        {"runs": {"storage": {"uri": "s3://b", "existingClaim": "c"}}},
        "uri (s3://b) and existingClaim (c) both say where runs write; give one of them",
    ),
    ({"runs": {"storage": {"uri": "pvc://My_Claim"}}}, "got pvc://My_Claim; allowed: pvc://CLAIM/PATH"),
    ({"ingress": {"enabled": True}}, "ingress.hosts is empty; name at least one host"),
    ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is empty; name the Gateway"),
    (
        {"auth": {"mode": "kubernetes"}, "rbac": {"tokenReviews": False}},
        "auth.mode: users of kubernetes cannot be told apart without rbac.tokenReviews; set that to true",
    ),
    ({"auth": {"mode": "oidc"}}, "auth.mode: oidc needs auth.oidc.issuer; give it, or set auth.mode to another"),
    ({"auth": {"mode": "tokens"}}, "auth.mode: tokens needs auth.tokens.existingSecret"),
    ({"auth": {"mode": "proxy"}}, "auth.mode: proxy needs auth.proxy.existingSecret or auth.proxy.networks"),
    (
        {"auth": {"oidc": {"issuer": "https://id.example.com"}}},
        "auth.oidc.issuer: it is of auth.mode oidc, which is token; set auth.mode to oidc, or leave it empty",
    ),
    (
        {"auth": {"mode": "proxy", "proxy": {"networks": ["proxy.example.com"]}}},
        "auth.proxy.networks: got proxy.example.com; allowed: networks such as 10.0.0.0/24",
    ),
    (
        {"auth": {"mode": "oidc", "oidc": {"issuer": "https://a", "groups": ["a,b"]}}},
        "auth.oidc.groups: got a,b; allowed: names of groups without spaces and commas",
    ),
    ({"auth": {"mode": "none"}}, "choose another mode, or say auth.openToAnyone=true"),
    ({"auth": {"openToAnyone": True}}, "auth.openToAnyone: it is of auth.mode none, which is token; set it to false"),
    (
        {"auth": {"mode": "none", "openToAnyone": True, "existingSecret": "access"}},
        "auth.existingSecret: got access with auth.mode none, where no token is asked for; leave it empty",
    ),
    ({"monitor": {"enabled": True}}, "put it into a Secret and name that in auth.existingSecret"),
    ({"service": {"nodePort": 30_080}}, "allowed: service.type NodePort or LoadBalancer"),
    ({"runs": {"namespaces": ["Team_A"]}}, "runs.namespaces: got Team_A; allowed: names of namespaces: at most 63"),
    ({"dnsPolicy": "None"}, "dnsPolicy: None needs dnsConfig.nameservers"),
]


@pytest.mark.parametrize(("values", "sentence"), SCHEMA, ids=lambda value: value if isinstance(value, str) else "")
def test_values_that_cannot_be_are_refused_by_name(values: Values, sentence: str) -> None:
    assert sentence in refusal(values)


@pytest.mark.parametrize(
    ("values", "sentence"), [*RULES, *CONTRADICTIONS], ids=lambda value: value if isinstance(value, str) else ""
)
def test_values_that_contradict_each_other_are_refused_with_the_mend(values: Values, sentence: str) -> None:
    assert sentence in refusal(values)


def test_values_schema_and_readme_are_what_their_source_says() -> None:
    assert {path: (ROOT / path).read_text("utf-8") for path in chart.texts()} == chart.texts()


def test_every_value_is_described_and_stands_in_values_yaml() -> None:
    tree = chart.source()
    written = yaml.safe_load((ROOT / chart.VALUES).read_text("utf-8"))
    for path, node, _ in chart.leaves(tree):
        assert re.fullmatch(r"[A-Z0-9`].*[.:]", node["description"]), f"{path}: no sentence"
        assert path.startswith("settings.") or _at(written, path) == node["default"], path


def test_schema_takes_no_key_that_has_no_place() -> None:
    for node in _objects(json.loads((ROOT / chart.SCHEMA).read_text("utf-8"))):
        if "properties" in node:
            closed = node["additionalProperties"]
            assert closed is False or "there is no such key" in closed["const"], node["description"]


def test_defaults_and_cases_are_valid_by_the_schema() -> None:
    validator = jsonschema_rs.validator_for(json.loads((ROOT / chart.SCHEMA).read_text("utf-8")))
    validator.validate(yaml.safe_load((CHART / "values.yaml").read_text("utf-8")))
    for case in CASES:
        values = yaml.safe_load(case.read_text("utf-8"))
        values.get("podSecurityContext", {}).clear()  # null takes a default away: Helm's way, not the schema's
        validator.validate(values)


def test_a_stale_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (tmp_path / chart.CHART).mkdir(parents=True)
    (tmp_path / chart.RULES).parent.mkdir()
    for path in (chart.SOURCE, chart.README):
        (tmp_path / path).write_text((ROOT / path).read_text("utf-8"), "utf-8")
    (tmp_path / chart.VALUES).write_text("old\n", "utf-8")
    monkeypatch.setattr(chart, "ROOT", tmp_path)
    assert chart.main(["--check"]) == 1
    assert "helm/teragpt/values.yaml is stale" in capsys.readouterr().err
    assert chart.main(["--write"]) == 0
    assert chart.main(["--check"]) == 0
    assert chart.main([]) == 2


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values


def _objects(node: Any) -> list[dict[str, Any]]:
    inside = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return ([node] if isinstance(node, dict) else []) + [each for part in inside for each in _objects(part)]
