"""Where the test cluster keeps its parts, and its addresses: one a machine, on loopback or on a network of its own."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]

# Kept from one cluster to the next: programs by version, the layers of images.
HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teragpt-cluster"
PROGRAMS = HOME / "programs"
BIN = HOME / "bin"
IMAGES = HOME / "images"  # of buildah, the registry and containerd

# Made by `up`, gone after `down`.
RUN = HOME / "run"
AUDIT = RUN / "logs/audit.log"  # the API server's, one JSON object a line
KUBECONFIG = HOME / "kubeconfig"
STATE = HOME / "state.json"

API_PORT = 16443
ETCD_PORT = 12379
ETCD_PEER_PORT = 12380
REGISTRY_PORT = 16500
REGISTRY = f"127.0.0.1:{REGISTRY_PORT}"  # as containerd names it; the node's own loopback

# The node is a network namespace of its own, joined to this machine by a pair of interfaces.
LINK = "teragpt-node"
HOST_ADDRESS = "10.244.255.1"  # where pods reach this machine
NODE_ADDRESS = "10.244.255.2"
LINK_NETWORK = "10.244.255.0/30"
POD_NETWORK = "10.244.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
NODE_NAME = "teragpt-node"
CGROUP = "teragpt-cluster"


class Failed(Exception):
    """The cluster, or a part of it, could not be had. The message says which and what to do."""
