"""An attempt's pod, the same for every kind of object: one container, what it may use, where it may run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

from controlplane.domain.placement import PRODUCT_LABELS
from controlplane.domain.storage import MOUNT
from controlplane.render import models, pod, volumes
from controlplane.render.attempt import RESERVED_VARIABLES, TOKEN_FILE_VARIABLE, TOKEN_KEY, TOKEN_VARIABLE, Attempt
from controlplane.render.overrides import patched

USER = 10001  # of the trainer's image; any number but 0 will do, and it must be a number for kubelets to tell
TOKEN_VOLUME, TOKEN_FOLDER, TOKEN_FILE = "teragpt-token", "/var/run/secrets/teragpt", "token"
SHM, SCRATCH = "dshm", "tmp"
HOST_NAME = "kubernetes.io/hostname"
UNITS = (("Pi", 1 << 50), ("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))


def pod_template(attempt: Attempt, container: str, variables: list[pod.EnvVar] | None = None) -> pod.PodTemplate:
    """The attempt's pod, its `container` being called so, with `variables` after its own; the user's patch is in it.

    Raises ValueError for what Kubernetes would not take, BadOverride for what the patch may not do.
    """
    template = pod.PodTemplate(
        metadata=models.Labelled(labels=labels_of(attempt), annotations=_annotations(attempt)),
        spec=_spec(attempt, _container(attempt, container, variables or [])),
    )
    if attempt.pod_overrides:
        template = patched(template, attempt.pod_overrides, TOKEN_VOLUME)
        if (grace := template.spec.termination_grace_period_seconds) != attempt.grace_s:  # the launcher must know it
            return pod_template(replace(attempt, grace_s=grace), container, variables)
    return _placed(template, attempt)


def labels_of(attempt: Attempt) -> dict[str, str]:
    """The user's labels, and ours over them."""
    ours = {models.MANAGED_BY: models.MANAGER, models.RUN_ID: attempt.run_id, models.ATTEMPT: str(attempt.attempt)}
    return {**attempt.labels, **ours}


def metadata_of(attempt: Attempt) -> models.Metadata:
    """Of the object: the pods' labels, and Kueue's, which takes the objects of its queues in hand."""
    labels, scheduling = labels_of(attempt), attempt.scheduling
    if scheduling.queue:
        labels[models.QUEUE] = scheduling.queue
        if scheduling.priority:
            labels[models.QUEUE_PRIORITY] = scheduling.priority
    annotations = {models.SPEC_HASH: attempt.spec_hash}
    return models.Metadata(name=attempt.name, namespace=attempt.namespace, labels=labels, annotations=annotations)


def _annotations(attempt: Attempt) -> dict[str, str]:
    """Words to those who add to pods or move them: no proxy beside the ranks, no eviction of a gang's member."""
    moved = attempt.scheduling.preemptible
    return {
        "sidecar.istio.io/inject": "false",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "true" if moved else "false",
        **({} if moved else {"karpenter.sh/do-not-disrupt": "true"}),
    }


def _spec(attempt: Attempt, container: pod.Container) -> pod.PodSpec:
    placement, scheduling = attempt.placement, attempt.scheduling
    tolerations = [
        pod.Toleration(
            key=one.key,
            operator=one.operator,
            value=one.value,
            effect=one.effect,
            toleration_seconds=one.toleration_seconds,
        )
        for one in placement.tolerations
    ]
    return pod.PodSpec(
        termination_grace_period_seconds=attempt.grace_s,
        security_context=pod.PodSecurity(
            run_as_user=USER, run_as_group=USER, fs_group=USER, fs_group_change_policy="OnRootMismatch"
        ),
        image_pull_secrets=[models.Named(name=name) for name in placement.image_pull_secrets] or None,
        node_selector=dict(placement.node_selector) or None,
        tolerations=tolerations or None,
        priority_class_name=None if scheduling.queue else scheduling.priority,
        containers=[container],
        volumes=[volume for volume, _ in _volumes(attempt)],
    )


def _container(attempt: Attempt, name: str, variables: list[pod.EnvVar]) -> pod.Container:
    return pod.Container(
        name=name,
        image=attempt.image,
        command=[_plain(word) for word in attempt.command],
        env=[*_environment(attempt), *variables],
        ports=[pod.Port(name=pod.PORT_NAME)],
        resources=_resources(attempt),
        security_context=pod.ContainerSecurity(read_only_root_filesystem=True),
        volume_mounts=[mount for _, mount in _volumes(attempt)],
    )


