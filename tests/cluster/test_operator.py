"""The Kubeflow training operator: a bare PyTorchJob, with nothing of the control plane."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.conftest import SCRATCH, SCRATCH_MOUNT, SECURITY, Namespace
from tests.cluster.layout import Failed

SUM = """
import torch
from torch import distributed

distributed.init_process_group("gloo")
mine = torch.tensor([float(distributed.get_rank() + 1)])
distributed.all_reduce(mine)
print("sum", mine.item(), "of", distributed.get_world_size(), flush=True)
distributed.destroy_process_group()
"""


def test_a_master_and_a_worker_add_up_their_ranks_over_gloo(namespace: Namespace) -> None:
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "script"}, "data": {"sum.py": SUM}}
    namespace.apply(script, _job(namespace, processes=2))
    namespace.wait("pytorchjob/sum", "condition=Succeeded", 180)
    said = {pod: namespace.kubectl("logs", pod) for pod in ("sum-master-0", "sum-worker-0")}
    assert [text.count("sum 10.0 of 4") for text in said.values()] == [2, 2], said


def test_the_operators_webhook_refuses_a_job_without_a_container_named_pytorch(namespace: Namespace) -> None:
    job = _job(namespace, processes=1)
    job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["name"] = "other"
    with pytest.raises(Failed, match=r"denied the request.*pytorch"):
        namespace.apply(job)


def _job(namespace: Namespace, *, processes: int) -> dict[str, Any]:
    container = {
        "name": "pytorch",
        "image": namespace.cluster.image,
        "command": ["python", "-m", "teragpt.launch", "/script/sum.py"],
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "resources": {"requests": {"cpu": "250m"}},
        "securityContext": SECURITY,
        "volumeMounts": [{"name": "script", "mountPath": "/script"}, SCRATCH_MOUNT],
    }
    volumes = [{"name": "script", "configMap": {"name": "script"}}, SCRATCH]
    template = {"spec": {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 5}}
    replicas = {"replicas": 1, "restartPolicy": "Never", "template": template}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "sum"},
        "spec": {
            "nprocPerNode": str(processes),
            "runPolicy": {"cleanPodPolicy": "None"},
            "pytorchReplicaSpecs": {"Master": replicas, "Worker": replicas},
        },
    }
