from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.domain.placement import Kind
from controlplane.render import BadOverride, read, render
from controlplane.render.overrides import merge
from tests.controlplane.render.attempts import KINDS, attempt, container, pod, template


def overridden(patch: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return render(attempt(pod_overrides=patch, **changes))


def refused(patch: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(BadOverride) as caught:
        overridden(patch)
    return {problem.pointer: problem.detail for problem in caught.value.problems}


def test_maps_merge_null_removes_and_other_lists_are_replaced() -> None:
    base = {"a": {"b": 1, "c": 2}, "list": [1], "gone": 1}
    assert merge(base, {"a": {"c": 3}, "list": [2], "gone": None, "new": {"x": None, "y": 1}}) == {
        "a": {"b": 1, "c": 3},
        "list": [2],
        "new": {"y": 1},
    }
    assert base == {"a": {"b": 1, "c": 2}, "list": [1], "gone": 1}
    assert merge({"a": 1}, {"a": {"b": 1}}) == {"a": {"b": 1}}


def test_named_things_merge_by_their_names() -> None:
    patch = {
        "metadata": {"annotations": {"mine": "1"}},
        "spec": {
            "containers": [
                {"name": "side", "image": "logger:1"},
                {
                    "name": "pytorch",
                    "imagePullPolicy": "Always",
                    "env": [{"name": "MINE", "value": "2"}, {"name": "MORE", "value": "3"}],
                    "volumeMounts": [{"name": "conf", "mountPath": "/conf"}],
                },
            ],
            "volumes": [
                {"name": "conf", "configMap": {"name": "conf"}},
                {"name": "dshm", "emptyDir": {"sizeLimit": "9Gi"}},
            ],
        },
    }
    manifest = overridden(patch)
    assert template(manifest)["metadata"]["annotations"]["mine"] == "1"
    ours, side = pod(manifest)["containers"]
    assert (ours["name"], ours["imagePullPolicy"], ours["image"]) == ("pytorch", "Always", "teragpt:0.1")
    env = {one["name"]: one.get("value") for one in ours["env"]}
    assert (env["MINE"], env["MORE"], env["TERAGPT_ATTEMPT"]) == ("2", "3", "1")
    assert {"name": "conf", "mountPath": "/conf"} in ours["volumeMounts"]
    assert side["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod(manifest)["volumes"][0] == {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "9Gi"}}


def test_both_roles_of_a_pytorchjob_are_patched() -> None:
    specs = overridden({"spec": {"schedulerName": "mine"}})["spec"]["pytorchReplicaSpecs"]
    assert {specs[role]["template"]["spec"]["schedulerName"] for role in specs} == {"mine"}


def test_a_port_more_is_one_more_and_ours_stays() -> None:
    ports = [{"containerPort": 9100}, {"containerPort": 9200, "name": "more"}]
    made = container(overridden({"spec": {"containers": [{"name": "pytorch", "ports": ports}]}}))["ports"]
    assert [(one["containerPort"], one.get("name")) for one in made] == [
        (23456, "pytorchjob-port"),
        (9100, None),
        (9200, "more"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_launcher_is_told_the_grace_period_of_the_patch(kind: Kind) -> None:
    made = overridden({"spec": {"terminationGracePeriodSeconds": 15}}, kind=kind)
    assert {one["name"]: one.get("value") for one in container(made)["env"]}["TERAGPT_GRACE_S"] == "15"


def test_a_user_number_of_the_platforms_own_choice_is_possible() -> None:
    security = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
    assert pod(overridden({"spec": {"securityContext": security}}))["securityContext"] == {
        "runAsNonRoot": True,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


MAIN = "/pod_overrides/spec/containers/0"
RIGHTS: dict[str, dict[str, Any]] = {
    "/pod_overrides/spec/hostNetwork": {"spec": {"hostNetwork": True}},
    "/pod_overrides/spec/hostPID": {"spec": {"hostPID": True}},
    "/pod_overrides/spec/hostIPC": {"spec": {"hostIPC": True}},
    "/pod_overrides/spec/nodeName": {"spec": {"nodeName": "node-1"}},
    "/pod_overrides/spec/serviceAccountName": {"spec": {"serviceAccountName": "admin"}},
    "/pod_overrides/spec/serviceAccount": {"spec": {"serviceAccount": "admin"}},
    "/pod_overrides/spec/automountServiceAccountToken": {"spec": {"automountServiceAccountToken": True}},
    "/pod_overrides/spec/ephemeralContainers": {"spec": {"ephemeralContainers": []}},
    "/pod_overrides/spec/securityContext/runAsUser": {"spec": {"securityContext": {"runAsUser": 0}}},
    "/pod_overrides/spec/securityContext/fsGroup": {"spec": {"securityContext": {"fsGroup": 0}}},
    "/pod_overrides/spec/securityContext/runAsNonRoot": {"spec": {"securityContext": {"runAsNonRoot": False}}},
    "/pod_overrides/spec/securityContext/sysctls": {"spec": {"securityContext": {"sysctls": []}}},
    "/pod_overrides/spec/securityContext/seccompProfile/type": {
        "spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}
    },
    "/pod_overrides/spec/volumes/0/hostPath": {"spec": {"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}},
    "/pod_overrides/spec/containers": {"spec": {"containers": None}},
    "/pod_overrides/metadata/labels/teragpt.io~1run-id": {"metadata": {"labels": {"teragpt.io/run-id": "other"}}},
    "/pod_overrides/metadata/labels/teragpt.io~1attempt": {"metadata": {"labels": {"teragpt.io/attempt": None}}},
    "/pod_overrides/spec/restartPolicy": {"spec": {"restartPolicy": "Never"}},
    "/pod_overrides/spec/subdomain": {"spec": {"subdomain": "mine"}},
    "/pod_overrides/status": {"status": {}},
    f"{MAIN}/securityContext/privileged": {
        "spec": {"containers": [{"name": "pytorch", "securityContext": {"privileged": True}}]}
    },
    f"{MAIN}/securityContext/allowPrivilegeEscalation": {
        "spec": {"containers": [{"name": "pytorch", "securityContext": {"allowPrivilegeEscalation": True}}]}
    },
    f"{MAIN}/securityContext/capabilities/add": {
        "spec": {"containers": [{"name": "pytorch", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}]}
    },
    f"{MAIN}/securityContext/capabilities/drop": {
        "spec": {"containers": [{"name": "pytorch", "securityContext": {"capabilities": {"drop": []}}}]}
    },
    f"{MAIN}/securityContext/procMount": {
        "spec": {"containers": [{"name": "pytorch", "securityContext": {"procMount": "Unmasked"}}]}
    },
    f"{MAIN}/ports/0/hostPort": {
        "spec": {"containers": [{"name": "pytorch", "ports": [{"containerPort": 23456, "hostPort": 1}]}]}
    },
    f"{MAIN}/ports": {"spec": {"containers": [{"name": "pytorch", "ports": None}]}},
    "/pod_overrides/metadata/labels/training.kubeflow.org~1replica-index": {
        "metadata": {"labels": {"training.kubeflow.org/replica-index": "3"}}
    },
    "/pod_overrides/metadata/labels/kueue.x-k8s.io~1queue-name": {
        "metadata": {"labels": {"kueue.x-k8s.io/queue-name": "q"}}
    },
    f"{MAIN}/command": {"spec": {"containers": [{"name": "pytorch", "command": None}]}},
    f"{MAIN}/env": {"spec": {"containers": [{"name": "pytorch", "env": [{"name": "PET_NNODES", "value": "9"}]}]}},
}


@pytest.mark.parametrize("pointer", list(RIGHTS))
def test_what_would_give_a_pod_more_rights_or_another_owner_is_refused_by_field(pointer: str) -> None:
    assert pointer in refused(RIGHTS[pointer])


def test_a_refusal_points_into_the_patch_as_it_was_given() -> None:
    side = {"name": "side", "image": "x", "securityContext": {"privileged": True}}
    patch = {"spec": {"containers": [side, {"name": "pytorch", "image": "y"}]}}
    assert list(refused(patch)) == ["/pod_overrides/spec/containers/0/securityContext/privileged"]
    assert "got True" in refused(patch)["/pod_overrides/spec/containers/0/securityContext/privileged"]
    assert list(refused({"spec": 5})) == ["/pod_overrides/spec"]
    assert list(refused({"spec": {"volumes": ["x"]}})) == ["/pod_overrides/spec/volumes/0"]
    assert "no such field" in refused({"spec": {"nodeName": "x"}})["/pod_overrides/spec/nodeName"]


@pytest.mark.parametrize("audience", ["", "https://kubernetes.default.svc", "teragpt"])
def test_no_patch_brings_a_token_of_the_service_account(audience: str) -> None:
    token = {"serviceAccountToken": {"path": "token", "audience": audience}}
    patch = {"spec": {"volumes": [{"name": "mine", "projected": {"sources": [token]}}]}}
    assert any(pointer.startswith("/pod_overrides/spec/volumes/") for pointer in refused(patch))
    patch["spec"]["volumes"][0]["name"] = "teragpt-token"
    if audience != "teragpt":
        assert refused(patch)


def test_our_variables_are_nobodys_to_change() -> None:
    for entry in ({"name": "TERAGPT_RUN_URL", "value": "http://elsewhere"}, {"name": "RANK", "value": "0"}):
        patch = {"spec": {"containers": [{"name": "pytorch", "env": [entry]}]}}
        assert entry["name"] in refused(patch)[f"{MAIN}/env"]
    assert "one left out" in refused({"spec": {"containers": [{"name": "pytorch", "env": None}]}})[f"{MAIN}/env"]
    renamed = overridden({"spec": {"containers": [{"name": "pytorch", "image": "mine:2"}]}})
    assert container(renamed)["image"] == "mine:2"


NAMES = st.sampled_from(
    [
        "spec",
        "metadata",
        "containers",
        "initContainers",
        "securityContext",
        "privileged",
        "allowPrivilegeEscalation",
        "capabilities",
        "add",
        "drop",
        "runAsUser",
        "runAsNonRoot",
        "hostNetwork",
        "hostPID",
        "volumes",
        "hostPath",
        "emptyDir",
        "projected",
        "serviceAccountName",
        "name",
        "image",
        "env",
        "path",
        "seccompProfile",
        "type",
    ]
)
LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 10001, "pytorch", "x", "/", "ALL", "SYS_ADMIN", "Unconfined", [], {}]
)
PATCHES = st.dictionaries(
    NAMES,
    st.recursive(
        LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=4) | st.lists(inner, max_size=2), max_leaves=12
    ),
    max_size=3,
)
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.dictionaries(st.sampled_from(["labels", "annotations"]), st.dictionaries(NAMES, LEAVES)),
        "spec": st.fixed_dictionaries(
            {},
            optional={
                "securityContext": st.dictionaries(NAMES, LEAVES, max_size=3),
                "containers": st.lists(
                    st.fixed_dictionaries(
                        {"name": st.sampled_from(["pytorch", "side"])},
                        optional={
                            "image": st.just("x"),
                            "securityContext": st.none()
                            | st.dictionaries(NAMES, LEAVES | st.dictionaries(NAMES, LEAVES, max_size=2), max_size=3),
                        },
                    ),
                    max_size=3,
                ),
                "volumes": st.lists(st.dictionaries(NAMES, LEAVES, max_size=3), max_size=2),
                "hostNetwork": LEAVES,
                "automountServiceAccountToken": LEAVES,
            },
        ),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(patch=PATCHES | SHAPED, kind=st.sampled_from(KINDS))
def test_no_patch_leads_to_a_privileged_pod(patch: dict[str, Any], kind: Kind) -> None:
    try:
        manifest = overridden(patch, kind=kind)
    except ValueError:
        return
    assert read(manifest).manifest() == manifest
    made = pod(manifest)
    assert not {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName", "serviceAccount", "nodeName"} & made.keys()
    assert made.get("automountServiceAccountToken", False) is False
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert made["securityContext"].get("runAsUser", 10001) != 0
    assert not any("hostPath" in volume for volume in made["volumes"])
    for one in [*made["containers"], *made.get("initContainers", [])]:
        security = one["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not security.get("privileged")
