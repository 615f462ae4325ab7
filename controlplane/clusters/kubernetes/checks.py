"""Everything that runs need of a cluster, looked at one by one, with what mends it. It raises nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from controlplane.clusters.base import Check, Kind, Unavailable
from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble
from controlplane.clusters.kubernetes.discovery import discover, may
from controlplane.clusters.kubernetes.nodes import GPUS, Nodes
from controlplane.clusters.kubernetes.resources import (
    ATTEMPTS,
    CLAIMS,
    DEPLOYMENTS,
    EVENTS,
    NODES,
    PODS,
    SERVICES,
    STORAGE_CLASSES,
    TOKEN_REVIEWS,
    Resource,
)
from controlplane.clusters.kubernetes.signatures import published
from controlplane.render.models import MANAGED_BY

DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
UNPULLED = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
UNBOUND = {"FailedBinding", "ProvisioningFailed", "ClaimLost", "ClaimMisbound"}
NAME = "kubernetes.default.svc"  # that every cluster's DNS knows
OPERATORS: dict[Kind, str] = {"PyTorchJob": "training-operator", "TrainJob": "kubeflow-trainer-controller-manager"}
NEEDED: tuple[tuple[str, Resource, str, str], ...] = (
    ("list", PODS, "", "see how runs go"),
    ("watch", PODS, "", "see how runs go"),
    ("get", PODS, "log", "keep what they write"),
    ("delete", PODS, "", "end those whose object somebody deleted without them"),
    ("list", EVENTS, "", "say why a run waits"),
    ("get", CLAIMS, "", "check a run's storage"),
)


def look(connection: Connection, wanted: str, claim: str = "") -> list[Check]:
    """All checks; where the server does not answer, that one alone. `claim` is the one that runs write to, if any."""
    server = _guarded("api server", partial(_server, connection))
    if not all(check.ok for check in server):
        return server
    found = list(server)
    for name, look_at in (
        ("kinds", partial(_kinds, connection, wanted)),
        ("permissions", partial(_permissions, connection, wanted)),
        ("operators", partial(_operators, connection)),
        ("storage", partial(_storage, connection)),
        ("claim", partial(_claim, connection, claim)),
        ("nodes", partial(_nodes, connection)),
        ("dns", _names),
        ("images", partial(_images, connection)),
    ):
        found += _guarded(name, look_at)
    return found


def _guarded(name: str, look_at: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(look_at())
    except (Trouble, Refused, Unavailable) as error:
        return [Check(name, ok=False, detail=str(error), mend="See that the API server answers, and look again.")]


def _server(connection: Connection) -> Iterator[Check]:
    name = "api server"
    try:
        version = connection.call("GET", "/version")
    except Trouble as error:
        mend = "Check the address in the kubeconfig and that the API server can be reached from here."
        yield Check(name, ok=False, detail=str(error), mend=mend)
    except Refused as error:
        mend = "Give the control plane a kubeconfig or a service account that the API server knows."
        yield Check(name, ok=False, detail=str(error), mend=mend)
    else:
        yield Check(name, ok=True, detail=f"{connection.host}, Kubernetes {version.get('gitVersion')}")


def _kinds(connection: Connection, wanted: str) -> Iterator[Check]:
    kinds = discover(connection, wanted)
    for kind in ATTEMPTS:
        needed = kind == wanted or (kind == "Job" and not kinds.watchable)
        ok = kind in kinds.watchable
        mend = "" if ok else f"Install what serves {ATTEMPTS[kind].api_version}, or let TERAGPT_KIND be another kind."
        detail = kinds.reasons[kind] if ok or needed else f"not needed: {kinds.reasons[kind]}"
        yield Check(f"kind {kind}", ok=ok or not needed, detail=detail, mend=mend if needed else "")


def _permissions(connection: Connection, wanted: str) -> Iterator[Check]:
    needed = list(NEEDED)
    if wanted in ("auto", "Job"):
        needed += [(verb, SERVICES, "", "name the nodes of a Job") for verb in ("get", "create")]
    for verb, resource, sub, purpose in needed:
        allowed = may(connection, verb, resource, sub=sub)
        what = f"{verb} {resource.plural}{f'/{sub}' if sub else ''}"
        mend = "" if allowed else f"Add `{what}` to the control plane's Role in {connection.namespace}."
        yield Check(f"may {what}", ok=allowed, detail=f"to {purpose}", mend=mend)
    yield _known_by(connection)


def _known_by(connection: Connection) -> Check:
    """Whether pods that report metrics can be known: by reviews of their tokens, or by the signatures under them."""
    name = "tokens of pods"
    if may(connection, "create", TOKEN_REVIEWS, everywhere=True):
        return Check(name, ok=True, detail="pods that report metrics are known by reviews of their tokens")
    try:
        ok, why = bool(published(connection)[1]), "there are none"
    except (Trouble, Refused) as error:
        ok, why = False, str(error)
    if ok:
        return Check(name, ok=True, detail="pods that report metrics are known by the API server's signatures")
    detail = f"pods that report metrics cannot be known: the API server's keys cannot be read ({why})"
    mend = (
        "Bind the control plane's account to the ClusterRole system:service-account-issuer-discovery, or let it create "
        "tokenreviews (rbac.tokenReviews=true)."
    )
    return Check(name, ok=False, detail=detail, mend=mend)


def _operators(connection: Connection) -> Iterator[Check]:
    """Whether what turns objects into pods runs, where deployments may be listed."""
    kinds = discover(connection, "auto").watchable
    for kind, deployment in OPERATORS.items():
        if kind not in kinds or not may(connection, "list", DEPLOYMENTS, everywhere=True):
            continue
        selector = {"fieldSelector": f"metadata.name={deployment}"}
        found = connection.call("GET", DEPLOYMENTS.path(), query=selector).get("items") or []
        ready = sum(int((one.get("status") or {}).get("readyReplicas") or 0) for one in found)
        detail = f"{deployment}: {ready} ready" if found else f"there is no deployment {deployment}"
        mend = "" if ready else f"Start it: without it a {kind} gets no pods (kubectl get deployments -A)."
        yield Check(f"operator of {kind}", ok=ready > 0, detail=detail, mend=mend)


def _storage(connection: Connection) -> Iterator[Check]:
    namespace = connection.namespace
    if may(connection, "list", CLAIMS):
        claims = connection.call("GET", CLAIMS.path(namespace)).get("items") or []
        bound = [one for one in claims if (one.get("status") or {}).get("phase") == "Bound"]
        shared = [one["metadata"]["name"] for one in bound if "ReadWriteMany" in one["spec"].get("accessModes", ())]
        detail = f"{len(bound)} of {len(claims)} claims bound; for several nodes: {', '.join(shared) or 'none'}"
        mend = "" if bound else "Make a claim (ReadWriteMany for several nodes), or use an object store."
        yield Check("claims", ok=True, detail=detail, mend=mend)
    if may(connection, "list", STORAGE_CLASSES, everywhere=True):
        yield _classes(connection.call("GET", STORAGE_CLASSES.path()).get("items") or ())


def _claim(connection: Connection, name: str) -> Iterator[Check]:
    """Whether runs can write to their claim, as far as the account sees: no other right tells it of a missing class."""
    if not name or not may(connection, "get", CLAIMS):
        return
    namespace = connection.namespace
    try:
        found = connection.call("GET", CLAIMS.path(namespace, name))
    except Refused as error:
        if error.status != 404:
            raise
        mend = "Make it, or name one that is there in runs.storage (TERAGPT_STORAGE)."
        yield Check(f"claim {name}", ok=False, detail=f"there is none in {namespace}", mend=mend)
        return
    phase, spec = (found.get("status") or {}).get("phase"), found.get("spec") or {}
    modes = f"{', '.join(spec.get('accessModes') or ())}; {spec.get('storageClassName') or 'no StorageClass'}"
    if phase == "Bound":
        yield Check(f"claim {name}", ok=True, detail=f"bound: {modes}")
        return
    reason, said = _last_event(connection, name)
    ok = bool(spec.get("storageClassName")) and phase == "Pending" and reason not in UNBOUND
    mend = (
        ""
        if ok
        else "Mark a StorageClass as the default, or name one in store.storageClass and runs.storage.storageClass."
    )
    yield Check(f"claim {name}", ok=ok, detail=f"{phase}: {modes}{f'; {said}' if said else ''}", mend=mend)


def _last_event(connection: Connection, claim: str) -> tuple[str, str]:
    """The reason and the words of what the cluster last said of a claim."""
    about = {"fieldSelector": f"involvedObject.kind={CLAIMS.kind},involvedObject.name={claim}"}
    events = connection.call("GET", EVENTS.path(connection.namespace), query=about).get("items") or []
    last: Mapping[str, Any] = max(
        events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "", default={}
    )
    return last.get("reason") or "", last.get("message") or ""


def _classes(found: Sequence[Mapping[str, Any]]) -> Check:
    """Whether claims that name no class are bound: those of the chart name none unless told."""
    annotations = {one["metadata"]["name"]: one["metadata"].get("annotations") or {} for one in found}
    usual = [name for name, notes in annotations.items() if notes.get(DEFAULT_CLASS) == "true"]
    detail = f"{', '.join(annotations)}; default: {', '.join(usual) or 'none'}" if annotations else "none"
    mend = "" if usual else "Mark one as the default, or name one in store.storageClass and runs.storage.storageClass."
    if not annotations:
        mend = "Install a provisioner, or bind claims to volumes by hand."
    return Check("storage classes", ok=bool(annotations), detail=detail, mend=mend)


def _nodes(connection: Connection) -> Iterator[Check]:
    room = Nodes(connection).room() if may(connection, "list", NODES, everywhere=True) else None
    if room is None:
        mend = "Allow `list nodes` for the control plane, to be told what would fit."
        yield Check("nodes", ok=True, detail="they may not be listed: capacity is unknown", mend=mend)
        return
    usable = [node for node in room.nodes if node.usable]
    detail = f"{len(usable)} of {len(room.nodes)} take pods"
    mend = "" if usable else "See `kubectl get nodes` for why none is ready."
    yield Check("nodes", ok=bool(usable), detail=detail, mend=mend)
    have = {name: sum(int(node.has.get(name, 0)) for node in usable) for name in GPUS}
    types = sorted({node.gpu_type for node in usable if node.gpu_type})
    told = ", ".join(f"{count} {name}" for name, count in have.items() if count) or "none"
    unlabelled = any(have.values()) and not types
    mend = "Run GPU feature discovery, so that nodes are labelled with their GPU's type." if unlabelled else ""
    yield Check("gpus", ok=not unlabelled, detail=f"{told}; types: {', '.join(types) or 'unknown'}", mend=mend)


def _names() -> Iterator[Check]:
    """Whether the cluster's DNS answers, by which the pods of a run find each other; a pod alone can ask it."""
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        yield Check("dns", ok=True, detail="not looked at: the control plane runs outside of the cluster")
        return
    try:
        socket.getaddrinfo(NAME, 443)
    except OSError as error:
        mend = (
            "See that CoreDNS runs (kubectl --namespace kube-system get pods): nodes of a run find each other by name."
        )
        yield Check("dns", ok=False, detail=f"{NAME} cannot be looked up: {error.strerror or error}", mend=mend)
    else:
        yield Check("dns", ok=True, detail=f"{NAME} is found")


def _images(connection: Connection) -> Iterator[Check]:
    """Whether nodes could pull what pods of runs are made of, as those that are there tell."""
    selector = {"labelSelector": f"{MANAGED_BY}=teragpt", "limit": "200"}
    pods = connection.call("GET", PODS.path(connection.namespace), query=selector).get("items") or []
    statuses = [one for pod in pods for one in (pod.get("status") or {}).get("containerStatuses") or ()]
    waiting = {one.get("image"): (one.get("state") or {}).get("waiting") or {} for one in statuses}
    failed = {image: why for image, why in waiting.items() if why.get("reason") in UNPULLED}
    for image, why in failed.items():
        mend = "See that nodes reach its registry and that it has the tag; where it asks for a login, imagePullSecrets."
        yield Check("images", ok=False, detail=f"{image}: {why.get('message') or why['reason']}", mend=mend)
    if not failed:
        pulled = sorted({str(one["image"]) for one in statuses if one.get("imageID")})
        detail = (
            f"pulled: {', '.join(pulled)}" if pulled else "no pod of a run is there to tell (`helm test` makes one)"
        )
        yield Check("images", ok=True, detail=detail)
