"""An attempt written as a Kubernetes object, from typed models. It knows no run, no store and no cluster.

`models` is the shape, `pytorchjob` fills it, `environment` says what the training operator will add to each pod.
"""

from controlplane.render.environment import OPERATOR_VARIABLES, operator_environment, pods_of
from controlplane.render.models import Identity, PyTorchJob, identity_of
from controlplane.render.pytorchjob import RESERVED_VARIABLES, Attempt, render, secret_of

__all__ = [
    "OPERATOR_VARIABLES",
    "RESERVED_VARIABLES",
    "Attempt",
    "Identity",
    "PyTorchJob",
    "identity_of",
    "operator_environment",
    "pods_of",
    "render",
    "secret_of",
]
