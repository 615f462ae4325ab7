"""What a manifest means on this machine: which fields stand in the way, and what each pod's first process is.

What is rendered for a run of this machine is understood and nothing else; `docs/local-cluster.md` has the table.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from controlplane.clusters.base import Refusal, Rejected
from controlplane.clusters.local.machine import Machine
from controlplane.clusters.local.share import KINDS, Share, lacks, memory_limit, share_of, total, whole
from controlplane.clusters.local.shim import TERMINATION, WORK
from controlplane.domain.priorities import RANKS
from controlplane.render import PyTorchJob, operator_environment, pods_of
from controlplane.render.environment import Pod, expand
from controlplane.render.models import Shape
from controlplane.render.pod import Container, PodSpec
from controlplane.render.volumes import VolumeMount

PYTHONS = ("python", "python3")
HOST_VARIABLES = (  # what an image would bring: where programs, caches, certificates and proxies are
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


POD_FIELDS = frozenset(
    {
        "automount_service_account_token",
        "enable_service_links",
        "termination_grace_period_seconds",
        "security_context",
        "priority_class_name",
        "containers",
        "volumes",
    }
)
CONTAINER_FIELDS = frozenset(Container.model_fields) - {
    "env_from",
    "working_dir",
    "image_pull_policy",
    "restart_policy",
}
MOUNTS = {"dshm": "/dev/shm", "tmp": "/tmp"}  # noqa: S108 - both are the host's own here
NOTHING = "nothing: the local cluster has no such thing"


def host_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What every pod inherits from the control plane's own environment, with this interpreter's programs first."""
    kept = {name: environ[name] for name in HOST_VARIABLES if name in environ}
    return {**kept, "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])}


def read_job(manifest: Mapping[str, Any], secret: Mapping[str, str] | None, machine: Machine) -> PyTorchJob:
    """The manifest as this machine can execute it; without a `secret`, its references are not looked at.

    Raises Rejected with every field in the way.
    """
    try:
        job = PyTorchJob.model_validate(manifest)
    except ValidationError as error:
        raise Rejected(_refusal(problem) for problem in error.errors()) from None
    unresolved = [] if secret is None else _unresolved(job, secret)
    if problems := [*_unhonoured(job), *unresolved, *_too_large(job, machine)]:
        raise Rejected(problems)
    return job


def _refusal(problem: Any) -> Refusal:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    if problem["type"] == "extra_forbidden":
        return Refusal(path, problem["input"], "nothing: the local cluster does not know this field")
    given = None if problem["type"] == "missing" else problem["input"]
    return Refusal(path or "manifest", given, problem["msg"].removeprefix("Input should be "))


def _roles(job: PyTorchJob) -> Iterator[tuple[str, Pod, int]]:
    """Path of the role's first container, one of its pods, and how many there are."""
    pods = list(pods_of(job))
    for role in ("master", "worker"):
        if alike := [pod for pod in pods if pod.role == role]:
            yield f"spec.pytorchReplicaSpecs.{role.title()}.template.spec.containers[0]", alike[0], len(alike)


def _unhonoured(job: PyTorchJob) -> Iterator[Refusal]:
    """What an object may say on Kubernetes and this machine has nothing for."""
    if (seconds := job.spec.run_policy.ttl_seconds_after_finished) is not None:
        yield Refusal("spec.runPolicy.ttlSecondsAfterFinished", seconds, NOTHING)
    for path, pod, _ in _roles(job):
        yield from _unhonoured_of_pod(pod.spec, path.removesuffix(".containers[0]"))
        yield from _unhonoured_of_container(pod.spec.containers[0], path)


def _unhonoured_of_pod(spec: PodSpec, path: str) -> Iterator[Refusal]:
    yield from _fields_beyond(spec, POD_FIELDS, path)
    if spec.priority_class_name is not None and spec.priority_class_name not in RANKS:
        yield Refusal(f"{path}.priorityClassName", spec.priority_class_name, ", ".join(RANKS))
    for at, container in enumerate(spec.containers[1:], start=1):
        yield Refusal(f"{path}.containers[{at}]", container.name, NOTHING)
    for at, volume in enumerate(spec.volumes):
        if volume.name not in MOUNTS or volume.empty_dir is None:
            yield Refusal(f"{path}.volumes[{at}]", volume.name, f"empty folders: {', '.join(MOUNTS)}")


def _unhonoured_of_container(container: Container, path: str) -> Iterator[Refusal]:
    yield from _fields_beyond(container, CONTAINER_FIELDS, path)
    for at, entry in enumerate(container.env):
        if entry.value_from and entry.value_from.secret_key_ref is None:
            yield Refusal(f"{path}.env[{at}].valueFrom", entry.name, "secretKeyRef")
    for at, mount in enumerate(container.volume_mounts):
        if mount != VolumeMount(name=mount.name, mount_path=MOUNTS.get(mount.name, "/")):
            yield Refusal(f"{path}.volumeMounts[{at}]", mount.name, f"whole, at {', '.join(MOUNTS.values())}")
    if container.resources is None:
        return
    limits, requests = container.resources.limits, container.resources.requests
    for kind in sorted(limits.keys() - set(KINDS)):
        yield Refusal(f"{path}.resources.limits.{kind}", limits[kind], f"limits of {', '.join(KINDS)}")
    unlimited = {kind: asked for kind, asked in (requests or {}).items() if kind == "memory"}
    if requests not in (None, {**unlimited, **limits}):
        yield Refusal(f"{path}.resources.requests", requests, "what equals the limits; memory alone may have none")


def _fields_beyond(shape: Shape, known: frozenset[str], path: str) -> Iterator[Refusal]:
    """Fields of a shape that are set and not known here."""
    for name, field in type(shape).model_fields.items():
        if name not in known and (value := getattr(shape, name)) is not None:
            yield Refusal(f"{path}.{field.alias}", value, NOTHING)


def _unresolved(job: PyTorchJob, secret: Mapping[str, str]) -> Iterator[Refusal]:
    for path, pod, _ in _roles(job):
        for at, entry in enumerate(pod.spec.containers[0].env):
            reference = entry.value_from and entry.value_from.secret_key_ref
            if reference and (reference.name != job.metadata.name or reference.key not in secret):
                allowed = f"the object's own secret, {job.metadata.name}: {', '.join(secret) or 'it has no key'}"
                yield Refusal(f"{path}.env[{at}].valueFrom.secretKeyRef", reference.model_dump(), allowed)


def _too_large(job: PyTorchJob, machine: Machine) -> Iterator[Refusal]:
    has, roles = whole(machine), list(_roles(job))
    for path, pod, _ in roles:
        asked = share_of(pod.spec.containers[0])
        if asked.gpus % 1:
            yield Refusal(f"{path}.resources.limits.nvidia.com/gpu", str(asked.gpus), "whole GPUs")
        for kind, needs, there in lacks(asked, has):
            yield Refusal(f"{path}.resources.limits.{kind}", needs, f"at most the {there} of this machine")
    if not any(lacks(share_of(pod.spec.containers[0]), has) for _, pod, _ in roles):
        together = total(share_of(pod.spec.containers[0]) for pod in pods_of(job))
        for _, needs, there in lacks(together, has):
            allowed = f"pods that start together within the {there} of this machine"
            yield Refusal("spec.pytorchReplicaSpecs.Worker.replicas", f"pods that need {needs}", allowed)


def launch_record(
    job: PyTorchJob, pod: Pod, folder: Path, inherited: Mapping[str, str], secret: Mapping[str, str], port: int
) -> dict[str, Any]:
    """What the shim starts in `folder`: the container's command with the operator's environment, but for the address.

    `port` is the one reserved for this attempt.
    """
    container = pod.spec.containers[0]
    own: dict[str, str] = {}
    for entry in container.env:
        reference = entry.value_from and entry.value_from.secret_key_ref
        own[entry.name] = secret[reference.key] if reference else expand(entry.value or "", own)
    address = dict.fromkeys(("MASTER_ADDR", "PET_MASTER_ADDR"), "127.0.0.1")
    address |= dict.fromkeys(("MASTER_PORT", "PET_MASTER_PORT"), str(port))
    marker = str(folder / TERMINATION)
    added = {**operator_environment(job.manifest())[pod.name], **address, "TERAGPT_TERMINATION_LOG": marker}
    words = [*(container.command or []), *(container.args or [])]
    program, *rest = [expand(word, {**own, **added}) for word in words]
    return {
        "argv": [sys.executable if program in PYTHONS else program, *rest],
        "env": {**inherited, **own, **added},
        "cwd": str(folder / WORK),
        "marker": marker,
        "grace_s": pod.spec.termination_grace_period_seconds,
        "memory": memory_limit(container),
    }


def share(pod: Pod) -> Share:
    """What the pod asks of the machine."""
    return share_of(pod.spec.containers[0])
