"""A control plane to be killed: follows the cluster in sys.argv[1] and creates objects as their manifests come in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from controlplane.clusters.local import LocalCluster, Machine

cluster = LocalCluster(
    Path(sys.argv[1]), machine=Machine(cpus=8, memory=8 << 30), environment={"PATH": "/usr/bin:/bin"}
)
print("up", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "delete" in order:
        cluster.delete(order["delete"])
    else:
        cluster.create(order)
    print("done", flush=True)
