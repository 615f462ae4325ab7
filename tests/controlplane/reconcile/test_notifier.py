"""Destinations hear of runs at least once, signed, whatever fails; nothing waits for them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from controlplane.domain.destinations import Destination, parse_destinations
from controlplane.reconcile import notifier as notifier_module
from controlplane.reconcile.notifier import KEPT_S, PATIENCE_S, PRUNE_S, Notifier
from controlplane.services.notifications import NotificationView, notifications
from controlplane.store.tables import Notice
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage

SECRET = "whsec_" + base64.b64encode(b"sixteen bytes or more").decode()


class Receiver:
    """A webhook's other end: what it has received, and what it answers."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.status, self.location = 200, ""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.send_header("location", receiver.location)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def destinations(*given: dict[str, Any]) -> list[Destination]:
    return parse_destinations({"destinations": list(given)})


def notifier(stage: Stage, *given: dict[str, Any]) -> Notifier:
    return Notifier(stage.context.store, destinations(*given), "http://here", clock=stage.clock, timeout_s=5)


def fail(stage: Stage) -> None:
    stage.look()
    stage.memory.run(stage.object)
    stage.look()
    stage.memory.end(stage.object, 2, termination={"rank": 0, "code": 2, "reason": "BadData", "last_lines": ["no"]})
    stage.look()
    assert stage.run.phase == "failed"


def told(stage: Stage) -> list[NotificationView]:
    return notifications(stage.context)


def test_a_failed_run_is_told_once_and_signed(stage: Stage, receiver: Receiver) -> None:
    stage.ask(name="first")
    fail(stage)
    sender = notifier(stage, {"name": "ops", "url": receiver.url, "secret": SECRET})
    assert not sender.step()
    assert not sender.step()
    ((headers, body),) = receiver.received
    told_of = json.loads(body)
    assert (told_of["type"], told_of["data"]["run"], told_of["data"]["reason"]) == ("run.failed", stage.id, "BadData")
    assert told_of["data"]["text"].startswith(
        "Run first has failed: BadData (rank 0 ended with exit code 2: no). The d"
    )
    assert told_of["data"]["text"].endswith(f"http://here/v1/runs/{stage.id}")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"sixteen bytes or more", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    (one,) = told(stage)
    assert (one.state, one.tries, one.answer, one.phase) == ("delivered", 1, "200 OK", "failed")


def test_what_is_not_taken_is_tried_again_under_the_same_id_later_each_time(stage: Stage, receiver: Receiver) -> None:
    stage.ask()
    fail(stage)
    receiver.status = 503
    sender = notifier(stage, {"name": "ops", "url": receiver.url})
    for pause in (5.0, 10.0, 20.0):
        assert sender.step()
        (one,) = told(stage)
        assert (one.state, one.answer) == ("waiting", "503 Service Unavailable")
        assert one.due_at is not None
        assert one.due_at.timestamp() - stage.clock.now == pause
        assert sender.step(), "and not before it is due"
        stage.clock.sleep(pause)
    receiver.status = 204
    restarted = notifier(stage, {"name": "ops", "url": receiver.url})  # a process that was killed meanwhile
    assert not restarted.step()
    assert told(stage)[0].state == "delivered"
    assert len(receiver.received) == 4
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1


class Dripping:
    """A receiver that answers `begun`, and then one byte after the other for as long as somebody reads."""

    def __init__(self, begun: bytes) -> None:
        self._begun, self._over = begun, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/hook"
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(self._begun)
                while not self._over.wait(0.02):
                    connection.sendall(b"x")

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@ON_SQLITE
@pytest.mark.parametrize(
    ("begun", "state", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\nx-more: ", "waiting", "no answer within 0.5 s"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n", "delivered", "200 OK"),
    ],
    ids=["headers", "body"],
)
def test_a_receiver_that_never_ends_its_answer_holds_up_nobody(
    stage: Stage, receiver: Receiver, begun: bytes, state: str, answer: str
) -> None:
    stage.ask()
    fail(stage)
    with closing(Dripping(begun)) as slow:
        given = destinations({"name": "slow", "url": slow.url}, {"name": "well", "url": receiver.url})
        began = time.monotonic()
        Notifier(stage.context.store, given, "http://here", clock=stage.clock, timeout_s=0.5).step()
        assert time.monotonic() - began < 20
    found = {one.destination: (one.state, one.answer) for one in told(stage)}
    assert found == {"slow": (state, answer), "well": ("delivered", "200 OK")}


