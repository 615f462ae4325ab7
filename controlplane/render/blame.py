"""Which field of a spec a part of a manifest comes from, so that a refusal of the part names what its user gave."""

from __future__ import annotations

import re

ELSEWHERE = ""  # no field of a spec: the request as a whole
FIELDS = tuple(
    (re.compile(pattern), pointer)
    for pattern, pointer in (
        (r"resources\S*\.cpu$", "/compute/cpus_per_node"),
        (r"resources\S*\.memory$", "/compute/memory_per_node"),
        (r"resources\S*(gpu|mig)", "/compute/gpus_per_node"),
        (r"resources\S*\.(limits|requests)\.", "/compute/rdma"),
        (r"node_?selector(?!terms)", "/compute/node_selector"),
        (r"tolerations", "/compute/tolerations"),
        (r"affinity", "/compute/gpu"),
        (r"image_?pull_?secrets", "/compute/image_pull_secrets"),
        (r"\bimage$", "/compute/image"),
        (r"\benv\b", "/env"),
        (r"kueue\.x-k8s\.io/queue-name|queue_?name", "/scheduling/queue"),
        (r"priority", "/scheduling/priority"),
        (r"\blabels\b", "/labels"),
        (r"size_?limit", "/compute/shm"),
        (r"persistent_?volume_?claim|claim_?name", "/checkpoint/uri"),
        (r"\b(replicas|completions|parallelism|num_?nodes)$", "/compute/nodes"),
        (r"num_?proc_?per_?node|nproc_?per_?node", "/compute/processes_per_node"),
        (r"ttl_?seconds_?after_?finished|ttl_after_finish_s", "/limits/ttl_after_finish_s"),
        (r"runtime_?(ref|patches)", "/kubernetes/runtime"),
        (r"^(kind|api_?version)$", "/kubernetes/kind"),
        (r"metadata\.name$", "/name"),
    )
)


def pointer_of(path: str) -> str:
    """The pointer of the field that `path` (as `spec.template.spec.containers[0].image`) was made from."""
    found = (pointer for pattern, pointer in FIELDS if pattern.search(path.lower()))
    return next(found, ELSEWHERE)
