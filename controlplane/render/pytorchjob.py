"""An attempt as a PyTorchJob. The run's token is not in it: the manifest names the secret, `secret_of` holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.render import models
from controlplane.render.environment import OPERATOR_VARIABLES

COMMAND = ("python", "-m", "teragpt.launch", "-m", "teragpt.train")
TOKEN_KEY = "token"
TOKEN_VARIABLE = "TERAGPT_RUN_TOKEN"
OUR_VARIABLES = (
    "TERAGPT_RUN_ID",
    "TERAGPT_ATTEMPT",
    "TERAGPT_SPEC",
    "TERAGPT_RUN_URL",
    TOKEN_VARIABLE,
    "TERAGPT_TERMINATION_LOG",
    "TERAGPT_GRACE_S",
)
RESERVED_VARIABLES = frozenset(OPERATOR_VARIABLES + OUR_VARIABLES + ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"))
UNITS = (("Pi", 1 << 50), ("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Everything that an attempt's object says.

    `name` is the object's, `memory_per_node` bytes, `spec` the settings of `teragpt.config` that the run resolves to,
    `env` the user's own variables, `run_url` where rank 0 reports, `run_token` its bearer there (in no manifest and no
    repr), `grace_s` seconds between SIGTERM and SIGKILL. What is None or 0 is not asked of the cluster.
    """

    run_id: str
    name: str
    attempt: int
    nodes: int
    processes_per_node: int
    gpus_per_node: int
    cpus_per_node: float | None
    memory_per_node: int | None
    image: str
    spec: Mapping[str, Any]
    run_url: str
    spec_hash: str
    run_token: str = field(default="", repr=False)
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    grace_s: int = 120
    command: tuple[str, ...] = COMMAND


def render(attempt: Attempt) -> dict[str, Any]:
    """The attempt's manifest. Raises ValueError (pydantic's names the field) for what Kubernetes would not take."""
    labels = {
        **attempt.labels,
        models.MANAGED_BY: "teragpt",
        models.RUN_ID: attempt.run_id,
        models.ATTEMPT: str(attempt.attempt),
    }
    template = models.PodTemplate(
        metadata=models.PodMetadata(labels=labels, annotations={"sidecar.istio.io/inject": "false"}),
        spec=models.PodSpec(termination_grace_period_seconds=attempt.grace_s, containers=[_container(attempt)]),
    )
    master = models.Master(replicas=1, restart_policy="Never", template=template)
    workers = attempt.nodes - 1
    worker = models.Worker(replicas=workers, restart_policy="Never", template=template) if workers else None
    job = models.PyTorchJob(
        api_version="kubeflow.org/v1",
        kind="PyTorchJob",
        metadata=models.Metadata(name=attempt.name, labels=labels, annotations={models.SPEC_HASH: attempt.spec_hash}),
        spec=models.JobSpec(
            nproc_per_node=str(attempt.processes_per_node),
            run_policy=models.RunPolicy(clean_pod_policy="Running"),
            pytorch_replica_specs=models.ReplicaSpecs(master=master, worker=worker),
        ),
    )
    return job.manifest()


def secret_of(attempt: Attempt) -> dict[str, str]:
    """The values by key of the secret that the attempt's manifest names (it bears the object's name)."""
    return {TOKEN_KEY: attempt.run_token} if attempt.run_token else {}


def _container(attempt: Attempt) -> models.Container:
    return models.Container(
        image=attempt.image, command=list(attempt.command), env=_environment(attempt), resources=_resources(attempt)
    )


def _environment(attempt: Attempt) -> list[models.EnvVar]:
    taken = sorted(RESERVED_VARIABLES & attempt.env.keys())
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
    variables = [models.EnvVar(name=name, value=value) for name, value in values.items()]
    if attempt.run_token:
        reference = models.SecretKeyRef(name=attempt.name, key=TOKEN_KEY)
        variables.append(models.EnvVar(name=TOKEN_VARIABLE, value_from=models.EnvSource(secret_key_ref=reference)))
    return variables


def _threads(attempt: Attempt) -> dict[str, str]:
    """Each process's share of the CPUs: without it every rank starts a thread for each core of the node."""
    if not attempt.cpus_per_node:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, int(attempt.cpus_per_node / max(1, attempt.processes_per_node))))}


def _resources(attempt: Attempt) -> models.Resources | None:
    limits: dict[models.Kind, str] = {}
    if attempt.cpus_per_node:
        limits["cpu"] = _cores(attempt.cpus_per_node)
    if attempt.memory_per_node:
        limits["memory"] = _quantity(attempt.memory_per_node)
    if attempt.gpus_per_node:
        limits[models.GPU] = str(attempt.gpus_per_node)
    return models.Resources(limits=limits) if limits else None


def _cores(cpus: float) -> str:
    """CPU cores in Kubernetes' notation: whole, or in thousandths, rounded up as Kubernetes does."""
    return str(int(cpus)) if cpus == int(cpus) else f"{math.ceil(round(cpus * 1000, 3))}m"


def _quantity(size: int) -> str:
    """Bytes in Kubernetes' notation, exact, in the largest binary unit that divides them."""
    suffix, unit = next(((suffix, unit) for suffix, unit in UNITS if size % unit == 0), ("", 1))
    return f"{size // unit}{suffix}"