@ON_SQLITE
def test_a_redirect_is_not_followed(stage: Stage, receiver: Receiver) -> None:
    stage.ask()
    fail(stage)
    receiver.status = 307
    receiver.location = receiver.url
    notifier(stage, {"name": "ops", "url": receiver.url}).step()
    assert [(one.state, one.answer) for one in told(stage)] == [("waiting", "307 Temporary Redirect")]
    assert len(receiver.received) == 1


@ON_SQLITE
def test_nobody_at_home_is_given_up_after_a_day_and_leaves_the_log_after_a_month(stage: Stage) -> None:
    stage.ask()
    fail(stage)
    sender = notifier(stage, {"name": "ops", "url": "http://127.0.0.1:9/"})
    assert sender.step()
    stage.clock.sleep(PATIENCE_S + 1)
    assert not sender.step()
    (one,) = told(stage)
    assert (one.state, one.tries, one.due_at) == ("given up", 2, None)
    stage.clock.sleep(KEPT_S + PRUNE_S)
    sender.step()
    assert told(stage) == []


@ON_SQLITE
def test_a_destination_hears_only_what_it_wants(stage: Stage, receiver: Receiver) -> None:
    stage.ask(labels={"team": "lm"})
    fail(stage)
    slack = {"name": "slack", "url": receiver.url, "format": "slack", "labels": {"team": "lm"}}
    others = {"name": "others", "url": receiver.url, "labels": {"team": "vision"}}
    starts = {"name": "starts", "url": receiver.url, "phases": ["running", "cancelled"], "labels": {}}
    notifier(stage, slack, others, starts).step()
    assert sorted((one.destination, one.phase) for one in told(stage)) == [("slack", "failed"), ("starts", "running")]
    bodies = [json.loads(body) for _, body in receiver.received]
    assert [*next(body for body in bodies if "text" in body)] == ["text"]


@ON_SQLITE
def test_a_command_of_the_configuration_gets_the_message_and_its_exit_code_decides(
    stage: Stage, tmp_path: Path
) -> None:
    stage.ask()
    fail(stage)
    kept = tmp_path / "kept"
    script = f"import sys, pathlib; pathlib.Path({str(kept)!r}).write_bytes(sys.stdin.buffer.read())"
    good = {"name": "good", "command": [sys.executable, "-S", "-c", script]}
    bad = {"name": "bad", "command": [sys.executable, "-S", "-c", "print('no pager'); raise SystemExit(3)"]}
    absent = {"name": "absent", "command": ["/no/such/program"]}
    notifier(stage, good, bad, absent).step()
    answers = {one.destination: (one.state, one.answer) for one in told(stage)}
    assert answers == {
        "good": ("delivered", "exit code 0"),
        "bad": ("waiting", "exit code 3: no pager"),
        "absent": ("waiting", "/no/such/program: No such file or directory"),
    }
    assert json.loads(kept.read_bytes())["type"] == "run.failed"


@ON_SQLITE
def test_a_destination_that_takes_nothing_keeps_its_arrears_to_itself(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, receiver: Receiver
) -> None:
    refusing = {"name": "refusing", "command": ["/no/such/program"], "labels": {"of": "refusing"}}
    sender = notifier(stage, refusing, {"name": "well", "url": receiver.url, "labels": {"of": "well"}})
    for one in range(5):
        stage.ask(name=f"run-{one}", labels={"of": "refusing"})
        fail(stage)
    sender.step()
    monkeypatch.setattr(notifier_module, "BATCH", 2)  # fewer than are due
    stage.clock.sleep(1)
    stage.ask(name="last", labels={"of": "well"})
    fail(stage)
    sender.step()
    assert [one.name for one in told(stage) if one.state == "delivered"] == ["last"]


@ON_SQLITE
def test_a_clock_that_is_set_back_holds_no_notification_up(stage: Stage, receiver: Receiver) -> None:
    stage.ask()
    fail(stage)
    receiver.status = 503
    sender = notifier(stage, {"name": "ops", "url": receiver.url})
    assert sender.step()
    stage.clock.sleep(-86_400)
    receiver.status = 200
    assert not sender.step()
    assert told(stage)[0].state == "delivered"


@ON_SQLITE
def test_without_destinations_notices_do_not_pile_up(stage: Stage) -> None:
    stage.ask()
    fail(stage)
    notifier(stage).step()
    with stage.context.store.read() as session:
        assert session.scalar(select(func.count()).select_from(Notice)) == 0
    assert told(stage) == []
