"""Users by the word of a proxy that has checked who they are; it is known by where it is, by a secret, or by both."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence

from controlplane.domain.errors import Unauthorized
from controlplane.identity.shown import Shown

SECRET_HEADER = "x-teragpt-proxy-secret"


class Proxy:
    """The proxies in `networks` (any address where there are none) that send `secret` (where there is one).

    One of both is given. `header` holds the user's name.
    """

    def __init__(self, networks: Sequence[str], secret: str, header: str) -> None:
        assert networks or secret
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._secret, self._header = secret.encode(), header

    async def user(self, shown: Shown) -> str:
        """See `Users`. A header that comes twice is not taken: one of them may be the caller's own."""
        if self._networks and not self._within(shown.peer):
            raise Unauthorized(f"{shown.peer or 'this'} is no proxy of --proxy-networks: come through one of those")
        if self._secret and not self._knows(shown):
            raise Unauthorized(f"the header {SECRET_HEADER} does not hold the secret of --proxy-secret-file")
        names = shown.headers(self._header)
        if len(names) != 1 or not names[0].strip():
            raise Unauthorized(f"the proxy has to name the user in one header {self._header}; got {len(names)}")
        return names[0].strip()

    def _within(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)

    def _knows(self, shown: Shown) -> bool:
        secrets = shown.headers(SECRET_HEADER)
        return len(secrets) == 1 and hmac.compare_digest(secrets[0].encode(), self._secret)
