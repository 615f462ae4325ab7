"""Who may call: checks before any route runs, so that no page in a browser on this machine can reach the API.

A browser names the page's origin and the host it believes to talk to; a page of another origin, or one that bound its
own name to our address (DNS rebinding), is told apart by them. Where a token is required, everything but probes and
documentation needs it, or what makes a user known by the means that the installation chose. The token of a single run
is not known here: its route checks that.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from controlplane.api.problems import Refusal, render, translate
from controlplane.domain.errors import ControlPlaneError
from controlplane.identity.shown import Shown, Users

VERBS = {"GET": "get", "HEAD": "get", "DELETE": "delete"}  # of Kubernetes; all others create
OPEN_PATHS = re.compile(r"(/v1)?/(livez|readyz|docs(/[\w.-]+)?|openapi\.json)")
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
RUN_TOKEN_PATHS = re.compile(r"POST (/v1)?/runs/[^/]+/metrics|PUT (/v1)?/runs/[^/]+/output")


class Access:
    """Refuses callers. `hosts`: names the API goes by; `token`: what callers must show, if anything; or one of `users`.

    The user's name goes into the request's state.
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str], *, any_address: bool, token: str | None, users: Users | None = None
    ) -> None:
        self.app, self.hosts, self.any_address, self.users = app, hosts, any_address, users
        self.token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with a refusal."""
        if scope["type"] == "http" and (refusal := self._refusal(scope) or await self._stranger(scope)):
            await render(refusal, scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._known(host):
            return Refusal("forbidden_host", f"got Host {host!r}; allowed: {', '.join(sorted(self.hosts))}")
        if origin is not None and not _same(origin, host):
            return Refusal("forbidden_origin", f"got Origin {origin!r}; allowed: this API's own, or none")
        return None

    async def _stranger(self, scope: Scope) -> Refusal | None:
        """Why a caller whose host and origin are fine is not let in."""
        headers = Headers(scope=scope)
        token = _bearer(headers.get("authorization", ""))
        if self.token is None or _open(scope) or hmac.compare_digest(token.encode(), self.token):
            return None
        if self.users is None:
            detail = "send the header Authorization: Bearer TOKEN"
            return Refusal("unauthorized", detail, headers={"www-authenticate": "Bearer"})
        verb, peer = VERBS.get(scope["method"], "create"), str((scope.get("client") or ("",))[0])
        try:
            user = await self.users(Shown(token, verb, headers.getlist, peer))
        except ControlPlaneError as error:
            return translate(error)
        scope.setdefault("state", {})["user"] = user
        return None

    def _known(self, host: str) -> bool:
        """Whether a Host header is a name of ours.

        Where all addresses are bound, services and ingresses give us names that we do not know: any address will do,
        since it cannot be rebound, and where a token is asked for any name, since a page that rebinds one has no token.
        """
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname or "", parts.port
        except ValueError:
            return False
        if name in self.hosts or not self.any_address:
            return name in self.hosts
        return _is_address(name) or (self.token is not None and NAME.fullmatch(name) is not None)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same(origin: str, host: str) -> bool:
    """Whether a page of `origin` was served from `host`."""
    scheme, _, netloc = origin.partition("://")
    return scheme in {"http", "https"} and netloc.lower() == host.lower()


def _open(scope: Scope) -> bool:
    path, method = str(scope["path"]), scope["method"]
    return bool(OPEN_PATHS.fullmatch(path) or RUN_TOKEN_PATHS.fullmatch(f"{method} {path}"))


def _bearer(header: str) -> str:
    scheme, _, shown = header.partition(" ")
    return shown.strip() if scheme.lower() == "bearer" else ""
