"""Which kinds of attempt this cluster can execute, and why: asked of the API server now and then."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from controlplane.clusters.base import Kind
from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble
from controlplane.clusters.kubernetes.resources import ACCESS_REVIEWS, ATTEMPTS, Resource

log = logging.getLogger(__name__)
NEEDED = ("create", "get", "list", "watch", "delete")


@dataclass(frozen=True)
class Kinds:
    """What was found: kinds that can be made, the best one first, and of every kind why it can or cannot."""

    usable: tuple[Kind, ...]
    reasons: dict[Kind, str]
    watchable: tuple[Kind, ...] = ()
    absent: tuple[Kind, ...] = ()  # not served at all


def assumed(wanted: str) -> Kinds:
    """What to go by until the API server has answered for the first time."""
    kind = preferred(wanted) or "PyTorchJob"
    return Kinds((kind,), {kind: "assumed: the API server has not been asked yet"})


def preferred(wanted: str) -> Kind | None:
    """The kind of that name; None for "auto"."""
    kinds: tuple[Kind, ...] = tuple(ATTEMPTS)
    return next((kind for kind in kinds if kind == wanted), None)


def discover(connection: Connection, wanted: str) -> Kinds:
    """Ask which kinds there are and which of them we may use; `wanted` is "auto" or the one to prefer.

    Raises Trouble and Refused where that could not be found out.
    """
    usable: list[Kind] = []
    reasons: dict[Kind, str] = {}
    absent: list[Kind] = []
    for kind, resource in ATTEMPTS.items():
        if not served(connection, resource):
            absent.append(kind)
            reasons[kind] = f"this cluster does not serve {resource.api_version} {resource.kind}"
        elif refused := [verb for verb in NEEDED if not may(connection, verb, resource)]:
            where = f"{resource.plural} in {connection.namespace}"
            reasons[kind] = f"the control plane may not {', '.join(refused)} {where}"
        elif kind == "TrainJob" and not _patchable(connection, resource):
            reasons[kind] = "the Kubeflow Trainer here is older than 2.2: its TrainJobs cannot say what their pods need"
        else:
            usable.append(kind)
            reasons[kind] = f"{resource.api_version} is served here, and the control plane may use it"
    there, first = tuple(usable), preferred(wanted)
    if first is None:
        return Kinds(there, reasons, there, tuple(absent))
    # the wanted kind comes first, whether it can be made or not: a run must not quietly become another one
    reasons[first] = f"asked for by the installation; {reasons[first]}"
    return Kinds((first, *(kind for kind in there if kind != first)), reasons, there, tuple(absent))


def served(connection: Connection, resource: Resource) -> bool:
    """Whether the API server has the resource. Raises Trouble and Refused."""
    try:
        found = connection.call("GET", resource.api)
    except Refused as error:
        if error.status == 404:
            return False
        raise
    return any(entry["name"] == resource.plural for entry in found.get("resources") or ())


def _patchable(connection: Connection, resource: Resource) -> bool:
    """Whether the server's schema of TrainJobs has what ours are made with. Raises Trouble and Refused."""
    try:
        found = connection.call("GET", f"/openapi/v3{resource.api}")
    except Refused as error:
        if error.status == 404:
            return True  # it publishes no schema: its own strict validation will tell
        raise
    return "runtimePatches" in json.dumps(found)


def may(connection: Connection, verb: str, resource: Resource, *, sub: str = "", everywhere: bool = False) -> bool:
    """Whether we are allowed to. Raises Trouble and Refused."""
    attributes = {
        "verb": verb,
        "group": resource.group,
        "resource": resource.plural,
        "subresource": sub,
        "namespace": "" if everywhere else connection.namespace,
    }
    review = {
        "apiVersion": ACCESS_REVIEWS.api_version,
        "kind": ACCESS_REVIEWS.kind,
        "spec": {"resourceAttributes": attributes},
    }
    answer = connection.call("POST", ACCESS_REVIEWS.path(), review)
    return bool((answer.get("status") or {}).get("allowed"))


def look(connection: Connection, wanted: str) -> Kinds | None:
    """As `discover`; None, and a line in the log, where there was no answer."""
    try:
        return discover(connection, wanted)
    except (Trouble, Refused) as error:
        log.info("which kinds the cluster has could not be found out: %s", error)
        return None
