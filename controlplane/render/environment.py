"""Which pods an object becomes, and what their environment will be: the one place that knows.

Sources: training operator v1.9.4, `pkg/controller.v1/pytorch/envvar.go`; trainer v2.3.0,
`pkg/runtime/framework/plugins/torch/torch.go`; Kubernetes' Job controller. The training operator appends its variables
after the container's own, and the kubelet takes the last of a name, so the operator wins. Its `RANK` is the *node's*
rank while `WORLD_SIZE` counts processes: only what is started through the launcher may use them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from controlplane.render.attempt import OPERATOR_VARIABLES
from controlplane.render.job import INDEX, Job
from controlplane.render.pod import PORT_NAME, Container, EnvVar, PodSpec
from controlplane.render.pytorchjob import PyTorchJob
from controlplane.render.trainjob import CONTAINER, GRACE_S, TrainJob

__all__ = ["OPERATOR_VARIABLES", "Pod", "environment_of", "expand", "operator_environment", "pods_of", "read"]

Object = PyTorchJob | Job | TrainJob
KINDS: dict[str, type[PyTorchJob | Job | TrainJob]] = {"PyTorchJob": PyTorchJob, "Job": Job, "TrainJob": TrainJob}
TRAINER_PORT = 29500
REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
COMPLETION_INDEX = "JOB_COMPLETION_INDEX"


class Pod(NamedTuple):
    """A pod that an object becomes: `number` within its role, `rank` of the node within the object.

    A PyTorchJob's pods are called so; Kubernetes appends "-" and five random characters to the `name` of a Job's and of
    a TrainJob's.
    """

    name: str
    role: Literal["master", "worker"]
    number: int
    rank: int
    spec: PodSpec


def read(manifest: Mapping[str, Any]) -> Object:
    """The typed object of a manifest. Raises ValueError for what we never render."""
    kind = KINDS.get(manifest.get("kind", ""))
    if kind is None:
        raise ValueError(f"kind: got {manifest.get('kind')!r}; allowed: {', '.join(KINDS)}")
    return kind.model_validate(manifest)


def pods_of(found: Object | Mapping[str, Any]) -> Iterator[Pod]:
    """The object's pods, by rank."""
    thing = read(found) if isinstance(found, Mapping) else found
    name = thing.metadata.name
    if isinstance(thing, PyTorchJob):
        specs = thing.spec.pytorch_replica_specs
        yield Pod(f"{name}-master-0", "master", 0, 0, specs.master.template.spec)
        if specs.worker:
            for number in range(specs.worker.replicas):
                yield Pod(f"{name}-worker-{number}", "worker", number, number + 1, specs.worker.template.spec)
    elif isinstance(thing, Job):
        yield from _indexed(name, thing.spec.completions, thing.spec.template.spec)
    else:
        yield from _indexed(f"{name}-node-0", thing.spec.trainer.num_nodes, _trainers(thing))


def _indexed(prefix: str, nodes: int, spec: PodSpec) -> Iterator[Pod]:
    for index in range(nodes):
        role: Literal["master", "worker"] = "worker" if index else "master"
        yield Pod(f"{prefix}-{index}", role, max(0, index - 1), index, spec)


def _trainers(job: TrainJob) -> PodSpec:
    """A TrainJob's pod, as far as it says it."""
    trainer, patch = job.spec.trainer, job.patch.spec
    container = Container(
        name=CONTAINER,
        image=trainer.image,
        command=trainer.command,
        args=trainer.args,
        env=trainer.env,
        resources=trainer.resources_per_node,
        security_context=patch.containers[0].security_context,
        volume_mounts=patch.containers[0].volume_mounts,
    )
    grace = patch.termination_grace_period_seconds
    return PodSpec(
        termination_grace_period_seconds=GRACE_S if grace is None else grace,
        security_context=patch.security_context,
        containers=[container],
        volumes=patch.volumes,
    )


def environment_of(manifest: Mapping[str, Any], most: int | None = None) -> dict[str, dict[str, str]]:
    """By pod name, the whole environment that the object gives the training container, of the first `most` pods.

    What a Secret or a ConfigMap holds is told by its place, as "secret hf: token". The image's own variables, and the
    few that the kubelet adds to every container (HOSTNAME, KUBERNETES_...), come on top.
    """
    thing = read(manifest)
    added = operator_environment(manifest, most)
    return {pod.name: _own(pod) | added[pod.name] for pod in pods_of(thing) if pod.name in added}


def _own(pod: Pod) -> dict[str, str]:
    told: dict[str, str] = {}
    for entry in pod.spec.containers[0].env:
        told[entry.name] = expand(entry.value, told) if entry.value is not None else _from(entry, pod.rank)
    return told


def _from(entry: EnvVar, rank: int) -> str:
    source = entry.value_from
    if source is None:
        return ""
    if source.field_ref is not None:
        return str(rank) if source.field_ref.field_path == INDEX else f"field {source.field_ref.field_path}"
    kind, reference = (
        ("secret", source.secret_key_ref) if source.secret_key_ref else ("config", source.config_map_key_ref)
    )
    return f"{kind} {reference.name}: {reference.key}" if reference else ""


def expand(text: str, known: Mapping[str, str]) -> str:
    """A value, or a word of a command, as the kubelet reads it: `$(NAME)` of what is `known`, `$$` for a plain `$`."""
    return REFERENCE.sub(lambda found: known.get(found[1], found[0]) if found[1] is not None else "$", text)


def operator_environment(manifest: Mapping[str, Any], most: int | None = None) -> dict[str, dict[str, str]]:
    """By pod name, what operator and Kubernetes add to the environment of the first `most` pods of our manifest."""
    thing = read(manifest)
    pods = list(pods_of(thing))
    return {pod.name: _added(thing, pod, len(pods)) for pod in pods[:most]}


def _added(thing: Object, pod: Pod, nodes: int) -> dict[str, str]:
    if isinstance(thing, Job):
        return {COMPLETION_INDEX: str(pod.rank)}
    if isinstance(thing, TrainJob):
        name = thing.metadata.name
        return {
            "PET_NNODES": str(nodes),
            "PET_NPROC_PER_NODE": str(thing.spec.trainer.num_proc_per_node),
            "PET_NODE_RANK": str(pod.rank),
            "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
            "PET_MASTER_PORT": str(TRAINER_PORT),
            COMPLETION_INDEX: str(pod.rank),
        }
    ports = thing.spec.pytorch_replica_specs.master.template.spec.containers[0].ports or []
    port = next(str(port.container_port) for port in ports if port.name == PORT_NAME)
    address, processes = f"{thing.metadata.name}-master-0", thing.spec.nproc_per_node
    return {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "WORLD_SIZE": str(nodes * int(processes)),
        "RANK": str(pod.rank),
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": port,
        "PET_NODE_RANK": str(pod.rank),
        "PET_NPROC_PER_NODE": processes,
        "PET_NNODES": str(nodes),
    }
