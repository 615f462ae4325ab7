from __future__ import annotations

from typing import Any

import pytest

from controlplane.render import companions_of, environment_of, headless_service, pods_of, read, render
from tests.controlplane.render.attempts import attempt, container, pod, variables

INDEX = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}


def job(**changes: Any) -> dict[str, Any]:
    return render(attempt(kind="Job", **changes))


def test_a_job_runs_each_index_once_and_all_together() -> None:
    spec = job(nodes=3)["spec"]
    assert {name: value for name, value in spec.items() if name != "template"} == {
        "completionMode": "Indexed",
        "completions": 3,
        "parallelism": 3,
        "backoffLimit": 0,
    }
    assert (pod(job())["restartPolicy"], pod(job())["subdomain"]) == ("Never", "teragpt")


def test_the_pods_are_told_by_us_what_the_operator_would_tell_them() -> None:
    told = variables(job())
    assert told["RANK"] == told["PET_NODE_RANK"] == INDEX
    assert {name: told[name] for name in told if name in {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"}} == {
        "MASTER_ADDR": "gpt-01jd2k7q-1-0.teragpt",
        "MASTER_PORT": "23456",
        "WORLD_SIZE": "4",
    }
    assert {name.removeprefix("PET_"): told[name] for name in told if name.startswith("PET_")} == {
        "MASTER_ADDR": "gpt-01jd2k7q-1-0.teragpt",
        "MASTER_PORT": "23456",
        "NODE_RANK": INDEX,
        "NPROC_PER_NODE": "2",
        "NNODES": "2",
    }


def test_a_rank_sees_what_it_sees_under_the_operator_but_for_the_masters_name() -> None:
    theirs, ours = (environment_of(render(attempt(kind=kind))) for kind in ("PyTorchJob", "Job"))
    for under_operator, alone in zip(theirs.values(), ours.values(), strict=True):
        for name in ("MASTER_ADDR", "PET_MASTER_ADDR"):
            assert under_operator.pop(name) == "gpt-01jd2k7q-1-master-0"
            assert alone.pop(name) == "gpt-01jd2k7q-1-0.teragpt"
        assert alone.pop("JOB_COMPLETION_INDEX") == alone["RANK"]
        assert under_operator == alone


def test_pods_are_called_by_their_index_before_kubernetes_makes_their_names_its_own() -> None:
    assert [(one.name, one.role, one.number, one.rank) for one in pods_of(job(nodes=3))] == [
        ("gpt-01jd2k7q-1-0", "master", 0, 0),
        ("gpt-01jd2k7q-1-1", "worker", 0, 1),
        ("gpt-01jd2k7q-1-2", "worker", 1, 2),
    ]
    assert container(job())["name"] == "pytorch"


def test_one_service_names_the_pods_of_every_job_before_they_are_ready() -> None:
    (service,) = companions_of(job())
    assert service == headless_service("lm")
    assert service["metadata"]["name"] == "teragpt"
    assert service["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"app.kubernetes.io/managed-by": "teragpt"},
        "ports": [{"name": "pytorchjob-port", "port": 23456}],
    }
    assert service["spec"]["selector"].items() <= job()["metadata"]["labels"].items()
    assert "namespace" not in headless_service()["metadata"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("backoffLimit",), 3),
        (("completionMode",), "NonIndexed"),
        (("parallelism",), 1),
        (("suspend",), True),
        (("activeDeadlineSeconds",), 5),
        (("template", "spec", "restartPolicy"), "OnFailure"),
        (("template", "spec", "subdomain"), None),
    ],
)
def test_what_would_restart_or_part_the_ranks_is_no_part_of_the_shape(path: tuple[str, ...], value: object) -> None:
    manifest = job()
    parent = manifest["spec"]
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(ValueError, match="spec"):
        read(manifest)


def test_a_name_leaves_room_for_the_index() -> None:
    assert read(job(name="x" * 51, nodes=10_000)).metadata.name == "x" * 51
    with pytest.raises(ValueError, match=r"completions"):
        job(nodes=10_001)
