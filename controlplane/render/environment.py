"""What the training operator adds to each pod's environment: the one place that knows.

Source: training operator v1.9.4, `pkg/controller.v1/pytorch/envvar.go`. It appends these after the container's own
variables, and the kubelet takes the last of a name, so the operator wins. `RANK` is the *node's* rank while
`WORLD_SIZE` counts processes: only what is started through the launcher may use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from controlplane.render.models import PodSpec, PyTorchJob

OPERATOR_VARIABLES = (
    "PYTHONUNBUFFERED",
    "MASTER_ADDR",
    "MASTER_PORT",
    "WORLD_SIZE",
    "RANK",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
    "PET_NODE_RANK",
    "PET_NPROC_PER_NODE",
    "PET_NNODES",
)


class Pod(NamedTuple):
    """A pod that the operator makes of a job: `number` within its role, `rank` of the node within the job."""

    name: str
    role: Literal["master", "worker"]
    number: int
    rank: int
    spec: PodSpec


def pods_of(job: PyTorchJob) -> Iterator[Pod]:
    """The job's pods, by rank."""
    specs, name = job.spec.pytorch_replica_specs, job.metadata.name
    yield Pod(f"{name}-master-0", "master", 0, 0, specs.master.template.spec)
    if specs.worker:
        for number in range(specs.worker.replicas):
            yield Pod(f"{name}-worker-{number}", "worker", number, number + 1, specs.worker.template.spec)


def operator_environment(manifest: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By pod name, what the operator adds to the pods of a manifest that `render` made."""
    job = PyTorchJob.model_validate(manifest)
    pods = list(pods_of(job))
    processes = job.spec.nproc_per_node
    address, port = f"{job.metadata.name}-master-0", str(pods[0].spec.containers[0].ports[0].container_port)
    return {
        pod.name: {
            "PYTHONUNBUFFERED": "1",
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
            "WORLD_SIZE": str(len(pods) * int(processes)),
            "RANK": str(pod.rank),
            "PET_MASTER_ADDR": address,
            "PET_MASTER_PORT": port,
            "PET_NODE_RANK": str(pod.rank),
            "PET_NPROC_PER_NODE": processes,
            "PET_NNODES": str(len(pods)),
        }
        for pod in pods
    }