def _volumes(attempt: Attempt) -> Iterator[tuple[volumes.Volume, volumes.VolumeMount]]:
    """Each volume with its mount: shared memory, scratch, the run's claims, its token."""
    shm = attempt.placement.shm or (_quantity(attempt.memory_per_node // 2) if attempt.memory_per_node else None)
    memory = volumes.EmptyDir(medium="Memory", size_limit=shm)  # NCCL needs more than a container's 64 MB
    yield volumes.Volume(name=SHM, empty_dir=memory), volumes.VolumeMount(name=SHM, mount_path="/dev/shm")  # noqa: S108
    scratch = volumes.VolumeMount(name=SCRATCH, mount_path="/tmp")  # noqa: S108 - the path is the point
    yield volumes.Volume(name=SCRATCH, empty_dir=volumes.EmptyDir()), scratch
    for number, claim in enumerate(attempt.claims):
        name = f"claim-{number}"
        mount = volumes.VolumeMount(name=name, mount_path=f"{MOUNT}/{claim}")
        yield volumes.Volume(name=name, persistent_volume_claim=volumes.Claim(claim_name=claim)), mount
    if attempt.audience:
        token = volumes.AccountToken(path=TOKEN_FILE, audience=attempt.audience)
        volume = volumes.Volume(
            name=TOKEN_VOLUME, projected=volumes.Projected(sources=[volumes.Source(service_account_token=token)])
        )
        yield volume, volumes.VolumeMount(name=TOKEN_VOLUME, mount_path=TOKEN_FOLDER, read_only=True)


def _environment(attempt: Attempt) -> Iterator[pod.EnvVar]:
    taken = sorted(RESERVED_VARIABLES & (attempt.env.keys() | attempt.secrets.keys()))
    if taken:
        raise ValueError(f"env: {', '.join(taken)}: set by TeraGPT or by the training operator; use another name")
    spec = json.dumps(dict(attempt.spec), sort_keys=True, separators=(",", ":"))
    values = {
        **_threads(attempt),
        **attempt.env,
        "TERAGPT_RUN_ID": attempt.run_id,
        "TERAGPT_ATTEMPT": str(attempt.attempt),
        "TERAGPT_SPEC": spec,
        "TERAGPT_RUN_URL": attempt.run_url,
        "TERAGPT_GRACE_S": str(attempt.grace_s),
    }
    if attempt.audience:
        values[TOKEN_FILE_VARIABLE] = f"{TOKEN_FOLDER}/{TOKEN_FILE}"
    own = {name: _plain(value) for name, value in values.items() if name not in attempt.secrets}
    yield from (pod.EnvVar(name=name, value=value) for name, value in own.items())
    yield from (_from_secret(name, found.name, found.key) for name, found in attempt.secrets.items())
    if attempt.run_token and not attempt.audience:
        yield _from_secret(TOKEN_VARIABLE, attempt.name, TOKEN_KEY)


def _from_secret(name: str, secret: str, key: str) -> pod.EnvVar:
    return pod.EnvVar(name=name, value_from=pod.EnvSource(secret_key_ref=pod.KeyRef(name=secret, key=key)))


def _plain(text: str) -> str:
    """Text that the kubelet will read as it is: `$(NAME)` stands for a variable there."""
    return text.replace("$", "$$")


def _threads(attempt: Attempt) -> dict[str, str]:
    """Each process's share of the CPUs: without it every rank starts a thread for each core of the node."""
    if not attempt.cpus_per_node:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, int(attempt.cpus_per_node / max(1, attempt.processes_per_node))))}


def _resources(attempt: Attempt) -> pod.Resources | None:
    limits: dict[str, str] = {}
    if attempt.cpus_per_node:
        limits["cpu"] = _cores(attempt.cpus_per_node)
    if attempt.memory_per_node:
        limits["memory"] = _quantity(attempt.memory_per_node)
    if attempt.gpus_per_node:
        limits[attempt.placement.gpu_resource] = str(attempt.gpus_per_node)
    if rdma := attempt.placement.rdma:
        limits[rdma.resource] = str(rdma.count)
    if not limits:
        return None
    requests = dict(limits)
    if attempt.audience:  # on Kubernetes: a rank that is throttled is waited for by all, so that CPUs are no limit
        limits.pop("cpu", None)
    if not attempt.memory_limited:
        limits.pop("memory", None)
    return pod.Resources(limits=limits, requests=requests)


def _placed(template: pod.PodTemplate, attempt: Attempt) -> pod.PodTemplate:
    """The pod with what it needs of nodes: whatever else a patch allows, it must be met as well."""
    needs: list[pod.Expression] = []
    if attempt.placement.gpu is not None:
        label = PRODUCT_LABELS[attempt.placement.gpu_resource.partition("/")[0]]
        needs.append(pod.Expression(key=label, operator="In", values=[attempt.placement.gpu]))
    if attempt.avoid_nodes:
        needs.append(pod.Expression(key=HOST_NAME, operator="NotIn", values=list(attempt.avoid_nodes)))
    if not needs:
        return template
    affinity = template.spec.affinity or pod.Affinity()
    nodes = affinity.node_affinity or pod.NodeAffinity()
    required = nodes.required_during_scheduling_ignored_during_execution
    terms = required.node_selector_terms if required else [pod.NodeTerm()]
    all_of = [
        term.model_copy(update={"match_expressions": [*(term.match_expressions or []), *needs]}) for term in terms
    ]
    met = {"required_during_scheduling_ignored_during_execution": pod.RequiredNodes(node_selector_terms=all_of)}
    affinity = affinity.model_copy(update={"node_affinity": nodes.model_copy(update=met)})
    return template.model_copy(update={"spec": template.spec.model_copy(update={"affinity": affinity})})


def _cores(cpus: float) -> str:
    """CPU cores in Kubernetes' notation: whole, or in thousandths, rounded up as Kubernetes does."""
    return str(int(cpus)) if cpus == int(cpus) else f"{math.ceil(round(cpus * 1000, 3))}m"


def _quantity(size: int) -> str:
    """Bytes in Kubernetes' notation, exact, in the largest binary unit that divides them."""
    suffix, unit = next(((suffix, unit) for suffix, unit in UNITS if size % unit == 0), ("", 1))
    return f"{size // unit}{suffix}"
