"""Makes objects, and ends them: once each, whatever happens in between.

A name is deterministic, so a repetition meets the object that an earlier try made and adopts it. What is asked for, and
what was made of it, is also written down beside the archive of its logs (`object.json`): an attempt whose object has
been deleted since, even before anybody knew that it was made, is not run a second time.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from controlplane.clusters.base import Kind, Manifest, NameConflict, Refusal, Rejected, Unavailable
from controlplane.clusters.kubernetes.answers import Patience, meaning
from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble
from controlplane.clusters.kubernetes.records import INSTANCE
from controlplane.clusters.kubernetes.resources import ATTEMPTS, KNOWN, PODS, Resource
from controlplane.clusters.shelf import Shelf
from controlplane.domain.errors import StoreError
from controlplane.faults import fault
from controlplane.render import Identity, companions_of, identity_of

STRICT = {"fieldValidation": "Strict"}
DRY = {**STRICT, "dryRun": "All"}
CONNECT_S, ANSWER_S = 3.0, 5.0
HELD_S = 20  # that the server may keep a creation: by itself it does for 34 s when etcd is away; webhooks take 10
LATE_S = 2.0  # for how long a creation may still be carried out after whoever asked for it is gone
MADE = "object.json"
ENSURED_S = 5.0  # for how long a companion that was there is taken for there
CONFLICT, NOT_FOUND = 409, 404
WRONG = (400, 422)
AS_MASTER = "spec.template", "spec.pytorchReplicaSpecs.Master.template"
BROKEN = frozenset({500, 502, 504})  # who answers so may have lost the answer of another


class _Made(NamedTuple):
    """Whose object was asked for, and when (seconds since 1970); its `uid`, empty as long as no answer came."""

    identity: Identity
    uid: str
    asked_at: float


class Submission:
    """Creates and deletes in one namespace."""

    def __init__(self, connection: Connection, archive: Shelf, instance: str, patience: Patience | None = None) -> None:
        self._connection, self._archive, self._instance = connection, archive, instance
        self._patience = patience or Patience()
        self._ensured: dict[str, float] = {}

    def create(self, manifest: Manifest) -> tuple[str, Manifest | None]:
        """The object's uid, and the object where it is there (None: it has been deleted since an earlier try).

        The uid is empty where an earlier try had no answer and there is no object now: it may have been there, and
        have worked. Raises Unavailable, NameConflict and Rejected.
        """
        _resource(manifest)
        name, identity = str(manifest["metadata"]["name"]), identity_of(manifest)
        made = self._made(name)
        if made is not None and made.identity != identity:
            raise NameConflict(f"{name} belongs to {made.identity}, not to {identity}")
        if made is not None and self._get(manifest) is None:
            if not made.uid and 0 <= time.time() - made.asked_at < LATE_S:
                raise Unavailable(f"whether {name} was made is not known yet")
            return made.uid, None
        for companion in companions_of(manifest):
            self._ensure(companion)
        if made is None:
            self._remember(name, identity, "")
        fault("object sent")
        try:
            raw = self._post(self._ours(manifest), STRICT) or self._adopt(manifest)
        except (Rejected, Unavailable) as error:
            if made is None and not _doubtful(error.__cause__):
                self._archive.remove(name)
            if isinstance(error, Rejected) and _misses(error, companions_of(manifest)):
                raise Unavailable(str(error)) from error  # what a webhook has heard of is a moment old
            raise
        fault("object answered")
        self._patience.forget(name)
        self._remember(name, identity, raw["metadata"]["uid"])
        fault("object remembered")
        return str(raw["metadata"]["uid"]), raw

    def dry_run(self, manifest: Manifest) -> None:
        """Let the server look at it. Raises Unavailable, NameConflict and Rejected."""
        _resource(manifest)
        for companion in companions_of(manifest):
            self._post(self._placed(companion), DRY)
        try:
            made = self._post(self._ours(manifest), DRY)
        except Rejected as error:
            if _misses(error, companions_of(manifest)):  # they are made with the first object
                return
            raise
        if made is None:
            self._adopt(manifest)
        if manifest["kind"] == "PyTorchJob":
            self._look_at_pods(manifest)

    def delete(self, kind: Kind, name: str, uid: str) -> None:
        """Ask for the object's end; its pods first. Raises Unavailable."""
        fault("deletion sent")
        self._delete(ATTEMPTS[kind], name, uid, {"propagationPolicy": "Foreground"})
        fault("deletion answered")

    def delete_pod(self, name: str, uid: str) -> None:
        """Ask for the end of a pod that no object will end. Raises Unavailable."""
        self._delete(PODS, name, uid, {})

    def _delete(self, resource: Resource, name: str, uid: str, more: Mapping[str, str]) -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}, **more}
        try:
            self._connection.call("DELETE", resource.path(self._connection.namespace, name), options)
        except Refused as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise Unavailable(str(error)) from error
        except Trouble as error:
            raise Unavailable(str(error)) from error

    def forget(self, name: str) -> None:
        """The attempt will not be asked for again."""
        self._patience.forget(name)

    def _look_at_pods(self, manifest: Manifest) -> None:
        """Have the server look at the pods of an object whose kind's schema says nothing of them: as those of a Job.

        Only what is wrong with the pod counts: Jobs may be forbidden to us, or denied by rules of their own.
        """
        template = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
        spec = {"template": {**template, "spec": {**template["spec"], "restartPolicy": "Never"}}, "suspend": True}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": manifest["metadata"]["name"]},
            "spec": spec,
        }
        try:
            self._post(self._placed(job), DRY)
        except Unavailable:
            return
        except Rejected as error:
            cause = error.__cause__
            if isinstance(cause, Refused) and cause.status in WRONG and "denied" not in cause.message:
                problems = [replace(one, path=one.path.replace(*AS_MASTER)) for one in error.problems]
                raise Rejected(problems) from error
        finally:
            self._patience.forget(manifest["metadata"]["name"])

    def _get(self, manifest: Mapping[str, Any]) -> Manifest | None:
        """The object of that name. Raises Unavailable."""
        path = _resource(manifest).path(self._connection.namespace, manifest["metadata"]["name"])
        try:
            return self._connection.call("GET", path)
        except Refused as error:
            if error.status == NOT_FOUND:
                return None
            raise Unavailable(str(error)) from error
        except Trouble as error:
            raise Unavailable(str(error)) from error

    def _adopt(self, manifest: Manifest) -> Manifest:
        """The object that has the name, if it is this very attempt's. Raises NameConflict and Unavailable."""
        found = self._get(manifest)
        name = manifest["metadata"]["name"]
        if found is None:
            raise Unavailable(f"{name} was there and is gone again")
        try:
            same = identity_of(found) == identity_of(manifest)
        except (KeyError, ValueError):
            same = False
        if not same:
            raise NameConflict(f"{manifest['kind']} {name} is there already and is not this attempt's")
        fault("object adopted")
        return found

    def _ensure(self, companion: Manifest) -> None:
        """What must stand beside an attempt's object, made once for all of them; not looked for at every object."""
        which = f"{companion['kind']} {companion['metadata']['name']}"
        if time.monotonic() - self._ensured.get(which, float("-inf")) < ENSURED_S:
            return
        if self._get(companion) is None:
            self._post(self._placed(companion), STRICT)
        self._ensured[which] = time.monotonic()

    def _post(self, manifest: Manifest, query: Mapping[str, str]) -> Manifest | None:
        """The object as it was made; None where the name is taken. Raises Unavailable and Rejected."""
        path = _resource(manifest).path(self._connection.namespace)
        asked, patience_s = {**query, "timeout": f"{HELD_S}s"}, (CONNECT_S, HELD_S + ANSWER_S)
        try:
            return self._connection.call("POST", path, manifest, query=asked, timeout=patience_s)
        except Refused as error:
            if error.status == CONFLICT:
                return None
            raise meaning(error, manifest, self._patience) from error
        except Trouble as error:
            raise meaning(error, manifest, self._patience) from error

    def _placed(self, manifest: Manifest) -> Manifest:
        return {**manifest, "metadata": {**manifest["metadata"], "namespace": self._connection.namespace}}

    def _ours(self, manifest: Manifest) -> Manifest:
        """With this installation's id, so that another one in the namespace leaves it alone."""
        placed = self._placed(manifest)
        annotations = {**placed["metadata"].get("annotations", {}), INSTANCE: self._instance}
        return {**placed, "metadata": {**placed["metadata"], "annotations": annotations}}

    def _made(self, name: str) -> _Made | None:
        try:
            record = json.loads(self._archive.read(f"{name}/{MADE}"))
            return _Made(Identity(*record["identity"]), str(record["uid"]), float(record.get("asked_at", 0)))
        except (ValueError, KeyError):
            return None

    def _remember(self, name: str, identity: Identity, uid: str) -> None:
        with contextlib.suppress(OSError, StoreError):  # a full disk must not keep a run from being known as submitted
            record = {"identity": list(identity), "uid": uid, "asked_at": time.time()}
            self._archive.put(f"{name}/{MADE}", json.dumps(record).encode())


def _doubtful(cause: BaseException | None) -> bool:
    """Whether a creation that came to nothing may have been carried out all the same."""
    if isinstance(cause, Refused):
        return cause.status in BROKEN and "failed calling webhook" not in cause.message
    return not (isinstance(cause, Trouble) and cause.unsent)


def _misses(error: Rejected, companions: Sequence[Manifest]) -> bool:
    """Whether a webhook denies an object for nothing but that it knows of no such companion."""
    names = [str(companion["metadata"]["name"]) for companion in companions]
    said = map(str, error.problems)
    return all("not found" in problem and any(name in problem for name in names) for problem in said)


def _resource(manifest: Mapping[str, Any]) -> Resource:
    """Where the object goes. Raises Rejected."""
    key = str(manifest.get("apiVersion")), str(manifest.get("kind"))
    if key not in KNOWN:
        raise Rejected([Refusal("kind", " ".join(key), ", ".join(sorted(" ".join(known) for known in KNOWN)))])
    return KNOWN[key]
