"""An attempt written as a Kubernetes object, from typed models. It knows no run, no store and no cluster.

`models`, `pod` and `volumes` are the shapes, `template` fills the pod, `pytorchjob`, `job` and `trainjob` are the
envelopes, `overrides` lays a user's patch over the pod, `blame` leads from a part back to the request, `environment`
says what the pods of an object are and what they are told.
"""

from controlplane.render.attempt import OPERATOR_VARIABLES, RESERVED_VARIABLES, Attempt, secret_of
from controlplane.render.environment import environment_of, operator_environment, pods_of, read
from controlplane.render.job import headless_service
from controlplane.render.kinds import companions_of, render
from controlplane.render.models import Identity, identity_of
from controlplane.render.overrides import BadOverride
from controlplane.render.pytorchjob import PyTorchJob
from controlplane.render.trainjob import training_runtime

__all__ = [
    "OPERATOR_VARIABLES",
    "RESERVED_VARIABLES",
    "Attempt",
    "BadOverride",
    "Identity",
    "PyTorchJob",
    "companions_of",
    "environment_of",
    "headless_service",
    "identity_of",
    "operator_environment",
    "pods_of",
    "read",
    "render",
    "secret_of",
    "training_runtime",
]
