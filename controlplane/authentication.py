"""The settings of who may call, and which of them go together; `identity/` and `api/access.py` do what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from controlplane.options import (
    SettingsError,
    algorithms,
    file_text,
    header,
    host_names,
    networks,
    number,
    option,
    secure_url,
    switch,
    text,
    tokens_file,
    word,
)

MODES = ("token", "tokens", "kubernetes", "oidc", "proxy", "none")


@dataclass(frozen=True)
class Authentication:
    """Who may call."""

    require_token: bool = option(
        default=False, help="Ask every caller for the token in the home's file `token`.", read=switch
    )
    auth: Literal["token", "tokens", "kubernetes", "oidc", "proxy", "none"] = option(
        "token",
        "Who is let in where a token is asked for: who shows the home's (token); beside it, who shows one of "
        "--tokens-file (tokens), a Kubernetes token of the audience and may do the same with jobs in every namespace "
        "of the runs (kubernetes), a token of --oidc-issuer (oidc), or comes through a proxy that names its user "
        "(proxy); anyone, without a token (none).",
        word(*MODES),
    )
    open_to_anyone: bool = option(
        default=False,
        help="Let --auth none listen where others than this machine can reach it, and let them do everything.",
        read=switch,
    )
    allowed_hosts: str = option(
        "", "Further host names that callers may address the API by, with commas, such as a proxy's.", host_names
    )
    tokens_file: str = option(
        "", "File of the tokens of --auth tokens, as `teragpt token` prints their lines.", tokens_file, secret=True
    )
    oidc_issuer: str = option("", "Issuer of the tokens of --auth oidc, in exactly its own words.", secure_url)
    oidc_audience: str = option("teragpt", "Audience that those tokens are for, which is the client's id.", text)
    oidc_user_claim: str = option("sub", "Claim that names the user; of `email` only what is verified counts.", text)
    oidc_groups_claim: str = option("groups", "Claim that lists the user's groups.", text)
    oidc_groups: str = option(
        "", "Groups of which a user must be in one, with commas; every user of the issuer may call unless given.", text
    )
    oidc_algorithms: str = option(
        "RS256,PS256,ES256,EdDSA", "Algorithms that those tokens may be signed by, with commas.", algorithms
    )
    oidc_clock_skew_s: float = option(30.0, "Seconds by which the issuer's clock may be off.", number(0, 600))
    proxy_networks: str = option(
        "", "Networks that the proxies of --auth proxy call from, with commas, such as 10.0.0.0/24.", networks
    )
    proxy_secret_file: str = option(
        "", "File with a secret that they send as X-TeraGPT-Proxy-Secret.", file_text, secret=True
    )
    proxy_user_header: str = option("X-Forwarded-User", "Header in which they name the user.", header)

    @property
    def required(self) -> bool:
        """Whether callers have to say who they are even where this machine alone can reach the API."""
        return self.require_token or self.auth not in {"token", "none"}

    def check(self, cluster: str, *, loopback: bool) -> None:
        """Raises SettingsError for settings that do not go together."""
        needs = {
            "tokens": {"--tokens-file": self.tokens_file},
            "oidc": {"--oidc-issuer": self.oidc_issuer},
            "proxy": {"--proxy-networks": self.proxy_networks, "--proxy-secret-file": self.proxy_secret_file},
        }
        for mode, means in needs.items():
            given = [flag for flag, value in means.items() if value]
            if mode == self.auth and not given:
                raise SettingsError(f"--auth {mode} needs {' or '.join(means)}")
            if mode != self.auth and given:
                raise SettingsError(f"{given[0]} is of --auth {mode}, not {self.auth}: give that, or leave it out")
        if self.auth == "kubernetes" and cluster == "local":
            raise SettingsError("--auth kubernetes needs a cluster that knows users: give --cluster kubernetes")
        self._check_openness(loopback=loopback)

    def _check_openness(self, *, loopback: bool) -> None:
        if self.auth != "none" and self.open_to_anyone:
            raise SettingsError(f"--open-to-anyone is of --auth none, not {self.auth}: leave one of them out")
        if self.auth == "none" and self.require_token:
            raise SettingsError("--require-token and --auth none contradict each other: leave one of them out")
        if self.auth == "none" and not (loopback or self.open_to_anyone):
            raise SettingsError(
                "--auth none lets everyone who reaches this address do everything: listen on loopback, choose another "
                "--auth, or say --open-to-anyone"
            )
