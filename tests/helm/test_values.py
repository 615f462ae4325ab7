"""Values that are refused, each by its name and with a sentence that says the mend; and where values come from."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema_rs
import pytest
import yaml

from controlplane.options import SettingsError
from controlplane.settings import leaves
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
    ({"networkPolicy": {"apiServerPorts": []}}, "at '/networkPolicy/apiServerPorts': minItems: got 0, want 1"),
]
WRONG = """# values that cannot be, each beside others
replicas: null
global: {imageRegistry: "https://r.example.com"}
image: {repository: "teragpt/controlplane:1", tag: a b, digest: "sha256:abc", registry: "https://r.example.com"}
trainer: {image: null}
imagePullSecrets: [My Secret]
nameOverride: größe
fullnameOverride: TeraGPT
commonLabels: {team: größe, "bad key": x, app.kubernetes.io/name: x}
podAnnotations: {a/b/c: x}
nodeSelector: {gpu: true}
tolerations: [{keys: gpu}]
affinity: {nodeAfinity: {}}
resources: {limit: {}, requests: {cpu: "-1", memory: 1GB}}
podSecurityContext: {runAsUser: "10001"}
securityContext: {readonlyRootFilesystem: true}
priorityClassName: High Priority
dnsConfig: {nameserver: [1.1.1.1]}
extraEnv: [{name: A B, value: x}, {name: A, value: 1}, {name: B, vale: x}]
extraVolumes: [{name: A_B, emptyDir: {}}, {name: a, secrt: {}}]
extraVolumeMounts: [{name: a, mountPath: x}]
sidecars: [{name: a, image: b, commmand: [c]}]
service: {loadBalancerSourceRanges: [everywhere]}
ingress: {hosts: ["https://a.example.com"], path: api, pathType: Exact, tls: [{secret: x}]}
httpRoute: {parentRefs: [{name: public, namespce: x}]}
networkPolicy: {ingressFrom: [{namespaceSelecor: {}}], egress: [{too: []}]}
monitor: {interval: often, scrapeTimeout: 0s}
podDisruptionBudget: {maxUnavailable: half}
publicUrl: teragpt.example.com
settings: {gpuQuotas: "a:1"}
store: {existingClaim: My Claim, size: "", accessModes: [ReadWriteOncePod, ReadWriteOnce], storageClass: Fast Disk}
database: {existingSecret: "postgresql://user@host/database"}
auth: {existingSecretKey: a/b, oidc: {issuer: "http://id.example.com"}, proxy: {networks: [proxy.example.com]}}
runs:
  namespace: Team_A
  namespaces: [Team_A]
  storage: {uri: /mnt/models, size: 10 GB}
  defaults: {compute: {nodeselector: {}, tolerations: [{key: 1}]}, env: [{name: A, vale: x}]}
