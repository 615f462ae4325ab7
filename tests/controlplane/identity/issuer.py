"""An OpenID Connect issuer in the test's own process: a real server on loopback with keys of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

KINDS = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


def key_of(algorithm: str) -> Any:
    """A new private key."""
    if algorithm == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


class TestIssuer:
    """Its keys by id, each with its algorithm; `asked` counts what was asked of it, `away` makes it fail."""

    __test__ = False

    def __init__(self, url: str) -> None:
        self.url, self.away = url, False
        self.asked: list[str] = []
        self.keys: dict[str, tuple[str, Any]] = {}
        self.about: dict[str, Any] = {"issuer": url, "jwks_uri": f"{url}/keys"}
        self.further: list[dict[str, Any]] = []

    def add(self, kid: str, algorithm: str = "ES256") -> None:
        """Sign with a new key from now on."""
        self.keys[kid] = algorithm, key_of(algorithm)

    def answer(self, path: str) -> tuple[int, Any]:
        """What is served at a path."""
        self.asked.append(path)
        if self.away:
            return 503, {}
        if path == "/keys":
            return 200, {"keys": [self.public(kid) for kid in self.keys] + self.further}
        return (200, self.about) if path == "/.well-known/openid-configuration" else (404, {})

    def public(self, kid: str) -> dict[str, Any]:
        """A key as the issuer publishes it."""
        algorithm, key = self.keys[kid]
        jwk: dict[str, Any] = KINDS[algorithm].to_jwk(key.public_key(), as_dict=True)  # type: ignore[attr-defined]
        return {**jwk, "kid": kid, "use": "sig"}

    def token(self, kid: str = "", *, head: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token for us by the newest key, or that of `kid`; a claim that is None is left out."""
        kid = kid or list(self.keys)[-1]
        algorithm, key = self.keys[kid]
        now = time.time()
        told = {"iss": self.url, "aud": "teragpt", "sub": "ada", "iat": now, "exp": now + 300} | claims
        given = {name: value for name, value in told.items() if value is not None}
        return jwt.encode(given, key, algorithm, headers={"kid": kid, **(head or {})})


@contextmanager
def issuing() -> Generator[TestIssuer]:
    """An issuer with one key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = issuer.answer(self.path)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing is written."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer = TestIssuer(f"http://127.0.0.1:{server.server_port}")
        issuer.add("first")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
