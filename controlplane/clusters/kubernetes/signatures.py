"""The API server's signatures under service accounts' tokens, checked here: for an account that may not review tokens.

Every service account may read the keys (ClusterRole `system:service-account-issuer-discovery`), unless somebody took
that right away. A signature does not tell whether the token's pod is still there: whoever asks knows the pods.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble

ABOUT, KEYS = "/.well-known/openid-configuration", "/openid/v1/jwks"
ALGORITHMS = ["RS256", "ES256", "ES384", "ES512"]  # that an API server signs by
FRESH_S, PAUSE_S = 600.0, 10.0  # keys are asked for again after; at most this often, whatever is shown
SKEW_S = 30.0
RULES: Any = {"require": ["exp", "iss", "aud", "sub"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}


class Signatures:
    """Those of the cluster of `connection`."""

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self._connection, self._clock = connection, clock
        self._issuer, self._keys = "", dict[str, Any]()
        self._answered = self._asked = float("-inf")
        self._failed = ""
        self._lock = threading.Lock()

    def claims(self, token: str, audience: str) -> Mapping[str, Any]:
        """What the token says, where it is good and for `audience`; else nothing. Raises Trouble."""
        import jwt  # late: the cryptography takes 15 MB

        try:
            issuer, key = self._key(str(jwt.get_unverified_header(token).get("kid")))
            if key is None:
                return {}
            told = jwt.decode(
                token, jwt.PyJWK(key), algorithms=ALGORITHMS, audience=audience, issuer=issuer, options=RULES
            )
        except (jwt.PyJWTError, RecursionError):  # JSON may be nested deeper than Python reads
            return {}
        now = self._connection.now().timestamp()  # the signer's own clock, which ours may differ from
        return told if float(told.get("nbf", 0)) - SKEW_S <= now < float(told["exp"]) + SKEW_S else {}

    def _key(self, name: str) -> tuple[str, dict[str, Any] | None]:
        """The issuer and its key of this name. While keys cannot be read, those of before are good."""
        with self._lock:
            now = self._clock()
            if (name not in self._keys or now - self._answered > FRESH_S) and now - self._asked > PAUSE_S:
                self._read()
            if self._failed and name not in self._keys:
                raise Trouble(self._failed)
            return self._issuer, self._keys.get(name)

    def _read(self) -> None:
        try:
            self._issuer, self._keys = published(self._connection)
            self._failed, self._answered = "", self._clock()
        except (Trouble, Refused) as error:
            self._failed = str(error)
        finally:
            self._asked = self._clock()  # when the answer came: those who waited for it shall not ask again


def published(connection: Connection) -> tuple[str, dict[str, Any]]:
    """The issuer's name, and its keys by their ids. Raises Trouble and Refused."""
    issuer = str(connection.call("GET", ABOUT).get("issuer", ""))
    found = connection.call("GET", KEYS).get("keys") or ()
    return issuer, {str(key["kid"]): key for key in found if "kid" in key}