test: {spec: {sise: tiny, compute: {nodes: two}}}
"""
TOLD = (  # of each of them, by its key
    ("", "missing property 'replicas'"),
    ("", "value must be 'whole: null takes a default away; leave the key out to keep it'"),
    ("global/imageRegistry", "value must be 'a registry such as registry.example.com:5000, without https://'"),
    (
        "image/repository",
        "value must be 'an image\\'s name in lower case, without its tag, which has a value of its own'",
    ),
    ("image/tag", "value must be 'an image\\'s tag: at most 128 letters, digits, dots, dashes and underscores'"),
    ("image/digest", "value must be 'sha256: and 64 hexadecimal digits"),
    ("image/registry", "value must be 'a registry such as"),
    ("trainer", "missing property 'image'"),
    ("imagePullSecrets/0", "value must be 'the name of a Secret: lower-case letters, digits, dots and dashes'"),
    ("nameOverride", "value must be 'a name: at most 40 lower-case letters"),
    ("fullnameOverride", "value must be 'a name: at most 40 lower-case letters"),
    ("commonLabels/team", "value must be 'a label\\'s value: at most 63 letters"),
    ("commonLabels/bad key", "value must be 'left out, since it is no label\\'s name"),
    ("commonLabels/app.kubernetes.io~1name", "value must be 'left out, since the chart sets this label itself'"),
    ("podAnnotations/a~1b~1c", "value must be 'left out, since it is no annotation\\'s name"),
    ("nodeSelector/gpu", "got boolean, want string"),
    ("tolerations/0/keys", f"{ABSENT}: effect, key, operator, tolerationSeconds, value'"),
    ("affinity/nodeAfinity", f"{ABSENT}: nodeAffinity, podAffinity, podAntiAffinity'"),
    ("resources/limit", f"{ABSENT}: claims, limits, requests'"),
    ("resources/requests/cpu", "value must be 'a quantity of Kubernetes, as 100Gi'"),
    ("resources/requests/memory", "value must be 'a quantity of Kubernetes, as 100Gi'"),
    ("podSecurityContext/runAsUser", "got string, want null or integer"),
    ("securityContext/readonlyRootFilesystem", ABSENT),
    ("priorityClassName", "value must be 'the name of an object: lower-case letters"),
    ("dnsConfig/nameserver", f"{ABSENT}: nameservers, options, searches'"),
    ("extraEnv/0/name", "value must be 'a variable\\'s name: letters, digits"),
    ("extraEnv/1/value", "got number, want null or string"),
    ("extraEnv/2/vale", f"{ABSENT}: name, value, valueFrom'"),
    ("extraVolumes/0/name", "value must be 'a volume\\'s name: at most 63 lower-case letters"),
    ("extraVolumes/1/secrt", f"{ABSENT}: awsElasticBlockStore"),
    ("extraVolumeMounts/0/mountPath", "value must be 'a path that begins with /'"),
    ("sidecars/0/commmand", f"{ABSENT}: args, command, env"),
    ("service/loadBalancerSourceRanges/0", "value must be 'networks such as 10.0.0.0/24'"),
    ("ingress/hosts/0", "value must be 'a host\\'s name in lower case such as teragpt.example.com, without https://"),
    ("ingress/path", "value must be 'a path that begins with /'"),
    ("ingress/pathType", "value must be one of 'Prefix', 'ImplementationSpecific'"),
    ("ingress/tls/0/secret", f"{ABSENT}: hosts, secretName'"),
    ("httpRoute/parentRefs/0/namespce", f"{ABSENT}: group, kind, namespace, name"),
    ("networkPolicy/ingressFrom/0/namespaceSelecor", f"{ABSENT}: ipBlock, namespaceSelector, podSelector'"),
    ("networkPolicy/egress/0/too", f"{ABSENT}: ports, to'"),
    ("monitor/interval", "value must be 'a duration such as 30s'"),
    ("monitor/scrapeTimeout", "value must be 'a duration such as 30s'"),
    ("podDisruptionBudget/maxUnavailable", "value must be 'a number of replicas, or a percentage such as 50%'"),
    ("publicUrl", "value must be 'a URL that begins with http:// or https://, without a query'"),
    ("settings/gpuQuotas", "value must be 'namespaces and their GPUs, such as team-a=8,team-b=16'"),
    ("store/existingClaim", "value must be 'the name of a PersistentVolumeClaim"),
    ("store/size", "value must be 'a quantity of Kubernetes, as 100Gi'"),
    ("store/accessModes", "value must be 'ReadWriteOncePod alone, or the others without it'"),
    ("store/storageClass", "value must be 'the name of a StorageClass"),
    ("database/existingSecret", "value must be 'the name of an object"),
    ("auth/existingSecretKey", "value must be 'a key of a Secret"),
    ("auth/oidc/issuer", "value must be 'a URL that begins with https://, without a query'"),
    ("auth/proxy/networks/0", "value must be 'networks such as 10.0.0.0/24'"),
    ("runs/namespace", "value must be 'the name of a namespace: at most 63"),
    ("runs/namespaces/0", "value must be 'names of namespaces: at most 63"),
    ("runs/storage/uri", "value must be 'pvc://CLAIM/PATH, or an object store\\'s URL such as s3://bucket/prefix'"),
    ("runs/storage/size", "value must be 'a quantity of Kubernetes, as 100Gi'"),
    ("runs/defaults/compute/nodeselector", f"{ABSENT}: gpu, gpu_numbers"),
    ("runs/defaults/compute/tolerations/0/key", "got number, want string"),
    ("runs/defaults/env/0/vale", f"{ABSENT}: name, value, secret_ref'"),
    ("test/spec/sise", f"{ABSENT}: size, name, compute, "),
    ("test/spec/compute/nodes", "got string, want integer"),
)
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
        "TERAGPT_POLL_S is TeraGPT's own; use the value that stands for it (database, auth",
    ),
    (
        {"runs": {"storage": {"uri": "s3://b", "existingClaim": "c"}}},
        "uri (s3://b) and existingClaim (c) both say where runs write; give one of them",
    ),
    ({"runs": {"storage": {"uri": "pvc://My_Claim"}}}, "got pvc://My_Claim; allowed: pvc://CLAIM/PATH"),
    ({"runs": {"storage": {"uri": "file:///runs"}}}, "runs.storage.uri: got file:///runs, which no other pod can see"),
    ({"ingress": {"enabled": True}}, "ingress.hosts is empty; name at least one host"),
    ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs is empty; name the Gateway"),
    ({"auth": {"mode": "oidc"}}, "auth.mode: oidc needs auth.oidc.issuer; give it, or set auth.mode to another"),
    ({"auth": {"mode": "tokens"}}, "auth.mode: tokens needs auth.tokens.existingSecret"),
    ({"auth": {"mode": "proxy"}}, "auth.mode: proxy needs auth.proxy.existingSecret or auth.proxy.networks"),
    ({"auth": {"mode": "none"}}, "choose another mode, or say auth.openToAnyone=true"),
    ({"auth": {"openToAnyone": True}}, "auth.openToAnyone: it is of auth.mode none, which is token; set it to false"),
    (
        {"auth": {"mode": "none", "openToAnyone": True, "existingSecret": "access"}},
        "auth.existingSecret: got access with auth.mode none, where no token is asked for; leave it empty",
    ),
    ({"monitor": {"enabled": True}}, "put it into a Secret and name that in auth.existingSecret"),
    ({"service": {"nodePort": 30_080}}, "allowed: service.type NodePort or LoadBalancer"),
    ({"dnsPolicy": "None", "dnsConfig": {"searches": ["a"]}}, "dnsPolicy: None needs dnsConfig.nameservers"),
    ({"extraEnv": [{"name": "A", "value": "1"}] * 2}, "extraEnv: A stands there twice; leave one of them out"),
    (
        {"extraEnv": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
        "extraEnv: A has value and valueFrom; give one of them",
    ),
    (
        {"extraEnv": [{"name": "TERAGPT_DATABASE_URL", "value": "x"}]},
        "use the value that stands for it (database, auth",
    ),
    ({"runs": {"defaults": {"env": [{"name": "RANK", "value": "1"}]}}}, "TeraGPT sets RANK itself in every pod; leave"),
    ({"runs": {"defaults": {"env": [{"name": "A"}]}}}, "runs.defaults.env: A needs value or secret_ref; give exactly"),
    ({"runs": {"defaults": {"env": [{"name": "A", "value": ""}] * 2}}}, "runs.defaults.env: A stands there twice"),
    ({"extraVolumes": [{"name": "data", "emptyDir": {}}]}, "extraVolumes: data is a volume of the chart's own; give"),
    ({"extraVolumes": [{"name": "a", "emptyDir": {}}] * 2}, "extraVolumes: a stands there twice; leave one of them"),
    (
        {"extraVolumeMounts": [{"name": "tmp", "mountPath": "/data/"}]},
        "extraVolumeMounts: /data/ would hide what the control plane has there; mount tmp elsewhere",
    ),
    ({"extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}]}, "there is no volume ca; add it to extraVolumes, or"),
    ({"extraVolumeMounts": [{"name": "tmp", "mountPath": "/x"}] * 2}, "extraVolumeMounts: /x stands there twice"),
    ({"sidecars": [{"name": "controlplane", "image": "x"}]}, "sidecars: a container controlplane is there already"),
    (
        {"sidecars": [{"name": "a", "image": "x", "ports": [{"containerPort": 8000}]}]},
        "sidecars: port 8000, named http, is the control plane's; choose another number and name",
    ),
    ({"podSecurityContext": {"runAsUser": 0}}, "runAsUser 0 is root, and runAsNonRoot is true; choose another number"),
    (
        {
            "replicas": 2,
            "database": {"existingSecret": "db"},
            "auth": {"existingSecret": "a"},
            "podDisruptionBudget": {"enabled": True, "maxUnavailable": 2},
        },
        "podDisruptionBudget.maxUnavailable: got 2 with replicas 2, which keeps none; set it to less",
    ),
    (
        {"store": {"accessModes": ["ReadWriteOncePod"]}},
        "cannot read the token on that volume; put one into a Secret and name that in auth.existingSecret, or set",
    ),
    ({"settings": {"logKeepBytes": 1}}, "settings.logKeepBytes: got 1; allowed: 0, or at least settings.logPieceBytes"),
    ({"settings": {"gpuQuotas": "a=1,a=2"}}, "settings.gpuQuotas: got a=1,a=2; allowed: each namespace once"),
    ({"service": {"externalTrafficPolicy": "Local"}}, "got Local with service.type ClusterIP; allowed: service.type"),
    (
        {"service": {"loadBalancerClass": "x"}},
        "service.loadBalancerClass: it is of service.type LoadBalancer, which is",
    ),
    ({"service": {"ipFamilies": ["IPv4", "IPv6"]}}, "two need service.ipFamilyPolicy PreferDualStack or RequireDual"),
    (
        {"monitor": {"enabled": True, "interval": "5s"}, "auth": {"existingSecret": "a"}},
        "monitor.scrapeTimeout: got 10s with monitor.interval 5s; allowed: at most that",
    ),
]


TEXTS = {  # values that are settings of the control plane as they stand
    "runs.namespace": "TERAGPT_NAMESPACE",
    "runs.namespaces": "TERAGPT_NAMESPACE",
    "runs.queue": "TERAGPT_QUEUE",
    "publicUrl": "TERAGPT_PUBLIC_URL",
    "settings.gpuQuotas": "TERAGPT_GPU_QUOTAS",
    "auth.audience": "TERAGPT_AUDIENCE",
    "auth.oidc.issuer": "TERAGPT_OIDC_ISSUER",
    "auth.oidc.audience": "TERAGPT_OIDC_AUDIENCE",
    "auth.oidc.userClaim": "TERAGPT_OIDC_USER_CLAIM",
    "auth.oidc.groups": "TERAGPT_OIDC_GROUPS",
    "auth.proxy.networks": "TERAGPT_PROXY_NETWORKS",
    "auth.proxy.userHeader": "TERAGPT_PROXY_USER_HEADER",
    "ingress.hosts": "TERAGPT_ALLOWED_HOSTS",
    "runs.storage.uri": "TERAGPT_STORAGE",
}
WORDS = (
    *("a", "team-a", "a b", "a,b", "A", "größe", "-a", "a.b", "x" * 64, "a\tb", " ", "a=1", "a=1,b=2", "a:1", "a=-1"),
    *("https://a.example.com", "http://a.example.com", "https://", "https://a b", "https://a?b=c", "a.example.com:80"),
    *("10.0.0.0/8", "fd00::/64", "10.0.0.1/99", "999.0.0.0/8", "1.2.3", "pvc://a", "pvc://a b", "s3://a/b", "X-User"),
)


@pytest.mark.parametrize(("values", "sentence"), SCHEMA, ids=lambda value: value if isinstance(value, str) else "")
def test_values_that_cannot_be_are_refused_by_name(values: Values, sentence: str) -> None:
    assert sentence in refusal(values)


def test_every_wrong_value_of_a_file_is_told_by_its_key_with_what_it_may_be() -> None:
    said = refusal(yaml.safe_load(WRONG))
    missing = [key for key, sentence in TOLD if f"at '{key and '/'}{key}': {sentence}" not in said]
    assert not missing, said


def test_settings_are_bounded_as_the_control_plane_reads_them() -> None:
    readers = {re.sub(r"_(\w)", lambda found: found[1].upper(), leaf.field.name): leaf for leaf in leaves()}
    told = chart.source()["properties"]["settings"]["properties"]
    for name, node in told.items():
        for bound, step in (("minimum", -1), ("maximum", 1)):
            if "type" in node and node["type"] != "string":
                readers[name].read(str(node[bound]), name)
                with pytest.raises(SettingsError):
                    readers[name].read(str(node[bound] + step), name)


def test_what_the_schema_takes_of_texts_the_control_plane_takes_too() -> None:
    validator = jsonschema_rs.validator_for(json.loads((ROOT / chart.SCHEMA).read_text("utf-8")))
    whole = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    readers = {leaf.variable: leaf for leaf in leaves()}
    taken = set()
    for path, variable in TEXTS.items():
        *sections, name = path.split(".")
        node = copy.deepcopy(whole)
        section = _at(node, ".".join(sections)) if sections else node
        if sections[:1] == ["auth"]:
            node["auth"]["mode"] = (*sections, "token")[1]
        many = isinstance(section.get(name), list)
        for word in WORDS:
            section[name] = [word] if many else word
            if validator.is_valid(node):
                readers[variable].read(word, path)
                taken.add(path)
    assert taken == TEXTS.keys()


@pytest.mark.parametrize(
    ("values", "sentence"), CONTRADICTIONS, ids=lambda value: value if isinstance(value, str) else ""
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
        if isinstance(node.get("properties"), dict) and node.get("additionalProperties") is not True:
            assert "there is no such key" in node["additionalProperties"]["const"], node.get("description")


def test_defaults_and_cases_are_valid_by_the_schema() -> None:
    validator = jsonschema_rs.validator_for(json.loads((ROOT / chart.SCHEMA).read_text("utf-8")))
    whole = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    validator.validate(whole)
    for case in CASES:
        validator.validate(_merged(whole, yaml.safe_load(case.read_text("utf-8"))))


def test_a_stale_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (tmp_path / chart.CHART).mkdir(parents=True)
    for path in (chart.SOURCE, chart.README):
        (tmp_path / path).write_text((ROOT / path).read_text("utf-8"), "utf-8")
    (tmp_path / chart.VALUES).write_text("old\n", "utf-8")
    monkeypatch.setattr(chart, "ROOT", tmp_path)
    assert chart.main(["--check"]) == 1
    assert "helm/teragpt/values.yaml is stale" in capsys.readouterr().err
    assert chart.main(["--write"]) == 0
    assert chart.main(["--check"]) == 0
    assert chart.main([]) == 2


def _merged(under: Any, values: Any) -> Any:
    """Values over others as Helm lays them: null takes a default away."""
    if not (isinstance(under, dict) and isinstance(values, dict)):
        return values
    every = {name: _merged(under.get(name), value) for name, value in values.items()}
    return {name: value for name, value in (under | every).items() if value is not None}


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values


def _objects(node: Any) -> list[dict[str, Any]]:
    beside = (part for key, part in node.items() if key != "allOf") if isinstance(node, dict) else node
    inside = beside if isinstance(node, dict | list) else []
    return ([node] if isinstance(node, dict) else []) + [each for part in inside for each in _objects(part)]
