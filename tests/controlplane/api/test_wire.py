"""What only a real connection shows: bodies that are not read, clients that do not read."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.api import body
from controlplane.api.app import create_app
from controlplane.client import Client
from controlplane.settings import Streams
from tests.controlplane.plane import Plane, serving

DEADLINE_S = 60.0
HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def plane(tmp_path: Path) -> Generator[Plane]:
    plane = Plane(tmp_path / "home")
    plane.settings = replace(plane.settings, streams=Streams(poll_s=0.02, send_timeout_s=0.3))
    yield plane
    plane.store.close()


@pytest.fixture
def app(plane: Plane) -> Any:
    return create_app(plane.context, plane.settings)


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def read_all(wire: socket.socket) -> bytes:
    told = b""
    while chunk := wire.recv(1 << 16):
        told += chunk
    return told


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(app: Any) -> None:
    with serving(app) as url, connect(url) as wire:
        head = "POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        wire.sendall(f"{head}Content-Length: 10485760\r\n\r\n".encode())
        told = read_all(wire)
    assert told.startswith(b"HTTP/1.1 413 ")
    assert b'"body_too_large"' in told


def test_a_body_of_unknown_length_is_not_read_past_the_limit(app: Any) -> None:
    with serving(app) as url, connect(url) as wire:
        head = "POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        wire.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(5):
            wire.sendall(b"40000\r\n" + b" " * 0x40000 + b"\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_does_not_read_is_closed_and_costs_nothing_further(app: Any, plane: Plane) -> None:
    with serving(app) as url, Client(url) as client:
        run = client.create({"size": "tiny"})["id"]
        name = plane.start(run)
        plane.write(name, ("x" * 99 + "\n") * 200_000)
        with connect(url) as wire:
            wire.sendall(f"GET /runs/{run}/logs/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            deadline = time.monotonic() + DEADLINE_S
            opened = False
            while not opened or app.state.hub.open:
                opened = opened or bool(app.state.hub.open)
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert b"event: end" not in read_all(wire)
        plane.succeed(run)
        assert sum(1 for _ in client.stream_logs(run)) == 200_000


def test_a_client_that_leaves_frees_its_stream(app: Any) -> None:
    with serving(app) as url, Client(url) as client:
        run = client.create({"size": "tiny"})["id"]
        with connect(url) as wire:
            wire.sendall(f"GET /runs/{run}/events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert wire.recv(100).startswith(b"HTTP/1.1 200 ")
        deadline = time.monotonic() + DEADLINE_S
        while app.state.hub.open:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_client_that_reads_nothing_before_it_has_sent_all_is_told_why(app: Any) -> None:
    with serving(app) as url:
        large = b'{"size": "' + b"x" * 10_000_000
        reply = httpx.post(f"{url}/runs", content=large, headers={"content-type": "application/json"})
    assert reply.status_code == 413
    assert reply.json()["code"] == "body_too_large"


@pytest.mark.parametrize("path", ["/runs", "/sweeps", "/runs/first/cancel"])
def test_a_body_that_never_ends_is_refused_in_time_and_others_are_answered(
    app: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.5)
    with serving(app) as url, connect(url) as wire, Client(url) as client:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        )
        wire.sendall(head.encode() + b'{"size": "tiny", "name": "late"}')
        assert client.create({"size": "tiny", "name": "well"})["name"] == "well"
        told = read_all(wire)
        assert told.startswith(b"HTTP/1.1 408 ")
        assert b'"body_late"' in told
        assert [run["name"] for run in httpx.get(f"{url}/runs").json()["items"]] == ["well"]


@pytest.mark.parametrize(
    ("before", "begun"),
    [(b"", b""), (b"", b"GET /livez HTT"), (b"", HEAD), (HEAD + b"\r\n", b""), (HEAD + b"\r\n", HEAD)],
    ids=["nothing", "half a line", "half of its headers", "no second request", "half of the second"],
)
def test_a_connection_whose_headers_never_end_is_closed_and_others_are_answered(
    app: Any, before: bytes, begun: bytes
) -> None:
    with serving(app, idle_s=1) as url, connect(url) as wire:
        wire.sendall(before)
        told = b""
        while before and not told.endswith(b'{"live":true}'):
            told += wire.recv(1 << 16)
        wire.sendall(begun)
        since = time.monotonic()
        assert httpx.get(f"{url}/livez").status_code == 200
        assert read_all(wire) == b""
        assert 0.5 <= time.monotonic() - since <= DEADLINE_S / 2


def test_headers_that_dribble_gain_no_time_and_a_request_that_takes_long_loses_none(app: Any, plane: Plane) -> None:
    with serving(app, idle_s=1) as url, connect(url) as slow, Client(url) as client, connect(url) as follower:
        run = client.create({"size": "tiny"})["id"]
        follower.sendall(f"GET /runs/{run}/events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        slow.sendall(HEAD)
        since = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - since < DEADLINE_S / 2 and slow not in select.select([slow], [], [], 0.1)[0]:
                slow.sendall(b"x")
        assert 0.5 <= time.monotonic() - since <= DEADLINE_S / 4
        plane.end(run)
        assert b"event: end" in read_all(follower)


def test_no_run_is_made_of_a_body_whose_end_never_came(app: Any) -> None:
    with serving(app) as url, Client(url) as client:
        with connect(url) as wire:
            head = (
                "POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
            )
            wire.sendall(head.encode() + b'{"size": "tiny", "name": "cut"}')
        client.create({"size": "tiny", "name": "well"})
        assert [run["name"] for run in httpx.get(f"{url}/runs").json()["items"]] == ["well"]
