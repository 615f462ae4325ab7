"""Users by tokens of an OpenID Connect issuer: JWTs, whose signature and claims are checked here at every request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from controlplane.domain.errors import Forbidden, Unauthorized
from controlplane.identity.keys import Jwk, Keys
from controlplane.identity.shown import Shown

REQUIRED = ["exp", "iss", "aud"]


@dataclass(frozen=True)
class Rules:
    """What a token must be: of this `issuer` and for this `audience`, signed by one of `algorithms`.

    Its times may be `skew_s` seconds off. `user_claim` holds the user's name, `groups_claim` their groups, of which one
    is among `groups`, where those are given.
    """

    issuer: str
    audience: str
    algorithms: Sequence[str]
    skew_s: float
    user_claim: str
    groups_claim: str
    groups: frozenset[str]


class Issuer:
    """The users of an issuer."""

    def __init__(self, rules: Rules, keys: Keys | None = None) -> None:
        self._rules = rules
        self._keys = keys or Keys(rules.issuer)

    async def user(self, shown: Shown) -> str:
        """See `Users`."""
        rules = self._rules
        claims = await self._claims(shown.token)
        name = claims.get(rules.user_claim)
        if not isinstance(name, str) or not name:
            raise Forbidden(f"the token names no user: it has no text as its claim {rules.user_claim!r}")
        if rules.user_claim == "email" and claims.get("email_verified", True) is not True:
            raise Forbidden(f"{name} is an address that the issuer has not verified")
        if rules.groups and not rules.groups & _words(claims.get(rules.groups_claim)):
            raise Forbidden(f"{name} is in no group that may call (claim {rules.groups_claim!r})")
        return name

    async def _claims(self, token: str) -> Mapping[str, Any]:
        """What the token says, once that is proven. Raises Unauthorized and IssuerSilent."""
        rules = self._rules
        own = f"this API's own or one that {rules.issuer} made for {rules.audience}"
        if not token:
            raise Unauthorized(f"send the header Authorization: Bearer TOKEN, {own}")
        try:
            head = jwt.get_unverified_header(token)
            algorithm = self._allowed(head.get("alg"))
            return jwt.decode(
                token,
                _key(await self._keys.of(head.get("kid")), algorithm),
                algorithms=list(rules.algorithms),
                audience=rules.audience,
                issuer=rules.issuer,
                leeway=rules.skew_s,
                options={"require": REQUIRED},
            )
        except (jwt.PyJWTError, RecursionError) as error:  # JSON may be nested deeper than Python reads
            raise Unauthorized(f"the bearer token is not {own}: {error}") from None

    def _allowed(self, algorithm: object) -> str:
        if not isinstance(algorithm, str) or algorithm not in self._rules.algorithms:
            raise jwt.InvalidAlgorithmError(f"it is signed with {algorithm}, not {', '.join(self._rules.algorithms)}")
        return algorithm


def _key(jwk: Jwk | None, algorithm: str) -> jwt.PyJWK:
    """The key, for what it is there for alone. Raises PyJWTError."""
    if jwk is None:
        raise jwt.InvalidKeyError("the issuer has no such key")
    if jwk.get("alg", algorithm) != algorithm:
        raise jwt.InvalidAlgorithmError(f"the issuer's key is for {jwk['alg']}, not {algorithm}")
    return jwt.PyJWK(jwk, algorithm)


def _words(claim: object) -> set[str]:
    """The groups of a claim: one text, or several."""
    several = claim if isinstance(claim, list) else [claim]
    return {word for word in several if isinstance(word, str)}
