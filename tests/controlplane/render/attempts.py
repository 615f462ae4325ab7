"""An attempt to render, of any kind, and the parts of what comes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from controlplane.domain.placement import Kind
from controlplane.render import Attempt

KINDS: tuple[Kind, ...] = ("PyTorchJob", "TrainJob", "Job")
ATTEMPT = Attempt(
    run_id="run_01JD2K7QABCDEFGH",
    name="gpt-01jd2k7q-1",
    attempt=1,
    nodes=2,
    processes_per_node=2,
    gpus_per_node=0,
    cpus_per_node=0.5,
    memory_per_node=3 << 30,
    image="teragpt:0.1",
    spec={"size": "tiny", "steps": 10},
    run_url="http://teragpt/v1/runs/run_01JD2K7QABCDEFGH",
    spec_hash="abc",
    env={"MINE": "1"},
    labels={"team": "lm"},
    namespace="lm",
    audience="teragpt",
    claims=("datasets", "team.runs"),
)


def attempt(**changes: Any) -> Attempt:
    return dataclasses.replace(ATTEMPT, **changes)


def template(manifest: dict[str, Any]) -> dict[str, Any]:
    """The pods' template; a TrainJob's as far as it says it, in the form of the others."""
    spec = manifest["spec"]
    if manifest["kind"] == "PyTorchJob":
        return dict(spec["pytorchReplicaSpecs"]["Master"]["template"])
    if manifest["kind"] == "Job":
        return dict(spec["template"])
    trainer = spec["trainer"]
    (patch,) = spec["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    made = job["template"]["spec"]["template"]
    (container,) = made["spec"]["containers"]
    said = {name: trainer[name] for name in ("image", "command", "env")}
    container = {**container, **said, "resources": trainer["resourcesPerNode"]}
    return {**made, "spec": {**made["spec"], "containers": [container]}}


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(template(manifest)["spec"])


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(pod(manifest)["containers"][0])


def variables(manifest: dict[str, Any]) -> dict[str, Any]:
    """The training container's variables, each as it stands in the manifest."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(manifest)["env"]}
