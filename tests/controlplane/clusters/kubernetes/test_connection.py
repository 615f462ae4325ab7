from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.base import Unavailable
from controlplane.clusters.kubernetes import connection as module
from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble
from tests.controlplane.clusters.kubernetes.hands import kubeconfig
from tests.controlplane.clusters.kubernetes.server import Answer, ApiServer, status


def test_the_token_and_the_namespace_of_the_context_are_used(server: ApiServer, tmp_path: Path) -> None:
    config = kubeconfig(tmp_path / "config", server.url, namespace="team", token="abc")
    connection = Connection(config, None)
    assert connection.namespace == "team"
    assert Connection(config, "mine").namespace == "mine"
    connection.call("GET", "/version")
    headers = {name.lower(): value for name, value in server.requests[-1].headers.items()}
    assert (headers["authorization"], headers["user-agent"]) == ("Bearer abc", "teragpt")


def test_kubeconfig_is_found_in_the_environment(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", server.url)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert Connection(None, None).host == server.url


def test_in_a_pod_its_own_account_is_used_and_its_token_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.config import incluster_config

    (tmp_path / "namespace").write_text("own")
    (tmp_path / "token").write_text("first")
    (tmp_path / "ca.crt").write_text("a certificate")
    monkeypatch.setattr(module, "ACCOUNT", tmp_path)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    connection = Connection(None, None)
    assert (connection.namespace, connection.host) == ("own", "https://127.0.0.1:443")
    configuration = connection._client.configuration
    assert configuration.get_api_key_with_prefix("BearerToken") == "bearer first"
    (tmp_path / "token").write_text("second")
    loader = configuration.refresh_api_key_hook.__closure__[0].cell_contents
    loader.token_expires_at -= loader._token_refresh_period
    assert configuration.get_api_key_with_prefix("BearerToken") == "bearer second"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"current-context": "x", "contexts": []}'])
def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "config"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Unavailable, match=str(file)):
        Connection(file, None)


def test_the_time_is_the_servers(server: ApiServer, connection: Connection) -> None:
    server.ahead_s = 3600.0
    connection.call("GET", "/version")
    ahead = connection.now() - datetime.now(UTC)
    assert timedelta(minutes=59) < ahead < timedelta(minutes=61)


def test_a_server_that_is_not_there_is_trouble(tmp_path: Path) -> None:
    connection = Connection(kubeconfig(tmp_path / "config", "http://127.0.0.1:9"), None)
    with pytest.raises(Trouble, match="refused"):
        connection.call("GET", "/version")


def test_an_answer_cut_in_half_is_trouble(server: ApiServer, connection: Connection) -> None:
    server.fail(Answer(200, b'{"gitVersion": "v1"}', cut=True))
    with pytest.raises(Trouble):
        connection.call("GET", "/version")


def test_an_answer_that_is_no_json_is_trouble(server: ApiServer, connection: Connection) -> None:
    server.fail(Answer(200, b"<html>a proxy's page</html>"))
    with pytest.raises(Trouble, match="no JSON"):
        connection.call("GET", "/version")


def test_a_server_that_says_nothing_is_not_waited_for(server: ApiServer, connection: Connection) -> None:
    path = "/api/v1/namespaces/default/pods/quiet/log"
    with pytest.raises(Trouble, match="stream broke"):
        connection.read("GET", path, query={"follow": "true"}, timeout=(1.0, 0.05))
    assert server.requests


def test_nothing_is_repeated_behind_our_back(server: ApiServer, connection: Connection) -> None:
    server.fail(status(503, "ServiceUnavailable", "later"), times=9)
    with pytest.raises(Refused):
        connection.call("POST", "/api/v1/namespaces/default/pods", {})
    assert len(server.requests) == 1


def test_a_refusal_has_its_words_and_its_fields(server: ApiServer, connection: Connection) -> None:
    causes = [{"field": "spec.x", "message": "is wrong"}]
    server.fail(status(422, "Invalid", "it is invalid", details={"causes": causes}))
    with pytest.raises(Refused) as refused:
        connection.call("GET", "/version")
    assert (refused.value.status, refused.value.reason, refused.value.causes) == (422, "Invalid", causes)
    assert str(refused.value) == "it is invalid (HTTP 422)"
    server.fail(Answer(502, b"Bad gateway"))
    with pytest.raises(Refused, match="Bad gateway"):
        connection.call("GET", "/version")


def test_who_is_asked_to_come_back_later_does(server: ApiServer, connection: Connection) -> None:
    server.fail(Answer(429, json.dumps({"message": "too many"}).encode(), {"Retry-After": "60"}))
    with pytest.raises(Refused) as refused:
        connection.call("GET", "/version")
    assert refused.value.retry_after == 60
    begun = time.monotonic()
    with pytest.raises(Trouble, match="left alone"):
        connection.call("GET", "/version")
    assert len(server.requests) == 1
    connection._hold_until = begun  # as if the minute had passed
    assert connection.call("GET", "/version")["gitVersion"]


def test_who_we_are_is_worked_out_anew_once_the_server_does_not_know_us(
    server: ApiServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[str] = []
    show = connection._client.update_params_for_auth

    def shown(*given: Any) -> None:
        times.append("shown")
        show(*given)

    monkeypatch.setattr(connection._client, "update_params_for_auth", shown)
    for _ in range(3):
        connection.call("GET", "/version")
    assert times == ["shown"]
    server.fail(status(401, "Unauthorized", "who are you?"), path="/version")
    with pytest.raises(Refused):
        connection.call("GET", "/version")
    connection.call("GET", "/version")
    assert times == ["shown"] * 2
    assert server.requests[-1].headers["authorization"] == "Bearer secret"
