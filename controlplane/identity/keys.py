"""An OpenID Connect issuer's public keys: found by discovery, kept for a while, asked for again where one is new.

Callers who are not known yet cause the questions, so that these are few: at most one in `PAUSE_S`, whatever they show.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import httpx

from controlplane.domain.errors import IssuerSilent
from controlplane.options import secure_url

Jwk: TypeAlias = dict[str, Any]

FRESH_S, GOOD_S = 600.0, 3600.0  # keys are asked for again after; they are not taken for good any more after
PAUSE_S, TIMEOUT_S = 10.0, 5.0
DISCOVERY = "/.well-known/openid-configuration"  # OpenID Connect Discovery 1.0, section 4


class Keys:
    """The keys of `issuer` by their ids."""

    def __init__(self, issuer: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer, self._clock = issuer, clock
        self._keys: list[Jwk] = []
        self._asked = self._answered = float("-inf")
        self._failure = ""
        self._lock = asyncio.Lock()

    async def of(self, kid: str | None) -> Jwk | None:
        """A key; None where the issuer has none of this id. Without an id its only one. Raises IssuerSilent."""
        known = self._find(kid)
        if known is None or (self._age() > FRESH_S and not self._lock.locked()):
            await self._refresh()
            known = self._find(kid)
        if self._failure and (known is None or self._age() > GOOD_S):
            raise IssuerSilent(self._failure)
        return known

    async def _refresh(self) -> None:
        async with self._lock:
            if self._clock() - self._asked < PAUSE_S:
                return
            self._asked = self._clock()
            try:
                self._keys = await _fetched(self._issuer)
            except IssuerSilent as error:
                self._failure = str(error)
            else:
                self._answered, self._failure = self._clock(), ""

    def _age(self) -> float:
        return self._clock() - self._answered

    def _find(self, kid: str | None) -> Jwk | None:
        found = [key for key in self._keys if kid is None or key.get("kid") == kid]
        return found[0] if len(found) == 1 else None


async def _fetched(issuer: str) -> list[Jwk]:
    """The issuer's keys for signatures. Raises IssuerSilent."""
    try:
        async with asyncio.timeout(2 * TIMEOUT_S), httpx.AsyncClient(timeout=TIMEOUT_S) as http:
            place = _place(issuer, await _object(http, issuer.rstrip("/") + DISCOVERY))
            found = await _object(http, place)
    except TimeoutError:
        raise IssuerSilent(f"{issuer} cannot be asked for its keys: it does not answer in time") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise IssuerSilent(f"{issuer} cannot be asked for its keys: {str(error) or type(error).__name__}") from None
    keys = found.get("keys")
    listed = keys if isinstance(keys, list) else []
    return [key for key in listed if isinstance(key, dict) and key.get("use", "sig") == "sig"]


def _place(issuer: str, about: dict[str, Any]) -> str:
    """Where the keys are, as the issuer says of itself. Raises ValueError."""
    if about.get("issuer") != issuer:
        raise ValueError(f"it calls itself {about.get('issuer')!r}: give --oidc-issuer in exactly its words")
    try:
        return secure_url(str(about.get("jwks_uri")))
    except ValueError as error:
        raise ValueError(f"its jwks_uri is {about.get('jwks_uri')!r}; allowed: {error}") from None


async def _object(http: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """A JSON object at a URL. Raises httpx's errors and ValueError."""
    reply = await http.get(url)
    if reply.status_code != 200:
        raise ValueError(f"{url} answers with status {reply.status_code}")
    body = reply.json()
    if not isinstance(body, dict):
        raise ValueError(f"{url} is no JSON object")  # noqa: TRY004 (told as what the issuer answered)
    return body
