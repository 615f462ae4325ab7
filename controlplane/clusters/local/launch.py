"""What a manifest means on this machine: which fields stand in the way, and what each pod's first process is.

Everything of `controlplane.render.models` is understood and nothing else; `docs/local-cluster.md` has the table.
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
from controlplane.clusters.local.share import Share, lacks, share_of, total, whole
from controlplane.clusters.local.shim import TERMINATION, WORK
from controlplane.render import PyTorchJob, operator_environment, pods_of
from controlplane.render.environment import Pod

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
    if problems := [*unresolved, *_too_large(job, machine)]:
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
    program, *rest = container.command + (container.args or [])
    own = {
        entry.name: secret[entry.value_from.secret_key_ref.key] if entry.value_from else entry.value or ""
        for entry in container.env
    }
    address = dict.fromkeys(("MASTER_ADDR", "PET_MASTER_ADDR"), "127.0.0.1")
    address |= dict.fromkeys(("MASTER_PORT", "PET_MASTER_PORT"), str(port))
    marker = str(folder / TERMINATION)
    added = {**operator_environment(job.manifest())[pod.name], **address, "TERAGPT_TERMINATION_LOG": marker}
    return {
        "argv": [sys.executable if program in PYTHONS else program, *rest],
        "env": {**inherited, **own, **added},
        "cwd": str(folder / WORK),
        "marker": marker,
        "grace_s": pod.spec.termination_grace_period_seconds,
    }


def share(pod: Pod) -> Share:
    """What the pod asks of the machine."""
    return share_of(pod.spec.containers[0])
