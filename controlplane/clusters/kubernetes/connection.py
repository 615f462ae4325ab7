"""The one way to the API server: the `kubernetes` client's configuration, authentication and transport, JSON both ways.

No typed model is ever decoded here: that costs ten times the JSON itself. Every call has a timeout, and none is
repeated behind the caller's back. Raises `Trouble` for what never arrived and `Refused` for what the server said no to.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import incluster_config, kube_config
from kubernetes.config.config_exception import ConfigException
from kubernetes.utils.keepalive import tcp_keepalive_socket_options

from controlplane.clusters.base import Unavailable

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ACCEPTED = "application/json, application/jwk-set+json"  # the second is how an API server shows its keys
TIMEOUT_S = (3.0, 30.0)  # to connect, and between two pieces of an answer
CONNECTIONS = 48  # kept open: one a list+watch, one a followed log, some for calls
LONGEST_HOLD_S = 60.0
SHOWN_S = 10.0  # for how long who we are is not worked out anew: the client reads all its sources each time
TOO_MANY, UNAVAILABLE, UNAUTHORIZED = 429, 503, 401
NO_CONNECTION = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError, ConfigException)


class Trouble(Exception):
    """No answer, or half of one. `unsent`: the request never left this machine."""

    def __init__(self, message: str, *, unsent: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent


class Refused(Exception):
    """The server's `Status`: `status` code, `reason` word, `message`, and field by field `causes`."""

    def __init__(self, status: int, body: bytes, retry_after: float | None = None) -> None:
        said = _object(body)
        details = said.get("details") or {}
        self.status = status
        self.reason = str(said.get("reason") or "")
        self.message = str(said.get("message") or body[:2000].decode("utf-8", "replace").strip() or f"HTTP {status}")
        self.causes: list[dict[str, Any]] = details.get("causes") or []
        self.retry_after = retry_after
        super().__init__(f"{self.message} (HTTP {status})")


