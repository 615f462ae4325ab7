"""Who calls, by the means that the installation chose, and under which name what they do is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

from controlplane.authentication import Authentication
from controlplane.clusters.base import ClusterError
from controlplane.domain.errors import ClusterSilent, Forbidden, Unauthorized
from controlplane.identity.shown import Shown, Users
from controlplane.services.context import Context
from controlplane.services.retention import ACTOR
from controlplane.services.runs import LOCAL

LONGEST_NAME = 253


def users_of(context: Context, settings: Authentication) -> Users | None:
    """Those who are let in beside the API's own token; none where that alone counts."""
    means = _means(context, settings)

    async def named(shown: Shown) -> str:
        assert means
        return checked(await means(shown))

    return named if means else None


def checked(name: str) -> str:
    """A user's name, where it can stand in events and is nobody else's there. Raises Forbidden."""
    if name in {LOCAL, ACTOR}:
        raise Forbidden(f"the user {name!r} would be told as TeraGPT itself: call as another")
    if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise Forbidden(f"a user's name must be 1 to {LONGEST_NAME} characters that can be printed")
    return name


def _means(context: Context, settings: Authentication) -> Users | None:
    from controlplane.identity.proxy import Proxy
    from controlplane.identity.tokens import Tokens

    if settings.auth == "kubernetes":
        return lambda shown: admitted(context, shown)
    if settings.auth == "tokens":
        return Tokens(Path(settings.tokens_file)).user
    if settings.auth == "proxy":
        networks = settings.proxy_networks.split(",") if settings.proxy_networks else []
        return Proxy(networks, settings.proxy_secret_file, settings.proxy_user_header).user
    return _issuer(settings) if settings.auth == "oidc" else None


def _issuer(settings: Authentication) -> Users:
    from controlplane.identity.oidc import Issuer, Rules  # late: the cryptography takes 15 MB

    groups = settings.oidc_groups.split(",") if settings.oidc_groups else []
    rules = Rules(
        settings.oidc_issuer,
        settings.oidc_audience,
        settings.oidc_algorithms.split(","),
        settings.oidc_clock_skew_s,
        settings.oidc_user_claim,
        settings.oidc_groups_claim,
        frozenset(groups),
    )
    return Issuer(rules).user


async def admitted(context: Context, shown: Shown) -> str:
    """The user whom the cluster lets do the same with jobs: nobody's rights are kept twice. See `Users`."""
    try:
        jwt = shown.token.count(".") == 2
        user = await asyncio.to_thread(context.cluster.admit, shown.token, shown.verb) if jwt else None
    except ClusterError as error:
        raise ClusterSilent(str(error)) from None
    if user is None:
        account = f"a Kubernetes account's that may {shown.verb} jobs where runs live"
        raise Unauthorized(f"send the header Authorization: Bearer TOKEN, this API's own or {account}")
    return user
