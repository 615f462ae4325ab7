from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.placement import SecretRef
from controlplane.render import Attempt, PyTorchJob, environment_of, operator_environment, pods_of, render
from controlplane.render.environment import OPERATOR_VARIABLES, expand
from tests.controlplane.render.attempts import attempt

NAME = "gpt-01jd2k7q-1"


def manifest(nodes: int, processes: int) -> dict[str, object]:
    return render(
        Attempt(
            run_id="run_1",
            name=NAME,
            attempt=1,
            nodes=nodes,
            processes_per_node=processes,
            gpus_per_node=0,
            cpus_per_node=1,
            memory_per_node=None,
            image="image",
            spec={},
            run_url="http://127.0.0.1:1/v1/runs/run_1",
            spec_hash="hash",
        )
    )


@pytest.mark.parametrize(("nodes", "processes"), tuple(itertools.product((1, 2), (1, 2))))
def test_the_operators_table(nodes: int, processes: int) -> None:
    names = [f"{NAME}-master-0", f"{NAME}-worker-0"][:nodes]
    assert operator_environment(manifest(nodes, processes)) == {
        name: {
            "PYTHONUNBUFFERED": "1",
            "MASTER_ADDR": f"{NAME}-master-0",
            "MASTER_PORT": "23456",
            "WORLD_SIZE": str(nodes * processes),
            "RANK": str(rank),
            "PET_MASTER_ADDR": f"{NAME}-master-0",
            "PET_MASTER_PORT": "23456",
            "PET_NODE_RANK": str(rank),
            "PET_NPROC_PER_NODE": str(processes),
            "PET_NNODES": str(nodes),
        }
        for rank, name in enumerate(names)
    }


def test_the_named_variables_are_those_it_adds() -> None:
    (added,) = operator_environment(manifest(1, 1)).values()
    assert tuple(added) == OPERATOR_VARIABLES


def test_the_port_is_the_masters_named_one() -> None:
    changed = manifest(1, 1)
    job = PyTorchJob.model_validate(changed).manifest()
    job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = (
        29500
    )
    (added,) = operator_environment(job).values()
    assert (added["MASTER_PORT"], added["PET_MASTER_PORT"]) == ("29500", "29500")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("plain", "plain"),
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$(B) $(A) $", "$(B) 1 $"),
        ("$$$(A)$$", "$1$"),
        ("$(A", "$(A"),
        ("$A ${A}", "$A ${A}"),
    ],
)
def test_a_value_is_read_as_the_kubelet_reads_it(text: str, read: str) -> None:
    assert expand(text, {"A": "1"}) == read


@given(value=st.text(alphabet="$()AB x", max_size=12))
def test_a_users_value_arrives_as_it_was_given(value: str) -> None:
    given = {"A": "1", "B": value}
    shown = environment_of(render(attempt(env=given)))
    assert all(told["B"] == value for told in shown.values())


def test_the_whole_environment_is_the_containers_with_the_operators_over_it() -> None:
    made = render(attempt(secrets={"HF_TOKEN": SecretRef(name="hf", key="token")}))
    shown = environment_of(made, most=1)
    assert list(shown) == ["gpt-01jd2k7q-1-master-0"]
    told = shown["gpt-01jd2k7q-1-master-0"]
    assert operator_environment(made)["gpt-01jd2k7q-1-master-0"].items() <= told.items()
    assert (told["MINE"], told["HF_TOKEN"], told["OMP_NUM_THREADS"]) == ("1", "secret hf: token", "1")


def test_variables_that_a_patch_takes_from_elsewhere_are_told_by_their_place() -> None:
    env = [
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "CONF", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "a"}}},
    ]
    made = render(attempt(pod_overrides={"spec": {"containers": [{"name": "pytorch", "env": env}]}}))
    told = environment_of(made)["gpt-01jd2k7q-1-worker-0"]
    assert (told["NODE"], told["CONF"]) == ("field spec.nodeName", "config conf: a")


def test_pods_come_by_rank_with_the_operators_names() -> None:
    pods = list(pods_of(PyTorchJob.model_validate(manifest(3, 1))))
    assert [(pod.name, pod.role, pod.number, pod.rank) for pod in pods] == [
        (f"{NAME}-master-0", "master", 0, 0),
        (f"{NAME}-worker-0", "worker", 0, 1),
        (f"{NAME}-worker-1", "worker", 1, 2),
    ]