class Stream:
    """An answer that goes on: its pieces as they come. `close` may be called from another thread."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        """The pieces. Raises Trouble where the connection breaks or stays silent for too long."""
        try:
            yield from self._response.stream(1 << 16)
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # ValueError and AttributeError: closed by another thread while this one was about to read
            raise Trouble(f"the stream broke: {error}") from error

    def close(self) -> None:
        """Wake up whoever reads, who finds the end."""
        try:
            self._response.shutdown()
        except (OSError, ValueError, RuntimeError, TypeError):
            return  # it is over already


class Connection:
    """An API server and the namespace that is ours there.

    `kubeconfig` None: the pod's own account, else $KUBECONFIG or ~/.kube/config. `namespace` None: the account's or the
    context's; `context` None: the file's current one. Raises Unavailable where there is no usable configuration; the
    server itself is not asked.
    """

    def __init__(self, kubeconfig: Path | None, namespace: str | None, context: str | None = None) -> None:
        configuration = Configuration()
        try:
            found = _configure(configuration, kubeconfig, context)
        except Exception as error:  # a file by hand can be wrong in every way
            where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
            raise Unavailable(f"kubeconfig {where}: {error}") from error
        configuration.retries = False  # pyright: ignore[reportAttributeAccessIssue] - urllib3's word for none at all
        configuration.connection_pool_maxsize = CONNECTIONS
        configuration.socket_options = tcp_keepalive_socket_options(idle=15, interval=5, count=3)
        self.namespace = namespace or found or "default"
        self.host: str = configuration.host
        self._client = ApiClient(configuration)
        self._client.user_agent = "teragpt"
        self._lock = threading.Lock()
        self._hold_until = 0.0
        self._shown: dict[str, str] = {}
        self._shown_until = 0.0
        self._server_time: float | None = None  # seconds since the epoch where our monotonic clock has 0

    def now(self) -> datetime:
        """The time by the server's own clock, as its latest answer told: ours may be wrong, and may jump."""
        if self._server_time is None:
            return datetime.now(UTC)
        return datetime.fromtimestamp(self._server_time + time.monotonic(), UTC)

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = TIMEOUT_S,
    ) -> dict[str, Any]:
        """What the server answers, as JSON. Raises Trouble and Refused."""
        return _whole(self.read(method, path, body, query=query, timeout=timeout))

    def read(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = TIMEOUT_S,
    ) -> bytes:
        """The answer's body. Raises Trouble and Refused."""
        with self.stream(method, path, body, query=query, timeout=timeout) as stream:
            return b"".join(stream)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = TIMEOUT_S,
    ) -> Generator[Stream]:
        """The answer's body as it comes. Raises Trouble and Refused."""
        response = self._open(method, path, body, query, timeout)
        try:
            if response.status >= 400:
                self._refuse(response)
            yield Stream(response)
        finally:
            response.close()  # what was read to its end is back in the pool already; the rest is not waited for
            response.release_conn()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _open(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str] | None,
        timeout: tuple[float, float],
    ) -> urllib3.BaseHTTPResponse:
        self._respect_hold()
        headers = {"Accept": ACCEPTED, "User-Agent": self._client.user_agent}
        if body is not None:
            headers["Content-Type"] = "application/json"
        url = self.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            answer = self._client.call_api(
                method, url, {**headers, **self._credentials()}, body, _request_timeout=timeout
            )
        except (urllib3.exceptions.HTTPError, ApiException, ConfigException, OSError) as error:
            raise Trouble(f"{self.host}: {_words(error)}", unsent=_unsent(error)) from error
        response: urllib3.BaseHTTPResponse = answer.response
        with suppress(KeyError, ValueError):  # no server has to tell the time
            self._server_time = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.monotonic()
        return response

    def _credentials(self) -> dict[str, str]:
        """The headers that say who we are. Raises ConfigException and OSError."""
        with self._lock:
            if time.monotonic() >= self._shown_until:
                shown: dict[str, str] = {}
                self._client.update_params_for_auth(shown, [], ["BearerToken"], "", "", None)
                self._shown, self._shown_until = shown, time.monotonic() + SHOWN_S
            return self._shown

    def _refuse(self, response: urllib3.BaseHTTPResponse) -> None:
        try:
            body = response.read()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Trouble(f"{self.host}: {_words(error)}") from error
        wait = _seconds(response.headers.get("Retry-After"))
        if response.status == UNAUTHORIZED:
            with self._lock:
                self._shown_until = 0.0
        if response.status in (TOO_MANY, UNAVAILABLE) and wait:
            with self._lock:
                self._hold_until = max(self._hold_until, time.monotonic() + min(wait, LONGEST_HOLD_S))
        raise Refused(response.status, body, wait)

    def _respect_hold(self) -> None:
        """The server said when to come back: nobody asks earlier."""
        with self._lock:
            left = self._hold_until - time.monotonic()
        if left > 0:
            raise Trouble(f"{self.host}: asked to be left alone for another {left:.0f} s", unsent=True)


def _configure(configuration: Configuration, kubeconfig: Path | None, context: str | None) -> str | None:
    """Fill in where the server is and who we are; the namespace that goes with it."""
    if (
        kubeconfig is None
        and context is None
        and incluster_config.SERVICE_HOST_ENV_NAME in os.environ
        and ACCOUNT.is_dir()
    ):
        incluster_config.load_incluster_config(configuration)
        return (ACCOUNT / "namespace").read_text("ascii").strip()
    file = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG") or kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    kube_config.load_kube_config(file, context, client_configuration=configuration, persist_config=False)
    found: tuple[Any, Any] = kube_config.list_kube_config_contexts(file)
    contexts, current = found
    chosen = current if context is None else next(each for each in contexts if each["name"] == context)
    namespace: str | None = chosen["context"].get("namespace")
    return namespace


def _unsent(error: Exception) -> bool:
    """Whether the request failed before there was a connection to send it on."""
    reason = getattr(error, "reason", None) or error  # what urllib3 had tried for
    return isinstance(reason, NO_CONNECTION)


def _whole(body: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(body))
    except ValueError as error:
        raise Trouble(f"an answer that is no JSON: {body[:200]!r}") from error


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None


def _words(error: Exception) -> str:
    """The error without the client's object addresses."""
    text = str(error).strip()
    return text.split(": ", 1)[1] if text.startswith("<") and ": " in text else text or type(error).__name__
