"""What is sent again, and what is not: over real connections to a server that fails as it is told."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Generator
from typing import ClassVar

import pytest

from controlplane.client import ApiError, Client, Unreachable

LOST = 0  # the connection is cut instead of an answer


class Failing(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next of `answers`."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[int]] = []
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.keys.append(self.headers.get("idempotency-key"))
        status = self.answers.pop(0)
        if status == LOST:
            self.close_connection = True
            return
        body = json.dumps({"status": status, "id": "r", "detail": "told"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_DELETE = do_PATCH = do_POST  # noqa: N815 - the standard library names them

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Generator[Client]:
    monkeypatch.setattr("controlplane.client.patience.FIRST_PAUSE_S", 0.001)
    Failing.keys.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            yield client
        server.shutdown()
        thread.join()


def test_a_creation_is_sent_again_under_its_own_key(client: Client) -> None:
    Failing.answers[:] = [LOST, 503, 429, 502, 201]
    assert client.create({"size": "tiny"})["id"] == "r"
    assert len(Failing.keys) == 5
    assert len(set(Failing.keys)) == 1 != len({None, *Failing.keys})


def test_what_would_do_more_the_second_time_is_sent_once(client: Client) -> None:
    for lost in (
        lambda: client.delete("r"),
        lambda: client.purge("r"),
        lambda: client.task("r", {"task": "sample"}),
        lambda: client.change("r", {"notes": "x"}, revision=1),
    ):
        Failing.answers[:] = [LOST, 200]
        with pytest.raises(Unreachable):
            lost()
        assert Failing.answers == [200]


def test_a_refusal_is_final(client: Client) -> None:
    for status in (404, 409, 500):
        Failing.answers[:] = [status, 200]
        with pytest.raises(ApiError) as caught:
            client.run("r")
        assert (caught.value.status, Failing.answers) == (status, [200])


def test_patience_ends(client: Client) -> None:
    Failing.answers[:] = [503] * 3
    with Client(client.url, patience_s=0) as hasty, pytest.raises(ApiError, match="told"):
        hasty.run("r")
    assert len(Failing.answers) == 2


def test_a_connection_that_was_never_made_lets_anything_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("controlplane.client.patience.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("controlplane.client.sync.time.sleep", pauses.append)
    with Client("http://127.0.0.1:1", patience_s=0.01) as nobody, pytest.raises(Unreachable):
        nobody.delete("r")
    assert pauses
