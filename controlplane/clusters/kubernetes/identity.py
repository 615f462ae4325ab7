"""Who holds a token: TokenReview, with our audience, remembered for a minute at most; what users may do likewise.

Where the account may not create TokenReviews, pods are known by the API server's signatures under their tokens.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from controlplane.clusters.base import Caller, Unavailable
from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble
from controlplane.clusters.kubernetes.resources import ATTEMPTS, SUBJECT_REVIEWS, TOKEN_REVIEWS, Resource
from controlplane.clusters.kubernetes.signatures import Signatures

T = TypeVar("T")
KNOWN_S, UNKNOWN_S = 60.0, 10.0
UNALLOWED_S = 600.0  # for how long reviews are not asked for, where the account may not
REMEMBERED = 4096
POD_NAME, POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"


class Unallowed(Unavailable):
    """The account may not ask this."""


class Answers(Generic[T]):
    """What was found out about tokens, for a minute at most. Tokens themselves are not kept."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, T | None]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, token: str, ask: Callable[[str], T | None]) -> T | None:
        """The answer, asked for where it is not known."""
        key = hashlib.sha256(token.encode()).digest()
        with self._lock:
            until, answer = self._known.get(key, (float("-inf"), None))
            if self._clock() < until:
                return answer
        answer = ask(token)
        with self._lock:
            self._known[key] = (self._clock() + (UNKNOWN_S if answer is None else KNOWN_S), answer)
            self._known.move_to_end(key)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return answer


class Callers:
    """Pods of our namespaces, by their tokens."""

    def __init__(
        self,
        connection: Connection,
        audience: str,
        namespaces: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._audience = connection, audience
        self._accounts = tuple(f"system:serviceaccount:{namespace}:" for namespace in namespaces)
        self._answers = Answers[Caller](clock)
        self._signatures = Signatures(connection, clock)
        self._clock, self._reviews_at = clock, float("-inf")

    def authenticate(self, token: str) -> Caller | None:
        """See `Cluster.authenticate`. Raises Unavailable."""
        return self._answers.of(token, self._ask)

    def _ask(self, token: str) -> Caller | None:
        """The pod, where the token is good, for us, and of an account of our namespaces."""
        if self._clock() < self._reviews_at:
            return self._signed(token)
        try:
            user = _reviewed(self._connection, token, self._audience) or {}
        except Unallowed:
            self._reviews_at = self._clock() + UNALLOWED_S
            return self._signed(token)
        extra = user.get("extra") or {}
        ours = str(user.get("username", "")).startswith(self._accounts)
        names, uids = extra.get(POD_NAME) or [], extra.get(POD_UID) or []
        return Caller(str(names[0]), str(uids[0])) if ours and names and uids else None

    def _signed(self, token: str) -> Caller | None:
        """The same, by the signature under the token."""
        try:
            claims = self._signatures.claims(token, self._audience)
        except Trouble as error:
            self._reviews_at = float("-inf")  # what is mended first shall count at once
            raise Unavailable(f"tokens cannot be checked: {error}") from error
        pod = (claims.get("kubernetes.io") or {}).get("pod") or {}
        ours = str(claims.get("sub", "")).startswith(self._accounts)
        return Caller(str(pod["name"]), str(pod["uid"])) if ours and pod else None


class Users:
    """Whoever may do with jobs, in each of our namespaces, what they ask us to do with runs."""

    def __init__(
        self,
        connection: Connection,
        audience: str,
        namespaces: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._audience, self._namespaces = connection, audience, tuple(namespaces)
        self._clock = clock
        self._answers: dict[str, Answers[str]] = {}

    def admit(self, token: str, verb: str) -> str | None:
        """See `Cluster.admit`. Raises Unavailable."""
        answers = self._answers.setdefault(verb, Answers[str](self._clock))
        return answers.of(token, lambda shown: self._ask(shown, verb))

    def _ask(self, token: str, verb: str) -> str | None:
        user = _reviewed(self._connection, token, self._audience)
        if user is None or not all(self._may(user, verb, namespace) for namespace in self._namespaces):
            return None
        return str(user["username"])

    def _may(self, user: Mapping[str, Any], verb: str, namespace: str) -> bool:
        jobs = ATTEMPTS["Job"]
        attributes = {"namespace": namespace, "verb": verb, "group": jobs.group, "resource": jobs.plural}
        who = {"user": user["username"], **{name: user[name] for name in ("groups", "uid", "extra") if name in user}}
        status = _review(self._connection, SUBJECT_REVIEWS, {**who, "resourceAttributes": attributes})
        return status.get("allowed") is True


def _reviewed(connection: Connection, token: str, audience: str) -> Mapping[str, Any] | None:
    """Whose token it is, where it is good and for us. One that would do at the API server itself is not for us."""
    status = _review(connection, TOKEN_REVIEWS, {"token": token, "audiences": [audience]})
    good = status.get("authenticated") and audience in (status.get("audiences") or ())
    return status.get("user") or {} if good else None


def _review(connection: Connection, resource: Resource, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the API server says. Raises Unavailable, and Unallowed of its kind."""
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "spec": dict(spec)}
    try:
        answer = connection.call("POST", resource.path(), body)
    except (Trouble, Refused) as error:
        kind = Unallowed if isinstance(error, Refused) and error.status == 403 else Unavailable
        raise kind(f"tokens cannot be checked: {error}") from error
    return answer.get("status") or {}
