"""What a release is made of."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from controlplane.clusters.base import Capacity
from controlplane.domain.defaults import parse_defaults
from controlplane.domain.resolve import lay_out
from controlplane.domain.spec import parse_spec
from controlplane.render import render
from controlplane.settings import leaves
from controlplane.submission import attempt_of
from tests.helm.rendered import CASES, CHART, CRDS, Manifest, Values, environment, helm, notes, objects, one, pods, text

CASE = pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
TWO = pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=lambda path: path.stem)
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret", "downwardAPI", "csi", "ephemeral"}
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # a Service's: the strictest of all
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
RELEASE = re.compile(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?){0,2}")  # Helm's rule
LONGEST_RELEASE = 53


def values(case: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(case.read_text("utf-8"))
    return loaded


def by_name(manifest: Manifest) -> tuple[str, str, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


def rules(role: Manifest) -> dict[str, set[str]]:
    return {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}


def test_lint_finds_nothing() -> None:
    answer = helm("lint", "--strict", "--quiet", str(CHART))
    assert answer.returncode == 0, answer.stdout + answer.stderr


@TWO
def test_helm_4_renders_what_helm_3_does(case: Path) -> None:
    answer = helm("template", "teragpt", str(CHART), "--namespace=ml", "--values", str(case), program="helm4")
    assert answer.returncode == 0, answer.stderr
    mine = {by_name(each): each for each in yaml.safe_load_all(answer.stdout) if each}
    assert mine == {by_name(each): each for each in objects(values(case))}


def test_package_holds_what_a_release_needs_and_no_source(tmp_path: Path) -> None:
    answer = helm("package", str(CHART), "--destination", str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    archive = next(tmp_path.glob("*.tgz"))
    with tarfile.open(archive) as files:
        assert "teragpt/schema.yaml" not in files.getnames()
    assert helm("template", "teragpt", str(archive), "--namespace", "ml").stdout == text()


@TWO
def test_the_same_values_give_the_same_bytes(case: Path) -> None:
    again = helm("template", "teragpt", str(CHART), "--namespace", "ml", "--values", str(case))
    assert again.stdout == text(values(case))


@CASE
def test_no_two_objects_share_a_name_and_each_is_labelled(case: Path) -> None:
    made = objects(values(case))
    assert len({by_name(each) for each in made}) == len(made)
    for each in made:
        if each["metadata"]["name"] == "teragpt-more":  # the user's own
            continue
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "teragpt"
        assert each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


@CASE
def test_every_pod_is_within_the_restricted_security_level(case: Path) -> None:
    for pod in pods(objects(values(case), "--is-upgrade")):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not context.get("privileged")
        assert all(volume.keys() - {"name"} <= VOLUMES for volume in pod.get("volumes", []))


@CASE
def test_our_containers_have_a_read_only_root_and_bounds(case: Path) -> None:
    for pod in pods(objects(values(case), "--is-upgrade")):
        assert pod["enableServiceLinks"] is False
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            if container["name"] in {"wait", "proxy"}:  # the user's own
                continue
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


@CASE
def test_no_secret_is_made_and_none_stands_in_a_value(case: Path) -> None:
    made = objects(values(case))
    assert not [each for each in made if each["kind"] == "Secret"]
    assert "randAlphaNum" not in "".join(path.read_text("utf-8") for path in (CHART / "templates").rglob("*.*"))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.from_regex(RELEASE, fullmatch=True).filter(lambda name: len(name) <= LONGEST_RELEASE))
@example("a" * LONGEST_RELEASE)
@example("teragpt-" + "b" * 45)
@example("dash-" * 10 + "x")
@example("9.lives")
def test_names_fit_whatever_the_release_is_called(release: str) -> None:
    everything = {
        "dashboard": {"enabled": True},
        "networkPolicy": {"enabled": True, "runs": {"enabled": True}},
        "ingress": {"enabled": True, "hosts": ["a.example.com"]},
    }
    for each in objects(everything, release=release):
        name = each["metadata"]["name"].rpartition(":")[2]
        assert NAME.fullmatch(name), name
        assert all(LABEL.fullmatch(str(label)) for label in each["metadata"]["labels"].values())


def test_releases_whose_long_names_begin_alike_share_nothing() -> None:
    first, second = ({by_name(each) for each in objects(release="a" * 50 + end)} for end in ("-x", "-y"))
    assert not first & second


def test_releases_of_one_name_in_two_namespaces_share_nothing() -> None:
    first, second = ({by_name(each) for each in objects(namespace=namespace)} for namespace in ("a", "b"))
    assert not first & second


def test_two_releases_in_one_namespace_share_nothing_and_select_their_own_pods() -> None:
    everything = {
        "networkPolicy": {"enabled": True, "runs": {"enabled": True}},
        "rbac": {"nodes": True},
        "replicas": 2,
        "database": {"existingSecret": "database"},
        "auth": {"existingSecret": "access"},
        "podDisruptionBudget": {"enabled": True},
        "monitor": {"enabled": True},
        "dashboard": {"enabled": True},
    }
    first, second = (objects(everything, release=release) for release in ("teragpt", "second"))
    assert not {by_name(each) for each in first} & {by_name(each) for each in second}
    for mine, other in ((first, second), (second, first)):
        others = next(each for each in other if each["kind"] == "Deployment")["spec"]["template"]["metadata"]["labels"]
        selectors = [*_selectors([each for each in mine if each["kind"] != "Pod"])]
        assert len(selectors) >= 4
        assert not [selector for selector in selectors if selector.items() <= others.items()]


def _selectors(node: Any) -> Iterator[dict[str, str]]:
    """Every selector of pods by labels that stands anywhere in these objects."""
    parts = node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ())
    for key, part in parts:
        plain = key == "selector" and not {"matchLabels", "matchExpressions"} & part.keys()
        if plain or (key == "matchLabels" and "kubernetes.io/metadata.name" not in part):
            yield part
        else:
            yield from _selectors(part)


def test_bare_defaults_make_one_replica_on_a_claim_with_a_role_in_one_namespace() -> None:
    made = {by_name(each) for each in objects()}
    assert made == {
        ("ServiceAccount", "ml", "teragpt"),
        ("PersistentVolumeClaim", "ml", "teragpt-store"),
        ("PersistentVolumeClaim", "ml", "teragpt-runs"),
        ("Role", "ml", "teragpt"),
        ("RoleBinding", "ml", "teragpt"),
        ("Service", "ml", "teragpt-api"),
        ("Deployment", "ml", "teragpt"),
        ("ConfigMap", "ml", "teragpt-test"),
        ("Pod", "ml", "teragpt-test"),
    }
    deployment = one("Deployment")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}, "two pods cannot hold the store"


def test_the_role_holds_objects_of_runs_and_reads_the_rest() -> None:
    held = rules(one("Role"))
    assert held["jobs"] == held["pytorchjobs"] == held["trainjobs"] == {"create", "get", "list", "watch", "delete"}
    assert held["events"] == held["workloads"] == {"list", "watch"}
    assert held["pods"] == {"list", "watch", "delete"}
    assert held["pods/log"] == held["persistentvolumeclaims"] == {"get"}
    assert not held.keys() & {"secrets", "pods/exec", "configmaps", "roles", "*"}


@pytest.mark.parametrize(
    ("kind", "there"),
    [("PyTorchJob", {"pytorchjobs"}), ("TrainJob", {"trainjobs", "trainingruntimes"}), ("Job", {"jobs", "services"})],
)
def test_a_kind_that_is_given_narrows_the_role(kind: str, there: set[str]) -> None:
    every = {"pytorchjobs", "trainjobs", "trainingruntimes", "jobs", "services"}
    assert rules(one("Role", {"runs": {"kind": kind}})).keys() & every == there


def test_nothing_outside_of_a_namespace_unless_a_value_asks_for_it() -> None:
    for case in CASES:
        given = values(case)
        rbac, mode = given.get("rbac", {}), given.get("auth", {}).get("mode")
        asked = rbac.get("tokenReviews") or rbac.get("nodes") or mode == "kubernetes"
        made = [each for each in objects(given) if each["metadata"]["name"] != "teragpt-more"]  # the user's own
        wide = {each["kind"] for each in made if "namespace" not in each["metadata"]}
        assert wide == ({"ClusterRole", "ClusterRoleBinding"} if asked else set()), case.stem


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"rbac": {"tokenReviews": True}}, {"tokenreviews": {"create"}}),
        ({"rbac": {"nodes": True}}, {"nodes": {"list"}}),
        (
            {"rbac": {"nodes": True, "tokenReviews": True}, "auth": {"mode": "kubernetes"}},
            {"tokenreviews": {"create"}, "subjectaccessreviews": {"create"}, "nodes": {"list"}},
        ),
    ],
    ids=["reviews", "nodes", "all"],
)
def test_the_cluster_role_holds_what_was_asked_for(given: Values, held: dict[str, set[str]]) -> None:
    assert rules(one("ClusterRole", given)) == held


def test_users_are_let_in_by_their_rights_only_where_it_was_asked_for() -> None:
    case = {"auth": {"mode": "kubernetes"}}  # also with the values of before: then rbac.tokenReviews was the default
    assert rules(one("ClusterRole", case)) == {"tokenreviews": {"create"}, "subjectaccessreviews": {"create"}}
    assert environment(case)["TERAGPT_AUTH"] == "kubernetes"


def test_users_of_an_issuer_are_let_in_by_its_rules() -> None:
    given = environment(case_of("oidc"))
    told = {name.removeprefix("TERAGPT_OIDC_"): value for name, value in given.items() if "OIDC" in name}
    assert told == {
        "ISSUER": "https://id.example.com/realms/lab/",
        "AUDIENCE": "teragpt-cli",
        "USER_CLAIM": "email",
        "GROUPS_CLAIM": "groups",
        "GROUPS": "lm,ops",
        "ALGORITHMS": "RS256",
        "CLOCK_SKEW_S": "60",
    }
    out = one("NetworkPolicy", case_of("oidc"))["spec"]["egress"]
    assert [port["port"] for rule in out for port in rule["ports"]] == [53, 53, 6443, 8443]


@pytest.mark.parametrize(
    ("name", "secret", "file"), [("tokens", "teragpt-users", "tokens"), ("proxy", "teragpt-proxy", "secret")]
)
def test_what_users_are_known_by_comes_from_a_secret(name: str, secret: str, file: str) -> None:
    pod = one("Deployment", case_of(name))["spec"]["template"]["spec"]
    (volume,) = (each["secret"] for each in pod["volumes"] if each["name"] == "access")
    assert volume == {"secretName": secret, "items": [{"key": file, "path": file}]}
    mounts = pod["containers"][0]["volumeMounts"]
    assert {"name": "access", "mountPath": "/run/access", "readOnly": True} in mounts
    assert f"/run/access/{file}" in environment(case_of(name)).values()


def test_an_open_control_plane_knows_its_names_and_asks_nobody_for_a_token() -> None:
    case = case_of("open")
    assert environment(case)["TERAGPT_ALLOWED_HOSTS"] == (
        "teragpt-api,teragpt-api.ml,teragpt-api.ml.svc,teragpt-api.ml.svc.cluster.local,teragpt.example.com"
    )
    assert "authorization" not in one("ServiceMonitor", case)["spec"]["endpoints"][0]
    test = one("Pod", case)["spec"]
    assert "affinity" not in test
    assert {"name": "token", "emptyDir": {"sizeLimit": "1Mi"}} in test["volumes"]


def case_of(name: str) -> dict[str, Any]:
    return values(next(path for path in CASES if path.stem == name))


def test_every_container_has_the_limits_that_a_quota_may_ask_of_all() -> None:
    both = {"limits": {"cpu": "500m", "memory": "512Mi"}}
    given = {"auth": {"existingSecret": "a"}, "resources": both, "test": {"resources": both}}
    made = [*pods(objects(given, "--is-upgrade"))]
    every = [each for pod in made for each in (*pod.get("initContainers", ()), *pod["containers"])]
    assert len(every) == 4
    for container in every:
        assert container["resources"]["limits"] == both["limits"], container["name"]


def test_runs_in_another_namespace_have_role_and_claim_there() -> None:
    given = {"runs": {"namespace": "training"}}
    made = {by_name(each) for each in objects(given)}
    assert {("Role", "training", "teragpt"), ("RoleBinding", "training", "teragpt")} <= made
    assert ("PersistentVolumeClaim", "training", "teragpt-runs") in made
    assert ("Deployment", "ml", "teragpt") in made
    assert one("RoleBinding", given)["subjects"][0]["namespace"] == "ml"
    assert environment(given)["TERAGPT_NAMESPACE"] == "training"


def test_every_namespace_of_runs_has_role_binding_claim_and_fence() -> None:
    case = values(next(path for path in CASES if path.stem == "namespaces"))
    made = {by_name(each) for each in objects(case)}
    for namespace in ("training", "team-a", "team-b"):
        for kind, name in (
            *(("Role", "teragpt"), ("RoleBinding", "teragpt")),
            *(("PersistentVolumeClaim", "teragpt-runs"), ("NetworkPolicy", "teragpt-runs")),
        ):
            assert (kind, namespace, name) in made
    assert not [each for each in made if each[0] == "Role" and each[1] == "ml"]
    assert environment(case)["TERAGPT_NAMESPACE"] == "training,team-a,team-b"
    peers = one("NetworkPolicy", case, name="teragpt")["spec"]["ingress"][0]["from"]
    named = [each["namespaceSelector"]["matchLabels"] for each in peers if "namespaceSelector" in each]
    assert [labels["kubernetes.io/metadata.name"] for labels in named] == ["training", "team-a", "team-b"]


def test_a_namespace_that_is_named_twice_is_one() -> None:
    case = {"runs": {"namespace": "training", "namespaces": ["training", "ml"]}}
    assert environment(case)["TERAGPT_NAMESPACE"] == "training,ml"
    assert len({by_name(each) for each in objects(case)}) == len(objects(case))


def test_process_is_told_where_runs_go() -> None:
    assert environment() == {
        "TERAGPT_CLUSTER": "kubernetes",
        "TERAGPT_NAMESPACE": "ml",
        "TERAGPT_KIND": "auto",
        "TERAGPT_IMAGE": "teragpt/trainer:0.1.0",
        "TERAGPT_STORAGE": "pvc://teragpt-runs",
        "TERAGPT_PUBLIC_URL": "http://teragpt-api.ml.svc:8000",
        "TERAGPT_AUDIENCE": "teragpt",
        "TERAGPT_HOME": "/data",
        "TERAGPT_HOST": "0.0.0.0",
        "TERAGPT_PORT": "8000",
    }


def test_every_setting_of_the_control_plane_has_its_value() -> None:
    names = {leaf.field.name: leaf.variable for leaf in leaves()}
    own = {  # the pod has an account; every caller needs the token anyhow; each replica does everything
        *("TERAGPT_KUBECONFIG", "TERAGPT_REQUIRE_TOKEN", "TERAGPT_ROLE"),
        "TERAGPT_JSON",  # of what a terminal is told
        *("TERAGPT_DATABASE_URL", "TERAGPT_DATABASE_URL_FILE"),  # from a Secret
    }
    camel = {re.sub(r"_(\w)", lambda found: found[1].upper(), name) for name in names}
    schema = yaml.safe_load((CHART / "schema.yaml").read_text("utf-8"))["properties"]["settings"]["properties"]
    assert schema.keys() <= camel, "values that are no settings"
    defaults = {"labels": {"team": "lm"}}
    numbers = {name: node.get("maximum") for name, node in schema.items()}
    chosen = {
        "settings": numbers | {"logLevel": "debug", "gpuQuotas": "team-a=8,team-b=16"},
        "runs": {"queue": "q", "defaults": defaults},
        "database": {"existingSecret": "database"},
        "auth": {"existingSecret": "access"},
        "notifications": {"existingSecret": "destinations"},
        "clusters": {"existingSecret": "clusters"},
    }
    given = environment(chosen)
    for mode in ("oidc", "tokens", "proxy", "open"):
        given |= environment(case_of(mode))
    missing = set(names.values()) - own - given.keys()
    assert not missing, "settings that no value reaches"
    assert given.keys() <= set(names.values()), "variables that the control plane does not read"


@CASE
def test_the_control_plane_takes_its_environment(case: Path, tmp_path: Path) -> None:
    from controlplane.settings import build

    given = environment(values(case))
    files = {"NOTIFICATIONS": "[]", "TOKENS_FILE": f"ada sha256:{'0' * 64}", "PROXY_SECRET_FILE": "hush"}
    files |= {"CLUSTERS": '{"clusters": []}'}
    for name in {f"TERAGPT_{each}" for each in files} & given.keys():  # that a Secret brings
        given[name] = str(tmp_path / name)
        (tmp_path / name).write_text(files[name.removeprefix("TERAGPT_")])
    settings = build({}, given)
    assert settings.token_required == (case.stem != "open")
    assert settings.execution.cluster == "kubernetes"


def test_numbers_reach_the_control_plane_as_they_were_written() -> None:
    given = environment({"settings": {"queueBytes": 8388608, "heartbeatS": 0.5}})
    assert given["TERAGPT_QUEUE_BYTES"] == "8388608"
    assert given["TERAGPT_HEARTBEAT_S"] == "0.5"


def test_images_by_registry_tag_and_digest() -> None:
    case = values(next(path for path in CASES if path.stem == "offline-registry"))
    deployment = one("Deployment", case)["spec"]["template"]["spec"]
    digest = case["image"]["digest"]
    assert deployment["containers"][0]["image"] == f"registry.example.com:5000/mirror/controlplane@{digest}"
    assert environment(case)["TERAGPT_IMAGE"] == "registry.example.com:5000/mirror/trainer:cuda-13"
    assert [each["name"] for each in deployment["imagePullSecrets"]] == ["shared", "own"]
    assert defaults_of_runs(case) == {"compute": {"image_pull_secrets": ["shared", "own"]}}


def defaults_of_runs(case: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(environment(case)["TERAGPT_RUN_DEFAULTS"])
    return found


def test_defaults_of_runs_reach_their_pods() -> None:
    case = values(next(path for path in CASES if path.stem == "run-defaults"))
    told = defaults_of_runs(case)
    assert told["compute"]["image_pull_secrets"] == ["registry"]
    spec = parse_defaults(told).under(parse_spec({"size": "tiny", "checkpoint": {"uri": "pvc://runs"}}))
    run = lay_out(spec, Capacity(4, 8 << 30, 0, None, 4, 8 << 30, 0), "", shared_folders=False)
    manifest = render(attempt_of("run_1", "tiny-1", 1, run, spec_hash="", url="http://a", image="trainer", token="-"))
    template = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    pod = template["spec"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert pod["priorityClassName"] == "research"
    assert template["metadata"]["labels"]["team"] == "lm"
    container = pod["containers"][0]
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"]
    assert {"name": "ca", "mountPath": "/ca", "readOnly": True} in container["volumeMounts"]
    assert {"name": "ca", "configMap": {"name": "company-ca"}} in pod["volumes"]
    own = parse_defaults(defaults_of_runs(case | {"runs": {"defaults": {"compute": {"image_pull_secrets": ["x"]}}}}))
    assert own.compute.image_pull_secrets == ["x"]


def test_an_upgrade_is_rehearsed_on_a_copy_of_the_store() -> None:
    job = one("Job", {}, "--is-upgrade")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == one("Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert container["command"][2].strip() == (CHART / "files/rehearse.py").read_text("utf-8").strip()
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "teragpt-store"}
    selector = one("Deployment")["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= job["spec"]["template"]["metadata"]["labels"].items(), "the Service would send to it"


@pytest.mark.parametrize(
    "case",
    [
        {"upgrade": {"rehearse": False}},
        {"database": {"existingSecret": "database"}, "auth": {"existingSecret": "access"}},
        {"store": {"accessModes": ["ReadWriteOncePod"]}, "test": {"enabled": False}},
    ],
)
def test_and_is_not_where_it_cannot_or_need_not_be(case: dict[str, Any]) -> None:
    assert "Job" not in {each["kind"] for each in objects(case, "--is-upgrade")}


def test_replicas_share_a_database_and_no_volume() -> None:
    case = values(next(path for path in CASES if path.stem == "replicas"))
    deployment = one("Deployment", case)["spec"]
    assert deployment["replicas"] == 3
    assert deployment["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    pod = deployment["template"]["spec"]
    assert {"name": "data", "emptyDir": {"sizeLimit": "10Gi"}} in pod["volumes"]
    assert pod["topologySpreadConstraints"][0]["labelSelector"] == deployment["selector"]
    url = next(each for each in pod["containers"][0]["env"] if each["name"] == "TERAGPT_DATABASE_URL")
    assert url["valueFrom"] == {"secretKeyRef": {"name": "teragpt-database", "key": "uri"}}
    budget = one("PodDisruptionBudget", case)["spec"]
    assert budget == {"maxUnavailable": 1, "selector": deployment["selector"]}
    assert {each["metadata"]["name"] for each in objects(case) if each["kind"] == "PersistentVolumeClaim"} == {
        "teragpt-runs"
    }


def test_one_control_plane_on_postgres_is_replaced_as_several_are() -> None:
    deployment = one("Deployment", {"database": {"existingSecret": "database"}, "auth": {"existingSecret": "access"}})
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"]["type"] == "RollingUpdate"
    assert "emptyDir" in deployment["spec"]["template"]["spec"]["volumes"][0]


def test_a_token_from_a_secret_lies_where_the_control_plane_reads_it() -> None:
    deployment = one("Deployment", {"auth": {"existingSecret": "access", "existingSecretKey": "bearer"}})
    pod = deployment["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["command"] == ["install", "-m", "0600", "/run/teragpt/token", "/data/token"]
    secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "token")
    assert secret == {"secretName": "access", "items": [{"key": "bearer", "path": "token"}]}


def test_what_was_trained_and_its_history_outlive_the_release() -> None:
    store, runs = one("PersistentVolumeClaim", name="teragpt-store"), one("PersistentVolumeClaim", name="teragpt-runs")
    assert store["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert runs["metadata"]["annotations"]["helm.sh/hook"] == "post-install,post-upgrade"
    assert runs["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "hook-failed", "the default deletes it"


def test_claims_that_exist_are_used_and_none_is_made() -> None:
    case = {"store": {"existingClaim": "state"}, "runs": {"storage": {"existingClaim": "shared"}}}
    assert not [each for each in objects(case) if each["kind"] == "PersistentVolumeClaim"]
    volumes = one("Deployment", case)["spec"]["template"]["spec"]["volumes"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "state"}} in volumes
    assert environment(case)["TERAGPT_STORAGE"] == "pvc://shared"


def test_a_storage_class_of_dash_is_none() -> None:
    claim = one("PersistentVolumeClaim", {"store": {"storageClass": "-"}}, name="teragpt-store")
    assert not claim["spec"]["storageClassName"]


def test_selectors_are_the_same_under_every_label_that_a_user_adds() -> None:
    plain, labelled = one("Deployment"), one("Deployment", {"commonLabels": {"team": "lm"}, "podLabels": {"x": "y"}})
    assert plain["spec"]["selector"] == labelled["spec"]["selector"]
    labels = labelled["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= labelled["spec"]["selector"]["matchLabels"].items() | {("team", "lm"), ("x", "y")}


def test_services_and_policies_select_the_pod() -> None:
    case = {"networkPolicy": {"enabled": True}}
    pod = one("Deployment", case)["spec"]["template"]["metadata"]["labels"]
    for selector in (
        one("Service", case)["spec"]["selector"],
        one("NetworkPolicy", case)["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= pod.items()
    test = one("Pod", case)["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert test["labelSelector"]["matchLabels"].items() <= pod.items()


def test_pods_of_runs_may_post_through_the_network_policy() -> None:
    peers = one("NetworkPolicy", {"networkPolicy": {"enabled": True}})["spec"]["ingress"][0]["from"]
    assert {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ml"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "teragpt"}},
    } in peers


def test_the_control_plane_may_reach_postgres_where_it_has_one() -> None:
    def ports(case: dict[str, Any]) -> set[int]:
        rules = one("NetworkPolicy", {"networkPolicy": {"enabled": True}, **case})["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert ports({"database": {"existingSecret": "x"}, "auth": {"existingSecret": "y"}}) - ports({}) == {5432}


def test_webhooks_are_let_out_where_somebody_is_told() -> None:
    def ports(case: dict[str, Any]) -> list[int]:
        rules = one("NetworkPolicy", {"networkPolicy": {"enabled": True, "apiServerPorts": [6443], **case}, **told})
        return [port["port"] for rule in rules["spec"]["egress"] for port in rule["ports"]]

    told: dict[str, Any] = {}
    assert ports({}) == [53, 53, 6443]
    told = {"notifications": {"existingSecret": "destinations"}}
    assert ports({}) == [53, 53, 6443, 443]
    assert ports({"webhookPorts": [8443, 80]}) == [53, 53, 6443, 8443, 80]


def test_pods_of_runs_reach_each_other_the_api_and_object_stores_alone() -> None:
    case = {"networkPolicy": {"runs": {"enabled": True}}}
    fence = one("NetworkPolicy", case, name="teragpt-runs")["spec"]
    runs = {"matchLabels": {"app.kubernetes.io/managed-by": "teragpt"}}
    assert fence["podSelector"] == runs
    assert fence["ingress"] == [{"from": [{"podSelector": runs}]}]
    each_other, names, api, stores = fence["egress"]
    assert each_other == {"to": [{"podSelector": runs}]}
    assert {port["port"] for port in names["ports"]} == {53}
    assert api["to"][0]["podSelector"] == one("Deployment")["spec"]["selector"]
    assert [port["port"] for port in api["ports"]] == [8000]
    assert [port["port"] for port in stores["ports"]] == [443]
    closed = one("NetworkPolicy", {"networkPolicy": {"runs": {"enabled": True, "storagePorts": []}}})
    assert closed["spec"]["egress"] == [each_other, names, api]


def test_the_service_leaves_the_name_of_the_runs_headless_one_alone() -> None:
    assert one("Service", release="teragpt")["metadata"]["name"] == "teragpt-api"


@pytest.mark.parametrize(("train", "spec"), [(True, {"size": "tiny", "train": {"steps": 20}}), (False, {})])
def test_the_test_trains_unless_told_otherwise(train: bool, spec: dict[str, Any]) -> None:
    assert json.loads(one("ConfigMap", {"test": {"train": train}})["data"]["spec.json"]) == spec


def test_the_test_of_what_is_stopped_says_so_at_once_and_waits_for_no_node_or_volume() -> None:
    pod = one("Pod", case_of("stopped"))["spec"]
    assert "affinity" not in pod
    assert not [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    program, *arguments = pod["containers"][0]["command"]
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: it is stopped (replicas: 0), so that nothing can be trained; set replicas")


def test_stopping_rehearses_nothing() -> None:
    assert not [each for each in objects(case_of("stopped"), "--is-upgrade") if each["kind"] == "Job"]
    assert [each for each in objects({}, "--is-upgrade") if each["kind"] == "Job"]


def test_openshift_chooses_the_user_where_none_is_given() -> None:
    case = values(next(path for path in CASES if path.stem == "openshift"))
    for pod in pods(objects(case)):
        assert not pod["securityContext"].keys() & {"runAsUser", "runAsGroup", "fsGroup"}


def test_notes_name_the_commands_for_the_values_in_force(tmp_path: Path) -> None:
    said = notes(tmp_path)
    assert "kubectl --namespace ml port-forward service/teragpt-api 8000:8000" in said
    assert "kubectl --namespace ml exec deployment/teragpt -- cat /data/token" in said
    assert """-d '{"size": "tiny", "name": "first"}'""" in said
    assert "Indexed Jobs, since no training operator was found" in said
    assert "One node at a time may write there" in said


@pytest.mark.parametrize(("crd", "said"), list(zip(CRDS, ["PyTorchJobs, since", "TrainJobs, since"], strict=True)))
def test_notes_say_which_operator_was_found(tmp_path: Path, crd: str, said: str) -> None:
    assert said in notes(tmp_path, {}, "--api-versions", crd)


def test_notes_warn_of_an_operator_that_is_not_there(tmp_path: Path) -> None:
    assert "WARNING: this cluster has no PyTorchJob" in notes(tmp_path, {"runs": {"kind": "PyTorchJob"}})


def test_notes_say_how_a_service_account_comes_in(tmp_path: Path) -> None:
    said = notes(tmp_path, {"auth": {"mode": "kubernetes", "audience": "lm"}, "runs": {"namespace": "training"}})
    assert "TOKEN=$(kubectl --namespace training create token ACCOUNT --audience lm)" in said


def test_notes_read_the_token_from_a_given_secret(tmp_path: Path) -> None:
    said = notes(tmp_path, {"auth": {"existingSecret": "access", "existingSecretKey": "the.token"}})
    assert """get secret access -o go-template='{{index .data "the.token" | base64decode}}'""" in said


@CASE
def test_notes_are_told_for_every_set_of_values(case: Path, tmp_path: Path) -> None:
    said = notes(tmp_path, values(case))
    assert "namespace ml" in said
    assert "<no value>" not in said


@pytest.mark.parametrize("version", ["1.29.0", "1.33.1-gke.100", "1.37.0"])
def test_every_version_that_is_supported_takes_it(version: str) -> None:
    assert text({}, "--kube-version", version) == text()


def test_older_clusters_are_refused() -> None:
    answer = helm("template", "teragpt", str(CHART), "--kube-version", "1.27.9")
    assert answer.returncode
    assert "1.28" in answer.stderr


def test_a_parent_chart_may_share_its_values(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts/teragpt").symlink_to(CHART)
    (parent / "Chart.yaml").write_text(
        "apiVersion: v2\nname: parent\nversion: 1.0.0\n"
        "dependencies: [{name: teragpt, version: '*', condition: teragpt.enabled}]\n"
    )
    (parent / "values.yaml").write_text("global: {imageRegistry: r.example.com, other: 1}\nteragpt: {enabled: true}\n")
    answer = helm("template", "x", str(parent))
    assert answer.returncode == 0, answer.stderr
    assert "r.example.com/teragpt/controlplane" in answer.stdout
