"""Who holds a service-account token: TokenReview, with our audience, remembered for a minute at most."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from controlplane.clusters.base import Caller, Unavailable
from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble
from controlplane.clusters.kubernetes.resources import TOKEN_REVIEWS

KNOWN_S, UNKNOWN_S = 60.0, 10.0
REMEMBERED = 4096
POD_NAME, POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"


class Callers:
    """Pods by their tokens. Tokens themselves are not kept."""

    def __init__(
        self,
        connection: Connection,
        audience: str,
        namespaces: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._audience, self._clock = connection, audience, clock
        self._accounts = tuple(f"system:serviceaccount:{namespace}:" for namespace in namespaces)
        self._known: OrderedDict[bytes, tuple[float, Caller | None]] = OrderedDict()
        self._lock = threading.Lock()

    def authenticate(self, token: str) -> Caller | None:
        """See `Cluster.authenticate`. Raises Unavailable."""
        key = hashlib.sha256(token.encode()).digest()
        with self._lock:
            until, caller = self._known.get(key, (float("-inf"), None))
            if self._clock() < until:
                return caller
        caller = self._ask(token)
        with self._lock:
            self._known[key] = (self._clock() + (KNOWN_S if caller else UNKNOWN_S), caller)
            self._known.move_to_end(key)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return caller

    def _ask(self, token: str) -> Caller | None:
        review = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer = self._connection.call("POST", TOKEN_REVIEWS.path(), review)
        except (Trouble, Refused) as error:
            raise Unavailable(f"tokens cannot be checked: {error}") from error
        return self._caller(answer.get("status") or {})

    def _caller(self, status: Mapping[str, Any]) -> Caller | None:
        """The pod, where the token is good, for us, and of an account of our namespaces."""
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        ours = str(user.get("username", "")).startswith(self._accounts)
        names, uids = extra.get(POD_NAME) or [], extra.get(POD_UID) or []
        if not (status.get("authenticated") and self._audience in (status.get("audiences") or ()) and ours):
            return None
        return Caller(str(names[0]), str(uids[0])) if names and uids else None
