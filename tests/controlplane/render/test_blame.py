from __future__ import annotations

import pytest

from controlplane.render.blame import pointer_of

POD = "spec.pytorchReplicaSpecs.Master.template.spec"


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        (f"{POD}.containers[0].resources.limits.cpu", "/compute/cpus_per_node"),
        ("spec.trainer.resourcesPerNode.requests.memory", "/compute/memory_per_node"),
        (f"{POD}.containers[0].resources.limits.nvidia.com/gpu", "/compute/gpus_per_node"),
        (f"{POD}.containers[0].resources.limits.nvidia.com/mig-1g.10gb", "/compute/gpus_per_node"),
        (f"{POD}.containers[0].resources.requests.rdma/ib", "/compute/rdma"),
        (f"{POD}.nodeSelector", "/compute/node_selector"),
        (f"{POD}.affinity.nodeAffinity.requiredDuring.nodeSelectorTerms[0]", "/compute/gpu"),
        (f"{POD}.tolerations[0].operator", "/compute/tolerations"),
        (f"{POD}.containers[0].image", "/compute/image"),
        (f"{POD}.imagePullSecrets[0].name", "/compute/image_pull_secrets"),
        (f"{POD}.containers[0].env[3].name", "/env"),
        (f"{POD}.priorityClassName", "/scheduling/priority"),
        ("metadata.labels.kueue.x-k8s.io/queue-name", "/scheduling/queue"),
        ("metadata.labels", "/labels"),
        (f"{POD}.volumes[0].emptyDir.sizeLimit", "/compute/shm"),
        (f"{POD}.volumes[2].persistentVolumeClaim.claimName", "/checkpoint/uri"),
        ("spec.pytorchReplicaSpecs.Worker.replicas", "/compute/nodes"),
        ("spec.completions", "/compute/nodes"),
        ("spec.trainer.numNodes", "/compute/nodes"),
        ("spec.nprocPerNode", "/compute/processes_per_node"),
        ("spec.runPolicy.ttlSecondsAfterFinished", "/limits/ttl_after_finish_s"),
        ("spec.runtimeRef", "/kubernetes/runtime"),
        ("kind", "/kubernetes/kind"),
        ("metadata.name", "/name"),
        ("spec.unheardOf", ""),
    ],
)
def test_a_part_of_a_manifest_is_traced_to_the_field_that_it_was_made_from(path: str, pointer: str) -> None:
    assert pointer_of(path) == pointer
