"""From an attempt to the object of its kind, and to what that needs beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.render.attempt import Attempt
from controlplane.render.job import headless_service, job
from controlplane.render.pytorchjob import pytorchjob
from controlplane.render.trainjob import PRIORITY, runtime_name, training_runtime, trainjob

RENDERERS = {"PyTorchJob": pytorchjob, "Job": job, "TrainJob": trainjob}


def render(attempt: Attempt) -> dict[str, Any]:
    """The attempt's manifest, of its kind.

    Raises ValueError (pydantic's names the field) for what Kubernetes would not take, BadOverride for what the user's
    patch may not do.
    """
    return RENDERERS[attempt.kind](attempt).manifest()


def companions_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What must exist in the namespace before the object works: made once, the same for every object, never ours alone.

    A Job needs the headless Service, a TrainJob our runtime unless it names another.
    """
    namespace = manifest["metadata"].get("namespace")
    if manifest["kind"] == "Job":
        return [headless_service(namespace)]
    if manifest["kind"] == "TrainJob":
        priority = manifest["metadata"].get("annotations", {}).get(PRIORITY)
        reference = manifest["spec"]["runtimeRef"]
        if (reference["kind"], reference["name"]) == ("TrainingRuntime", runtime_name(priority)):
            return [training_runtime(priority, namespace)]
    return []
