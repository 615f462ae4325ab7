"""What an answer of the API server means for a request: ask again later, or never. It knows no run.

Only an answer about the request itself is final. What looks like a faulty installation (no permission, no such kind, no
such namespace) is given `GRACE_S` to be mended first, counted from the first time that an object met it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from controlplane.clusters.base import ClusterError, Refusal, Rejected, Unavailable
from controlplane.clusters.kubernetes.connection import Refused, Trouble

GRACE_S = 300.0
FINAL = frozenset({400, 413, 422})
INSTALLATION = frozenset({401, 403, 404, 405})
QUOTA, DENIED = re.compile("(exceeded|failed) quota"), "denied the request"
UNKNOWN_FIELD = re.compile(r'(unknown|duplicate) field "([^"]+)"')
STEP = re.compile(r"[^.\[\]]+")


class Patience:
    """How long each object has been refused for what may be mended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, grace_s: float = GRACE_S) -> None:
        self._clock, self._grace_s = clock, grace_s
        self._since: dict[str, float] = {}
        self._lock = threading.Lock()

    def over(self, name: str) -> bool:
        """Whether `name` has had its grace."""
        with self._lock:
            return self._clock() - self._since.setdefault(name, self._clock()) > self._grace_s

    def forget(self, name: str) -> None:
        """It was taken."""
        with self._lock:
            self._since.pop(name, None)


def meaning(error: Trouble | Refused, manifest: Mapping[str, Any], patience: Patience) -> ClusterError:
    """What to raise for an object that was not taken."""
    if isinstance(error, Trouble):
        return Unavailable(str(error))
    name = str(manifest["metadata"]["name"])
    denied = error.status == 403 and DENIED in error.message
    if error.status in FINAL or denied:
        return Rejected(refusals(error, manifest))
    if error.status not in INSTALLATION or QUOTA.search(error.message):
        return Unavailable(str(error))
    words = _installation(error, manifest)
    if patience.over(name):
        return Rejected([Refusal("kind", f"{manifest.get('apiVersion')} {manifest.get('kind')}", words)])
    return Unavailable(words)


def refusals(error: Refused, manifest: Mapping[str, Any]) -> list[Refusal]:
    """The fields that the server named, each with what stood there; the whole object where it named none."""
    found = [
        Refusal(cause["field"], value_at(manifest, cause["field"]), str(cause.get("message") or error.message))
        for cause in error.causes
        if cause.get("field") and cause["field"] != "<nil>"
    ]
    unknown = UNKNOWN_FIELD.findall(error.message)
    found += [Refusal(path, value_at(manifest, path), f"no {word} field") for word, path in unknown]
    given = f"{manifest.get('kind')} {manifest['metadata']['name']}"
    return found or [Refusal("", given, error.message)]


def value_at(manifest: Mapping[str, Any], path: str) -> object:
    """What stands at a field path as Kubernetes writes it ("spec.containers[0].image"); None where nothing does."""
    here: Any = manifest
    for step in STEP.findall(path):
        if isinstance(here, Mapping):
            here = here.get(step)
        elif isinstance(here, list) and step.isdecimal() and int(step) < len(here):
            here = here[int(step)]
        else:
            return None
    return here


def _installation(error: Refused, manifest: Mapping[str, Any]) -> str:
    kind, where = manifest.get("kind"), manifest["metadata"].get("namespace", "")
    if error.status == 404:
        return f"this cluster has no {manifest.get('apiVersion')} {kind}, or no namespace {where}: {error.message}"
    return f"the control plane may not create a {kind} here: {error.message}"
